"""What `salon down` says, in this process; a stack stands in that has nothing but its jobs."""

import pytest
from typer.testing import CliRunner

from salon.cli.app import app
from salon.jobs.lease import acquire
from salon.jobs.store import JobStore
from salon.stack import lifecycle as stack
from tests.fixtures.stack import environment


@pytest.fixture
def down(settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stack, "running", lambda _: {"pid": 1})
    monkeypatch.setattr(stack, "down", lambda *_, waiting: waiting(["training"]) or True)
    return lambda: CliRunner().invoke(app, ["down"], catch_exceptions=False)


def test_down_says_what_it_waits_for_and_which_jobs_go_on(down, redis_client):
    store = JobStore(redis_client)
    queued, running, cancelled = (store.submit(name, {}).id for name in ("one", "two", "three"))
    for job in (running, cancelled):
        acquire(redis_client, job, "host:1", "", 30, 3)
    store.cancel(cancelled)
    done = down()
    for job in (running, cancelled):
        assert f"{job} is running: its trainer has 10 s to end its step" in done.stderr
    assert done.stdout.splitlines() == [
        "stopped",
        f"{queued} is not over: it goes on after the next `salon up`",
        f"{running} is not over: it goes on after the next `salon up`",
    ]
