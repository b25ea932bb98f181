"""How every call is let in, logged and counted, and how what it raised becomes a status."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError

from salon.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RewardFailed,
    SalonError,
    SharedFileUnavailable,
    to_status,
)
from salon.reward.v1 import reward_pb2
from salon.wire.shared_files import SharedDirectory
from services.scoring.call import Call, abandoned, given_up
from services.scoring.metrics import Metrics
from services.server.admission import Admission
from services.server.receiving import Turns

logger = structlog.get_logger()

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Answering:
    """What the servicers of one server do alike."""

    def __init__(
        self,
        admission: Admission,
        metrics: Metrics,
        shared: SharedDirectory | None,
        log_calls: bool,
    ) -> None:
        """Answer whom `admission` lets in.

        Args:
            admission: lets calls in.
            metrics: counts every call.
            shared: where files of slices lie, if anywhere.
            log_calls: log also the calls in which nothing went wrong.
        """
        self._admission = admission
        self._metrics = metrics
        self._shared = shared
        self._log_calls = log_calls
        self._turns = Turns()
        self.shared_marker = shared.marker() if shared else ""
        """By which callers know that they share the directory."""

    def unary(
        self, method: Callable[[bytes, grpc.ServicerContext], _Response]
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """A handler that receives the one message of a call in its turn, for `method` to answer."""

        # As a stream, which looks the same on the wire: of one nothing is read unasked.
        def handle(payloads: Iterator[bytes], context: grpc.ServicerContext) -> _Response:
            return method(self._receive(payloads, context, method.__name__), context)

        return grpc.stream_unary_rpc_method_handler(handle, None, write)

    def unary_stream(
        self, method: Callable[[bytes, grpc.ServicerContext], Iterator[_Response]]
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """As `unary`, for an answer in pieces."""

        def handle(payloads: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[_Response]:
            yield from method(self._receive(payloads, context, method.__name__), context)

        return grpc.stream_stream_rpc_method_handler(handle, None, write)

    def answer(
        self, context: grpc.ServicerContext, handle: Callable[[Call], _Response], method: str
    ) -> _Response:
        """Run one call, count it, log it, turn what it raised into a status.

        Args:
            context: of the call.
            handle: does what the call asks for, and sets the call's reward once it is known.
            method: for the log.
        """
        with self._counted(context, method) as call:
            response = handle(call)
            call.errors = _count_errors(response)
        return response

    def stream(
        self,
        context: grpc.ServicerContext,
        handle: Callable[[Call], Iterator[_Response]],
        method: str,
    ) -> Iterator[_Response]:
        """As `answer`, for an answer in pieces: the call counts as it was when the last was sent.

        Args:
            context: of the call.
            handle: gives the pieces, and sets the call's reward once it is known.
            method: for the log.
        """
        with self._counted(context, method) as call:
            yield from handle(call)

    @contextmanager
    def _counted(self, context: grpc.ServicerContext, method: str) -> Iterator[Call]:
        started = time.monotonic()
        identity = secrets.token_hex(4)
        call = Call(lambda: given_up(context), logger.bind(method=method, call=identity), identity)
        code = grpc.StatusCode.OK
        try:
            with self._admission.admitted(context):
                yield call
            # An answer that nobody waits for is not counted as one.
            call.check_wanted()
        except SalonError as error:
            code = error.grpc_code
            # Not an error: so a caller learns to send the pixels inline, once.
            quiet = isinstance(error, SharedFileUnavailable) and not self._log_calls
            _refuse(context, call, error, started, quiet)
        # gRPC lets go of a stream whose caller has left.
        except GeneratorExit:
            code = DeadlineExceeded.grpc_code
            _log(call, code, started, reason="the caller left before the last piece")
            raise
        except Exception:
            call.log.exception("call failed", reward=call.reward)
            code = RewardFailed.grpc_code
            words = f"the service failed; its log has the traceback of call {identity}"
            _refuse(context, call, RewardFailed(words), started)
        finally:
            self._metrics.request(call.reward, code.name, call.images, call.image_bytes)
        # At a thousand calls a second their lines take a tenth of the throughput.
        if call.errors or self._log_calls:
            _log(call, code, started, errors=call.errors)

    def _receive(
        self, payloads: Iterator[bytes], context: grpc.ServicerContext, method: str
    ) -> bytes:
        """The one message of a call, as bytes: they take memory and time once they are read."""
        started = time.monotonic()
        call = Call(lambda: given_up(context), logger.bind(method=method))
        try:
            with self._turns.one(context.peer(), call.check_wanted, context.cancel) as turn:
                for payload in payloads:
                    turn.size = len(payload)
                    return payload
            raise InvalidRequest(f"the call ended without a message: {method} takes one")
        except (grpc.RpcError, SalonError) as error:
            why = error if isinstance(error, SalonError) else abandoned()
            self._metrics.request("", why.grpc_code.name)
            _refuse(context, call, why, started)

    @contextmanager
    def opened(self, shared_file: str) -> Iterator[memoryview | None]:
        """The shared file of a call, if it names one.

        Raises:
            SharedFileUnavailable: this server cannot see it.
            InvalidRequest: it names no such file.
        """
        if not shared_file:
            yield None
            return
        if self._shared is None:
            raise SharedFileUnavailable(
                "this service shares no directory with its callers (--shared-dir): "
                "send the pixels inline"
            )
        with self._shared.open(shared_file) as shared:
            yield shared


def write(response: Any) -> bytes:
    """A protobuf message, serialized."""
    written: bytes = response.SerializeToString()
    return written


def _refuse(
    context: grpc.ServicerContext,
    call: Call,
    error: SalonError,
    started: float,
    quiet: bool = False,
) -> NoReturn:
    if not quiet:
        _log(call, error.grpc_code, started, reason=str(error))
    context.abort_with_status(to_status(error))
    raise error  # not reached: the line above raises


def _count_errors(response: object) -> int:
    if not isinstance(response, reward_pb2.ScoreResponse):
        return 0
    return sum(outcome.HasField("error") for outcome in response.outcomes)


def _log(call: Call, code: grpc.StatusCode, started: float, **more: object) -> None:
    call.log.info(
        "call",
        reward=call.reward,
        samples=call.samples,
        image_bytes=call.image_bytes,
        code=code.name,
        seconds=round(time.monotonic() - started, 6),
        **more,
    )


def read_request(name: str, payload: bytes, parse: Callable[[bytes], _Request]) -> _Request:
    """What `parse` makes of `payload`.

    Servicers take bytes and read them here, once the call is let in: what gRPC cannot read it
    answers itself, with a status that says nothing.

    Args:
        name: the message's, for people.
        payload: the serialized message.
        parse: reads it, such as `FromString`.

    Raises:
        InvalidRequest: the bytes are no such message.
    """
    try:
        return parse(payload)
    except DecodeError as error:
        raise InvalidRequest(
            f"the {len(payload)} bytes of the call are no {name} ({error}): write them with the "
            "code that protoc makes of salon's protos"
        ) from None
