"""What other programs took of the processor while something was measured."""

import os
import time

import psutil

FREE = ("idle", "iowait", "steal", "guest", "guest_nice")  # guest time is in user time already


class Neighbours:
    """Compares the processor time of the whole machine with that of this program's processes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = time.perf_counter()
        self._all, self._own = _busy_seconds(), self._own_seconds()

    def load(self) -> float:
        """Cores that others kept busy since this was made, on average."""
        elapsed = time.perf_counter() - self._start
        others = (_busy_seconds() - self._all) - (self._own_seconds() - self._own)
        return max(0.0, others / elapsed)

    def _own_seconds(self) -> float:
        """Processor seconds of this process and its descendants, those that ended included."""
        total = sum(os.times()[:4])
        for child in self._process.children(recursive=True):
            try:
                times = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total


def _busy_seconds() -> float:
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in FREE))
