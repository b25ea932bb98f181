"""What the text encoders of a model read of a prompt: its tokens, up to a length."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from salon.errors import InvalidRequest


@dataclass(frozen=True)
class Reading:
    """Of one prompt."""

    tokens: tuple[tuple[int, ...], ...]  # of each tokenizer, padded, as the encoder gets them
    is_cut: bool


class PromptReader:
    """Reads as a pipeline does.

    Args:
        tokenizers: of transformers, one for each text encoder.
    """

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        self._tokenizers = tokenizers

    @property
    def limit(self) -> int:
        """Tokens of a prompt that all encoders read, start and end included."""
        return min(int(tokenizer.model_max_length) for tokenizer in self._tokenizers)

    def read(self, prompts: Sequence[str]) -> list[Reading]:
        """One of each prompt."""
        read, whole = [], []
        for tokenizer in self._tokenizers:
            fit = {"padding": "max_length", "truncation": True}
            limit = tokenizer.model_max_length
            read.append(tokenizer(list(prompts), max_length=limit, **fit)["input_ids"])
            texts = tokenizer(list(prompts), verbose=False)["input_ids"]
            whole.append([len(tokens) > limit for tokens in texts])
        return [
            Reading(tuple(tuple(tokens) for tokens in row), any(cut))
            for row, cut in zip(zip(*read, strict=True), zip(*whole, strict=True), strict=True)
        ]

    def check(self, prompts: Sequence[str], held_out: Sequence[str]) -> Iterator[str]:
        """What to warn of in the prompts of training and of evaluation.

        Raises:
            InvalidRequest: one that is held out is a training prompt to the model: they differ in
                what is cut off, in case or in spaces.
        """
        trained, evaluated = self.read(prompts), self.read(held_out)
        seen = {reading.tokens: prompt for reading, prompt in zip(trained, prompts, strict=True)}
        for reading, prompt in zip(evaluated, held_out, strict=True):
            if reading.tokens in seen:
                raise InvalidRequest(
                    f"evaluation.prompts: to the model {prompt!r} is the training prompt "
                    f"{seen[reading.tokens]!r}: their tokens are the same, of which its text "
                    f"encoder reads {self.limit}; evaluate on prompts that training never uses"
                )
        for key, texts, readings in (
            ("prompts", prompts, trained),
            ("evaluation.prompts", held_out, evaluated),
        ):
            cut = _cut(texts, readings)
            if cut:
                yield (
                    f"{key}: {len(cut)} of {len(texts)} are longer than the {self.limit} tokens "
                    f"that the model's text encoder reads, and cut off there, e.g. {cut[0]!r}"
                )


def _cut(prompts: Iterable[str], readings: Iterable[Reading]) -> list[str]:
    pairs = zip(prompts, readings, strict=True)
    return [prompt for prompt, reading in pairs if reading.is_cut]
