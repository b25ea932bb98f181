"""The record of a running local stack: which processes it is, so that `salon down` finds them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import structlog
from pydantic import BaseModel, Field

from salon.errors import InvalidRequest, naming
from salon.private import write_private
from salon.settings import Settings
from salon.stack.supervisor import Supervisor

log = structlog.get_logger()


class _Process(BaseModel):
    pid: int = Field(ge=0, lt=2**31)
    command: list[str]


class _Child(_Process):
    name: str


class _Stack(_Process):
    """The record as it is read: what is in the folder is data."""

    children: list[_Child]
    failing: list[str] = []
    rewards: dict[str, str] = {}
    own_shared_dir: str | None = None


def state_file(settings: Settings) -> Path:
    """Where the record lies."""
    return settings.state_dir / "stack.json"


def read_state(settings: Settings) -> dict[str, Any] | None:
    """The record, as `Record` describes it, or None where there is none for this user to read.

    Raises:
        InvalidRequest: it is damaged.
    """
    try:
        text = state_file(settings).read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        # Not pydantic's own reader of JSON: it refuses what a path that is no UTF-8 becomes.
        return _Stack.model_validate(json.loads(text), strict=True).model_dump()
    except (ValueError, RecursionError):  # pydantic's is a ValueError
        raise InvalidRequest(
            f"{state_file(settings)} is damaged: end what still runs of that stack (`ps`), then "
            "delete the file"
        ) from None


def is_alive(entry: Mapping[str, Any]) -> bool:
    """Whether the process that was recorded still runs; a reused pid has another command line."""
    try:
        process = psutil.Process(entry["pid"])
        return process.cmdline() == entry["command"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def may_end(entry: Mapping[str, Any]) -> bool:
    """Whether it still runs, and is this user's and the leader of its group, as our children are.

    What is recorded may come from anywhere, as with a repository that was cloned.
    """
    try:
        process = psutil.Process(entry["pid"])
        own = process.uids().real == os.getuid() and os.getpgid(process.pid) == process.pid
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return own and is_alive(entry)


class Record:
    """Keeps the record in step with what a supervisor runs.

    It has `pid`, `command`, `children` (each with `name`, `pid`, `command`), `failing` (names of
    those that die whenever they are started) and what `note` has:
    `rewards`, host:port by reward; `own_shared_dir`, None or a folder to remove with the stack.
    """

    def __init__(self, settings: Settings, supervisor: Supervisor, note: Mapping[str, Any]) -> None:
        """Nothing is written yet."""
        self._file = state_file(settings)
        self._supervisor = supervisor
        self._note = note
        self._written: dict[str, Any] = {}

    def update(self) -> None:
        """Write it aside and rename it, if it has changed: a command line may do so, too."""
        children = self._supervisor.children
        state = {
            **self._note,
            **_identify(os.getpid()),
            "children": [
                {"name": child.program.name, **entry}
                for child in children
                if (entry := _identify(child.pid))
            ],
            "failing": [child.program.name for child in children if child.fails_to_start],
        }
        if state == self._written:
            return
        self._written = state
        try:
            with naming(self._file):
                write_private(self._file, json.dumps(state))
        except OSError as error:
            # The processes are worth more than the note of them.
            log.error("cannot record the stack's processes", reason=str(error))


def _identify(pid: int) -> dict[str, Any]:
    # Not the start time: that moves when the clock is set.
    try:
        return {"pid": pid, "command": psutil.Process(pid).cmdline()} if pid else {}
    except psutil.NoSuchProcess:
        return {}
