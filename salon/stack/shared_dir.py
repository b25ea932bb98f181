"""The folder for images by reference that the stack makes where the user has named none."""

import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from salon.settings import Settings

# Not structlog's, which prints to stdout where nobody has set it up, as in the `salon` command.
log = logging.getLogger(__name__)

# Where a folder for images by reference costs no disk, if the host has it.
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - what is made there has mode 0700
PREFIX = "salon-"


def make_own_shared_dir(settings: Settings) -> Path | None:
    """A private folder in memory, or None: the user has named one, or there is no such place."""
    if settings.shared_dir is not None or not MEMORY_FOLDER.is_dir():
        return None
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=MEMORY_FOLDER))


def remove_own_shared_dir(folder: Path) -> None:
    """Remove what `make_own_shared_dir` made, if it is still there.

    A record of a stack may come from anywhere, as with a repository that was cloned: anything else
    that it names is left alone, and the log says so.
    """
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # no path that anybody can have made
        log.warning("the folder %r of a stack is left alone: %s", str(folder), error)
        return
    made_here = folder.parent == MEMORY_FOLDER and folder.name.startswith(PREFIX)
    if made_here and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        shutil.rmtree(folder)
    else:
        log.warning("%s was not made by this user's stack: it is left alone", folder)
