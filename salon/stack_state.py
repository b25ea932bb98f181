"""The record of a running local stack: which processes it is, so that `salon down` finds them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from salon.errors import naming
from salon.private import write_private
from salon.settings import Settings
from salon.supervisor import Supervisor


def state_file(settings: Settings) -> Path:
    """Where the record lies."""
    return settings.state_dir / "stack.json"


def read_state(settings: Settings) -> dict[str, Any] | None:
    """The record, as `write_state` describes it, or None."""
    try:
        state: dict[str, Any] = json.loads(state_file(settings).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return state


def is_alive(entry: Mapping[str, Any]) -> bool:
    """Whether the process that was recorded still runs; a reused pid has another command line."""
    try:
        process = psutil.Process(entry["pid"])
        return process.cmdline() == entry["command"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_state(settings: Settings, supervisor: Supervisor, note: Mapping[str, Any]) -> None:
    """Write the record aside and rename it.

    It has `pid`, `command`, `children` (each with `name`, `pid`, `command`), `failing` (names of
    those that die whenever they are started) and what `note` has:
    `rewards`, host:port by reward; `own_shared_dir`, None or a folder to remove with the stack.
    """
    children = [
        {"name": child.program.name, **entry}
        for child in supervisor.children
        if (entry := _identify(child.pid))
    ]
    failing = [child.program.name for child in supervisor.children if child.fails_to_start]
    state = {**note, **_identify(os.getpid()), "children": children, "failing": failing}
    with naming(state_file(settings)):
        write_private(state_file(settings), json.dumps(state))


def _identify(pid: int) -> dict[str, Any]:
    # Not the start time: that moves when the clock is set.
    try:
        return {"pid": pid, "command": psutil.Process(pid).cmdline()} if pid else {}
    except psutil.NoSuchProcess:
        return {}
