"""What a reward implements: a class with a few facts about it and one `score` method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.wire.images import Pixels


@dataclass(frozen=True)
class Sample:
    """One sample to score, read and checked."""

    image: Pixels
    """uint8 [H, W, C], C = 3 (RGB) or 1 (gray), read-only."""
    prompt: str
    metadata: Mapping[str, Any]
    reference: Pixels | None = None
    """The image it is compared with or conditioned on, uint8 [H, W, C]."""


@dataclass(frozen=True)
class Score:
    """A score with what the reward says beside it."""

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON-like values, such as a caption; they travel with the score."""


class RewardConfig(BaseModel):
    """Options of a reward, given by `--set key=value`; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfig(RewardConfig):
    """Options of a reward that is a neural network; a subclass gives `model` its default."""

    model: str = Field(description="A local folder or file, or an id on the Hugging Face hub.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU if any.")
    dtype: Dtype = Field(
        "float32", description="Of the network; auto: float16 on a GPU, float32 on a CPU."
    )


class Reward(ABC):
    """A reward model.

    A new reward is one file with one subclass, in `services.rewards` or anywhere: set the class
    attributes, load the model in `__init__`, write `score`. The server checks samples before
    `score` sees them, and what `score` returns before a client sees it.

    `__init__` takes nothing, or, where `Config` is set, one instance of it. What is known only once
    the model is loaded, such as a version that names the weights, is set there.
    """

    Config: ClassVar[type[RewardConfig] | None] = None
    """The options it takes; None: none."""
    name: ClassVar[str]
    """What clients ask for, snake_case."""
    version: str
    """Changes whenever the same sample could score differently."""
    description: ClassVar[str]
    """What the score measures, and its unit."""
    unit: ClassVar[str] = ""
    """What a score is counted in, such as kB, for reports; empty for a plain number."""
    inputs: ClassVar[Sequence[reward_pb2.Input.ValueType]] = (reward_pb2.INPUT_IMAGE,)
    """What a sample must bring; the server refuses a sample that lacks one."""
    direction: ClassVar[reward_pb2.Direction.ValueType] = reward_pb2.DIRECTION_HIGHER_IS_BETTER
    lower_bound: ClassVar[float | None] = None
    """The least score possible, if there is one."""
    upper_bound: ClassVar[float | None] = None
    """The greatest score possible, if there is one."""
    stand_in: bool = False
    """Whether it runs on a small model that stands in for the real one. Salon sets it where an
    option names a model whose card says so."""
    max_batch: ClassVar[float] = 32
    """Most samples, or most of what `cost` counts, in one call of `score`, if nobody says
    --max-batch; a single sample may exceed it."""
    threads: ClassVar[int] = 1
    """Most batches scored at once, each by a thread of its own. More than 1 is for a `score` that
    many threads may call, and that lets go of Python's global lock while it computes on a CPU."""
    max_delay_seconds: ClassVar[float] = 0.0
    """How long a batch that is not full waits for more samples while nothing is being scored."""
    local_options: ClassVar[tuple[str, ...]] = ()
    """Options with which `salon up` serves it, `key=value` as `--set` takes them, such as a small
    model for the large one. A value `models/...` must be there where the stack is started,
    `package:NAME/...` is in an installed package, `state:...` in the stack's state folder. The
    stack reads this, `name` and `inputs` in the source: write them out."""

    def example(self) -> Sample:
        """A sample that it can score: the server scores it before it says that it is ready.

        Here 64 x 64 pixels of changing colours and a prompt; a reward that needs more overrides it.
        """
        rows, columns = np.mgrid[0:64, 0:64].astype(np.uint8) * 4
        image = np.stack([rows, columns, 255 - rows], axis=-1)
        image.flags.writeable = False
        return Sample(image, "a red three on a blue background", {})

    def cost(self, sample: Sample) -> float:
        """What `sample` counts toward `max_batch`; 1, unless samples differ much in their work."""
        del sample
        return 1.0

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[float | Score | SampleError]:
        """Score a batch; the images may differ in size, and may be of several callers.

        One thread calls this, unless `threads` allows more. It must depend on nothing but the
        samples: a call may be repeated, and when it raises, the same samples come again in halves,
        down to one, so that only those that raise alone fail.

        Args:
            samples: at least one.

        Returns:
            One result for each sample, in order. A SampleError tells the client why this reward
            cannot judge that sample; any other exception stays in the log.
        """
