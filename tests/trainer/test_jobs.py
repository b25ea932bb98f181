"""The jobs that are ready to submit: the paper's values at full size, and a twin that runs here."""

from pathlib import Path

import pytest

from tests.fixtures.rows import texts
from trainer.spec.file import load_spec
from trainer.spec.prompts.sets import prompt_set

JOBS = Path(__file__).parents[2] / "jobs"
FULL = sorted(path for path in JOBS.glob("*.yaml") if not path.stem.endswith("-tiny"))
TASKS = {
    "compressibility": ("jpeg_compressibility", "imagenet-animals"),
    "incompressibility": ("jpeg_incompressibility", "imagenet-animals"),
    "aesthetic": ("aesthetic", "animals"),
    "alignment": ("caption_bertscore", "animal-activities"),
}

# Black et al. 2023, appendix D.5, the column of DDPO-IS; and what jannerm/ddpo adds to it.
DDPO_D5 = {
    "sampling_steps": 50,
    "guidance_scale": 5.0,
    "learning_rate": 1e-5,
    "weight_decay": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "samples_per_iteration": 256,
    "updates_per_iteration": 4,
    "clip_range": 1e-4,
}
DDPO_CODE = {
    "eta": 1.0,
    "inner_epochs": 1,
    "advantage_clip": 10.0,
    "per_prompt_buffer": 32,
    "per_prompt_min_count": 16,
}


@pytest.mark.parametrize("task", TASKS)
def test_ddpo_has_the_papers_hyperparameters(task):
    spec = load_spec(JOBS / f"ddpo-{task}.yaml", [])
    reward, prompts = TASKS[task]
    assert spec.model == "CompVis/stable-diffusion-v1-4"
    assert [entry.name for entry in spec.rewards] == [reward]
    assert texts(spec.prompts) == prompt_set(prompts)
    values = spec.algorithm.model_dump()
    assert {key: values[key] for key in DDPO_D5 | DDPO_CODE} == DDPO_D5 | DDPO_CODE
    assert spec.algorithm.lora is None
    # The paper's curves end at 50,000 queries of the reward.
    assert 50_000 <= spec.iterations * spec.algorithm.samples_per_iteration < 52_000


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_a_job_has_a_twin_that_runs_here(path, monkeypatch):
    monkeypatch.chdir(JOBS.parent)
    full, tiny = load_spec(path, []), load_spec(path.with_name(f"{path.stem}-tiny.yaml"), [])
    assert Path(tiny.model).name == "tiny-sd-digits"
    assert tiny.rewards == full.rewards
    assert tiny.algorithm.name == full.algorithm.name
    assert (full.name, tiny.name) == (path.stem, f"{path.stem}-tiny")
