"""Sends the trainer's log lines to the job's record, where `salon logs` finds them."""

import logging

from salon.jobs.store import JobStore


class JobLog(logging.Handler):
    """A log handler for one job, with the format of the process's first handler."""

    def __init__(self, store: JobStore, job: str) -> None:
        super().__init__()
        self._store = store
        self._job = job

    def attach(self) -> None:
        """Add this handler to the root logger."""
        root = logging.getLogger()
        self.setFormatter(root.handlers[0].formatter)
        root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line; a Redis that is away costs the line, not the training.

        That takes a connection that does not wait for it.
        """
        try:
            self._store.add_log(self._job, self.format(record))
        except Exception:  # noqa: BLE001 - logging's own way: report on stderr and go on
            self.handleError(record)
