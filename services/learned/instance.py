"""One named instance: its fits, their versions, and itself as bytes."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from salon.errors import InvalidRequest, SampleError, VersionMismatch
from salon.serving import FitOrder, Fitted, Instance, Sample
from services.learned.footprint import Footprint, footprint
from services.learned.hyperparameters import Hyperparameters
from services.learned.learner import Learner

REMEMBERED_FITS = 16
"""How many fits back a repeated request_id is recognised."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADER_KEY = "salon"


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: str
    metrics: dict[str, float]


class _Record(BaseModel):
    """What of an instance is no tensor."""

    model_config = ConfigDict(extra="forbid")

    reward: str
    revision: str
    hyperparameters: dict[str, Any]
    fits: int
    steps: int
    answers: dict[str, _Answer]


class TrainedInstance(Instance):
    """A learner under a name; one thread at a time uses it."""

    def __init__(self, reward: str, revision: str, name: str, learner: Learner[Any]) -> None:
        """Name `learner`, which no fit has touched, as `revision` of the code of `reward`."""
        self._reward = reward
        self._revision = revision
        self._name = name
        self._learner = learner
        self._fits = 0
        self._answers: dict[str, Fitted] = {}
        self.version = self._make_version()

    def fit(self, order: FitOrder) -> Fitted:
        """See `LearnedReward.fit`."""
        if order.request_id in self._answers:
            return self._answers[order.request_id]
        if order.base_version not in ("", self.version):
            raise VersionMismatch(
                f"instance {self._name} is at version {self.version}, not at {order.base_version}: "
                "import the export of that version, or fit on from this one"
            )
        self._check_hyperparameters(order.hyperparameters)
        metrics = self._learner.fit(order.examples, order.steps)
        self._fits += 1
        self.version = self._make_version()
        fitted = Fitted(self.version, metrics)
        self._answers[order.request_id] = fitted
        for forgotten in list(self._answers)[:-REMEMBERED_FITS]:
            del self._answers[forgotten]
        return fitted

    def score(self, samples: Sequence[Sample]) -> list[float | SampleError]:
        """The learner's scores."""
        return self._learner.score(samples)

    def dump(self) -> bytes:
        """A safetensors file of all its tensors, the rest as JSON in that file's metadata."""
        record = _Record(
            reward=self._reward,
            revision=self._revision,
            hyperparameters=self._learner.hyperparameters.model_dump(),
            fits=self._fits,
            steps=self._learner.steps,
            answers={
                request_id: _Answer(version=fitted.version, metrics=dict(fitted.metrics))
                for request_id, fitted in self._answers.items()
            },
        )
        metadata = {_HEADER_KEY: record.model_dump_json()}
        data: bytes = safetensors.torch.save(self._learner.tensors(), metadata)
        return data

    @classmethod
    def load(
        cls,
        data: bytes,
        reward: str,
        revision: str,
        name: str,
        learner_type: type[Learner[Any]],
        most: Footprint,
        device: torch.device,
    ) -> Self:
        """What `dump` gave, under `name`.

        Raises:
            InvalidRequest: it is no dump, or one of another reward or revision, or needs more than
                `most`.
        """
        record, tensors = _parse(data)
        if (record.reward, record.revision) != (reward, revision):
            raise InvalidRequest(
                f"this is of {record.reward} revision {record.revision}, not of {reward} revision "
                f"{revision}: import it into a service of its own reward and revision"
            )
        hyperparameters = checked_hyperparameters(learner_type, record.hyperparameters, most)
        learner = learner_type(hyperparameters, device)
        learner.load(tensors, record.steps)
        instance = cls(reward, revision, name, learner)
        instance._fits = record.fits
        instance._answers = {
            request_id: Fitted(answer.version, answer.metrics)
            for request_id, answer in record.answers.items()
        }
        instance.version = instance._make_version()
        return instance

    def _make_version(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self._learner.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().numpy().tobytes())
        return f"{self._revision}+{self._name}@{self._fits}-{digest.hexdigest()[:8]}"

    def _check_hyperparameters(self, given: Mapping[str, Any]) -> None:
        own = self._learner.hyperparameters.model_dump()
        for name, value in given.items():
            if name not in own or own[name] != value:
                has = repr(own[name]) if name in own else "no such hyperparameter"
                raise InvalidRequest(
                    f"hyperparameter {name} of instance {self._name} cannot become {value!r}, it "
                    f"has {has}: leave hyperparameters out, or use another instance"
                )


def check_name(name: str) -> None:
    """Refuse what cannot name an instance, or a file.

    Raises:
        InvalidRequest: not 1 to 64 letters, digits, '.', '_' or '-'.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"instance {name[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-'"
        )


def checked_hyperparameters(
    learner_type: type[Learner[Any]], given: Mapping[str, Any], most: Footprint
) -> Hyperparameters:
    """`given` and defaults for the rest.

    Raises:
        InvalidRequest: one that is unknown or out of range, or an instance above `most`.
    """
    try:
        hyperparameters = learner_type.hyperparameters_type.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(learner_type.hyperparameters_type.model_fields)
        raise InvalidRequest(
            f"hyperparameter {name}: {first['msg']} (got {first['input']!r}); known: {known}"
        ) from None
    needed = footprint(learner_type, hyperparameters)
    if needed.at_rest > most.at_rest:
        raise InvalidRequest(
            f"an instance of these hyperparameters can take {needed.at_rest} bytes, at most "
            f"{most.at_rest} are accepted: lower base_width, image_size or replay_capacity, or "
            "start the service with a higher --set max_instance_bytes"
        )
    if needed.step > most.step:
        raise InvalidRequest(
            f"a step with these hyperparameters can take {needed.step} bytes, at most {most.step} "
            "are accepted: lower batch_size, base_width or image_size, or start the service with a "
            "higher --set max_step_bytes"
        )
    return hyperparameters


def _parse(data: bytes) -> tuple[_Record, Mapping[str, Tensor]]:
    try:
        tensors = safetensors.torch.load(data)
        # safetensors reads metadata from files only; its format is eight bytes of length, then
        # JSON (https://github.com/huggingface/safetensors#format).
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return _Record.model_validate_json(header["__metadata__"][_HEADER_KEY]), tensors
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidRequest(
            f"the {len(data)} bytes are no exported instance, or not all of one: {reason}"
        ) from None
