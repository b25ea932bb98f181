"""When evaluations are due, that none is done twice, and what is kept of them."""

import json
from concurrent.futures import Future

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from tests.fixtures.finished_run import finished_run
from tests.fixtures.rows import bare
from trainer.evaluation.evaluations import Best, Evaluations
from trainer.evaluation.held_out import Evaluation
from trainer.result import save_model
from trainer.rewards.scorer import ScoredBatch
from trainer.runtime.run_folder import RunFolder
from trainer.spec.stopping import StopRule

PROMPTS = ["x", "y"]
COUNTS = {"job": "brighter-1a2b", "algorithm": "ddpo", "iterations": 2, "samples": 8, "seconds": 1}


class Model:
    """What it generates and saves is a number that a test sets."""

    def __init__(self):
        self.value = 0
        self.generated = 0

    def generate(self, prompts, seeds):
        self.generated += len(prompts)
        return np.full((len(prompts), 2, 2, 3), self.value, np.uint8)

    def save(self, folder):
        (folder / "model.txt").write_text(str(self.value))


class ValueScorer:
    def submit(self, images, prompts, metadata=None, references=None):
        scores = images.mean(axis=(1, 2, 3)).astype(float)
        future = Future()
        future.set_result(
            ScoredBatch({"brightness": scores}, scores >= 0, (), {"brightness": ("1",)})
        )
        return future


def make_spec(iterations=6, every=2, rules=(), keep_best="eval/brightness/mean"):
    spec = finished_run(iterations=iterations).spec
    section = spec.evaluation.model_copy(
        update={"prompts": bare(PROMPTS), "samples": 4, "every": every, "keep_best": keep_best}
    )
    return spec.model_copy(update={"evaluation": section, "stop_when": list(rules)})


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path, fence=lambda: None)


def attempt(folder, spec, iteration=0):
    model = Model()
    evaluations = Evaluations(spec, model, ValueScorer(), folder, None, lambda: None)
    evaluations.restore(iteration)
    return model, evaluations


def run(model, evaluations, values):
    """Evaluate (iteration, value of the model) in turn."""

    def save(folder, evaluation):
        summary = {**COUNTS, **evaluations.summary()}
        save_model(folder, evaluations, summary, evaluation, is_best=True)

    for iteration, value in values:
        model.value = value
        evaluation = evaluations.run(iteration, save)
    return evaluation


@pytest.mark.parametrize(
    ("every", "due"), [(None, [0, 7]), (3, [0, 3, 6, 7]), (7, [0, 7]), (100, [0, 7])]
)
def test_when_they_are_due(folder, every, due):
    _, evaluations = attempt(folder, make_spec(iterations=7, every=every))
    assert [i for i in range(8) if evaluations.due(i)] == due


def test_pictures_are_kept_of_the_first_and_the_last_alone(folder):
    model, evaluations = attempt(folder, make_spec())
    run(model, evaluations, [(0, 10), (2, 20), (4, 30), (6, 40)])
    paths = sorted((folder.path / "evaluation").iterdir())
    assert [len(Evaluation.load(path).images) for path in paths] == [4, 0, 0, 4]
    assert [e["eval/brightness/mean"] for e in evaluations.history()] == [10, 20, 30, 40]
    assert (evaluations.before.images == 10).all()
    assert (evaluations.last.images == 40).all()
    assert len(load_file(paths[1])["scores.brightness"]) == 4


def test_what_is_evaluated_now_is_returned_with_its_pictures(folder):
    model, evaluations = attempt(folder, make_spec(keep_best=None))
    assert len(run(model, evaluations, [(2, 0)]).images) == 4


def test_an_evaluation_that_was_done_is_not_done_again(folder):
    spec = make_spec()
    model, evaluations = attempt(folder, spec)
    run(model, evaluations, [(0, 10), (2, 20), (4, 5)])
    model, resumed = attempt(folder, spec, iteration=4)
    run(model, resumed, [(4, 99)])
    assert model.generated == 0
    assert resumed.history() == evaluations.history()
    assert resumed.best == evaluations.best == Best(2, "eval/brightness/mean", 20.0)


def test_what_a_lost_checkpoint_was_evaluated_for_is_evaluated_anew(folder):
    spec = make_spec()
    run(*attempt(folder, spec), [(0, 10), (2, 20), (4, 30)])
    model, resumed = attempt(folder, spec, iteration=2)
    assert [e["iteration"] for e in resumed.history()] == [0, 2]
    assert not (folder.path / "best").exists(), "its model is that of a later iteration"
    run(model, resumed, [(2, 20), (4, 31)])
    assert model.generated == 4
    assert resumed.history()[-1]["eval/brightness/mean"] == 31


def test_the_best_trained_model_is_kept(folder):
    model, evaluations = attempt(folder, make_spec(iterations=8))
    # The model as it came is better than all, and lies where it came from.
    run(model, evaluations, [(0, 90), (2, 20), (4, 70), (6, 70), (8, 60)])
    assert evaluations.best == Best(4, "eval/brightness/mean", 70.0)
    assert (folder.path / "best" / "model.txt").read_text() == "70"
    kept = json.loads((folder.path / "best" / "best.json").read_text())
    assert kept == {"iteration": 4, "metric": "eval/brightness/mean", "value": 70.0}


@pytest.mark.parametrize("lost", ["evaluation/000002.safetensors", "best/best.json"])
def test_an_attempt_that_dies_while_it_keeps_the_best_model_has_it_kept_by_the_next(folder, lost):
    spec = make_spec()
    model, evaluations = attempt(folder, spec)
    run(model, evaluations, [(0, 10), (2, 20)])
    # The model is kept first: an evaluation without it there was never written.
    (folder.path / "evaluation" / "000002.safetensors").unlink()
    (folder.path / lost).unlink(missing_ok=True)
    model, resumed = attempt(folder, spec, iteration=2)
    run(model, resumed, [(2, 20)])
    assert resumed.best == evaluations.best
    assert (folder.path / "best" / "best.json").exists()
    assert resumed.history() == evaluations.history()


def test_the_best_model_has_a_card_of_what_it_was_then(folder):
    run(*attempt(folder, make_spec()), [(0, 10), (2, 20), (4, 15)])
    card = ModelCard.load(folder.path / "best" / "README.md").text
    assert "a higher `eval/brightness/mean`: 20." in card
    assert "| `brightness` | 10 ± 0 | 20 ± 0 |" in card
    assert (folder.path / "best" / "before_after.png").exists()


def test_nothing_is_kept_unasked(folder):
    run(*attempt(folder, make_spec(keep_best=None)), [(0, 10), (2, 20)])
    assert not (folder.path / "best").exists()


def test_a_rule_stops_at_the_same_evaluation_whether_resumed_or_not(folder):
    rule = StopRule(metric="eval/brightness/mean", drop=10, patience=2)
    spec = make_spec(iterations=20, rules=[rule])
    model, evaluations = attempt(folder, spec)
    run(model, evaluations, [(0, 10), (2, 60), (4, 40)])
    assert evaluations.stop is None
    model, resumed = attempt(folder, spec, iteration=4)
    run(model, resumed, [(4, 40), (6, 30)])
    assert (resumed.stop.iteration, resumed.stop.values) == (6, [40.0, 30.0])
    assert len(resumed.last.images) == 4, "the last one, as it turned out"
    _, again = attempt(folder, spec, iteration=6)
    assert again.stop == resumed.stop
    assert len(again.last.images) == 4
