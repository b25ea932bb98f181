"""Instances by name: the last used in memory, the others parked on disk.

Fit, Import ──▶ in memory ── another one needs its place, ──▶ parked
                    ▲        or nobody used it for long          │
                    └────────────── taken back on use ───────────┘
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from salon.errors import InvalidRequest, Overloaded, RewardFailed
from services.learned.instance import TrainedInstance, check_name
from services.learned.parking import ParkingPlace

logger = structlog.get_logger()

RETRY_SECONDS = 1.0  # a hint to callers who waited in vain

Revive = Callable[[str, bytes], TrainedInstance]
"""An instance's name and its bytes -> the instance."""


class InstanceStore:
    """At most `max_instances` of them, at most `max_loaded` in memory.

    A file stays when its instance is taken back, so that a crash leaves the parked version. Files
    are written and read under the one lock of the store, and other calls wait for the disk
    meanwhile; but not those of idle instances.
    """

    def __init__(
        self,
        parking: ParkingPlace,
        revive: Revive,
        max_loaded: int,
        max_instances: int,
        busy_seconds: float,
    ) -> None:
        """Begin with what is parked there."""
        self._parking = parking
        self._revive = revive
        self._max_loaded = max_loaded
        self._max_instances = max_instances
        self._busy_seconds = busy_seconds
        self._changed = threading.Condition()
        self._claimed: set[str] = set()
        self._loaded: OrderedDict[str, TrainedInstance] = OrderedDict()  # last used last
        self._used: dict[str, float] = {}  # when each of them was last let go, by time.monotonic()
        self._made: set[str] = set()  # have a place in memory, and are being made
        # The version in each file; "" where this process has not read it yet.
        self._parked: dict[str, str] = dict.fromkeys(parking.names(), "")

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Within, nobody else uses the instance of that name, whether there is one or not.

        Raises:
            InvalidRequest: not a name.
            Overloaded: others used it for too long.
        """
        check_name(name)
        with self._changed:
            if not self._changed.wait_for(lambda: name not in self._claimed, self._busy_seconds):
                raise Overloaded(
                    f"instance {name} was busy for {self._busy_seconds} s, with a fit perhaps: "
                    "try again later",
                    RETRY_SECONDS,
                )
            self._claimed.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._claimed.remove(name)
                if name in self._loaded:
                    self._used[name] = time.monotonic()
                self._changed.notify_all()

    def names(self) -> list[str]:
        """Of all instances, sorted."""
        with self._changed:
            return sorted(self._loaded.keys() | self._parked.keys())

    def get(self, name: str) -> TrainedInstance | None:
        """The claimed instance, taken back if it is parked; None if there is none.

        Raises:
            Overloaded: there is no place in memory for it, nor one to be made.
            RewardFailed: its file cannot be read.
        """
        with self._changed:
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return self._loaded[name]
            if name not in self._parked:
                return None
            self._make_place()
            try:
                instance = self._revive(name, self._parking.read(name))
            except (InvalidRequest, OSError) as error:
                raise RewardFailed(
                    f"instance {name} cannot be taken back from {self._parking.path(name)}: "
                    f"{error}; delete it, or import an export over it"
                ) from error
            self._loaded[name] = instance
            self._parked[name] = instance.version
            return instance

    @contextmanager
    def place(self, name: str) -> Iterator[None]:
        """Within, there is a place in memory for the claimed instance, which is made meanwhile.

        Raises:
            Overloaded: there are too many instances, or all in memory are in use.
        """
        with self._changed:
            self._check_room(name)
            if name not in self._loaded:
                self._make_place()
                # Others may have come while it was waited for.
                self._check_room(name)
            self._made.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._made.remove(name)
                self._changed.notify_all()

    def put(self, name: str, instance: TrainedInstance, *, park: bytes | None = None) -> None:
        """Make or replace the claimed instance in its `place`.

        Args:
            name: its name.
            instance: itself.
            park: its bytes, if it is to be on disk too.

        Raises:
            Overloaded: there is no place on disk for it.
        """
        with self._changed:
            if park is not None:
                self._write(name, park, instance.version)
            self._loaded[name] = instance
            self._loaded.move_to_end(name)

    def remove(self, name: str) -> None:
        """Forget the claimed instance, in memory and on disk."""
        with self._changed:
            self._parking.remove(name)
            self._parked.pop(name, None)
            self._forget(name)
            self._changed.notify_all()

    def park_idle(self, seconds: float) -> bool:
        """Park an instance that nobody has used for so long; False if there is none.

        It is claimed meanwhile: whoever wants it waits, and others do not. One that cannot be
        parked stays in memory, is named in the log, and counts as used.
        """
        with self._changed:
            until = time.monotonic() - seconds
            idle = (name for name in self._loaded if name not in self._claimed)
            name = next((name for name in idle if self._used[name] <= until), None)
            if name is None:
                return False
            self._claimed.add(name)
        try:
            self._write_changed(name)
            with self._changed:
                self._forget(name)
        # Whatever keeps one from being parked, the others are.
        except Exception as error:
            logger.warning("idle instance not parked", instance=name, exc_info=error)
            with self._changed:
                self._used[name] = time.monotonic()
        else:
            logger.info("idle instance parked", instance=name)
        finally:
            with self._changed:
                self._claimed.remove(name)
                self._changed.notify_all()
        return True

    def close(self) -> None:
        """Park what is not in use; name in the log what cannot be kept."""
        with self._changed:
            for name in list(self._loaded):
                try:
                    if name in self._claimed:
                        raise Overloaded("it is in use")
                    self._park(name)
                # Whatever keeps one from being parked, the others are.
                except Exception as error:
                    logger.warning("instance not parked", instance=name, exc_info=error)
            self._parking.close()

    def _idle(self) -> str | None:
        return next((name for name in self._loaded if name not in self._claimed), None)

    def _check_room(self, name: str) -> None:
        count = len(self._loaded.keys() | self._parked.keys() | self._made | {name})
        if count > self._max_instances:
            raise Overloaded(
                f"there are {self._max_instances} instances already, and no room for {name}: "
                "delete those of finished jobs, or start the service with a higher "
                "--set max_instances"
            )

    def _is_full(self) -> bool:
        return len(self._loaded.keys() | self._made) >= self._max_loaded

    def _make_place(self) -> None:
        def possible() -> bool:
            return not self._is_full() or self._idle() is not None

        if not self._changed.wait_for(possible, self._busy_seconds):
            raise Overloaded(
                f"all {self._max_loaded} instances that may be in memory are in use: try again "
                "later, or start the service with a higher --set max_loaded",
                RETRY_SECONDS,
            )
        if self._is_full() and (idle := self._idle()) is not None:
            self._park(idle)

    def _park(self, name: str) -> None:
        self._write_changed(name)
        self._forget(name)

    def _write_changed(self, name: str) -> None:
        """Bring the file of an instance that nobody else uses up to date."""
        instance = self._loaded[name]
        if self._parked.get(name) != instance.version:
            self._write(name, instance.dump(), instance.version)

    def _forget(self, name: str) -> None:
        self._loaded.pop(name, None)
        self._used.pop(name, None)

    def _write(self, name: str, data: bytes, version: str) -> None:
        try:
            self._parking.write(name, data)
        except OSError as error:
            raise Overloaded(
                f"instance {name} cannot be parked at {self._parking.path(name)}: "
                f"{error.strerror}; delete instances, or make room on that disk"
            ) from error
        with self._changed:
            self._parked[name] = version
