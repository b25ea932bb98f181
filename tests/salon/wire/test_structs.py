import collections
import datetime
import decimal
import math
import types

import numpy as np
import pytest

from salon.errors import InvalidRequest
from salon.wire.batches import score_frames
from salon.wire.structs import to_dict, to_struct


def test_what_json_can_say_comes_back() -> None:
    mapping = {"a": 1, "b": 2.5, "c": [True, None, "x", {"d": []}], "e": {}, "f": -(2**40)}
    back = to_dict(to_struct(mapping))
    assert back == mapping
    assert isinstance(back["a"], int)
    assert back["c"][0] is True


def test_numbers_that_json_cannot_say_come_back_too() -> None:
    back = to_dict(to_struct({"nan": math.nan, "inf": -math.inf, "zero": -0.0}))
    assert math.isnan(back["nan"])
    assert back["inf"] == -math.inf
    assert math.copysign(1, back["zero"]) == -1


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**53 - 1, 2**60, 3 * 2**52, -(2**63)])
def test_an_integer_that_a_double_holds_arrives_as_it_is(number: int) -> None:
    back = to_dict(to_struct({"id": number}))["id"]
    assert (back, type(back)) == (number, int)


@pytest.mark.parametrize(
    "number",
    [2**53 + 1, -(2**53) - 1, 12345678901234567890, 2**64 - 1, 10**400, 1 << 20_000],
    ids=lambda number: f"{number.bit_length()} bits",
)
def test_an_integer_that_would_change_is_refused_with_its_place(number: int) -> None:
    with pytest.raises(ValueError, match=r"^id: the integer .* pass it as a text"):
        to_struct({"id": number})
    with pytest.raises(ValueError, match=r"^a\.b\[1\]\.c: the integer"):
        to_struct({"a": {"b": [0, {"c": number}]}})


@pytest.mark.parametrize(
    "value",
    [
        *(b"bytes", bytearray(b"x"), {1, 2}, frozenset(), range(3), object(), 1j),
        *(decimal.Decimal("0.1"), datetime.date(2026, 1, 1)),
        *(np.int64(3), np.float32(0.5), np.bool_(True), np.zeros(2), np.longdouble(1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_it_has_no_word_for_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(TypeError, match=rf"^a\[0\]: a value of type .*{type(value).__name__}"):
        to_struct({"a": [value]})


def test_a_mapping_of_any_kind_travels_at_any_depth() -> None:
    inner = types.MappingProxyType({"c": (types.MappingProxyType({"d": 1}),)})
    outer = types.MappingProxyType({"a": inner, "b": [collections.ChainMap({"e": None})]})
    assert to_dict(to_struct(outer)) == {"a": {"c": [{"d": 1}]}, "b": [{"e": None}]}


@pytest.mark.parametrize("key", [1, None, b"k", (1, 2), True])
def test_a_key_that_is_no_text_is_refused(key: object) -> None:
    with pytest.raises(TypeError, match=r"^a: key .* is no text"):
        to_struct({"a": {key: 1}})


def test_half_a_character_is_refused() -> None:
    for mapping in ({"a": "\ud800"}, {"\ud800": 1}):
        with pytest.raises(ValueError, match="is no Unicode text"):
            to_struct(mapping)


def test_what_is_deeper_than_it_is_read_is_refused() -> None:
    endless: dict[str, object] = {}
    endless["again"] = endless
    with pytest.raises(ValueError, match="more than 32 containers"):
        to_struct(endless)
    deepest: dict[str, object] = {}
    for _ in range(32):
        deepest = {"k": deepest}
    assert (
        to_dict(type(to_struct({})).FromString(to_struct(deepest).SerializeToString())) == deepest
    )


@pytest.mark.parametrize("metadata", [{"id": 2**64 - 1}, {1: 2}, [("a", 1)], "text", 5])
def test_a_batch_says_of_which_sample_it_is(metadata: object) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(InvalidRequest, match="metadata 1 cannot be sent: "):
        list(score_frames("r", images, metadata=[{"a": 1}, metadata]))  # type: ignore[list-item]
