"""The soak at a size that takes seconds, and that it would notice what it looks for."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.soak.clients import ANSWERED, CANCELLED, Client, Ending, Task
from benchmarks.soak.jury import Service, memory_table
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.plan import PlannedRequest, PlannedSample, plan_request
from benchmarks.soak.pool import expect, make_pool
from benchmarks.soak.verdict import find_faults
from tests.fixtures.rewards import load_rewards
from tests.fixtures.service import wait_until

REPOSITORY = Path(__file__).parents[2]
REWARD = "jpeg_compressibility"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--requests", "240", "--no-clip"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def result(run):
    return json.loads(run[1].stdout.splitlines()[-1])


def test_every_request_is_accounted_for_across_two_kills(run, result):
    # It may be too short to measure memory, and nothing else.
    assert not [fault for fault in result["faults"] if "send more requests" not in fault]
    assert run[1].returncode == bool(result["faults"]), run[1].stdout
    assert (result["requests"], result["lost"], result["wrong"]) == (240, 0, 0)
    assert sum(result["endings"].values()) == 240
    assert result["endings"][ANSWERED] > 120
    assert result["endings"].get(CANCELLED, 0) <= result["given_up"] > 0
    assert result["kills"] == 2
    assert result["passing"] <= result["most_passing"] == 2 * 16 * 2 * 2


def test_poisoned_samples_end_in_their_own_errors_beside_scores(result):
    assert {
        "score",
        "ERROR_CODE_INVALID_IMAGE",
        "ERROR_CODE_REWARD_FAILED",
        "ERROR_CODE_NON_FINITE_SCORE",
    } == set(result["samples"])
    assert result["samples"]["score"] > 0.8 * sum(result["samples"].values())


def test_people_get_tables(run):
    for words in ("other than expected", "Resident memory", "growth"):
        assert words in run[1].stdout


def test_nothing_is_left_behind(run):
    folder, _ = run
    assert list(folder.iterdir()) == []
    commands = []
    for process in psutil.process_iter():
        try:
            commands.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    assert not [command for command in commands if str(folder) in command]


def test_the_plan_is_a_function_of_the_number_with_the_promised_shares():
    plans = [plan_request(number, ["tripwire", "jpeg"], 96, seed=1) for number in range(5000)]
    assert plans[7] == plan_request(7, ["tripwire", "jpeg"], 96, seed=1)
    assert plans[7] != plan_request(7, ["tripwire", "jpeg"], 96, seed=2)
    samples = [sample for plan in plans for sample in plan.samples]
    faults = Counter(sample.fault for sample in samples)
    assert sum(plan.cancel_after is not None for plan in plans) / 5000 == pytest.approx(0.02, 0.3)
    assert 1 - faults[None] / len(samples) == pytest.approx(0.05, 0.1)
    assert set(faults) == {None, "corrupt_png", "wrong_shape", "raise", "nan"}
    assert {plan.way for plan in plans} == {"sdk", "inline", "png", "shared"}


@pytest.fixture
def task(jpeg_service, tmp_path):
    pool = make_pool(12)
    expected = expect(load_rewards("jpeg", {}), pool)
    return Task({REWARD: jpeg_service.target}, expected, pool, tmp_path, 0, [[0]])


def send(task, request):
    with Client(task, shared_sdk=False) as client:
        return client.send(request)


def request(way, *samples, reward=REWARD):
    return PlannedRequest(0, reward, way, samples, None)


@pytest.mark.parametrize("way", ["sdk", "inline", "png"])
def test_a_wrong_score_is_noticed(task, way):
    good, bad = PlannedSample(3, None), PlannedSample(4, "corrupt_png")
    ending = send(task, request(way, good, bad))
    assert (ending.kind, ending.wrong) == (ANSWERED, ())
    assert ending.samples == {"score": 1, "ERROR_CODE_INVALID_IMAGE": 1}
    expected = task.expected[REWARD]
    for other in (
        replace(expected, scores=[score * 1.001 for score in expected.scores]),
        replace(expected, version="another"),
    ):
        ending = send(replace(task, expected={REWARD: other}), request(way, good))
        assert len(ending.wrong) == 1


def test_a_score_where_an_error_belongs_is_noticed(task):
    """The jpeg reward knows nothing of the prompt that trips the other."""
    assert len(send(task, request("inline", PlannedSample(3, "raise"))).wrong) == 1


def test_an_error_that_no_kill_explains_is_noticed(task):
    elsewhere = replace(task, targets={"beauty": task.targets[REWARD]})
    ending = send(elsewhere, request("inline", PlannedSample(0, None), reward="beauty"))
    assert (ending.kind, ending.samples, len(ending.wrong)) == ("UnknownReward", {}, 1)


def test_the_ledger_misses_nobody_and_counts_nobody_twice():
    ledger = Ledger(3)
    for number in (0, 1, 1):
        ledger.enter(Ending(number, ANSWERED, Counter(score=2), wrong=("x",) * (number == 0)))
    summary = ledger.summary()
    assert (summary["lost"], summary["wrong"]) == (1, 2)
    assert summary["mistakes"] == ["x", "request 1 ended twice"]


def test_a_service_that_dies_by_itself_ends_the_soak(tmp_path):
    soak = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak", "--requests", "50000", "--no-clip"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def children(words):
        found = psutil.Process(soak.pid).children()
        return [child for child in found if words in " ".join(child.cmdline())]

    # The clients start when all services are healthy.
    wait_until(lambda: children("multiprocessing.spawn"), "clients run")
    [service] = children("services jpeg")
    service.kill()
    _, errors = soak.communicate(timeout=60)
    assert soak.returncode == 1
    assert re.search("^jpeg died: ", errors, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def found(**changes):
    """What a soak without a fault found, and `changes`."""
    life = {"life": 1, "readings": 8, "growth": 0.05}
    return {
        **{"lost": 0, "wrong": 0, "passing": 128, "most_passing": 128, "kills": 2},
        "memory": {"jpeg": [life, life, life]},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"lost": 2}, "2 requests never ended"),
        ({"wrong": 3}, "3 outcomes are other than expected"),
        ({"passing": 129}, "129 requests ended in an error, where 2 kills explain 128"),
        ({"memory": {"jpeg": []}}, "jpeg: memory was measured in 0 lives, not 3"),
    ],
)
def test_a_fault_is_named(changes, fault):
    assert find_faults(found()) == []
    [said] = find_faults(found(**changes))
    assert said.startswith(fault)


def test_growth_counts_in_the_last_life():
    flat, growing = [100.0] * 8, [100.0, 100.0, *[103.0] * 4, 105.1, 105.1]
    services = [
        Service("leaky", [], Path("leaky.log"), lives=[flat, flat, growing]),
        Service("settling", [], Path("settling.log"), lives=[flat, growing, flat]),
    ]
    [fault] = find_faults(found(memory=memory_table(services)))
    assert fault == "leaky: memory grew by 5.1% in its last life, over 5%"


def test_a_life_too_short_to_measure_counts_for_nothing():
    flat, short = [100.0] * 8, [100.0] * 7
    service = Service("jpeg", [], Path("jpeg.log"), lives=[flat, short, flat])
    [fault] = find_faults(found(memory=memory_table([service])))
    assert fault.startswith("jpeg: memory was measured in 2 lives")


def test_the_ledger_counts_the_errors_that_a_kill_may_cause():
    ledger = Ledger(4)
    for number, kind in enumerate(["ServiceUnavailable", "DeadlineExceeded", ANSWERED, CANCELLED]):
        ledger.enter(Ending(number, kind))
    assert ledger.summary()["passing"] == 2
