"""A log file of the stack: each line one JSON object, whoever wrote it, and never too large.

Programs write into a pipe. Their own lines are JSON already (`salon.logs`); what Redis, gRPC's C
core, a dying interpreter and the like write beside them becomes the `event` of an object.
"""

import fcntl
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from salon.private import append_privately

MAX_BYTES = 8 * 1024 * 1024  # and as much in the file before, NAME.log.1
LINE_BYTES = 64 * 1024
# Lines that several processes write at once stay whole as long as the pipe has room for them.
PIPE_BYTES = 1024 * 1024
LAST_WORDS_SECONDS = 1.0

_REDIS = re.compile(r"\d+:[XCSM] \d+ \w+ \d+ [\d:.]+ ([.\-*#]) (.*)")
_GRPC = re.compile(r"([IWEF])\d{4} [\d:.]+\s+\d+ (\S+\] .*)")
_LEVELS = {".": "debug", "-": "info", "*": "info", "#": "warning"}
_LEVELS |= {"I": "info", "W": "warning", "E": "error", "F": "critical"}


class LogFile:
    """Appends the lines of one program at a time, readable by its user alone."""

    def __init__(self, path: Path, service: str) -> None:
        """Append to `path`; lines that are not JSON say that `service` wrote them.

        Raises:
            OSError: the file cannot be written.
        """
        os.close(append_privately(path))
        self._path = path
        self._service = service
        self._lost = 0
        self._writing = threading.Lock()  # the last lines of one process, the first of the next
        self._reader: threading.Thread | None = None

    def pipe(self) -> int:
        """The end of a pipe whose lines go into the file, to be closed once it is handed on."""
        readable, writable = os.pipe()
        # Refused to a user who has many pipes, and unknown outside Linux: then lines may mix.
        with suppress(OSError, AttributeError):
            fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        source = os.fdopen(readable, "rb")
        reader = threading.Thread(target=self._read, args=(source,), daemon=True)
        try:
            reader.start()
        except BaseException:
            source.close()
            os.close(writable)
            raise
        self._reader = reader
        return writable

    def drain(self) -> None:
        """Wait for the last lines of programs that have ended."""
        if self._reader is not None:
            self._reader.join(LAST_WORDS_SECONDS)

    @contextmanager
    def standard_streams(self) -> Iterator[None]:
        """Have the file take what this process itself writes to stdout and stderr."""
        end = self.pipe()
        for stream in (1, 2):
            os.dup2(end, stream)
        os.close(end)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            nothing = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nothing, stream)
            self.drain()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while raw := pipe.readline(LINE_BYTES):
                # A progress bar writes itself over and over.
                line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
                if line:
                    with self._writing:
                        self._append(_as_json(line, self._service))

    def _append(self, line: str) -> None:
        """Whatever happens here, the pipe must be read: a full one stops the program."""
        if self._lost:
            line = f"{_object('warning', f'{self._lost} lines lost', self._service)}\n{line}"
        try:
            if self._path.exists() and self._path.stat().st_size > MAX_BYTES:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            with os.fdopen(append_privately(self._path), "a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError:  # a full disk, most likely
            self._lost += 1
        else:
            self._lost = 0


def _as_json(line: str, service: str) -> str:
    try:
        if isinstance(json.loads(line), dict):
            return line
    except (ValueError, RecursionError):
        pass
    found = _REDIS.fullmatch(line) or _GRPC.fullmatch(line)
    level, event = (_LEVELS[found[1]], found[2]) if found else ("info", line)
    return _object(level, event, service)


def _object(level: str, event: str, service: str) -> str:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"event": event, "level": level, "timestamp": now, "service": service})
