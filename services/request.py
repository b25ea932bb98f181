"""From the bytes of a call to its request."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from salon.errors import InvalidRequest

_Request = TypeVar("_Request")


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
