"""The serving benchmark: its clients against a real service, and the whole at a small size."""

import json
import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

from tests.fixtures.service import REPOSITORY

pytest.importorskip("mosec", reason="needs benchmarks/peers.txt")
pytest.importorskip("litserve", reason="needs benchmarks/peers.txt")

from benchmarks.serving.callers import InProcess, Salon, new_prompts
from benchmarks.serving.load import Load, client_processes, percentiles
from benchmarks.serving.servers import jpeg_servers


def test_clients_count_what_the_service_scored(start_service):
    service = start_service("jpeg", "--log-calls")
    with client_processes() as clients:
        result = clients.run(Salon(service.target), 5, Load(2, 24, 1.0))
    calls = [event for event in service.events() if event.get("method") == "Score"]
    assert all(call["samples"] == 2 for call in calls)
    # Each client warms up with one request.
    assert len(result.latencies) == len(calls) - 5
    assert 0 < min(result.latencies) < max(result.latencies)
    # The last requests began within the second and ended after it.
    seconds = 2 * len(result.latencies) / result.images_per_second
    assert 1 < seconds <= 1 + 2 * max(result.latencies)


def test_requests_longer_than_the_measurement_count():
    with client_processes() as clients:
        result = clients.run(InProcess("jpeg:JpegCompressibility"), 1, Load(8, 256, 1e-6))
    [latency] = result.latencies
    # Its eight images count, over no less time than it took.
    assert 0 < result.images_per_second <= 8 / latency


def test_a_process_may_hold_all_clients():
    with client_processes() as clients:
        result = clients.run(InProcess("jpeg:JpegCompressibility"), 3, Load(1, 64, 1e-6), 1)
    assert len(result.latencies) == 3


def test_every_server_gives_the_scores_of_the_reward(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3), np.uint8)
    with jpeg_servers(tmp_path, tmp_path) as callers:
        scores = {name: caller.connect()(images) for name, caller in callers.items()}
    expected = scores["in_process"]
    assert len(set(expected)) == 3
    salon, mosec = ("salon", "salon_by_reference"), ("mosec", "mosec_workers")
    litserve = ("litserve", "litserve_workers", "litserve_json")
    assert scores == dict.fromkeys(["in_process", *salon, *mosec, *litserve], expected)


def test_no_prompt_comes_twice():
    assert len({*new_prompts(16), *new_prompts(16)}) > 30


def test_percentiles_are_in_milliseconds():
    assert percentiles([0.001] * 50 + [0.003] * 51) == {"p50_ms": 3.0, "p99_ms": 3.0}
    assert percentiles(list(np.arange(101) / 1000)) == {"p50_ms": 50.0, "p99_ms": 99.0}


@pytest.mark.slow
def test_everything_is_measured_and_nothing_left_behind(tmp_path):
    small = ["--rounds", "1", "--seconds", "0.5", "--size", "64", "--samples", "40"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *small],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    rates = [
        measured["images_per_second"]["median"]
        for request in ("1_per_request", "8_per_request")
        for of_clients in result["jpeg"][request].values()
        for name, measured in of_clients.items()
        if name != "ratios"
    ]
    assert len(rates) == 2 * 2 * 9
    assert min(rates) > 0
    assert set(result["batching"]) == {"aesthetic", "clip_score"}
    for measured in result["batching"].values():
        rates = {
            name: measured[name]["images_per_second"]["median"]
            for name in measured.keys() - {"ratios"}
        }
        ceiling = measured["ratios"]["in_process_16/in_process_1"]["of_medians"]
        assert ceiling == rates["in_process_16"] / rates["in_process_1"]
        assert measured["ratios"]["batched/unbatched"]["of_medians"] > 0
    assert set(result["job"]["ratios"]) == {"queue/grpc", "queue_by_reference/grpc_by_reference"}
    for words in (
        *("salon / mosec", "salon / litserve json", "salon by reference / in process threads"),
        "in process 16 / in process 1",
    ):
        assert words in done.stdout
    commands = [
        " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    ]
    assert not [command for command in commands if str(tmp_path) in command]
    assert list(tmp_path.glob("salon-*")) == []
