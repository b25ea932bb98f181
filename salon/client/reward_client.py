"""RewardClient: score images over gRPC."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from salon.client.calls import PatientCall, Peer, expiry
from salon.client.channel import METHOD_SCORE, connect
from salon.errors import RewardFailed, SharedFileUnavailable
from salon.reward.v1 import reward_pb2
from salon.reward.v1.reward_pb2_grpc import RewardServiceStub
from salon.security import Security
from salon.wire.batches import score_frames
from salon.wire.frames import Frame
from salon.wire.images import ImageBatch
from salon.wire.limits import MAX_MESSAGE_BYTES
from salon.wire.outcomes import Outcome, outcomes
from salon.wire.shared_files import SharedDirectory

DEADLINE_SECONDS = 60.0
IN_FLIGHT = 3
"""Most messages of one batch that are with the service at once: one computes, one is on the way."""


class RewardClient:
    """A connection to one reward service; use it as a context manager or close it.

    Safe to share between threads, not between forked processes.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        security: Security | None = None,
        shared_dir: Path | None = None,
    ) -> None:
        """Prepare a connection; the first call makes it.

        Args:
            target: where the service listens, `host:port` or any gRPC target.
            max_message_bytes: largest message to send or receive; larger batches are split.
            security: TLS and token; None: neither.
            shared_dir: a directory, best in memory, that a service on this host may share
                (`--shared-dir`). Where it does, images travel through it and not through gRPC.

        Raises:
            InvalidRequest: `security` or `shared_dir` cannot be used.
        """
        self.target = target
        self._max_message_bytes = max_message_bytes
        self._shared = SharedDirectory(shared_dir) if shared_dir else None
        self._unshared: set[str] = set()
        security = security or Security()
        self._channel = connect(target, max_message_bytes, security)
        self._peer = Peer(target, self._channel, security)
        self._stub = RewardServiceStub(self._channel)
        self._score: grpc.UnaryUnaryMultiCallable[bytes, reward_pb2.ScoreResponse] = (
            self._channel.unary_unary(
                METHOD_SCORE, response_deserializer=reward_pb2.ScoreResponse.FromString
            )
        )
        self._rewards: dict[str, reward_pb2.Reward] = {}

    def score(
        self,
        images: ImageBatch,
        prompts: Sequence[str] | None = None,
        reward: str = "",
        metadata: Sequence[Mapping[str, Any]] | None = None,
        deadline: float = DEADLINE_SECONDS,
        *,
        references: ImageBatch | None = None,
        instance: str = "",
    ) -> list[Outcome]:
        """Score a batch of any size; it is sent in as many messages as the limits ask for.

        A service that has no room just now is asked again when it says so, within the deadline.

        Args:
            images: uint8 [N, H, W, C] with C = 3 (RGB) or 1 (gray), or a sequence of such arrays
                without N, Pillow images, or the bytes of PNG, JPEG or WebP files.
            prompts: N prompts, if the reward needs them.
            reward: the reward's name; empty for the service's default reward.
            metadata: N mappings of JSON-like values, if the reward needs them.
            deadline: seconds for the whole batch, retries included; more than 0, at most a year.
            references: N images to compare with, if the reward needs them.
            instance: of a learned reward, which of its instances scores.

        Returns:
            N outcomes in the order of the images, each a score or an error.

        Raises:
            InvalidRequest: the batch or `deadline` cannot be used, or the service refused the batch
                as a whole.
            UnknownReward, UnknownInstance: the service does not host `reward`, or has no such
                `instance` of it.
            Unauthenticated: the service asks for another token.
            ServiceUnavailable: still unreachable after the retries, or when `deadline` passed.
            DeadlineExceeded: `deadline` passed first; no outcome is returned.
            Overloaded, RewardFailed: the service refused or failed on its side.
        """
        expires = expiry(deadline)
        limits = self._limits(reward, expires)
        frames = score_frames(
            reward,
            images,
            prompts,
            metadata,
            min(self._max_message_bytes, limits.max_message_bytes or self._max_message_bytes),
            limits.max_samples or 1,
            references=references,
            instance=instance,
            shared=self._sharing(reward, limits),
        )
        return self._score_frames(reward, frames, len(images), expires)

    def describe(self, reward: str = "", deadline: float = DEADLINE_SECONDS) -> reward_pb2.Reward:
        """Name, version, inputs, range, direction and limits of `reward` (empty: the default).

        Raises:
            UnknownReward: the service does not host `reward`; the message lists those it hosts.
            InvalidRequest: `deadline` cannot be used.
            ServiceUnavailable, DeadlineExceeded, Overloaded, RewardFailed: as for `score`.
        """
        return self._describe(reward, expiry(deadline))

    def list_rewards(self, deadline: float = DEADLINE_SECONDS) -> list[reward_pb2.Reward]:
        """Every reward that the service hosts; the first is the default.

        Raises:
            InvalidRequest: `deadline` cannot be used.
            ServiceUnavailable, DeadlineExceeded, Overloaded, RewardFailed: as for `score`.
        """
        request = reward_pb2.ListRewardsRequest()
        call = PatientCall(self._stub.ListRewards, request, self._peer, expiry(deadline))
        return list(call.result().rewards)

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
            self._rewards[reward] = self._describe(reward, expires)
        return self._rewards[reward].limits

    def _describe(self, reward: str, expires: float) -> reward_pb2.Reward:
        request = reward_pb2.GetRewardRequest(reward=reward)
        return PatientCall(self._stub.GetReward, request, self._peer, expires).result().reward

    def _sharing(self, reward: str, limits: reward_pb2.Limits) -> SharedDirectory | None:
        """The directory by which images reach the service; None where it does not see it."""
        if self._shared is None or reward in self._unshared:
            return None
        return self._shared if self._shared.sees(limits.shared_marker) else None

    def _score_frames(
        self, reward: str, frames: Iterator[Frame], samples: int, expires: float
    ) -> list[Outcome]:
        """Send `frames`, several at a time; the outcomes of all `samples` in order."""
        results: list[Outcome] = []
        running: deque[_FrameCall] = deque()
        try:
            for frame in frames:
                call = PatientCall(self._score, frame.payload, self._peer, expires)
                running.append(_FrameCall(frame, call))
                if frame.samples < samples:
                    call.start()
                if len(running) == IN_FLIGHT:
                    results += self._finish(reward, running, expires)
            while running:
                results += self._finish(reward, running, expires)
        finally:
            for unfinished in running:
                unfinished.forget()
        return results

    def _finish(self, reward: str, running: "deque[_FrameCall]", expires: float) -> list[Outcome]:
        """The outcomes of the first frame of `running`, which it then leaves."""
        frame = running[0].frame
        try:
            response = running[0].call.result()
        except SharedFileUnavailable:
            if frame.shared_file is None:
                raise
            self._unshared.add(reward)
            response = PatientCall(self._score, frame.inline(), self._peer, expires).result()
        running.popleft().forget()
        if len(response.outcomes) != frame.samples:
            raise RewardFailed(
                f"reward service {self.target}: {len(response.outcomes)} outcomes for "
                f"{frame.samples} samples; its {response.reward} breaks the contract"
            )
        return outcomes(response)


@dataclass(frozen=True)
class _FrameCall:
    frame: Frame
    call: PatientCall[bytes, reward_pb2.ScoreResponse]

    def forget(self) -> None:
        self.call.cancel()
        self.frame.delete_file()
