"""The clients: threads in a few processes, each sending its share of the requests one by one."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from threading import Thread

import grpc

from benchmarks.soak.plan import EXPECTED_ERRORS, PlannedRequest, plan_request
from benchmarks.soak.pool import Expected
from benchmarks.soak.wire import corrupt_png, make_message
from salon.client import RewardClient
from salon.client.channel import METHOD_SCORE, connect
from salon.errors import (
    DeadlineExceeded,
    Overloaded,
    SalonError,
    ServiceUnavailable,
    from_rpc_error,
)
from salon.reward.v1 import reward_pb2
from salon.wire.images import Pixels
from salon.wire.outcomes import Outcome, outcomes
from salon.wire.shared_files import SharedDirectory

DEADLINE_SECONDS = 60.0
RETURN_SECONDS = 60.0  # for a service that was killed
PASSING = (DeadlineExceeded, Overloaded, ServiceUnavailable)
ANSWERED = "answered"
CANCELLED = "cancelled"
DONE = None
"""What a process puts into the queue last."""


@dataclass(frozen=True)
class Task:
    """All that a client process needs."""

    targets: Mapping[str, str]
    """host:port by reward."""
    expected: Mapping[str, Expected]
    pool: Sequence[Pixels]
    shared_dir: Path
    seed: int
    shares: Sequence[Sequence[int]]
    """For each of its threads, the numbers of its requests."""


@dataclass(frozen=True)
class Ending:
    """How one request ended."""

    number: int
    kind: str
    """ANSWERED, CANCELLED, or the name of the error that ended the call."""
    samples: Counter[str] = field(default_factory=Counter)
    """Of an answered request: `score`, or the name of the error code, of each sample."""
    given_up: bool = False
    """Whether the caller cancelled it; the answer may have been faster."""
    wrong: tuple[str, ...] = ()
    """What should have been another outcome, or is no passing error."""


def run_clients(task: Task, endings: "Queue[Ending | None]") -> None:
    """The main function of a client process; every ending goes into the queue as it comes."""
    threads = [Thread(target=_run, args=(task, share, endings)) for share in task.shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    endings.put(DONE)


def _run(task: Task, numbers: Sequence[int], endings: "Queue[Ending | None]") -> None:
    rewards = sorted(task.targets)
    # Half of the clients share the directory through the SDK, too.
    with Client(task, shared_sdk=numbers[0] % 2 == 0) as client:
        for number in numbers:
            endings.put(client.send(plan_request(number, rewards, len(task.pool), task.seed)))


class Client:
    """Sends requests one after the other, and judges the answers."""

    def __init__(self, task: Task, shared_sdk: bool) -> None:
        self._task = task
        self._shared = SharedDirectory(task.shared_dir)
        directory = task.shared_dir if shared_sdk else None
        targets = set(task.targets.values())
        self._clients = {at: RewardClient(at, shared_dir=directory) for at in targets}
        self._channels = {at: connect(at) for at in targets}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()
        for channel in self._channels.values():
            channel.close()

    def send(self, request: PlannedRequest) -> Ending:
        """Send it, wait, and say how it ended; after a failure, until the service is back."""
        given_up = request.cancel_after is not None
        wrong: tuple[str, ...] = ()
        try:
            found = self._score_by_sdk(request) if request.way == "sdk" else self._call(request)
        except SalonError as error:
            self._wait_after(error, self._task.targets[request.reward])
            # What a kill, a full queue or a slow machine may do; any other error is a fault.
            if not isinstance(error, PASSING):
                wrong = (f"{request}: {error}",)
            return Ending(request.number, type(error).__name__, given_up=given_up, wrong=wrong)
        if found is None:
            return Ending(request.number, CANCELLED, given_up=given_up)
        kinds = Counter(
            "score" if outcome.error is None else outcome.error.code_name for outcome in found
        )
        wrong = tuple(self._mistakes(request, found))
        return Ending(request.number, ANSWERED, kinds, given_up, wrong)

    def _score_by_sdk(self, request: PlannedRequest) -> list[Outcome]:
        images = [
            corrupt_png(self._task.pool[sample.image])
            if sample.fault == "corrupt_png"
            else self._task.pool[sample.image]
            for sample in request.samples
        ]
        prompts = [sample.prompt for sample in request.samples]
        client = self._clients[self._task.targets[request.reward]]
        return client.score(images, prompts, request.reward, deadline=DEADLINE_SECONDS)

    def _call(self, request: PlannedRequest) -> list[Outcome] | None:
        """The outcomes; None if the call was cancelled before it had any."""
        target = self._task.targets[request.reward]
        message, file = make_message(request, self._task.pool, self._shared)
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channels[target].unary_unary(
            METHOD_SCORE
        )
        try:
            call = method.future(message.SerializeToString(), timeout=DEADLINE_SECONDS)
            if request.cancel_after is not None:
                time.sleep(request.cancel_after)
                call.cancel()
            return outcomes(reward_pb2.ScoreResponse.FromString(call.result()))
        except grpc.FutureCancelledError:
            return None
        except grpc.RpcError as error:
            raise from_rpc_error(error, target) from None
        finally:
            if file is not None:
                file.delete()

    def _mistakes(self, request: PlannedRequest, found: Sequence[Outcome]) -> list[str]:
        if len(found) != len(request.samples):
            return [f"{request}: {len(found)} outcomes"]
        expected = self._task.expected[request.reward]
        mistakes = []
        for sample, outcome in zip(request.samples, found, strict=True):
            if sample.fault is not None:
                code = EXPECTED_ERRORS[sample.fault]
                right = outcome.error is not None and outcome.error.code == code
            else:
                right = outcome.score is not None and expected.agrees(sample.image, outcome.score)
            if not (
                right and (outcome.reward, outcome.version) == (request.reward, expected.version)
            ):
                mistakes.append(f"{request.reward} by {request.way}: {sample} ended in {outcome}")
        return mistakes

    def _wait_after(self, error: SalonError, target: str) -> None:
        """Give a service that is away, or full, the time that a real caller would."""
        if isinstance(error, Overloaded):
            time.sleep(error.retry_after_seconds or 0.1)
            return
        try:
            grpc.channel_ready_future(self._channels[target]).result(RETURN_SECONDS)
        except grpc.FutureTimeoutError:
            return  # the next request will say so
