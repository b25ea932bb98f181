"""Rows: what the generator is told, and what goes to the rewards with it."""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from salon.wire.limits import MAX_METADATA_BYTES, MAX_PROMPT_BYTES
from salon.wire.structs import to_dict, to_struct


class Row(BaseModel):
    """One prompt. The generator sees nothing else of it; every reward is sent all of it.

    A text is a row of that prompt alone, and such a row is written as a text again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(description="What the generator is told.")
    metadata: dict[str, Any] = Field(
        {},
        description="What rewards read beside it, a mapping of JSON values, e.g. the questions and "
        "answers of vqa_satisfaction.",
    )
    reference: str | None = Field(
        None,
        description="The image file that its samples are compared with, by each reward whose entry "
        "names none.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"prompt": value}
        if not isinstance(value, Mapping | Row):
            raise PydanticKnownError("string_type")
        return value

    @field_validator("prompt")
    @classmethod
    def _is_unicode(cls, prompt: str) -> str:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half of a character (a lone surrogate): {error}") from None
        return prompt

    @field_validator("metadata")
    @classmethod
    def _arrives_as_it_is(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        """A copy as JSON has it.

        Raises:
            ValueError: it says what in it cannot be sent, and where.
        """
        try:
            to_struct(metadata)
            copied: dict[str, Any] = json.loads(json.dumps(metadata, allow_nan=False))
        except TypeError as error:
            raise ValueError(str(error)) from None
        return copied

    @model_serializer
    def _shortest(self) -> str | dict[str, Any]:
        return self.prompt if self.is_bare else self._as_mapping(self.metadata)

    def _as_mapping(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        carried = {"metadata": metadata, "reference": self.reference}
        return {"prompt": self.prompt, **{key: value for key, value in carried.items() if value}}

    @property
    def is_bare(self) -> bool:
        """Whether it is a prompt and nothing else."""
        return not self.metadata and self.reference is None

    def __eq__(self, other: object) -> bool:
        """A row that is a prompt and nothing else equals its text, too."""
        if isinstance(other, str):
            return self.is_bare and self.prompt == other
        return isinstance(other, Row) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def key(self) -> str:
        """Equal for rows that a reward cannot tell apart: samples of one key are a group.

        The prompt where it is bare, as checkpoints of before there were rows have it; else
        canonical JSON of the whole row.
        """
        if self.is_bare:
            return self.prompt
        # As it arrives: 1 and 1.0 are one number there.
        whole = self._as_mapping(to_dict(to_struct(self.metadata)))
        return json.dumps(whole, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def oversize(self) -> Iterator[str]:
        """What of it is larger than a service takes that was told no other limits; or nothing."""
        for what, size, most in (
            ("prompt", len(self.prompt.encode()), MAX_PROMPT_BYTES),
            ("metadata", to_struct(self.metadata).ByteSize(), MAX_METADATA_BYTES),
        ):
            if size > most:
                yield f"its {what} takes {size:,} bytes, and services accept {most:,}"
