import math

import pytest

from salon.structs import to_dict, to_struct


def test_what_json_can_say_comes_back() -> None:
    mapping = {"a": 1, "b": 2.5, "c": [True, None, "x", {"d": []}], "e": {}, "f": -(2**40)}
    back = to_dict(to_struct(mapping))
    assert back == mapping
    assert isinstance(back["a"], int)


def test_numbers_that_json_cannot_say_come_back_too() -> None:
    back = to_dict(to_struct({"nan": math.nan, "inf": -math.inf}))
    assert math.isnan(back["nan"])
    assert back["inf"] == -math.inf


@pytest.mark.parametrize("mapping", [{"a": object()}, {"a": b"bytes"}, {1: "a"}])
def test_what_it_has_no_word_for_is_refused(mapping: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        to_struct(mapping)
