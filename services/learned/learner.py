"""One instance's network with all that training it needs: optimiser, examples, random state."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salon.errors import InvalidRequest, RewardFailed, SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Example, Sample
from salon.wire.images import Pixels
from services.learned.hyperparameters import Hyperparameters
from services.learned.network import ScalarNetwork, seeded
from services.learned.replay import Entry, ReplayBuffer
from services.learned.training_state import below, restore_training_tensors, training_tensors

H = TypeVar("H", bound=Hyperparameters)


@dataclass(frozen=True)
class _Snapshot:
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, list[Entry]]
    steps: int


class Learner(ABC, Generic[H]):
    """A network that is fitted in steps; a subclass says what it learns from, and its loss."""

    hyperparameters_type: ClassVar[type[Hyperparameters]]

    def __init__(self, hyperparameters: H, device: torch.device) -> None:
        """Start from the seed; the buffers are empty."""
        self.hyperparameters = hyperparameters
        self.device = device
        with seeded(hyperparameters.seed):
            self.network = self.make_network(hyperparameters)
        self.network.to(device).eval()
        self.optimizer = self.make_optimizer()
        self.buffers = self.make_buffers(hyperparameters)
        self.generator = torch.Generator().manual_seed(hyperparameters.seed)
        self.steps = 0

    @classmethod
    @abstractmethod
    def make_network(cls, hyperparameters: H) -> ScalarNetwork:
        """The network, float [N, C, H, W] -> [N], on PyTorch's current default device."""

    @classmethod
    @abstractmethod
    def make_buffers(cls, hyperparameters: H) -> dict[str, ReplayBuffer]:
        """An empty buffer for each kind of example."""

    @abstractmethod
    def entry(self, example: Example) -> tuple[str, Entry]:
        """`example` as the name of its buffer and a copy of what is kept there.

        Raises:
            InvalidRequest: an example of another kind.
            SampleError: an image that this instance cannot judge.
        """

    @abstractmethod
    def losses(self) -> dict[str, Tensor]:
        """Draw a batch; scalars, of which `loss` is minimised and the others are reported.

        Raises:
            InvalidRequest: a buffer that it draws from is empty.
        """

    def input(self, sample: Sample) -> NDArray[np.uint8]:
        """What the network reads of `sample`, uint8 [C, H, W].

        Raises:
            SampleError: the sample is not one that this instance can judge.
        """
        return self.pixels(sample.image, "image")

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Adam over the whole network."""
        own = self.hyperparameters
        betas = (own.beta1, own.beta2)
        return torch.optim.Adam(self.network.parameters(), own.learning_rate, betas)

    def fit(self, examples: Iterable[Example], steps: int) -> dict[str, float]:
        """Remember `examples`, then make `steps` gradient steps; all of it or, if it raises, none.

        Returns:
            The mean of each of `losses` over the steps, and how many examples each buffer holds.

        Raises:
            InvalidRequest: an example that cannot be used, or nothing to learn from.
            RewardFailed: a loss or the weights became NaN or infinite.
        """
        before = self._snapshot()
        try:
            for name, entries in self._entries(examples).items():
                for entry in entries:
                    self.buffers[name].add(entry)
            return self._train(steps) | {
                f"{name}_examples": float(len(buffer)) for name, buffer in self.buffers.items()
            }
        except BaseException:
            self._restore(before)
            raise
        finally:
            self.network.eval()

    def score(self, samples: Sequence[Sample]) -> list[float | SampleError]:
        """The network's output for each sample."""
        inputs: list[NDArray[np.uint8]] = []
        refused: dict[int, SampleError] = {}
        for index, sample in enumerate(samples):
            try:
                inputs.append(self.input(sample))
            except SampleError as error:
                refused[index] = error
        scores = iter(self._forward(inputs))
        return [refused[i] if i in refused else next(scores) for i in range(len(samples))]

    def pixels(self, image: Pixels, what: str) -> NDArray[np.uint8]:
        """`image` as uint8 [C, H, W].

        Raises:
            SampleError: INVALID_SAMPLE, where it is not of this instance's size and channels.
        """
        own = self.hyperparameters
        expected = (own.image_size, own.image_size, own.channels)
        if image.shape != expected:
            raise SampleError(
                reward_pb2.ERROR_CODE_INVALID_SAMPLE,
                f"the {what} is {list(image.shape)} [H, W, C], this instance judges "
                f"{list(expected)}: resize it, or fit an instance of other image_size or channels",
            )
        return image.transpose(2, 0, 1)

    def draw(self, name: str) -> dict[str, Tensor]:
        """A batch of `batch_size` from one buffer, on the network's device, images in [-1, 1].

        Raises:
            InvalidRequest: the buffer is empty.
        """
        buffer = self.buffers[name]
        if len(buffer) == 0:
            raise InvalidRequest(
                f"there are no {name} examples to learn from: send some, or make 0 steps"
            )
        batch = buffer.draw(self.hyperparameters.batch_size, self.generator)
        return {key: self._scaled(value) for key, value in batch.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, optimiser, random state and examples, copied to the CPU."""
        tensors = training_tensors(self.network, self.optimizer, self.generator)
        for name, buffer in self.buffers.items():
            tensors |= {f"replay.{name}.{key}": value for key, value in buffer.tensors().items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what `tensors` gave after `steps` steps.

        Raises:
            InvalidRequest: they are of another network, or incomplete.
        """
        restore_training_tensors(tensors, self.network, self.optimizer, self.generator)
        for name, buffer in self.buffers.items():
            buffer.load(below(tensors, f"replay.{name}."))
        self.steps = steps

    def _entries(self, examples: Iterable[Example]) -> dict[str, deque[Entry]]:
        """For each buffer what it is to get; no more than it holds, or memory had no bound."""
        entries: dict[str, deque[Entry]] = {
            name: deque(maxlen=buffer.capacity) for name, buffer in self.buffers.items()
        }
        for index, example in enumerate(examples):
            try:
                name, entry = self.entry(example)
            except (SampleError, InvalidRequest) as error:
                raise InvalidRequest(f"example {index}: {error}; none was taken") from None
            entries[name].append(entry)
        return entries

    def _train(self, steps: int) -> dict[str, float]:
        self.network.train()
        values: dict[str, list[Tensor]] = defaultdict(list)
        for _ in range(steps):
            losses = self.losses()
            self.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.steps += 1
            for name, value in losses.items():
                values[name].append(value.detach())
        means = {name: torch.stack(kept).mean().item() for name, kept in values.items()}
        finite = all(bool(weights.isfinite().all()) for weights in self.network.parameters())
        if not finite or not all(map(math.isfinite, means.values())):
            raise RewardFailed(
                f"after step {self.steps} a loss or the weights are NaN or infinite ({means}); the "
                "fit was undone: delete the instance and begin one with a lower learning_rate"
            )
        return means

    @torch.inference_mode()
    def _forward(self, inputs: list[NDArray[np.uint8]]) -> list[float]:
        # In parts, or more images would be held at once than a step may.
        most = self.hyperparameters.batch_size
        scores: list[float] = []
        for start in range(0, len(inputs), most):
            part = torch.from_numpy(np.stack(inputs[start : start + most]))
            scores += self.network(self._scaled(part)).tolist()
        return scores

    def _scaled(self, tensor: Tensor) -> Tensor:
        """On the device; uint8 0…255 becomes float -1…1."""
        tensor = tensor.to(self.device)
        return tensor.float() / 127.5 - 1 if tensor.dtype == torch.uint8 else tensor

    def _snapshot(self) -> _Snapshot:
        tensors = training_tensors(self.network, self.optimizer, self.generator)
        entries = {name: buffer.entries() for name, buffer in self.buffers.items()}
        return _Snapshot(tensors, entries, self.steps)

    def _restore(self, before: _Snapshot) -> None:
        restore_training_tensors(before.tensors, self.network, self.optimizer, self.generator)
        for name, entries in before.entries.items():
            self.buffers[name].replace(entries)
        self.steps = before.steps
