"""What docs/ddpo.md and docs/rwr.md show works as shown, and their tables are those of the code."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from salon import RewardClient
from trainer.ddpo.config import DDPOConfig, DDPOJob
from trainer.denoising.config import DenoisingConfig
from trainer.options import PAGES, render
from trainer.spec.file import load_spec
from trainer.spec.prompts.sets import set_names

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "ddpo.md").read_text(encoding="utf-8")
REDNESS, DIFFUSERS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SERVE, RUN = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
JOB, WATCH, CARRIED = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title):
    """The cells of the table rows of a section, without its header."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_reward_of_the_page_is_served_and_scored_with(start_service, tmp_path):
    assert "`redness.py`" in PAGE
    assert len(REDNESS.splitlines()) <= 30
    (tmp_path / "redness.py").write_text(REDNESS)
    _, safe, dash_m, services, module, port, _ = shlex.split(SERVE)
    assert (safe, dash_m, services, port) == ("-P", "-m", "services", "--port")
    service = start_service(module, folder=tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    with RewardClient(service.target) as client:
        outcomes = client.score(images, reward="redness")
    means = images.mean(axis=(1, 2))
    expected = means[:, 0] - means[:, 1:].mean(axis=1)
    assert [outcome.score for outcome in outcomes] == pytest.approx(expected.tolist())


def test_the_job_of_the_page_is_valid_and_asks_for_the_reward_where_it_is_served(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(DOCS.parent)
    (tmp_path / "redness.yaml").write_text(JOB)
    spec = load_spec(tmp_path / "redness.yaml", [])
    assert Path(spec.model).is_dir()
    assert [reward.name for reward in spec.rewards] == ["redness"]
    setting, _, *command = shlex.split(RUN)
    name, _, targets = setting.partition("=")
    assert name == "SALON_REWARD_TARGETS"
    assert json.loads(targets) == {"redness": f"127.0.0.1:{shlex.split(SERVE)[-1]}"}
    assert command == ["run", "redness.yaml"]


def test_the_watch_of_the_page_is_valid_in_that_job(monkeypatch, tmp_path):
    monkeypatch.chdir(DOCS.parent)
    (tmp_path / "watched.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(JOB) | yaml.safe_load(WATCH))
    )
    spec = load_spec(tmp_path / "watched.yaml", [])
    assert spec.evaluation.every == 10
    assert len(spec.stop_when) == 2
    assert Path(spec.evaluation.diversity_model).is_dir()


def test_what_a_prompt_carries_on_the_page_is_valid_in_that_job(monkeypatch, tmp_path):
    monkeypatch.chdir(DOCS.parent)
    (tmp_path / "targets").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "targets" / "wolves.png")
    path = tmp_path / "carried.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(JOB) | yaml.safe_load(CARRIED)))
    bare, wolves = load_spec(path, []).prompts
    assert (bare.is_bare, wolves.is_bare) == (True, False)
    assert wolves.metadata.keys() == {"questions", "answers"}
    assert wolves.reference == str(tmp_path / "targets" / "wolves.png")


def test_the_result_is_loaded_as_shown(monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    code, replaced = re.subn(r'"runs/[^"]*"', '"models/tiny-sd-digits"', DIFFUSERS)
    assert replaced == 1
    scope = {}
    exec(code, scope)
    assert scope["image"].size == (32, 32)


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_options_are_those_of_the_code(name):
    page = (DOCS / name).read_text(encoding="utf-8")
    assert render(page) == page, "run python -m trainer.options"


def test_the_table_of_sources_has_every_hyperparameter_of_ddpo():
    named = {
        key for row in rows("Where each value comes from") for key in re.findall(r"`(\w+)`", row[0])
    }
    fields = {*DDPOConfig.model_fields} | {*DDPOJob.model_fields}
    assert named <= fields
    assert {*DDPOConfig.model_fields} - {*DenoisingConfig.model_fields} - {"name"} <= named


@pytest.mark.parametrize(
    ("key", "cell"),
    [
        ("samples_per_iteration", "256"),
        ("sample_batch_size", "8"),
        ("sampling_steps", "50"),
        ("guidance_scale", "5"),
        ("updates_per_iteration", "4"),
        ("inner_epochs", "1"),
        ("max_grad_norm", "1"),
        ("advantage_clip", "10"),
        ("per_prompt_buffer", "32"),
        ("per_prompt_min_count", "16"),
    ],
)
def test_the_defaults_in_the_table_of_sources_are_those_of_the_code(key, cell):
    (row,) = [row for row in rows("Where each value comes from") if row[0] == f"`{key}`"]
    assert row[1] == cell
    assert float(cell) == getattr(DDPOConfig(), key)


def test_all_prompt_sets_are_listed():
    listed = [re.findall(r"`([\w-]+)`", row[0]) for row in rows("Prompts")]
    assert sorted(name for names in listed for name in names) == set_names()


@pytest.mark.parametrize("name", PAGES)
def test_every_local_link_leads_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (DOCS / name).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []


def test_the_jobs_of_the_page_have_the_prompts_and_rewards_it_says():
    for job, prompts, reward, held_out in rows("The paper's tasks")[:4]:
        (path,) = re.findall(r"\((.*?)\)", job)
        values = yaml.safe_load((DOCS / path).read_text(encoding="utf-8"))
        assert f"`{values['prompts']}`" == prompts
        assert reward.startswith(f"[{values['rewards'][0]['name']}]")
        assert f"`{values['evaluation']['prompts']}`" == held_out
