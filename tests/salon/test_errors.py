"""The error taxonomy on the wire: to a status with details, and back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from salon import errors
from salon.errors import (
    InvalidRequest,
    Overloaded,
    RewardFailed,
    SalonError,
    SampleError,
    ServiceUnavailable,
    UnknownReward,
    from_reason,
    from_rpc_error,
    naming,
    reason_of,
    to_status,
)
from salon.reward.v1 import reward_pb2


class Answer(grpc.GenericRpcHandler):
    """Ends every call as `self.end(context)` does."""

    def service(self, _details):
        return grpc.unary_unary_rpc_method_handler(lambda _request, context: self.end(context))


@pytest.fixture(scope="module")
def answer():
    return Answer()


@pytest.fixture(scope="module")
def failure(answer):
    """The typed error for what a call ended in: `failure(how it ends)`."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[answer])
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with grpc.insecure_channel(target) as channel:

        def call(end):
            answer.end = end
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/any/method")(b"", timeout=10)
            return from_rpc_error(caught.value, "there"), caught.value

        yield call
    server.stop(0)


@pytest.mark.parametrize("kind", errors._KINDS, ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_what_it_left_as(failure, kind):
    error, call = failure(lambda context: context.abort_with_status(to_status(kind("no: ü"))))
    assert type(error) is kind
    assert call.code() is kind.grpc_code
    assert str(error).startswith(f"reward service there: {kind.grpc_code.name}: no: ü")


@pytest.mark.parametrize("kind", errors._KINDS, ids=lambda kind: kind.__name__)
def test_every_error_of_a_service_is_known_by_its_reason(kind):
    error = from_reason(reason_of(kind("no: ü")), "no: ü")
    assert type(error) is kind
    assert str(error) == "no: ü"


def test_an_error_of_a_sample_is_known_by_its_code():
    sent = SampleError(reward_pb2.ERROR_CODE_INVALID_IMAGE, "cut short")
    error = from_reason(reason_of(sent), "cut short")
    assert type(error) is SampleError
    assert (error.code, str(error)) == (sent.code, "cut short")


@pytest.mark.parametrize("reason", ["OfTheFuture", "KeyError", "_KINDS", "99", ""])
def test_an_error_of_no_known_class_is_one_all_the_same(reason):
    error = from_reason(reason, "what happened")
    assert type(error) is SalonError
    assert str(error) == "what happened"


def test_every_error_of_a_service_has_a_place_on_the_wire():
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, SalonError) and kind is not SalonError
    }
    assert kinds == {*errors._KINDS, errors.SampleError, errors.StackUnavailable}


@pytest.mark.parametrize("seconds", [0.25, 60.0, None])
def test_a_hint_when_to_come_back_arrives(failure, seconds):
    error, _ = failure(
        lambda context: context.abort_with_status(to_status(Overloaded("", seconds)))
    )
    assert error.retry_after_seconds == seconds


def test_without_details_the_code_decides(failure):
    for code, kind in (
        (grpc.StatusCode.NOT_FOUND, UnknownReward),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAVAILABLE, ServiceUnavailable),
        (grpc.StatusCode.UNKNOWN, RewardFailed),
        (grpc.StatusCode.DATA_LOSS, RewardFailed),
    ):
        error, _ = failure(lambda context, code=code: context.abort(code, "words"))
        assert type(error) is kind
        assert "words" in str(error)


def test_details_that_do_not_belong_to_the_status_are_ignored(failure):
    def end(context):
        context.set_trailing_metadata(to_status(InvalidRequest("another")).trailing_metadata)
        context.abort(grpc.StatusCode.UNAVAILABLE, "from a proxy")

    assert type(failure(end)[0]) is ServiceUnavailable

    def garbage(context):
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "from a proxy")

    assert type(failure(garbage)[0]) is ServiceUnavailable


@pytest.mark.parametrize("letter", ["\N{PILE OF POO}", "\x01", "a"])
def test_the_longest_message_still_fits_into_the_trailers(failure, letter):
    words = letter * 10_000
    error, _ = failure(lambda context: context.abort_with_status(to_status(InvalidRequest(words))))
    assert type(error) is InvalidRequest
    assert letter * (errors.MESSAGE_BYTES // len(letter.encode())) in str(error)


@pytest.mark.parametrize(
    ("error", "alone", "told"),
    [
        (OSError(28, "No space left on device"), True, "'/runs/x'"),
        (Exception("I/O error: No space left on device (os error 28)"), True, "'/runs/x'"),
        (OSError(12, "Cannot allocate memory"), False, "'/runs/x'"),
        (ConnectionRefusedError(111, "Connection refused"), True, ""),
        (Exception("dns error (os error 111)"), True, ""),
        (OSError("of a library's own"), False, ""),
        (ValueError("no error of the system"), False, ""),
        (FileNotFoundError(2, "No such file", "/other"), False, "'/other'"),
    ],
    ids=str,
)
def test_what_the_system_refused_is_named(error, alone, told):
    with (
        pytest.raises(Exception) as caught,
        naming(Path("/runs/x"), disk_alone=alone),
    ):
        raise error
    assert str(caught.value).endswith(told)
    assert ("/runs/x" in str(caught.value)) == (told == "'/runs/x'")
