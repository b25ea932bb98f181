import math
from concurrent.futures import Future

import numpy as np
import pytest

from trainer.evaluation.diversity import ImageEmbedder
from trainer.evaluation.held_out import Evaluation, evaluate, version_warnings
from trainer.rewards.scorer import ScoredBatch
from trainer.runtime.interrupt import Cause, Interrupted
from trainer.runtime.run_folder import RunFolder
from trainer.spec.sections import EvaluationSpec


def test_an_evaluation_comes_back_as_it_was(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    scores = {"jpeg": np.array([1.5, math.nan, -2.0])}
    versions, measures = {"jpeg": ["1", "2"]}, {"kl": 0.1}
    saved = Evaluation(["a", "b ü", "c"], [0, 1, 2], images, scores, versions, measures)
    saved.save(RunFolder(tmp_path, fence=lambda: None), "evaluation/before.safetensors")
    loaded = Evaluation.load(tmp_path / "evaluation" / "before.safetensors")
    assert (loaded.prompts, loaded.seeds) == (saved.prompts, saved.seeds)
    assert (loaded.versions, loaded.measures) == (versions, measures)
    assert np.array_equal(loaded.images, images)
    assert np.array_equal(loaded.scores["jpeg"], scores["jpeg"], equal_nan=True)


def test_metrics_leave_out_errors_and_what_was_not_measured():
    scores = {"a": np.array([1.0, math.nan, 3.0]), "b": np.array([math.nan] * 3)}
    images = np.zeros((3, 2, 2, 3), np.uint8)
    evaluation = Evaluation(["x"] * 3, [0, 1, 2], images, scores, measures={"kl": 0.5})
    assert evaluation.metrics == {"eval/a/mean": 2.0, "eval/a/std": 2**0.5, "eval/kl": 0.5}
    assert evaluation.without_images().metrics == evaluation.metrics
    assert evaluation.without_images().images.shape == (0, 2, 2, 3)


class ChangingScorer:
    """Each batch is scored by the next version of `r`."""

    def __init__(self):
        self._batches = 0
        self.sent = []

    def submit(self, images, prompts, metadata=None, references=None):
        self._batches += 1
        self.sent.append((list(prompts), metadata, references))
        every = np.ones(len(images))
        versions = {"r": (str(self._batches),), "s": ("1",)}
        future = Future()
        future.set_result(ScoredBatch({"r": every, "s": every}, every > 0, (), versions))
        return future


class Blank:
    """Generates black images, and tells each one's seed as its divergence."""

    def kl(self, prompts, seeds):
        return np.array(seeds, dtype=np.float64)

    def generate(self, prompts, seeds):
        return np.zeros((len(prompts), 2, 2, 3), np.uint8)


def test_an_evaluation_knows_every_version_that_scored_it():
    spec = EvaluationSpec(prompts=["a"], samples=4, batch_size=2)
    evaluation = evaluate(Blank(), ChangingScorer(), spec)
    assert evaluation.versions == {"r": ["1", "2"], "s": ["1"]}


def test_an_evaluation_sends_what_its_rows_carry_and_keeps_their_prompts():
    rows = ["a", {"prompt": "a", "metadata": {"of": 1}}, {"prompt": "b", "reference": "/x.png"}]
    spec = EvaluationSpec(prompts=rows, samples=4, batch_size=2)
    scorer = ChangingScorer()
    evaluation = evaluate(Blank(), scorer, spec)
    assert scorer.sent == [
        (["a", "a"], [None, {"of": 1}], None),
        (["b", "a"], None, ["/x.png", None]),
    ]
    assert evaluation.prompts == ["a", "a", "b", "a"]


def test_divergence_and_diversity_are_measured_where_the_spec_asks_for_them(clip_folder):
    spec = EvaluationSpec(prompts=["a"], samples=5, batch_size=2, kl=True)
    embedder = ImageEmbedder.load(str(clip_folder), "cpu", batch_size=2)
    evaluation = evaluate(Blank(), ChangingScorer(), spec, embedder)
    assert evaluation.measures == {"diversity": pytest.approx(0, abs=1e-6), "kl": 2.0}


def test_an_evaluation_can_be_ended_between_two_batches():
    checks = []

    def check():
        checks.append(len(checks))
        if len(checks) == 2:
            raise Interrupted(Cause.PREEMPTED)

    scorer = ChangingScorer()
    with pytest.raises(Interrupted):
        evaluate(Blank(), scorer, EvaluationSpec(prompts=["a"], batch_size=2), check=check)
    assert scorer._batches == 1


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (["1"], ["1"], None),
        (["1"], ["2"], "r scored as version 1 before training and as version 2 after it"),
        (["1", "2"], ["2"], "as version 1 and 2 before training and as version 2 after it"),
    ],
)
def test_scores_of_two_versions_are_warned_of(before, after, words):
    def evaluation(versions):
        met = {"s": ["1"], "r": versions}
        return Evaluation([], [], np.zeros((0, 2, 2, 3), np.uint8), {}, met)

    warnings = version_warnings(evaluation(before), evaluation(after))
    assert len(warnings) == (words is not None)
    assert all(words in warning for warning in warnings)
