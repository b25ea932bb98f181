"""The processes that train one job together: sums and agreements, of tensors alone."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Self

import redis
import torch
import torch.distributed as dist
from accelerate import PartialState
from kombu.exceptions import OperationalError
from torch import Tensor

from salon.errors import SalonError, UnknownInstance, VersionMismatch, from_reason, reason_of
from trainer.runtime.interrupt import Cause, Interrupted

BUCKET_BYTES = 64 * 2**20
"""Tensors travel together up to this size: sent one by one, most of the time would go into
starting; sent as one, a UNet's gradients would be in memory twice."""

_SEVERITY = {Cause.PREEMPTED: 1, Cause.CANCELLED: 2}
_LOST, _INSTANCE, _FAILED = 3, 4, 5
_REASON_BYTES = 1000


class RankFailed(SalonError):
    """This process could go on, but another of the same job could not."""


class RankLost(Exception):
    """Another process of the same job vanished, or was silent for too long."""


PASSING = (RankLost, redis.ConnectionError, redis.TimeoutError, OperationalError)
"""Errors that say nothing against the job: its next attempt may well succeed."""

_OF_INSTANCE = (UnknownInstance, VersionMismatch)
"""A learned reward's instance is gone, or not what the job believes. A job may know a way on from
that: so whatever else failed is worse, and all ranks hear of it instead."""


class Ranks:
    """This process among those that train the same job; see `launched` and `alone`.

    Every method but the constructors is a collective: all ranks must call it, in the same order,
    or those that did wait for those that did not until the time limit of the group.

    Attributes:
        rank: the number of this process, from 0.
        count: how many there are.
    """

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.rank = rank
        self.count = count
        self._device = device

    @classmethod
    def alone(cls) -> Self:
        """One process: nothing is sent, and nothing waits."""
        return cls(0, 1, torch.device("cpu"))

    @classmethod
    def launched(cls, device: str, timeout_seconds: float) -> Self:
        """The processes that `accelerate launch` or `torchrun` started; alone without them.

        Args:
            device: "cpu" for gloo, "cuda" for NCCL; see also `device`.
            timeout_seconds: after so long in a collective the others are taken for dead.

        Raises:
            RankLost: not all of them came.
        """
        timeout = timedelta(seconds=timeout_seconds)
        try:
            state = PartialState(cpu=device == "cpu", timeout=timeout)
        except dist.DistError as error:
            raise RankLost(f"the processes of the job do not find each other: {error}") from error
        own = torch.device("cpu") if device == "cpu" else state.device
        return cls(state.process_index, state.num_processes, own)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks for all."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """That of this process: with several GPUs a host, each rank has its own."""
        return self._device

    @torch.no_grad()
    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, which all ranks get bit for bit alike.

        Args:
            tensors: on any device; the same shapes and dtypes in the same order on every rank.
        """
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).to(self._device)
            self._reduce(flat, dist.ReduceOp.SUM)
            sizes = [tensor.numel() for tensor in bucket]
            for tensor, total in zip(bucket, torch.split(flat, sizes), strict=True):
                tensor.copy_(total.view_as(tensor))

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers: how they agree on what concerns all."""
        if self.count == 1:
            return number
        numbers = torch.tensor([number], device=self._device)
        self._reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        try:
            dist.all_reduce(tensor, op=operation)
        except RuntimeError as error:  # gloo and NCCL have no closer one
            reason = str(error).splitlines()[0]
            raise RankLost(f"rank {self.rank} of {self.count} lost another: {reason}") from error

    def agree(self, error: Exception | None) -> None:
        """Go on only if every rank can: raise on all of them if one has an error.

        Called where ranks may fail each for itself, before they meet in a collective that would
        wait for the one that did.

        Raises:
            Exception: `error`, unless another rank has a worse one.
            Interrupted: another rank is to stop, for the same cause.
            RankLost: another rank ends by one of PASSING.
            SalonError: another rank failed; of the same class if `salon.errors` has it, otherwise
                RankFailed. The message has its reason.
        """
        own = _severity(error)
        worst = self.largest(own)
        if worst == 0:
            return
        kind, words = self._reason(error if own == worst else None) if worst >= _LOST else ("", "")
        if error is not None and own == worst:
            raise error
        for cause, severity in _SEVERITY.items():
            if severity == worst:
                raise Interrupted(cause) from error
        if worst == _LOST:
            raise RankLost(words) from error
        failure = from_reason(kind, words)
        raise (RankFailed(words) if type(failure) is SalonError else failure) from error

    def _reason(self, error: Exception | None) -> tuple[str, str]:
        """What the first of the ranks that give an error has to say, known to all.

        Returns:
            its kind, as `reason_of` has it, and its words.
        """
        first = self.count - self.largest(0 if error is None else self.count - self.rank)
        text = torch.zeros(_REASON_BYTES, dtype=torch.uint8)
        if error is not None and self.rank == first:
            name = "" if isinstance(error, SalonError) else f"{type(error).__name__}: "
            data = f"{reason_of(error)}\n{name}{error}".encode()[:_REASON_BYTES]
            text[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        self.sum_([text])
        kind, _, said = bytes(text.tolist()).rstrip(b"\0").decode(errors="ignore").partition("\n")
        return kind, f"rank {first} of {self.count} failed: {said}"

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.largest(0)

    def close(self) -> None:
        """Leave the group; nothing can be summed afterwards."""
        if self.count > 1:
            PartialState().destroy_process_group()


def _severity(error: Exception | None) -> int:
    if error is None:
        return 0
    if isinstance(error, Interrupted):
        return _SEVERITY[error.cause]
    if isinstance(error, PASSING):
        return _LOST
    return _INSTANCE if isinstance(error, _OF_INSTANCE) else _FAILED


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype and device, up to BUCKET_BYTES together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        alike = bucket and (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not alike or size + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
