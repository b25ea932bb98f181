"""What a spec may ask of evaluation, trackers and the hub, and what it is told otherwise."""

import pytest
import yaml

from salon.errors import InvalidRequest
from trainer.spec.file import load_spec
from trainer.spec.sections import EvaluationSpec


def load(tmp_path, evaluation=None, **changes):
    spec = {
        "name": "tiny",
        "model": "a/b",
        "prompts": ["one", "two"],
        "rewards": [{"name": "size"}, {"name": "noise", "weight": -1}],
        "eval_rewards": ["clip_score"],
        "iterations": 4,
        "algorithm": {"name": "ddpo"},
        "evaluation": {"prompts": ["six"], "every": 2, **(evaluation or {})},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec | changes))
    return load_spec(path, [])


def test_what_is_measured_depends_on_what_is_asked_for():
    spec = EvaluationSpec(prompts=["a"])
    assert spec.metrics(["r", "s"]) == ["eval/r/mean", "eval/s/mean"]
    spec = EvaluationSpec(prompts=["a"], kl=True, diversity_model="some/clip")
    assert spec.metrics(["r"]) == ["eval/r/mean", "eval/diversity", "eval/kl"]


def test_rules_on_what_is_measured_are_valid(tmp_path):
    rules = [{"metric": "eval/clip_score/mean", "drop": 0.1}, {"metric": "eval/kl", "above": 5}]
    evaluation = {"kl": True, "keep_best": "eval/clip_score/mean"}
    spec = load(tmp_path, evaluation, stop_when=rules, trackers=["wandb"], push_to_hub="me/it")
    assert [rule.metric for rule in spec.stop_when] == ["eval/clip_score/mean", "eval/kl"]
    assert load(tmp_path, spec.evaluation.model_dump(), stop_when=rules).stop_when == spec.stop_when


def test_a_diversity_model_that_is_a_folder_becomes_an_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = load(tmp_path, {"diversity_model": "clip"})
    assert spec.evaluation.diversity_model == str(tmp_path / "clip")
    assert load(tmp_path, {"diversity_model": "org/clip"}).evaluation.diversity_model == "org/clip"


@pytest.mark.parametrize(
    ("evaluation", "changes", "words"),
    [
        (
            {},
            {"stop_when": [{"metric": "eval/clip_scor/mean", "drop": 1}]},
            "stop_when.0.metric: eval/clip_scor/mean is not measured; did you mean "
            "eval/clip_score/mean?",
        ),
        (
            {},
            {"stop_when": [{"metric": "eval/kl", "above": 1}]},
            "eval/kl is not measured; set evaluation.kl: true",
        ),
        ({"keep_best": "kl"}, {}, "evaluation.keep_best: kl is not measured"),
        (
            {"every": None, "keep_best": "eval/size/mean"},
            {},
            "evaluation.keep_best: there is nothing to watch between before and after: set "
            "evaluation.every",
        ),
        ({"kl": True, "keep_best": "eval/kl"}, {}, "the highest eval/kl is the worst here"),
        ({"keep_best": "eval/noise/mean"}, {}, "the highest eval/noise/mean is the worst here"),
        ({}, {"stop_when": [{"metric": "eval/size/mean"}]}, "one of drop, below and above"),
        (
            {},
            {"stop_when": [{"metrik": "eval/size/mean", "drop": 1}]},
            "did you mean stop_when.0.metric?",
        ),
        ({"every": 0}, {}, "evaluation.every"),
        ({}, {"trackers": ["mlflow"]}, "'wandb' or 'trackio'"),
        ({}, {"push_to_hub": "no-owner"}, "push_to_hub"),
    ],
)
def test_what_cannot_be_done_is_said_at_submit(tmp_path, evaluation, changes, words):
    with pytest.raises(InvalidRequest) as refused:
        load(tmp_path, evaluation, **changes)
    assert words in str(refused.value)
