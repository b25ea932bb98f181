"""The card beside a saved model, read as the hub reads it and followed as a reader follows it."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from tests.fixtures.finished_run import finished_run
from trainer.report.model_card import write_model_card


def write(folder, run, **options):
    write_model_card(folder, run.spec, run.summary, run.before, run.after, **options)
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize(("lora", "relation"), [(False, "finetune"), (True, "adapter")])
def test_front_matter_names_a_base_model_of_the_hub(tmp_path, lora, relation):
    data = write(tmp_path, finished_run(lora=lora, model="CompVis/stable-diffusion-v1-4")).data
    assert data.base_model == "CompVis/stable-diffusion-v1-4"
    assert data.base_model_relation == relation
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "text-to-image"
    assert {"ddpo", "reinforcement-learning"} <= set(data.tags)
    assert ("lora" in data.tags) == lora


def test_a_local_base_model_is_named_in_the_text_alone(tmp_path):
    card = write(tmp_path, finished_run(model="/models/tiny"))
    assert card.data.base_model is None
    assert "`/models/tiny`, fine-tuned with DDPO to maximise\n`brightness`." in card.text


def test_rewards_before_and_after_are_a_table(tmp_path):
    run = finished_run(rewards=("brightness", "second"))
    card = write(tmp_path, run)
    entry = run.summary["rewards"]["brightness"]
    low, high = entry["ci95"]
    (row,) = re.findall(r"^\| `brightness` \|.*$", card.text, re.M)
    assert row.endswith(f"| +{entry['effect_size']:.2f} [{low:.2f}, {high:.2f}] | 19 |")
    assert f"{entry['before']['mean']:.4f} ± {entry['before']['std']:.4f}" in row
    assert re.search(r"^\| `second` \|.*\| 20 \|$", card.text, re.M)


def test_the_sum_says_what_is_normalised_and_the_table_what_was_not_trained_on(tmp_path):
    run = finished_run(("brightness", "second"), eval_rewards=("unseen",), normalize="group")
    text = " ".join(write(tmp_path, run).text.split())
    group = "(normalised over the samples of each prompt)"
    assert f"to maximise `brightness` {group} + `second` {group}." in text
    assert "| `unseen` (not trained on) |" in text


def test_scores_of_two_versions_are_warned_of(tmp_path):
    text = " ".join(write(tmp_path, finished_run(versions=("1", "2"))).text.split())
    assert "**Warning:** brightness scored as version 1 before training and as version 2" in text
    assert "alone. Mean ± standard deviation" in text
    assert "Warning" not in write(tmp_path, finished_run()).text


def test_what_evaluation_found_during_training_is_told(tmp_path):
    best = {"iteration": 4, "metric": "eval/brightness/mean", "value": 0.625}
    run = finished_run(during=[(4, {"eval/kl": 0.5})], best=best)
    text = write(tmp_path, run).text
    assert "The model with the highest eval/brightness/mean, 0.6250 (after iteration 4)" in text
    assert "| `iteration` | `eval/brightness/mean` | `eval/kl` |\n|---|---|---|\n| 0 |" in text
    assert "## During training" not in write(tmp_path, finished_run()).text


def test_the_best_model_says_why_it_is_kept(tmp_path):
    best = {"iteration": 6, "metric": "eval/brightness/mean", "value": 0.625}
    text = write(tmp_path, finished_run(best=best, unit="kB"), is_best=True).text
    assert "found a higher `eval/brightness/mean`: 0.6250 kB.\n\n![" in text
    assert "best/" not in text


def test_every_hyperparameter_is_listed(tmp_path):
    run = finished_run(lora=True)
    card = write(tmp_path, run)
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `(.*)` \|$", card.text, re.M))
    assert listed["lora.rank"] == "4"
    assert float(listed["learning_rate"]) == run.spec.algorithm.learning_rate
    assert set(type(run.spec.algorithm).model_fields) - {"name", "lora"} <= set(listed)


def test_its_picture_is_there(tmp_path):
    card = write(tmp_path, finished_run(samples=3))
    (name,) = re.findall(r"!\[.*\]\((.*)\)", card.text)
    with Image.open(tmp_path / name) as picture:
        picture.load()
        assert picture.width == 1200


@pytest.mark.parametrize(
    ("lora", "scheduler"), [(False, "ddim"), (True, "ddpm")], ids=["whole", "lora"]
)
def test_how_to_load_it_works_as_written(tmp_path, diffusion, pipeline_folder, lora, scheduler):
    if lora:
        diffusion.add_lora(rank=2, alpha=2.0, target_modules=["to_q"], seed=0)
    trained = diffusion.use_scheduler(scheduler)
    diffusion.save(tmp_path)
    run = finished_run(lora=lora, model=str(pipeline_folder))
    algorithm = run.spec.algorithm.model_copy(update={"scheduler": scheduler})
    spec = run.spec.model_copy(update={"algorithm": algorithm})
    card = write(tmp_path, replace(run, spec=spec))
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    names = {}
    exec(code.replace("path/to/this/folder", str(tmp_path)), names)
    assert names["image"].size == (16, 16)
    sampler = type(names["pipeline"].scheduler).__name__
    assert sampler == {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}[scheduler]
    config = names["pipeline"].scheduler.config
    assert {key: value for key, value in trained.config.items() if key[0] != "_"}.items() <= (
        config.items()
    )
    assert ("eta=" in code) == (scheduler == "ddim")
    assert bool(names["pipeline"].get_active_adapters()) == lora
