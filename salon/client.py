"""RewardClient: score images over gRPC."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from salon.batches import score_requests
from salon.channel import MAX_MESSAGE_BYTES, connect
from salon.errors import DeadlineExceeded, RewardFailed, from_rpc_error
from salon.images import ImageBatch
from salon.outcomes import Outcome, outcomes
from salon.reward.v1 import reward_pb2
from salon.reward.v1.reward_pb2_grpc import RewardServiceStub

DEADLINE_SECONDS = 60.0

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class RewardClient:
    """A connection to one reward service; use it as a context manager or close it.

    Safe to share between threads, not between forked processes.
    """

    def __init__(
        self, target: str = "127.0.0.1:50051", *, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        """Prepare a connection; the first call makes it.

        Args:
            target: where the service listens, `host:port` or any gRPC target.
            max_message_bytes: largest message to send or receive; larger batches are split.
        """
        self.target = target
        self._max_message_bytes = max_message_bytes
        self._channel = connect(target, max_message_bytes)
        self._stub = RewardServiceStub(self._channel)
        self._rewards: dict[str, reward_pb2.Reward] = {}

    def score(
        self,
        images: ImageBatch,
        prompts: Sequence[str] | None = None,
        reward: str = "",
        metadata: Sequence[Mapping[str, Any]] | None = None,
        deadline: float = DEADLINE_SECONDS,
    ) -> list[Outcome]:
        """Score a batch of any size; it is sent in as many messages as the limits ask for.

        Args:
            images: uint8 [N, H, W, C] with C = 3 (RGB) or 1 (gray), or a sequence of such arrays
                without N, Pillow images, or the bytes of PNG, JPEG or WebP files.
            prompts: N prompts, if the reward needs them.
            reward: the reward's name; empty for the service's default reward.
            metadata: N mappings of JSON-like values, if the reward needs them.
            deadline: seconds for the whole batch, retries included.

        Returns:
            N outcomes in the order of the images, each a score or an error.

        Raises:
            InvalidRequest: the batch cannot be sent, or the service refused it as a whole.
            UnknownReward: the service does not host `reward`.
            ServiceUnavailable: still unreachable after the retries.
            DeadlineExceeded: `deadline` passed first; no outcome is returned.
            Overloaded, RewardFailed: the service refused or failed on its side.
        """
        expires = time.monotonic() + deadline
        limits = self._limits(reward, expires)
        requests = score_requests(
            reward,
            images,
            prompts,
            metadata,
            min(self._max_message_bytes, limits.max_message_bytes or self._max_message_bytes),
            limits.max_samples or 1,
        )
        results: list[Outcome] = []
        for request in requests:
            response = self._call(self._stub.Score, request, expires)
            if len(response.outcomes) != len(request.samples):
                raise RewardFailed(
                    f"reward service {self.target}: {len(response.outcomes)} outcomes for "
                    f"{len(request.samples)} samples; its {response.reward} breaks the contract"
                )
            results += outcomes(response)
        return results

    def describe(self, reward: str = "", deadline: float = DEADLINE_SECONDS) -> reward_pb2.Reward:
        """Name, version, inputs, range, direction and limits of `reward` (empty: the default).

        Raises:
            UnknownReward: the service does not host `reward`; the message lists those it hosts.
            ServiceUnavailable, DeadlineExceeded, Overloaded, RewardFailed: as for `score`.
        """
        request = reward_pb2.GetRewardRequest(reward=reward)
        expires = time.monotonic() + deadline
        return self._call(self._stub.GetReward, request, expires).reward

    def close(self) -> None:
        """Close the connection; calls in flight fail."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _limits(self, reward: str, expires: float) -> reward_pb2.Limits:
        """The service's limits, asked for once a reward."""
        if reward not in self._rewards:
            self._rewards[reward] = self.describe(reward, expires - time.monotonic())
        return self._rewards[reward].limits

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        expires: float,
    ) -> _Response:
        remaining = expires - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceeded(
                f"reward service {self.target}: the deadline passed before all was sent; "
                "pass a longer one or a smaller batch"
            )
        try:
            return method(request, timeout=remaining)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error
