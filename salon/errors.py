"""The error taxonomy and its gRPC status codes, in this one place."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from salon.reward.v1 import reward_pb2
from salon.targets import through_proxy

DOMAIN = "salon"
"""Of the ErrorInfo in a status; its reason is the name of the error's class here."""

MESSAGE_BYTES = 1500
"""Of an error in UTF-8, on the wire. It travels twice in the trailers, percent-encoded (up to three
times as long) and in base64, and above 8 KiB of them gRPC may refuse the answer."""


class SalonError(Exception):
    """Base of every error raised on purpose; `str(error)` is one line: problem, value, way out."""

    grpc_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class InvalidRequest(SalonError):
    """What the caller passed cannot be used; repeating it will not help."""

    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class UnknownReward(SalonError):
    """The service does not host that reward."""

    grpc_code = grpc.StatusCode.NOT_FOUND


class UnknownInstance(SalonError):
    """The learned reward has no instance of that name."""

    grpc_code = grpc.StatusCode.NOT_FOUND


class Unauthenticated(SalonError):
    """The service asks for a bearer token, and this one is missing or not one of its own."""

    grpc_code = grpc.StatusCode.UNAUTHENTICATED


class SharedFileUnavailable(SalonError):
    """The service cannot see the shared file that holds the pixels; send them inline."""

    grpc_code = grpc.StatusCode.FAILED_PRECONDITION


class VersionMismatch(SalonError):
    """The instance of a learned reward is not at the version that the caller builds on."""

    grpc_code = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(SalonError):
    """A bound on size or number is reached; wait, or send less."""

    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        """Keep the hint beside the message.

        Args:
            message: one line for people: problem, value, way out.
            retry_after_seconds: when there may be room again; None where waiting does not help.
        """
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ServiceUnavailable(SalonError):
    """The reward service cannot be reached, is starting, or is draining."""

    grpc_code = grpc.StatusCode.UNAVAILABLE


class Interrupted(ServiceUnavailable):
    """The reward service stopped, or broke, with the call in its hands.

    After a bare ServiceUnavailable the call was not tried; after this one it may be the cause.
    """


class StackUnavailable(SalonError):
    """The stack's Redis cannot be reached."""

    grpc_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(SalonError):
    """The caller's deadline passed before the work was done."""

    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED


class RewardFailed(SalonError):
    """The reward service failed on its side; its log says why."""

    grpc_code = grpc.StatusCode.INTERNAL


class SampleError(SalonError):
    """One sample cannot be scored; the other samples of its batch are."""

    grpc_code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, code: reward_pb2.ErrorCode.ValueType, message: str) -> None:
        """Keep the wire's error code beside the message.

        Args:
            code: a value of `salon.reward.v1.ErrorCode`.
            message: one line for people: problem, value, way out.
        """
        super().__init__(message)
        self.code = code

    @property
    def code_name(self) -> str:
        """The code as written in reward.proto, or its number when a newer service sent it."""
        known = reward_pb2.ErrorCode.DESCRIPTOR.values_by_number.get(self.code)
        return known.name if known else str(self.code)


_KINDS: tuple[type[SalonError], ...] = (
    InvalidRequest,
    UnknownReward,
    UnknownInstance,
    Unauthenticated,
    SharedFileUnavailable,
    VersionMismatch,
    Overloaded,
    ServiceUnavailable,
    Interrupted,
    DeadlineExceeded,
    RewardFailed,
)
"""What a service may answer; of those that share a code, a bare code means the first."""
_BY_REASON = {kind.__name__: kind for kind in _KINDS}
_BY_CODE = {kind.grpc_code: kind for kind in reversed(_KINDS)}

_WAY_OUT = {
    grpc.StatusCode.UNAVAILABLE: "check that it runs there and that the address is right",
    grpc.StatusCode.DEADLINE_EXCEEDED: "pass a longer deadline or a smaller batch",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "try again later, or send smaller messages",
    grpc.StatusCode.UNAUTHENTICATED: (
        "pass a bearer token that the service knows (SALON_REWARD_TOKEN, or Security(token=...))"
    ),
    grpc.StatusCode.UNIMPLEMENTED: "what answers there is not a Salon reward service",
}


_WAY_OUT_IS_TOLD = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
# How gRPC itself refuses a message: which side does, on which way, its size and the limit.
_TOO_LARGE = re.compile(
    r"(CLIENT|SERVER): (Sent|Received) message larger than max \((\d+) vs\. (\d+)\)"
)
_TOO_LARGE_REQUEST = (
    "the request takes {size} bytes, at most {limit} are accepted: send fewer or smaller samples "
    "in one, or raise --max-message-bytes of the service and max_message_bytes here "
    "(SALON_MAX_MESSAGE_BYTES)"
)
_TOO_LARGE_REPLY = (
    "the reply takes {size} bytes, at most {limit} are accepted: let the reward return less in "
    "details, ask for fewer samples in one call, or raise max_message_bytes here "
    "(SALON_MAX_MESSAGE_BYTES) and --max-message-bytes of the service"
)
_MAYBE_ITS_PROXY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_OS_ERROR = re.compile(r"\(os error (\d+)\)$")  # how libraries in Rust, as safetensors, end theirs
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


@contextmanager
def naming(path: Path, *, disk_alone: bool = False) -> Iterator[None]:
    """Within, an error of the operating system that names no file, as of a full disk, gets `path`.

    Args:
        path: what is written.
        disk_alone: not where the error may be that of a connection.

    Raises:
        OSError: that error, naming its file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and _is_ours(error.errno, disk_alone):
            error.filename = str(path)
        raise
    except Exception as error:
        found = _OS_ERROR.search(str(error))
        code = int(found[1]) if found else None
        if code is None or not _is_ours(code, disk_alone):
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def one_line(error: BaseException) -> str:
    """What other people's exception says, with its class where that is a part of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return line if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {line}"


def _is_ours(code: int | None, disk_alone: bool) -> bool:
    return code in _OF_DISKS if disk_alone else code is not None


def to_status(error: SalonError) -> grpc.Status:
    """The status a service answers with: code, message, and google.rpc details for programs."""
    message = str(error).encode()[:MESSAGE_BYTES].decode(errors="ignore")
    status = Status(code=error.grpc_code.value[0], message=message)
    status.details.add().Pack(ErrorInfo(reason=type(error).__name__, domain=DOMAIN))
    if isinstance(error, Overloaded) and error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_seconds * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    answer: grpc.Status = rpc_status.to_status(status)
    return answer


def from_rpc_error(error: grpc.RpcError, target: str) -> SalonError:
    """The typed error for a failed gRPC call to the service at `target`, which it names.

    The reason in the status's details decides; without details, the code. A status this taxonomy
    has no class for becomes RewardFailed and is named in the message.
    """
    # Every error a channel raises is also a grpc.Call, which is where its status is.
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    kind = _BY_CODE.get(code, RewardFailed)
    retry_after: float | None = None
    for detail in _details(error):
        info, retry = ErrorInfo(), RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            kind = _BY_REASON.get(info.reason, kind)
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    proxy = through_proxy(target) if code in _MAYBE_ITS_PROXY else ""
    message = f"reward service {target}{proxy}: {in_words(error)}"
    return Overloaded(message, retry_after) if kind is Overloaded else kind(message)


def reason_of(error: Exception) -> str:
    """What `from_reason` knows an error's kind by: its class's name, or the code of a sample's."""
    return error.code_name if isinstance(error, SampleError) else type(error).__name__


def from_reason(reason: str, message: str) -> SalonError:
    """An error that came some other way than as a gRPC status, as from a scoring worker.

    Args:
        reason: of `reason_of`; where this taxonomy has no such class it becomes a SalonError.
        message: the error's.
    """
    if reason in reward_pb2.ErrorCode.DESCRIPTOR.values_by_name:
        return SampleError(reward_pb2.ErrorCode.Value(reason), message)
    return _BY_REASON.get(reason, SalonError)(message)


def in_words(error: grpc.RpcError) -> str:
    """The status of a failed call for people: its code, what it says, and a way out."""
    if not isinstance(error, grpc.Call):
        return f"{grpc.StatusCode.UNKNOWN.name}: {error}"
    code, words = error.code(), error.details() or ""
    if found := _TOO_LARGE.search(words):
        side, done, size, limit = found.groups()
        is_request = (side, done) in (("CLIENT", "Sent"), ("SERVER", "Received"))
        text = _TOO_LARGE_REQUEST if is_request else _TOO_LARGE_REPLY
        return f"{code.name}: {text.format(size=size, limit=limit)}"
    # What has no room, or is not ready, says itself what to do.
    told = code in _WAY_OUT_IS_TOLD and is_of_service(error)
    way_out = f"; {_WAY_OUT[code]}" if code in _WAY_OUT and not told else ""
    return f"{code.name}: {words}{way_out}"


def is_untried(error: grpc.RpcError) -> bool:
    """Whether the service itself says that it did not begin with the call.

    It starts, drains, or has no room. A connection that broke says nothing, and `Interrupted` says
    the opposite.
    """
    info = ErrorInfo()
    return any(
        detail.Unpack(info)
        and info.domain == DOMAIN
        and info.reason in (ServiceUnavailable.__name__, Overloaded.__name__)
        for detail in _details(error)
    )


def is_of_service(error: grpc.RpcError) -> bool:
    """Whether the service itself ended the call so, and not this side's channel or deadline."""
    info = ErrorInfo()
    return any(detail.Unpack(info) and info.domain == DOMAIN for detail in _details(error))


def _details(error: grpc.RpcError) -> Sequence[Any]:
    """The google.rpc details in the trailers, if there are any that belong to this status."""
    try:
        status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
    # A proxy on the way may have changed the code and left the details.
    except (ValueError, DecodeError):
        return ()
    return status.details if status else ()
