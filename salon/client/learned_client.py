"""LearnedRewardClient: fit the instances of a learned reward, keep them, and score with them."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from salon.client.calls import PatientCall, expiry, until_answered
from salon.client.reward_client import DEADLINE_SECONDS, RewardClient
from salon.errors import InvalidRequest
from salon.reward.v1 import learned_reward_pb2 as wire
from salon.reward.v1 import reward_pb2
from salon.reward.v1.learned_reward_pb2_grpc import LearnedRewardServiceStub
from salon.security import Security
from salon.wire.limits import MAX_MESSAGE_BYTES
from salon.wire.structs import to_dict, to_struct

PIECE_BYTES = 1024 * 1024
"""Most bytes of one message of an import."""
FRAME_BYTES = 512
"""Of them, more than what is not data."""
MAX_PARTS = 16
"""Most messages of one fit. An instance remembers as many fits, and each part is one: with more,
the first parts of a fit that is repeated would be taken for new ones."""
REQUEST_ID_BYTES = 120
"""Most of a caller's request_id; the part's number follows it."""

_EXAMPLE_OVERHEAD = 16
"""Upper bound on the bytes that frame one example: a field tag and its length."""


@dataclass(frozen=True)
class Fit:
    """What a fit made."""

    version: str
    """Give it as `base_version` of the next fit, and compare it with `Outcome.version`."""
    metrics: Mapping[str, float]
    """Means over the gradient steps, such as `loss`, and how many examples are kept."""


@dataclass(frozen=True)
class Export:
    """An instance as bytes: all that an exact resume needs."""

    version: str
    data: bytes
    """A safetensors file with JSON in its metadata."""


class LearnedRewardClient(RewardClient):
    """A `RewardClient` for a service that hosts learned rewards."""

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        security: Security | None = None,
        shared_dir: Path | None = None,
    ) -> None:
        """See `RewardClient`; examples travel through gRPC in any case."""
        super().__init__(
            target,
            max_message_bytes=max_message_bytes,
            security=security,
            shared_dir=shared_dir,
        )
        self._learned = LearnedRewardServiceStub(self._channel)

    def fit(
        self,
        instance: str,
        examples: Iterable[wire.Example],
        steps: int,
        *,
        reward: str = "",
        request_id: str = "",
        base_version: str = "",
        hyperparameters: Mapping[str, Any] | None = None,
        deadline: float = DEADLINE_SECONDS,
    ) -> Fit:
        """Fit an instance to `examples`, however many messages they take.

        Args:
            instance: its name; without `base_version` it is made if there is none.
            examples: from `salon.client.examples`; may be empty if it has some already.
            steps: gradient steps to make once all are there.
            reward: the learned reward's name; empty for the service's first.
            request_id: names this fit, in at most 120 bytes. Who repeats a call that failed, with
                the same name and examples, does not fit twice; gRPC's own retries never do. Empty:
                a new one.
            base_version: fit only if the instance is at this version.
            hyperparameters: of a new instance, as the reward's page lists them.
            deadline: seconds for all of it.

        Raises:
            VersionMismatch: the instance is not at `base_version`.
            UnknownInstance: there is none to be at `base_version`; import it again.
            InvalidRequest: an example, step count or hyperparameter that cannot be used, or so many
                examples that they take more than 16 messages; nothing was sent.
            Overloaded: too many instances, or others use this one.
            SalonError: as `RewardClient.score` has it.
        """
        expires = expiry(deadline)
        limits = self._limits(reward, expires)
        request = wire.FitRequest(
            reward=reward,
            instance=instance,
            request_id=_checked(request_id) or uuid.uuid4().hex,
            base_version=base_version,
            hyperparameters=_struct(hyperparameters),
        )
        made = _parts(request, examples, self._most_bytes(limits), limits.max_samples or 1)
        parts = list(islice(made, MAX_PARTS + 1))
        if len(parts) > MAX_PARTS:
            raise InvalidRequest(
                f"the examples take more than {MAX_PARTS} messages: send them in several fits, all "
                "but the last with 0 steps"
            )
        for index, part in enumerate(parts):
            part.request_id = f"{request.request_id}/{index}"
            part.base_version = base_version
            part.steps = steps if part is parts[-1] else 0
            response = PatientCall(self._learned.Fit, part, self._peer, expires).result()
            base_version = response.version
        return Fit(response.version, to_dict(response.metrics))

    def export(
        self, instance: str, *, reward: str = "", deadline: float = DEADLINE_SECONDS
    ) -> Export:
        """Everything that an exact resume needs, such as for a checkpoint.

        Raises:
            UnknownInstance: there is none of that name.
            SalonError: as `RewardClient.score` has it.
        """
        request = wire.ExportRequest(reward=reward, instance=instance)

        expires = expiry(deadline)

        def attempt() -> Export:
            version, data = "", bytearray()
            for piece in self._learned.Export(request, timeout=expires - time.monotonic()):
                version = version or piece.version
                data += piece.data
            return Export(version, bytes(data))

        return until_answered(attempt, self._peer, expires)

    def import_(
        self, instance: str, data: bytes, *, reward: str = "", deadline: float = DEADLINE_SECONDS
    ) -> str:
        """Make or replace an instance from `Export.data`; may be repeated.

        Returns:
            Its version: that of the export, if the name is the same.

        Raises:
            InvalidRequest: `data` is not an export of this reward.
            Overloaded: it is larger than the service takes, or there are too many instances.
            SalonError: as `RewardClient.score` has it.
        """
        expires = expiry(deadline)
        limits = self._limits(reward, expires)
        most = min(PIECE_BYTES, self._most_bytes(limits)) - FRAME_BYTES

        def attempt() -> str:
            pieces = (
                wire.ImportRequest(
                    reward=reward, instance=instance, data=data[start : start + most]
                )
                for start in range(0, max(len(data), 1), most)
            )
            return self._learned.Import(pieces, timeout=expires - time.monotonic()).version

        return until_answered(attempt, self._peer, expires)

    def delete(
        self, instance: str, *, reward: str = "", deadline: float = DEADLINE_SECONDS
    ) -> None:
        """Forget an instance, if there is one of that name.

        Raises:
            SalonError: as `RewardClient.score` has it.
        """
        request = wire.DeleteRequest(reward=reward, instance=instance)
        expires = expiry(deadline)
        PatientCall(self._learned.Delete, request, self._peer, expires).result()

    def _most_bytes(self, limits: reward_pb2.Limits) -> int:
        own = self._max_message_bytes
        return min(own, limits.max_message_bytes or own)


def _parts(
    request: wire.FitRequest,
    examples: Iterable[wire.Example],
    max_message_bytes: int,
    max_examples: int,
) -> Iterator[wire.FitRequest]:
    """Copies of `request` that hold `examples`, each within both limits; at least one."""
    # With room for what is set later: the part's number, a later base_version, and steps.
    empty_size = size = request.ByteSize() + FRAME_BYTES
    part = _copy(request)
    for index, example in enumerate(examples):
        example_size = example.ByteSize() + _EXAMPLE_OVERHEAD
        if empty_size + example_size > max_message_bytes:
            raise InvalidRequest(
                f"example {index} takes {example_size} bytes, more than a message may hold "
                f"({max_message_bytes}): send its images as PNG bytes, or raise max_message_bytes "
                "here and at the service"
            )
        full = size + example_size > max_message_bytes or len(part.examples) >= max_examples
        if part.examples and full:
            yield part
            part, size = _copy(request), empty_size
        part.examples.append(example)
        size += example_size
    yield part


def _copy(request: wire.FitRequest) -> wire.FitRequest:
    copied = wire.FitRequest()
    copied.CopyFrom(request)
    return copied


def _checked(request_id: str) -> str:
    size = len(request_id.encode())
    if size > REQUEST_ID_BYTES:
        raise InvalidRequest(
            f"request_id takes {size} bytes of UTF-8, at most {REQUEST_ID_BYTES} are sent: pass a "
            "UUID, the same one when the fit is repeated"
        )
    return request_id


def _struct(mapping: Mapping[str, Any] | None) -> Any:
    try:
        return to_struct(mapping or {})
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"hyperparameters cannot be sent: {error}") from None
