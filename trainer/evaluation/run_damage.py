"""Whether a run folder can be gone on in, found out before a model is loaded."""

import json
import os
from contextlib import suppress
from pathlib import Path

from salon.errors import one_line
from trainer.evaluation.evaluations import Best
from trainer.evaluation.held_out import Evaluation
from trainer.runtime.run_folder import RunFolderUnusable

PROBE_BYTES = 64 * 1024


def check_run_folder(folder: Path) -> None:
    """Write a little into it, and read what a resumed job needs besides a checkpoint.

    A damaged checkpoint is passed over; evaluations have no second copy.

    Raises:
        RunFolderUnusable: one line: the path, what is wrong, and the way out.
    """
    _probe(folder / ".probe.partial")
    anew = "put it back, or submit the job anew, which gets a folder of its own"
    for path in sorted((folder / "evaluation").glob("*.safetensors")):
        try:
            Evaluation.load(path)
        except Exception as error:  # whatever its bytes happen to mean
            raise RunFolderUnusable(f"{path} is damaged ({one_line(error)}): {anew}") from error
    best = folder / "best" / "best.json"
    if best.exists():
        try:
            Best(**json.loads(best.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RunFolderUnusable(f"{best} is damaged ({one_line(error)}): {anew}") from error


def _probe(path: Path) -> None:
    try:
        with path.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunFolderUnusable(
            f"run folder {path.parent} cannot be written: {error.strerror}: make room there or "
            f"give it to user {os.geteuid()}, or set SALON_RUNS_DIR to another place"
        ) from error
    finally:
        with suppress(OSError):  # said above
            path.unlink()
