"""Texts and numbers through a spec's YAML and back."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.spec.yaml import YamlError, dump, parse, parse_value

NUMBERS = st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()


@given(st.text())
@example("1e3")
@example("1_000")
@example("0o17")
@example("no")
@example("2024-01-01")
@example("<<")
@example("")
@example("a cat\u2028on a mat")
@example("a\x85b\ufeff")
@example("a: #b\n\n  c \t")
@example("a fox " * 40)
def test_every_text_comes_back_from_a_file(text):
    value = {"prompts": [text], "name": text}
    assert parse(dump(value)) == value


@given(NUMBERS)
def test_what_is_no_text_comes_back_as_what_it_is(value):
    [back] = parse(dump([value]))
    assert (back, type(back)) == (value, type(value))


def test_infinities_come_back():
    assert parse(dump([math.inf, -math.inf])) == [math.inf, -math.inf]


@pytest.mark.parametrize("text", ["#1 dad", " # of cats", "#", "a #1 dad"])
def test_a_value_of_an_override_has_no_comments(text):
    assert parse_value(text) == text.strip()


def test_halves_of_a_character_are_joined_or_refused():
    assert parse('a: "\\ud83d\\ude00"') == {"a": "😀"}
    with pytest.raises(YamlError, match="half of a character"):
        parse('a: "\\ud800"')
