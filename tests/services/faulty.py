"""Rewards that misbehave as a sample's prompt or metadata tells them to."""

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Reward, Sample, Score


class Faulty(Reward):
    """The mean of the pixels, unless the prompt names a fault."""

    name = "faulty"
    version = "1"
    description = "The mean of the pixels."
    lower_bound = 0.0
    upper_bound = 255.0

    def score(self, samples: Sequence[Sample]) -> list[float | Score | SampleError]:
        results = [self._judge(sample) for sample in samples]
        return (
            results[:-1] if any(sample.prompt == "one too few" for sample in samples) else results
        )

    def _judge(self, sample: Sample) -> float | Score | SampleError:
        mean = float(sample.image.mean())
        match sample.prompt:
            case "raise":
                raise ValueError("secret of the service")
            case "raise a refusal":
                raise SampleError(reward_pb2.ERROR_CODE_INVALID_SAMPLE, "not my kind of picture")
            case "return a refusal":
                return SampleError(reward_pb2.ERROR_CODE_INVALID_SAMPLE, "not my kind of picture")
            case "none":
                return None
            case "bad details":
                return Score(mean, {"object": object()})
            case "details":
                return Score(mean, {"caption": "a cat", "boxes": [[1, 2], [3, 4.5]], "logit": mean})
        if sample.prompt.startswith("details of "):
            return Score(mean, {"text": "a" * int(sample.prompt.removeprefix("details of "))})
        return float(sample.prompt) if sample.prompt in ("nan", "inf", "-inf") else mean


class Patient(Reward):
    """Says in `metadata.folder` that it began on a sample, then waits there for the word to go on.

    A sample without `wait` is scored at once. Details tell the size of the batch.
    """

    name = "patient"
    version = "1"
    description = "Always 1."
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_PROMPT, reward_pb2.INPUT_METADATA)

    def example(self) -> Sample:
        metadata = {"folder": tempfile.mkdtemp()}
        return Sample(super().example().image, "warm-up", metadata)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        for sample in samples:
            folder = Path(sample.metadata["folder"])
            (folder / f"{sample.prompt}.began").touch()
            while sample.metadata.get("wait") and not (folder / "go").exists():
                threading.Event().wait(0.01)
        return [Score(1.0, {"batch": len(samples)})] * len(samples)


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


class Cramped(Reward):
    """Has memory for three samples at once, and for none whose prompt is `too much`."""

    name = "cramped"
    version = "1"
    description = "The size of the batch it was scored in."

    def score(self, samples: Sequence[Sample]) -> list[float]:
        if len(samples) > 3 or any(sample.prompt == "too much" for sample in samples):
            raise OutOfMemoryError("tried to allocate 20 GiB")
        return [float(len(samples))] * len(samples)


class Fragile(Reward):
    """Breaks for good on a sample whose prompt is `break`, as a device may."""

    name = "fragile"
    version = "1"
    description = "Always 1."
    broken = False

    def score(self, samples: Sequence[Sample]) -> list[float]:
        self.broken |= any(sample.prompt == "break" for sample in samples)
        if self.broken or any(sample.prompt == "raise" for sample in samples):
            raise RuntimeError("an illegal memory access was encountered")
        return [1.0] * len(samples)


class Distance(Reward):
    """The mean absolute difference of image and reference."""

    name = "distance"
    version = "1"
    description = "The mean absolute difference from the reference."
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_REFERENCE)

    def example(self) -> Sample:
        example = super().example()
        return replace(example, reference=example.image)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [
            float(np.abs(sample.image.astype(int) - sample.reference).mean()) for sample in samples
        ]


class Carried(Reward):
    """Tells of what it was sent: the mark in the metadata, and the reference."""

    name = "carried"
    version = "1"
    description = "1000 times metadata.mark, and the mean of the reference."
    inputs = (reward_pb2.INPUT_IMAGE, reward_pb2.INPUT_METADATA, reward_pb2.INPUT_REFERENCE)

    def example(self) -> Sample:
        example = super().example()
        return replace(example, metadata={"mark": 1}, reference=example.image)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [
            1000 * sample.metadata["mark"] + float(sample.reference.mean()) for sample in samples
        ]


class Standing(Reward):
    """Says that it stands in for a real reward."""

    name = "standing"
    version = "1"
    description = "The mean of the pixels."
    stand_in = True

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [float(sample.image.mean()) for sample in samples]
