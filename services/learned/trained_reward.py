"""A learned reward whose instances are trained in this process."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from salon.errors import DeadlineExceeded, InvalidRequest, UnknownInstance
from salon.serving import Exported, FitOrder, Fitted, Instance, LearnedReward, RewardConfig, Sample
from services.learned.footprint import Footprint
from services.learned.idleness import IdleParking
from services.learned.instance import TrainedInstance, checked_hyperparameters
from services.learned.learner import Learner
from services.learned.parking import ParkingPlace
from services.learned.store import InstanceStore
from services.models.device import resolve_device

_MEBIBYTE = 1024 * 1024
_NAMES_SHOWN = 10


class LearnedConfig(RewardConfig):
    """Options of a learned reward."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU if any.")
    state_dir: Path = Field(
        Path(".salon/learned"),
        description="Instances are parked in a folder of it named after the reward.",
    )
    max_loaded: int = Field(4, ge=1, description="Most instances in memory; others are parked.")
    idle_seconds: float = Field(
        600.0, gt=0, description="An instance that was not used for so long is parked."
    )
    max_instances: int = Field(32, ge=1, description="Most instances in all.")
    max_instance_bytes: int = Field(
        256 * _MEBIBYTE,
        ge=_MEBIBYTE,
        description="Most that one instance may take at rest, in memory or on disk.",
    )
    max_step_bytes: int = Field(
        4096 * _MEBIBYTE,
        ge=_MEBIBYTE,
        description="Most memory that a fit may take beside the instance, as far as foreseen.",
    )
    max_steps: int = Field(1000, ge=0, description="Most gradient steps in one fit.")
    busy_seconds: float = Field(
        30.0, gt=0, description="How long a call waits for an instance that another call uses."
    )


class TrainedReward(LearnedReward):
    """Instances of one kind of `Learner`; a subclass names it and itself.

    `version` is the revision of its code: an instance of another revision is not taken back.
    """

    Config = LearnedConfig
    max_batch = 128
    local_options = ("state_dir=state:learned",)
    learner: ClassVar[type[Learner[Any]]]

    def __init__(self, config: LearnedConfig) -> None:
        """Open the state directory.

        Raises:
            InvalidRequest: the device or the state directory cannot be used.
        """
        self._config = config
        self._device = resolve_device(config.device)
        self._most = Footprint(config.max_instance_bytes, config.max_step_bytes)
        # Beside the tensors an export has a header, and a replay buffer's labels.
        self.max_import_bytes = config.max_instance_bytes + _MEBIBYTE
        self._store = InstanceStore(
            ParkingPlace(config.state_dir / self.name),
            self._load,
            config.max_loaded,
            config.max_instances,
            config.busy_seconds,
        )
        self._idle_parking = IdleParking(self._store, config.idle_seconds)
        # PyTorch loads much of itself with the first optimiser: better now than in the first fit.
        self.probe()

    @contextmanager
    def opened(self, instance: str) -> Iterator[Instance]:
        """See `LearnedReward.opened`."""
        with self._store.claimed(instance):
            yield self._existing(instance)

    def probe(self) -> None:
        """See `LearnedReward.probe`: the smallest network sees one image."""
        smallest = self.learner.hyperparameters_type(image_size=16, base_width=1)
        image = np.zeros((16, 16, smallest.channels), np.uint8)
        self.learner(smallest, self._device).score([Sample(image, "", {})])

    def fit(self, instance: str, order: FitOrder, wanted: Callable[[], bool]) -> Fitted:
        """See `LearnedReward.fit`."""
        if order.steps > self._config.max_steps:
            raise InvalidRequest(
                f"{order.steps} steps in one fit, at most {self._config.max_steps} are accepted: "
                "make them in several, or start the service with a higher --set max_steps"
            )
        with self._store.claimed(instance):
            if not wanted():
                raise DeadlineExceeded("the caller stopped waiting before the fit began")
            if order.base_version:
                return self._existing(instance).fit(order)
            found = self._store.get(instance)
            if found is not None:
                return found.fit(order)
            with self._store.place(instance):
                made = self._make(instance, order.hyperparameters)
                fitted = made.fit(order)
                self._store.put(instance, made)
            return fitted

    def export(self, instance: str) -> Exported:
        """See `LearnedReward.export`."""
        with self._store.claimed(instance):
            existing = self._existing(instance)
            return Exported(existing.version, existing.dump())

    def import_(self, instance: str, data: bytes) -> str:
        """See `LearnedReward.import_`; it is parked at once, so a crash does not lose it."""
        with self._store.claimed(instance):
            with self._store.place(instance):
                made = self._load(instance, data)
                self._store.put(instance, made, park=data)
            return made.version

    def delete(self, instance: str) -> None:
        """See `LearnedReward.delete`."""
        with self._store.claimed(instance):
            self._store.remove(instance)

    def close(self) -> None:
        """See `LearnedReward.close`; fits that still run are lost."""
        self._idle_parking.close()
        self._store.close()

    def _existing(self, name: str) -> TrainedInstance:
        found = self._store.get(name)
        if found is None:
            names = self._store.names()
            shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            raise UnknownInstance(
                f"{self.name} has no instance {name}, it has {shown}{more}; fits since an instance "
                "was last parked or imported are lost when the service dies: import it from its "
                "last export, or fit it anew without base_version"
            )
        return found

    def _make(self, name: str, given: Mapping[str, Any]) -> TrainedInstance:
        hyperparameters = checked_hyperparameters(self.learner, given, self._most)
        learner = self.learner(hyperparameters, self._device)
        return TrainedInstance(self.name, self.version, name, learner)

    def _load(self, name: str, data: bytes) -> TrainedInstance:
        return TrainedInstance.load(
            data,
            self.name,
            self.version,
            name,
            self.learner,
            self._most,
            self._device,
        )
