"""The loop with an algorithm that is one number: what it writes, and what an interrupt leaves."""

import json
import math
import shutil
import sys
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from salon.errors import InvalidRequest
from salon.jobs.lease import acquire
from salon.jobs.store import JobStore
from tests.fixtures.finished_run import finished_run
from trainer.algorithm import Preview, State, Step
from trainer.evaluation.evaluations import Evaluations
from trainer.loop import Loop
from trainer.rewards.scorer import ScoredBatch
from trainer.rewards.versions import RewardVersions
from trainer.runtime.checkpoints import Checkpoints
from trainer.runtime.interrupt import Cause, Interrupt, Interrupted
from trainer.runtime.metrics_file import read_metrics
from trainer.runtime.run_folder import RunFolder, RunFolderUnusable
from trainer.spec.job_spec import read_record
from trainer.spec.stopping import StopRule
from trainer.tracking.tracker import Tracker

REWARD = "brightness"


class Counter:
    """Each iteration makes two updates, which add to a weight; images are as bright as that."""

    def __init__(self, interrupt):
        self.weight = torch.zeros(1)
        self.step_size = 10
        self.interrupted_at = self.interrupted_evaluation = None
        self.generated = []
        self.measured, self.divergence = {}, 0.0
        self._interrupt = interrupt
        self._steps = 0

    def step(self):
        for update in range(2):
            if (self._steps, update) == self.interrupted_at:
                self._interrupt.set(Cause.PREEMPTED)
            self._interrupt.check()
            self.weight += self.step_size / 2
        self._steps += 1
        return Step(4, 0.0, {"weight": float(self.weight)} | self.measured)

    def generate(self, prompts, seeds):
        self.generated.append(self._steps)
        if self.interrupted_evaluation == self._steps:
            self._interrupt.set(Cause.PREEMPTED)
        return np.full((len(prompts), 4, 4, 3), int(self.weight), np.uint8)

    def kl(self, prompts, seeds):
        return np.full(len(prompts), float(self.weight) / 10 + self.divergence)

    def preview(self):
        return Preview(np.zeros((1, 4, 4, 3), np.uint8), ("p",), (0,))

    def save(self, folder):
        (folder / "weight.txt").write_text(str(float(self.weight)))

    def state_dict(self):
        return State(tensors={"weight": self.weight.clone()}, state={"steps": self._steps})

    def load_state_dict(self, state):
        self.weight, self._steps = state["tensors"]["weight"].clone(), state["state"]["steps"]


class Scorer:
    def submit(self, images, prompts, metadata=None, references=None):
        scores = images.mean(axis=(1, 2, 3)).astype(float) + np.arange(len(images))
        future = Future()
        future.set_result(ScoredBatch({REWARD: scores}, scores >= 0, (), {REWARD: ("1",)}))
        return future


def make_spec(**changes):
    values = finished_run(iterations=6).spec.model_dump(mode="json")
    values["evaluation"] |= {"samples": 4, "batch_size": 4, "every": 2, "kl": True}
    values["evaluation"] |= changes.pop("evaluation", {})
    return read_record(values | {"checkpoint_every": 100} | changes)


class Attempts:
    """Attempts at one job, each a process's worth of objects on the same folder."""

    def __init__(self, folder, client):
        self.store = JobStore(client)
        self.job = self.store.submit("tiny", {}).id
        self.lease = acquire(client, self.job, "w", str(folder), 60, 3)
        self.folder = RunFolder(folder, fence=lambda: None)

    def run(self, spec, **settings):
        interrupt = Interrupt()
        algorithm = Counter(interrupt)
        vars(algorithm).update(settings)
        evaluations = Evaluations(spec, algorithm, Scorer(), self.folder, None, interrupt.check)
        checkpoints = Checkpoints(self.folder, 1, 2)
        versions = RewardVersions()
        parts = (evaluations, self.folder, checkpoints, interrupt, versions, self.lease)
        loop = Loop(self.job, spec, algorithm, *parts)
        with Tracker(self.job, spec, self.folder, self.lease, loop.iteration) as tracker:
            loop.run(tracker)
        return algorithm

    def events(self, kind):
        return [event.data for event in self.store.events(self.job) if event.kind == kind]

    def summary(self):
        return json.loads((self.folder.path / "summary.json").read_text())

    def lines(self):
        text = (self.folder.path / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def attempts(tmp_path, redis_client):
    return Attempts(tmp_path / "run", redis_client)


def test_a_run_is_evaluated_as_often_as_asked_and_says_so_everywhere(attempts):
    algorithm = attempts.run(make_spec())
    assert algorithm.generated == [0, 2, 4, 6]
    history = attempts.summary()["evaluations"]
    assert [entry["iteration"] for entry in history] == [0, 2, 4, 6]
    assert [entry["eval/brightness/mean"] for entry in history] == [1.5, 21.5, 41.5, 61.5]
    assert [entry["eval/kl"] for entry in history] == [0, 2, 4, 6]
    lines = [line for line in attempts.lines() if "samples" not in line]
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines] == history
    assert [e["iteration"] for e in read_metrics(attempts.folder)] == [1, 2, 3, 4, 5, 6]
    told = attempts.events("evaluation")
    assert [event["iteration"] for event in told] == [0, 2, 4, 6]
    assert told[1]["text"] == (
        "evaluated after iteration 2: brightness 1.5 ± 1.3 → 21.5 ± 1.3, effect size +15.49, "
        "without an interval (4 images are fewer than the 5 it takes); kl 2.00"
    )
    assert told[0]["text"] == "evaluated before training: brightness 1.5 ± 1.3; kl 0"
    summary = attempts.summary()
    expected = {key: summary[key] for key in ("rewards", "eval_rewards")}
    assert attempts.events("result") == [expected]


def test_a_run_whose_folder_is_removed_ends_by_saying_so(attempts, tmp_path):
    folder = tmp_path / "run"

    steps = []

    def step():
        steps.append(len(steps))
        if len(steps) == 3:
            shutil.rmtree(folder)
        return Step(4)

    with (
        attempts.folder.held(token=1, wait_seconds=1),
        pytest.raises(RunFolderUnusable, match=f"run folder {folder} was removed"),
    ):
        attempts.run(make_spec(), step=step)
    assert not folder.exists()
    assert [event["iteration"] for event in attempts.events("iteration")] == [1, 2]


def not_json(constant):
    pytest.fail(f"{constant} is not JSON")


def test_what_is_not_a_number_is_null_in_everything_that_is_json(attempts):
    measured = {"grad_norm": math.inf, "rewards/brightness/std": math.nan}
    attempts.run(make_spec(), measured=measured)
    lines = (attempts.folder.path / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=not_json) for line in lines]
    last = [entry for entry in parsed if "samples" in entry][-1]
    assert {name: last[name] for name in measured} == dict.fromkeys(measured)
    (told, *_) = attempts.events("iteration")
    assert {name: told[name] for name in measured} == dict.fromkeys(measured)
    summary = (attempts.folder.path / "summary.json").read_text()
    json.loads(summary, parse_constant=not_json)


def test_a_divergence_that_is_not_a_number_is_no_measurement(attempts):
    rule = StopRule(metric="eval/kl", above=1)
    attempts.run(make_spec(stop_when=[rule.model_dump()]), divergence=math.nan)
    assert attempts.summary()["stop"] is None
    assert all("eval/kl" not in entry for entry in attempts.summary()["evaluations"])
    assert attempts.events("evaluation")[-1]["text"].endswith("; kl —")


def test_an_evaluated_state_is_one_that_a_checkpoint_holds(attempts):
    attempts.run(make_spec())
    names = sorted(path.name for path in (attempts.folder.path / "checkpoints").iterdir())
    assert names == ["000004-1", "000006-1"]


@pytest.mark.parametrize("update", [0, 1], ids=["before its first update", "between two updates"])
def test_an_interrupted_iteration_leaves_the_last_whole_one(attempts, update):
    spec = make_spec()
    with pytest.raises(Interrupted):
        attempts.run(spec, interrupted_at=(3, update))
    kept = Checkpoints(attempts.folder, 2, 2).latest()
    assert kept.iteration == 3
    assert kept.loop["samples"] == 12
    assert kept.algorithm["tensors"]["weight"].item() == 30
    resumed = attempts.run(spec)
    assert resumed.weight.item() == 60
    assert resumed.generated == [4, 6], "what was evaluated is not evaluated again"
    weights = [entry["weight"] for entry in read_metrics(attempts.folder)]
    assert weights == [10, 20, 30, 40, 50, 60]
    assert [e["iteration"] for e in attempts.summary()["evaluations"]] == [0, 2, 4, 6]
    assert [line["iteration"] for line in attempts.lines() if "samples" not in line] == [0, 2, 4, 6]


@pytest.mark.parametrize("iteration", [0, 2, 6], ids=["before", "amid", "after"])
def test_an_interrupted_evaluation_is_made_again_of_the_same_model(attempts, iteration):
    spec = make_spec(evaluation={"keep_best": "eval/brightness/mean"})
    with pytest.raises(Interrupted):
        attempts.run(spec, interrupted_evaluation=iteration)
    resumed = attempts.run(spec)
    assert resumed.generated == [i for i in (0, 2, 4, 6) if i >= iteration]
    assert resumed.weight.item() == 60
    assert attempts.summary()["best"]["iteration"] == 6
    assert [line["iteration"] for line in attempts.lines() if "samples" not in line] == [0, 2, 4, 6]
    assert [e["iteration"] for e in read_metrics(attempts.folder)] == [1, 2, 3, 4, 5, 6]


def test_an_interrupt_in_the_first_iteration_leaves_nothing_to_go_on_from(attempts):
    with pytest.raises(Interrupted):
        attempts.run(make_spec(), interrupted_at=(0, 1))
    assert Checkpoints(attempts.folder, 2, 2).latest() is None
    assert attempts.run(make_spec()).weight.item() == 60


def test_a_rule_stops_the_training_and_the_result_says_which(attempts):
    rules = [{"metric": "eval/kl", "above": 1, "patience": 2}]
    spec = make_spec(iterations=20, stop_when=rules)
    with pytest.raises(Interrupted):
        attempts.run(spec, interrupted_at=(3, 0))
    assert attempts.run(spec).weight.item() == 40
    summary = attempts.summary()
    assert (summary["iterations"], summary["samples"]) == (4, 16)
    assert summary["stop"]["rule"] == "eval/kl was above 1 in 2 evaluations in a row"
    assert (summary["stop"]["iteration"], summary["stop"]["values"]) == (4, [2.0, 4.0])
    assert summary["rewards"][REWARD]["after"]["mean"] == 41.5
    assert any("eval/kl was above 1" in event["text"] for event in attempts.events("stage"))
    card = (attempts.folder.path / "model" / "README.md").read_text()
    assert "Stopped after iteration 4 of 20, because eval/kl was above 1" in card
    assert "| 2 | 21.5 | 2.00 |" in card


def test_the_best_model_is_beside_the_last(attempts):
    evaluation = {"keep_best": "eval/brightness/mean"}
    spec = make_spec(evaluation=evaluation, iterations=4)
    attempts.run(spec, step_size=60)  # 120 after two; 240 after four
    assert attempts.summary()["best"]["iteration"] == 4
    folder = attempts.folder.path
    assert (folder / "best" / "weight.txt").read_text() == "240.0"
    assert f"Job `{attempts.job}`: 4 iterations, 16" in (folder / "best" / "README.md").read_text()
    assert "is kept in best/" in (folder / "model" / "README.md").read_text()


def test_a_tracker_that_cannot_start_ends_a_job_at_its_beginning_alone(attempts, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)  # how Python marks it as absent
    spec = make_spec(trackers=["trackio"])
    with pytest.raises(InvalidRequest, match="trackio is not installed"):
        attempts.run(spec)
    with pytest.raises(Interrupted):
        attempts.run(make_spec(), interrupted_at=(3, 0))
    assert attempts.run(spec).weight.item() == 60
    (event,) = attempts.events("warning")
    assert "trackio is not installed" in event["text"]
    assert "training goes on" in event["text"]


def test_a_failed_upload_loses_nothing_and_is_told_with_the_way_out(attempts, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    attempts.run(make_spec(push_to_hub="me/it", iterations=2))
    (event,) = attempts.events("warning")
    assert "the model is not on the hub" in event["text"]
    model = attempts.folder.path / "model"
    assert event["text"].endswith(f"hf upload me/it {model}")
    assert (model / "weight.txt").exists()
    assert (attempts.folder.path / "report.html").exists()


def test_what_an_algorithm_measures_hides_nothing_that_the_loop_does(attempts):
    measured = {"iteration": 7, "time": 1, "loss": np.float32(0.5), "samples": 99}
    attempts.run(make_spec(iterations=2), measured=measured)
    entries = read_metrics(attempts.folder)
    assert [entry["iteration"] for entry in entries] == [1, 2]
    assert all(entry["time"] > 1e9 and entry["loss"] == 0.5 for entry in entries)
    assert all(entry["samples"] == 4 for entry in entries)


def test_a_job_without_evaluations_is_kept_at_its_end_too(attempts):
    spec = make_spec(iterations=3)
    algorithm = Counter(Interrupt())
    checkpoints = Checkpoints(attempts.folder, 1, 2)
    parts = (attempts.folder, checkpoints, Interrupt(), RewardVersions(), attempts.lease)
    loop = Loop(attempts.job, spec, algorithm, None, *parts)
    with Tracker(attempts.job, spec, attempts.folder, attempts.lease, 0) as tracker:
        loop.run(tracker)
    assert checkpoints.latest().iteration == 3
