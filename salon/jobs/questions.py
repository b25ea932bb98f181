"""What a job asks a person, as Redis and a checkpoint keep it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from salon.errors import InvalidRequest

MAX_BYTES = 1024 * 1024
"""Of a question, and of the answers to it: what is larger belongs into the run folder."""
MAX_TEXT = 500  # characters


@dataclass(frozen=True)
class Question:
    """The same of each of many items: which of two, for one.

    Attributes:
        text: what is asked, in a line.
        items: what it is asked of; whatever JSON has, as far as whoever shows it understands it.
        choices: what may be answered for an item; none: anything that JSON has.
        id: what it is answered by; the trainer gives it one as it asks.
    """

    text: str
    items: Sequence[Any]
    choices: Sequence[str] = ()
    id: str = ""

    def asked_after(self, iteration: int) -> Self:
        """It with its id: the same whenever the same is asked after that iteration.

        Raises:
            InvalidRequest: it cannot be asked.
        """
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
        return replace(self, id=f"{iteration}-{digest}")

    def to_json(self) -> str:
        """The whole of it; raises InvalidRequest where it cannot be asked."""
        if not self.text or len(self.text) > MAX_TEXT or not self.text.isprintable():
            raise InvalidRequest(
                f"a question's text is one line of 1 to {MAX_TEXT} characters, "
                f"got {self.text!r:.100}"
            )
        if not self.items:
            raise InvalidRequest(f"the question {self.text!r} asks of no item")
        if isinstance(self.choices, str) or not all(isinstance(c, str) for c in self.choices):
            raise InvalidRequest(
                f"the choices of the question {self.text!r} are a list of texts, "
                f"got {self.choices!r:.100}"
            )
        values = {
            "id": self.id,
            "text": self.text,
            "items": [*self.items],
            "choices": [*self.choices],
        }
        return to_json(values, f"the question {self.text!r}")

    @classmethod
    def from_values(cls, values: Any) -> Self:
        """What `to_json` gave, parsed; raises KeyError or TypeError for what is none of it."""
        if not isinstance(values, Mapping):
            raise TypeError(f"a question is no {type(values).__name__}")
        items, choices = values["items"], values["choices"]
        if not (isinstance(items, list) and isinstance(choices, list)):
            raise TypeError("its items and choices are lists")
        return cls(str(values["text"]), items, [*map(str, choices)], str(values["id"]))

    def check(self, answers: Any) -> str:
        """The answers as JSON, if they are some to this question.

        Args:
            answers: one for each item, in order.

        Raises:
            InvalidRequest: they are not, and why.
        """
        if isinstance(answers, str) or not isinstance(answers, Sequence):
            raise InvalidRequest(
                f"answers are a list, one for each item, got a {type(answers).__name__}"
            )
        if len(answers) != len(self.items):
            raise InvalidRequest(
                f"question {self.id} has {len(self.items)} items and takes one answer for each, "
                f"got {len(answers)}"
            )
        if self.choices:
            for number, answer in enumerate(answers, start=1):
                if answer not in self.choices:
                    raise InvalidRequest(
                        f"question {self.id}, item {number}: {answer!r:.100} is none of "
                        f"{', '.join(self.choices)}"
                    )
        return to_json([*answers], f"the answers to question {self.id}")

    def __str__(self) -> str:
        count = "" if len(self.items) == 1 else f" ({len(self.items)} items)"
        return f"{self.text}{count}"


def to_json(values: Any, what: str) -> str:
    """In one way, of a size that Redis may hold.

    Raises:
        InvalidRequest: that cannot be; it says of `what`.
    """
    try:
        text = json.dumps(values, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} cannot be written as JSON: {error}") from None
    if len(text) > MAX_BYTES:
        raise InvalidRequest(
            f"{what} takes {len(text)} bytes of JSON, more than {MAX_BYTES}: put what is "
            "large into files, and name these"
        )
    return text
