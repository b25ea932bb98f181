"""What calls bring to be scored, and the batches that are made of it."""

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from salon.errors import SalonError
from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from services.scoring.call import Call


class Submission:
    """Samples of one call, with the outcomes they have so far; its call waits for `done`."""

    def __init__(self, samples: Sequence[Sample], costs: list[float], call: Call) -> None:
        """Bring `samples`, which cost as much, for `call`."""
        self.samples = samples
        self.costs = costs
        self.call = call
        self.arrived = time.monotonic()
        self.taken = 0
        """How many samples are in batches so far, the first ones."""
        self.error: SalonError | None = None
        self.done = threading.Event()
        self._outcomes: dict[int, list[reward_pb2.Outcome]] = {}
        self._missing = len(samples)

    def fail(self, error: SalonError) -> None:
        """End in `error`."""
        self.error = error
        self.done.set()

    def deliver(self, start: int, outcomes: list[reward_pb2.Outcome]) -> None:
        """Take the outcomes of the samples from index `start` on; by one thread at a time."""
        self._outcomes[start] = outcomes
        self._missing -= len(outcomes)
        if not self._missing:
            self.done.set()

    def outcomes(self) -> list[reward_pb2.Outcome]:
        """Those of all samples, in order, once done."""
        return [outcome for start in sorted(self._outcomes) for outcome in self._outcomes[start]]


class Part(NamedTuple):
    """What one batch holds of a submission."""

    submission: Submission
    start: int
    samples: Sequence[Sample]


class Batch:
    """Samples that are scored together."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Hold `parts`; scoring begins now."""
        self.parts = parts
        self.began = time.monotonic()
        self.samples = [sample for part in parts for sample in part.samples]
        self.calls = [part.submission.call for part in parts for _ in part.samples]

    def seconds(self) -> float:
        """How long it has been scored."""
        return time.monotonic() - self.began
