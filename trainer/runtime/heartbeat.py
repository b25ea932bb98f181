"""Keeps the lease alive while the trainer works, and brings back the user's wish to cancel.

Of several processes that share a job one does so; the others look whether it does.
"""

import os
import threading

import redis
import structlog

from salon.jobs.lease import Lease, LeaseLost
from trainer.runtime.interrupt import Cause, Interrupt

log = structlog.get_logger()

EXIT_LEASE_LOST = 75  # EX_TEMPFAIL of sysexits.h
BEATS = 3  # in the length of a lease


class Heartbeat:
    """A thread that renews the lease three times in its length."""

    def __init__(self, lease: Lease, interrupt: Interrupt) -> None:
        self._lease = lease
        self._interrupt = interrupt
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Renew once, so that a lease already lost is known before any work, then keep on.

        Raises:
            LeaseLost: another attempt runs the job.
        """
        try:
            self._renew()
        except redis.RedisError as error:
            log.warning("cannot renew the lease", reason=str(error))
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _renew(self) -> None:
        if self._lease.renew():
            self._interrupt.set(Cause.CANCELLED)

    def _beat(self) -> None:
        while not self._stop.wait(self._lease.seconds / BEATS):
            try:
                self._renew()
            except LeaseLost as error:
                # Whatever the main thread is doing, it must not finish it.
                log.error("lease lost: stopping at once", reason=str(error))
                os._exit(EXIT_LEASE_LOST)
            except redis.RedisError as error:
                log.warning("cannot renew the lease", reason=str(error))


class LeaseWatch:
    """A thread that ends this process when nobody has renewed the lease for its whole length."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lease-watch", daemon=True)

    def start(self) -> None:
        """Start to look, three times in the length of the lease."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        misses = 0  # Redis may have been away, and the lease be renewed a moment later
        while not self._stop.wait(self._lease.seconds / BEATS):
            try:
                self._lease.check()
                misses = 0
            except LeaseLost as error:
                misses += 1
                if misses > BEATS:
                    log.error("lease lost: stopping at once", reason=str(error))
                    os._exit(EXIT_LEASE_LOST)
            except redis.RedisError as error:
                log.warning("cannot look at the lease", reason=str(error))
