"""What a service raised is what a job catches, with a real service, queue, worker and trainer."""

import pytest

from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue.broker import send_launch
from tests.fixtures.stack import wait_until

JOB = """
from typing import ClassVar, Literal

import numpy as np

from salon.errors import InvalidRequest, UnknownInstance
from trainer.ddpo.config import DDPOConfig, DDPOJob


class Config(DDPOConfig):
    name: Literal["catching"] = "catching"


class Job(DDPOJob):
    builder: ClassVar[str] = "catching:build"

    algorithm: Config


def build(spec, context):
    future = context.scorer(["remembering"]).submit(np.zeros((1, 8, 8, 3), np.uint8), ["a prompt"])
    try:
        future.result()
    except UnknownInstance as error:
        raise InvalidRequest(f"caught: {error}") from error
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An algorithm of another package, installed for all processes that are started from here."""
    site = tmp_path / "site"
    installed = site / "catching-1.0.dist-info"
    installed.mkdir(parents=True)
    (site / "catching.py").write_text(JOB)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: catching\nVersion: 1.0\n")
    entry = "[salon.algorithms]\ncatching = catching:Job\n"
    (installed / "entry_points.txt").write_text(entry)
    monkeypatch.setenv("PYTHONPATH", str(site))


def test_a_job_catches_the_class_that_a_service_raised(package, stack):
    stack.serve("tests.services.remembering", "remembering")
    stack.start("jpeg", "scoring", "training")
    store = JobStore(stack.redis)
    record = {
        "name": "tiny",
        "model": "nobody/loads-it",
        "prompts": ["one"],
        "rewards": [{"name": "remembering"}],
        "iterations": 1,
        "algorithm": {"name": "catching"},
        "evaluation": {"prompts": ["six"]},
    }
    job = store.submit("tiny", record).id
    send_launch(stack.app, job)
    wait_until(lambda: store.get(job).state.final, f"{job} is over", 120)
    ended = store.get(job)
    assert (ended.state, ended.attempts) == (JobState.FAILED, 1)
    assert ended.reason == (
        f"caught: reward service remembering at {stack.settings.reward_target} refused a batch: "
        "NOT_FOUND: reward remembering scores by instance: name one in ScoreRequest.instance"
    )
