"""How an attempt ends: what the job's record says then, or that another attempt is made."""

import os
import subprocess

import pytest
import redis
from kombu.exceptions import OperationalError

from salon.errors import RewardFailed
from salon.jobs import Question
from salon.jobs.record import JobState
from salon.own_modules import python
from trainer import __main__ as main
from trainer import assembly
from trainer.runtime.interrupt import Cause, Interrupt, Interrupted, Suspended
from trainer.runtime.ranks import RankLost


@pytest.fixture
def attempt(monkeypatch):
    """An attempt whose training raises an error at once."""

    def run(error):
        def train(*_):
            raise error

        monkeypatch.setattr(assembly, "train", train)
        return main._attempt(None, None, None, Interrupt(), 0)

    return run


@pytest.mark.parametrize(
    "error",
    [
        RankLost("rank 1 is gone"),
        redis.ConnectionError("refused"),
        redis.TimeoutError("silent"),
        OperationalError("refused"),
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_what_may_pass_ends_the_attempt_and_not_the_job(attempt, error):
    with pytest.raises(SystemExit) as ended:
        attempt(error)
    assert ended.value.code == main.EXIT_PASSING


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (RewardFailed("no\nscore"), (JobState.FAILED, "no score")),
        (OSError(28, "No space"), (JobState.FAILED, "[Errno 28] No space")),
        (ValueError("of a model"), (JobState.FAILED, "ValueError: of a model")),
        (Interrupted(Cause.CANCELLED), (JobState.CANCELLED, "cancelled by the user")),
        (Interrupted(Cause.PREEMPTED), (JobState.QUEUED, "its worker was stopped")),
        (Suspended(Question("Which?", [1, 2])), (JobState.WAITING, "Which? (2 items)")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_record_says_why_in_one_line(attempt, error, end):
    assert attempt(error) == end


@pytest.mark.parametrize(
    "command",
    [
        ["workers", "-Q", "train"],
        ["trainer", "take", "tiny-000000"],
        ["trainer", "run", "tiny-000000", "--token", "1"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("name", "value"),
    [("SALON_LEASE_SECONDS", "x"), ("SALON_REDIS_URL", "redis://127.0.0.1:6390/x")],
)
def test_a_setting_that_cannot_be_used_is_said_in_one_line(command, name, value, tmp_path):
    done = subprocess.run(
        python(*command),
        cwd=tmp_path,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    [line] = done.stderr.splitlines()
    assert line.startswith(name)
    assert (done.returncode, done.stdout) == (1, "")
