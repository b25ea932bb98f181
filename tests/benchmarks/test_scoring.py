"""The scoring benchmark through its command line, at a size that takes seconds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.fixtures.service import wait_until

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    *("--rounds", "1", "--images", "10", "--size", "48"),
    *("algorithm.samples_per_iteration=4", "algorithm.sample_batch_size=2"),
    *("algorithm.sampling_steps=2", "algorithm.updates_per_iteration=1"),
]


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scoring", *SMALL],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def parts_in(folder):
    """Processes whose state lies in `folder`: the Redis, the service and the worker it started."""
    found = []
    for process in psutil.process_iter():
        try:
            state = process.environ().get("SALON_STATE_DIR", "")
        except psutil.Error:
            continue
        if state.startswith(str(folder)):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    output, errors = start(folder).communicate(timeout=120)
    return folder, output, errors


@pytest.fixture(scope="module")
def result(measured):
    _, output, errors = measured
    assert output, errors
    return json.loads(output.splitlines()[-1])


def test_every_rate_is_positive(result):
    for flight in ("one", "all"):
        for way in ("in_process", "grpc", "queue", "queue_by_reference"):
            rate = result["scoring"][flight][way]
            assert len(rate["rounds"]) == result["rounds"] == 1
            assert rate["min"] == rate["median"] == rate["max"] > 0
    for way in ("in_process", "queue"):
        assert result["training"][way]["samples_per_second"]["median"] > 0
        fractions = [result["training"][way][f"{part}_fraction"] for part in ("submit", "wait")]
        assert all(0 <= fraction < 1 for fraction in fractions)
        assert sum(fractions) < 1


def test_ratios_are_those_of_the_medians(result):
    for rates in result["scoring"].values():
        assert set(rates["ratios"]) == {
            *("grpc/in_process", "queue/grpc", "queue_by_reference/grpc", "queue/in_process")
        }
        for pair, ratio in rates["ratios"].items():
            above, below = (rates[way]["median"] for way in pair.split("/"))
            assert ratio["of_medians"] == above / below
    training = result["training"]
    queue, in_process = (
        training[way]["samples_per_second"]["median"] for way in ("queue", "in_process")
    )
    assert training["ratios"]["queue/in_process"]["of_medians"] == queue / in_process


def test_it_says_what_was_measured_on_what(result):
    assert (result["images"], result["size"], result["batches"]) == (10, 48, 2)
    assert {"china.jpg", "flower.jpg"} <= set(result["photographs"])
    assert result["training"]["algorithm"]["samples_per_iteration"] == 4
    assert result["machine"]["cpus"] == os.cpu_count()
    assert len(result["machine"]["load_before"]) == 3
    assert {"python", "grpcio", "celery", "pillow", "torch"} <= set(result["versions"])


def test_tables_come_before_the_json(measured):
    _, output, _ = measured
    for word in ("gRPC / in-process", "queue / gRPC", "by reference / gRPC", "load average"):
        assert word in output


def test_nothing_is_left_behind(measured):
    folder, _, _ = measured
    assert parts_in(folder) == []
    assert list(folder.glob("salon-*")) == []


def test_ctrl_c_stops_the_parts(tmp_path):
    process = start(tmp_path)
    wait_until(lambda: len(parts_in(tmp_path)) >= 3, "redis, service and worker run")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert parts_in(tmp_path) == []
    assert list(tmp_path.glob("salon-*")) == []
