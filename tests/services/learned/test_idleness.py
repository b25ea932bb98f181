"""Instances that nobody uses for a while."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
from structlog.testing import capture_logs

from salon.client import LearnedRewardClient, labelled
from salon.errors import RewardFailed
from tests.fixtures.service import wait_until
from tests.services.learned.learning import (
    SMALL,
    discriminator,
    fit,
    images,
    light,
    light_is_real,
    scores,
)

NEVER = 3600.0


@pytest.fixture
def make(tmp_path):
    """Rewards, each in a folder of that name, closed in the end; `make(name, idle_seconds)`."""
    with ExitStack() as stack:

        def start(name, idle_seconds):
            reward = discriminator(tmp_path / name, idle_seconds=idle_seconds)
            return stack.enter_context(closing(reward))

        yield start


@pytest.fixture
def file(tmp_path):
    """Where an instance of the reward `quick` is parked."""
    return tmp_path / "quick" / "discriminator" / "job.safetensors"


def test_it_is_parked_and_comes_back_as_if_it_had_stayed(make, file):
    quick, patient = make("quick", 0.05), make("patient", NEVER)
    for reward in (quick, patient):
        fit(reward, "job", light_is_real(8), request_id="0", **SMALL)
    for step in "123":
        wait_until(lambda: not quick._store._loaded, "it has left the memory")
        assert scores(quick, "job", light(3)) == scores(patient, "job", light(3))
        wait_until(lambda: not quick._store._loaded, "it has left the memory again")
        parked = file.read_bytes()
        assert parked == patient.export("job").data
        fits = [fit(one, "job", light_is_real(4), request_id=step) for one in (quick, patient)]
        assert fits[0] == fits[1]


def test_its_memory_is_given_back_and_the_file_alone_is_left(make, file):
    quick = make("quick", 0.05)
    fit(quick, "job", light_is_real(8), **SMALL)
    wait_until(lambda: not quick._store._loaded, "it has left the memory")
    file.write_bytes(b"noise")
    with pytest.raises(RewardFailed, match="instance job cannot be taken back"):
        quick.export("job")


def test_one_in_use_stays_however_long_that_takes(make):
    quick = make("quick", 0.05)
    fit(quick, "job", light_is_real(8), **SMALL)
    with quick.opened("job") as opened:
        for name in ("other", "another"):
            fit(quick, name, light_is_real(8), **SMALL)
            wait_until(lambda: set(quick._store._loaded) == {"job"}, "the other is parked")
        assert len(opened.score(light(3))) == 3
    wait_until(lambda: not quick._store._loaded, "it is let go and parked")


def test_fits_scores_and_exports_at_the_same_time_find_it_whole(make):
    quick, patient = make("quick", 0.001), make("patient", NEVER)
    for reward in (quick, patient):
        fit(reward, "job", light_is_real(8), request_id="first", **SMALL)
    versions = {patient.export("job").version: patient.export("job").data}
    for step in range(12):
        fit(patient, "job", light_is_real(2), request_id=str(step))
        exported = patient.export("job")
        versions[exported.version] = exported.data

    def fit_on():
        for step in range(12):
            fit(quick, "job", light_is_real(2), request_id=str(step))

    def export():
        return [quick.export("job") for _ in range(25)]

    def score():
        for _ in range(25):
            assert len(scores(quick, "job", light(2))) == 2

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(work) for work in (fit_on, export, score)]
        exports = running[1].result()
        for one in running:
            one.result()
    assert all(versions[exported.version] == exported.data for exported in exports)
    assert quick.export("job") == patient.export("job")


def test_one_that_cannot_be_parked_stays_and_is_tried_again(make, file):
    quick = make("quick", 0.05)
    in_the_way = file.with_name("job.safetensors.part")
    in_the_way.mkdir()
    with capture_logs() as logged:
        fit(quick, "job", light_is_real(8), **SMALL)
        before = scores(quick, "job", light(3))
        wait_until(
            lambda: any(entry["event"] == "idle instance not parked" for entry in logged), "tried"
        )
    assert scores(quick, "job", light(3)) == before
    in_the_way.rmdir()
    wait_until(file.exists, "parked after all")


def test_a_service_that_is_killed_keeps_what_was_idle(start_service, tmp_path):
    flags = ("--set", f"state_dir={tmp_path}", "--set", "idle_seconds=0.2")
    service = start_service("discriminator", *flags)
    file = tmp_path / "discriminator" / "job.safetensors"
    examples = labelled(images(16, 140, 256), real=True)
    with LearnedRewardClient(service.target) as client:
        client.fit("job", examples, 0, hyperparameters=SMALL)
        wait_until(file.exists, "it is parked")
        exported = client.export("job")
    service.kill()
    service = start_service("discriminator", *flags)
    with LearnedRewardClient(service.target) as client:
        assert client.export("job") == exported
