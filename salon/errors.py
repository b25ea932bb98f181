"""The error taxonomy and its gRPC status codes, in this one place."""

from typing import ClassVar

import grpc

from salon.reward.v1 import reward_pb2


class SalonError(Exception):
    """Base of every error raised on purpose; `str(error)` is one line: problem, value, way out."""

    grpc_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class InvalidRequest(SalonError):
    """What the caller passed cannot be used; repeating it will not help."""

    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class UnknownReward(SalonError):
    """The service does not host that reward."""

    grpc_code = grpc.StatusCode.NOT_FOUND


class Overloaded(SalonError):
    """A bound on size or number is reached; wait, or send less."""

    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ServiceUnavailable(SalonError):
    """The reward service cannot be reached, is starting, or is draining."""

    grpc_code = grpc.StatusCode.UNAVAILABLE


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


_BY_CODE: dict[grpc.StatusCode, type[SalonError]] = {
    error.grpc_code: error
    for error in (
        InvalidRequest,
        UnknownReward,
        Overloaded,
        ServiceUnavailable,
        DeadlineExceeded,
        RewardFailed,
    )
}

_WAY_OUT = {
    grpc.StatusCode.UNAVAILABLE: "check that it runs there and that the address is right",
    grpc.StatusCode.DEADLINE_EXCEEDED: "pass a longer deadline or a smaller batch",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "try again later, or send smaller messages",
    grpc.StatusCode.UNIMPLEMENTED: "what answers there is not a Salon reward service",
}


def from_rpc_error(error: grpc.RpcError, target: str) -> SalonError:
    """The typed error for a failed gRPC call to the service at `target`, which it names.

    A status this taxonomy has no class for becomes RewardFailed and is named in the message.
    """
    # Every error a channel raises is also a grpc.Call, which is where its status is.
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = error.details() if isinstance(error, grpc.Call) else str(error)
    kind = _BY_CODE.get(code, RewardFailed)
    way_out = f"; {_WAY_OUT[code]}" if code in _WAY_OUT else ""
    return kind(f"reward service {target}: {code.name}: {details}{way_out}")
