"""One request on its way through the queue: part of one batch, for one reward."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from salon.errors import DeadlineExceeded, SalonError
from salon.queue.broker import ScoreMessage, score_queue
from salon.reward.v1 import reward_pb2
from salon.wire.frames import Frame
from salon.wire.outcomes import Outcome, outcomes
from trainer.rewards.versions import RewardVersions

log = structlog.get_logger()

SILENCE_SECONDS = 5.0  # without a word from any worker, for people to be told


@dataclass
class Pending:
    """What the sender remembers of it."""

    message: ScoreMessage
    collect: Callable[[list[Outcome]], None]
    fail: Callable[[Exception], None]
    deadline: float  # time.monotonic(): clocks of hosts differ, and are set
    size: int  # bytes that it takes, in Redis or in a shared file
    shared: Frame | None  # the request, if its pixels lie in a shared file
    refused: bool = False  # the service cannot see that file
    heard: float = field(default_factory=time.monotonic)
    note: str = ""

    @property
    def silence(self) -> float:
        """Seconds since anything was heard of it."""
        return time.monotonic() - self.heard

    def delete_file(self) -> None:
        """Give back the room of its pixels."""
        if self.shared is not None:
            self.shared.delete_file()

    def overdue(self, deadline_seconds: float) -> DeadlineExceeded:
        """The error of a request whose deadline, `deadline_seconds` after it was sent, is past."""
        reward = self.message.reward
        last = self.note or f"no worker answered on queue {score_queue(reward)}"
        return DeadlineExceeded(
            f"reward {reward} gave no score within {deadline_seconds:.0f} s ({last}): start "
            "its service and a scoring worker beside it, or raise reward_deadline_seconds"
        )

    def take(self, body: bytes, versions: RewardVersions) -> None:
        """Hand over the serialized ScoreResponse `body`; one that cannot be read is an error."""
        try:
            response = reward_pb2.ScoreResponse.FromString(body)
            versions.note(response.reward, response.version)
            self.collect(outcomes(response))
        except Exception as error:
            log.exception("cannot read scores", batch=self.message.batch)
            self.fail(
                SalonError(
                    f"the scores of reward {self.message.reward} cannot be read "
                    f"({type(error).__name__}: {error}): run trainers, workers and services of one "
                    "release"
                )
            )

    def waits_for(self) -> str:
        """What it waits for, for people; empty while there is nothing to tell."""
        if self.note or self.silence <= SILENCE_SECONDS:
            return self.note
        queue = score_queue(self.message.reward)
        return f"waiting for a worker on queue {queue}: no answer for {self.silence:.0f} s"
