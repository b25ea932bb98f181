"""From an open port to a service that is ready, and starts that fail."""

import os
import subprocess
import sys

import grpc
import pytest

from salon.reward.v1 import reward_pb2 as pb
from tests.fixtures.service import REPOSITORY, wait_until
from tests.salon.files import encoded, noise

SLOW = """
import pathlib, time
from salon.serving import Reward

def wait_for(word):
    while not pathlib.Path(word).exists():
        time.sleep(0.01)

class Slow(Reward):
    name, version, description = "slow", "1", "How often it scored."
    scored = 0

    def __init__(self):
        wait_for("load")

    def score(self, samples):
        if not self.scored:
            wait_for("warm")
        self.scored += 1
        return [float(self.scored)] * len(samples)
"""

BROKEN = """
from salon.serving import ModelConfig, Reward

class Broken(Reward):
    Config = ModelConfig
    name, version, description = "broken", "1", "Nothing."

    def __init__(self, config):
        if config.model == "missing":
            raise OSError("no weights here\\nat all")

    def score(self, samples):
        raise ValueError("cannot")
"""


@pytest.fixture
def module(tmp_path):
    """Write a module into a folder of its own; `module(name, source)` gives the folder."""

    def write(name, source):
        folder = tmp_path / "own"
        folder.mkdir()
        (folder / f"{name}.py").write_text(source)
        return folder

    return write


def test_a_service_is_live_at_once_and_ready_once_its_reward_has_scored(
    start_service, module, stub
):
    folder = module("slow", SLOW)
    service = start_service("slow:Slow", folder=folder, ready=False)
    image = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(noise()))
    request = pb.ScoreRequest(samples=[pb.Sample(image=image)])

    def is_starting():
        assert service.health("liveness") == "SERVING"
        for name in ("", "readiness", "salon.reward.v1.RewardService"):
            assert service.health(name) == "NOT_SERVING"
        with pytest.raises(grpc.RpcError) as caught:
            stub(service).Score(request)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "starting" in caught.value.details()

    is_starting()
    (folder / "load").touch()
    is_starting()
    (folder / "warm").touch()
    service.await_ready()
    assert stub(service).Score(request).outcomes[0].score == 2, "the first was its example"
    [serving] = [event for event in service.events() if event["event"] == "serving"]
    assert serving["rewards"] == {"slow": "1"}


def test_a_service_that_is_told_to_stop_while_it_loads_stops_at_once(start_service, module):
    service = start_service("slow", folder=module("slow", SLOW), ready=False)
    assert service.stop() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "missing"], "broken.Broken failed to load: OSError: no weights here"),
        (["--model", "there"], "reward broken cannot score its own example: reward broken failed"),
    ],
)
def test_a_reward_that_fails_to_start_ends_the_process_with_one_line(module, options, words):
    command = [sys.executable, "-m", "services", "broken", "--port", "0", *options]
    done = subprocess.run(
        command,
        cwd=module("broken", BROKEN),
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith(words)
    assert "Traceback" in done.stderr, "in the log"


def test_health_has_a_port_of_its_own_where_it_is_asked_for(start_service, patient, stub):
    service = start_service("tests.services.faulty", "--health-port", "0")
    [listening] = [event for event in service.events() if event["event"] == "listening"]
    assert listening["health_port"] != service.port

    def probe(name):
        return service.health(name, f"127.0.0.1:{listening['health_port']}")

    assert [probe(name) for name in ("", "liveness", "readiness")] == ["SERVING"] * 3
    in_flight = stub(service).Score.future(patient.request("first"))
    patient.await_began("first")
    service.process.terminate()
    wait_until(lambda: probe("readiness") == "NOT_SERVING", "not ready any more")
    assert probe("liveness") == "SERVING", "who restarts what is not live must wait"
    patient.let_go()
    assert in_flight.result().outcomes[0].score == 1
    assert service.process.wait(30) == 0
