"""Parks instances that nobody has used for a while."""

import threading

from services.learned.store import InstanceStore

_LOOKS = 4
"""How often one looks in the time after which an instance is idle."""
_LONGEST_SECONDS = 10.0


class IdleParking:
    """A thread that looks after one store, until it is closed."""

    def __init__(self, store: InstanceStore, idle_seconds: float) -> None:
        """Start the thread: what was not used for `idle_seconds` is parked a little later."""
        self._store = store
        self._idle_seconds = idle_seconds
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="park idle", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Park nothing any more; what is being parked is finished first."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        pause = min(self._idle_seconds / _LOOKS, _LONGEST_SECONDS)
        while not self._closing.wait(pause):
            while not self._closing.is_set() and self._store.park_idle(self._idle_seconds):
                pass
