"""How large a request may be, and how many fields it has, counted before anything is made of it.

A sample, an example or a value of its metadata may be two bytes on the wire and dozens in memory.
"""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from salon.errors import InvalidRequest

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Default largest message, both ways: a batch of 16 RGB images of 512 x 512 is 12.6 MB."""
MAX_SAMPLES = 1024
"""Most samples in one request, unless the service says otherwise."""

MAX_PROMPT_BYTES = 16 * 1024
"""Longest prompt in UTF-8, unless the service says otherwise."""
MAX_METADATA_BYTES = 64 * 1024
"""Most metadata of a sample, as serialized, unless the service was told otherwise."""

FEW_FIELDS = 64
"""More than any request here has, but for its samples or examples: what callers make up must stay
bounded."""
FIELDS_WITHIN = 256
"""For each sample or example that a request may have: most fields, at every depth, within them all.
Each takes some fifty bytes in memory."""

_NUMBER, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)  # wire types
_LONGEST_VARINT = 10
_NO_FIELD = 0


def check_bounds(payload: bytes, request: Descriptor, items: str, most: int) -> None:
    """Count the fields of a serialized request, whatever its encoding, without reading them.

    Bytes that are no message are left for protobuf to refuse: all that it would read is counted.

    Args:
        payload: the request.
        request: its type.
        items: the repeated field that it is about, such as `samples`.
        most: how many of these it may have.

    Raises:
        InvalidRequest: there are more, or `FEW_FIELDS` other fields, or too many within them.
    """
    number = request.fields_by_name[items].number
    found = others = 0
    for field, _ in _fields(memoryview(payload)):
        found, others = (found + 1, others) if field == number else (found, others + 1)
        if found > most:
            raise InvalidRequest(
                f"more than {most} {items} in one call: split the batch, as the clients of salon do"
            )
        if others > FEW_FIELDS:
            raise InvalidRequest(
                f"the request has more than {FEW_FIELDS} fields beside its {items}; no "
                f"{request.name} has that many"
            )
    _check_within(payload, request, items, FIELDS_WITHIN * (most + 1))


def _check_within(payload: bytes, request: Descriptor, items: str, most: int) -> None:
    count = 0
    unread = [(memoryview(payload), request)]
    while unread:
        message, kind = unread.pop()
        for number, body in _fields(message):
            count += 1
            if count > most:
                raise InvalidRequest(
                    f"the {items} and whatever else the request brings have more than {most} "
                    "fields within them: send less metadata, or fewer per call"
                )
            known = kind.fields_by_number.get(number)
            if body and known is not None and known.message_type is not None:
                unread.append((body, known.message_type))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Number and, where it is bytes, body of each field; those of groups count as no known one."""
    position = depth = 0
    try:
        while position < len(message):
            tag, position = _read_varint(message, position)
            kind = tag & 7
            body = None
            if kind == _NUMBER:
                _, position = _read_varint(message, position)
            elif kind == _BYTES:
                length, position = _read_varint(message, position)
                body = message[position : position + length]
                position += length
            elif kind in (_FIXED64, _FIXED32):
                position += 8 if kind == _FIXED64 else 4
            yield (_NO_FIELD, None) if depth else (tag >> 3, body)
            if kind not in (_NUMBER, _BYTES, _FIXED64, _FIXED32):
                depth += {_GROUP: 1, _GROUP_END: -1}[kind]
    # Cut short, or a wire type there is not.
    except (IndexError, KeyError):
        return


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for index in range(_LONGEST_VARINT):
        byte = message[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise IndexError(position)
