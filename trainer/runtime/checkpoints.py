"""Checkpoints in a run folder: written aside, renamed, verified by digest, the last few kept.

A checkpoint is a folder of `tensors.safetensors`, `state.json`, and `SHA256SUMS` of both, which
`sha256sum --check` reads, too.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from safetensors.torch import load_file, save_file

from trainer.algorithm import Question, State
from trainer.runtime.run_folder import RunFolder

log = structlog.get_logger()

_FILES = ("tensors.safetensors", "state.json")
_NAME = re.compile(r"^(\d{6,})-(\d+)$")  # iteration and the token of the attempt that wrote it


@dataclass(frozen=True)
class Checkpoint:
    """The state after `iteration` iterations."""

    iteration: int
    algorithm: State
    loop: dict[str, Any]  # the loop's own counters
    versions: dict[str, str]  # reward -> the version it had
    question: Question | None = None  # to be answered before the next one


class Checkpoints:
    """The folder `checkpoints/`."""

    def __init__(self, folder: RunFolder, token: int, keep: int) -> None:
        self._folder = folder
        self._token = token
        self._keep = keep
        self._damaged: list[Path] = []

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one, then forget those that were found damaged, and all but the newest `keep`.

        Raises:
            OSError: the disk is full or cannot be written; earlier checkpoints stay.
        """
        name = f"checkpoints/{checkpoint.iteration:06d}-{self._token}"
        with self._folder.folder(name) as path:
            save_file(checkpoint.algorithm["tensors"], path / "tensors.safetensors")
            record = {
                "iteration": checkpoint.iteration,
                "algorithm": checkpoint.algorithm["state"],
                "loop": checkpoint.loop,
                "versions": checkpoint.versions,
            }
            if checkpoint.question is not None:
                record["question"] = json.loads(checkpoint.question.to_json())
            (path / "state.json").write_text(json.dumps(record), encoding="utf-8")
            (path / "SHA256SUMS").write_bytes(_sums(path))
        # They may be of later iterations: counted in, they would push out the one just written.
        for damaged in self._damaged:
            shutil.rmtree(damaged, ignore_errors=True)
        self._damaged.clear()
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)

    def none(self) -> bool:
        """Whether the job has not got far enough for one, whole or damaged."""
        return not self._all()

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; a damaged one is named in the log and passed over."""
        for path in reversed(self._all()):
            try:
                _verify(path)
            except (OSError, ValueError) as error:
                log.warning("damaged checkpoint", path=str(path), reason=str(error))
                self._damaged.append(path)
                continue
            record = json.loads((path / "state.json").read_text(encoding="utf-8"))
            tensors = load_file(path / "tensors.safetensors")
            state = State(tensors=tensors, state=record["algorithm"])
            asked = record.get("question")
            return Checkpoint(
                record["iteration"],
                state,
                record["loop"],
                record["versions"],
                None if asked is None else Question.from_values(asked),
            )
        return None

    def _all(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        found = [
            (int(match[1]), int(match[2]), path)
            for path in (self._folder.path / "checkpoints").glob("*")
            if (match := _NAME.match(path.name))
        ]
        return [path for _, _, path in sorted(found)]


def _verify(folder: Path) -> None:
    """Compare both files with their digests.

    Raises:
        OSError: a file is not there or cannot be read.
        ValueError: a file is not what was written.
    """
    if (folder / "SHA256SUMS").read_bytes() != _sums(folder):
        raise ValueError("a file is not the one that SHA256SUMS was made of")


def _sums(folder: Path) -> bytes:
    return b"".join(f"{_digest(folder / name)}  {name}\n".encode() for name in _FILES)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
