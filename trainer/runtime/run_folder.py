"""A job's run folder: one writer at a time, and files that are whole or absent."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import psutil
import structlog

from salon.errors import InvalidRequest, SalonError, naming

log = structlog.get_logger()

LOCK_POLL_SECONDS = 0.5


class RunFolderHeld(SalonError):
    """An older attempt still holds the folder and cannot be ended from here."""


class RunFolderUnusable(SalonError):
    """Nothing can be written into it, or what an earlier attempt left there cannot be read."""


class RunFolder:
    """`runs/<job>`. Writes go aside and are renamed, if the fence says this writer is current.

    Who may read the run folder may read what is in it: each file and folder gets the permissions of
    the folder that it lies in, whatever the library that wrote it had in mind (safetensors writes
    for its user alone).
    """

    def __init__(self, path: Path, fence: Callable[[], object]) -> None:
        """Use `path`; `fence` raises LeaseLost when this process no longer runs the job."""
        self.path = path
        self._fence = fence
        self._lock: os.stat_result | None = None  # of the lock's file, while it is held

    @contextmanager
    def held(self, token: int, wait_seconds: float) -> Iterator[None]:
        """Hold the folder's lock for as long as this process may write.

        The fence alone leaves an instant between its check and the rename in which a stopped
        process could sleep; the lock closes it: while an older attempt is alive nobody else writes.
        On this host an older attempt is killed, since its token proves that it has been replaced.

        Raises:
            RunFolderHeld: an older attempt on another host kept the lock for `wait_seconds`.
            RunFolderUnusable: it may not be written.
            InvalidRequest: the folder is a link to another place.
        """
        with self._writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if self.path.is_symlink():
            raise InvalidRequest(
                f"run folder {self.path} is a link to {self.path.resolve()}: jobs write into "
                "folders of their own alone; move it away"
            )
        with self._writing(self.path / ".lock"):
            opened = _opened(self.path / ".lock")
        with opened as lock:
            deadline = time.monotonic() + wait_seconds
            while not _try_lock(lock.fileno()):
                self._fence()
                _end_older_attempt(self.path / ".lock", token)
                if time.monotonic() > deadline:
                    raise RunFolderHeld(
                        f"{self.path} is still held by an older attempt "
                        f"({(self.path / '.lock').read_text().strip()}): end that process"
                    )
                time.sleep(LOCK_POLL_SECONDS)  # flock has no wait with a deadline
            lock.truncate(0)
            holder = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "command": psutil.Process().cmdline(),
                "token": token,
            }
            lock.write(json.dumps(holder))
            lock.flush()
            self._remove_leftovers()
            self._lock = os.fstat(lock.fileno())
            try:
                yield
            finally:
                self._lock = None
                # Boards write their own files, by the umask of this process.
                for written in sorted(self.path.rglob("*")):
                    with suppress(FileNotFoundError):  # they may tidy up meanwhile
                        _admit_as_parent(written)

    def check(self) -> None:
        """See that this is still the folder that is held; nothing where none is.

        One that was removed would be made anew, without the checkpoints, and with a lock that
        another attempt could take.

        Raises:
            RunFolderUnusable: it is not.
        """
        if self._lock is None:
            return
        try:
            is_same = os.path.samestat((self.path / ".lock").stat(), self._lock)
        except (FileNotFoundError, NotADirectoryError):
            is_same = False
        if not is_same:
            raise RunFolderUnusable(
                f"run folder {self.path} was removed or replaced while the job ran, and its "
                "checkpoints with it: submit the job anew"
            )

    @contextmanager
    def _writing(self, target: Path) -> Iterator[None]:
        """Within, `target` is written, and errors name it.

        Raises:
            RunFolderUnusable: the folder is not there any more, or may not be written.
        """
        self.check()
        try:
            with naming(target):
                yield
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise RunFolderUnusable(
                f"run folder {self.path} cannot be written: {error.strerror}: "
                f"{error.filename}: let user {os.geteuid()} write there, and submit the job anew"
            ) from error

    def _remove_leftovers(self) -> None:
        """Delete what an attempt was writing when it was killed."""
        for partial in [*self.path.rglob(".*.partial")]:
            if partial.is_dir() and not partial.is_symlink():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """A path to write to; on leaving, it becomes `name` in one step, or vanishes on error."""
        target = self.path / name
        aside = target.with_name(f".{target.name}.partial")
        try:
            with self._writing(target):
                self._make(target.parent)
                yield aside
                with aside.open("rb") as written:
                    os.fsync(written.fileno())
                _admit_as_parent(aside)
                self._fence()
                aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder to fill; on leaving, it becomes `name`, replacing one of that name."""
        target = self.path / name
        aside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            with self._writing(target):
                self._make(aside)
                yield aside
                for written in sorted(aside.rglob("*")):  # a folder before what is in it
                    _admit_as_parent(written)
                    if written.is_file():
                        with written.open("rb") as file:
                            os.fsync(file.fileno())
                self._fence()
                shutil.rmtree(target, ignore_errors=True)
                aside.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _make(self, folder: Path) -> None:
        """Make `folder`, which lies in this one, and those between."""
        if folder == self.path:
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.exists():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            _admit_as_parent(folder)

    def write_text(self, name: str, text: str) -> None:
        """Write a whole file."""
        with self.file(name) as path:
            path.write_text(text, encoding="utf-8")


def _opened(lock: Path) -> TextIO:
    """The file, made if need be; not one that a link leads to: what is in it is overwritten."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(lock, flags, 0o666), "a+", encoding="utf-8")


def _admit_as_parent(path: Path) -> None:
    """Let those read and write `path` who may read and write the folder that it is in.

    Where that cannot be, as with a file of another owner, or on a file system without permissions,
    it stays as it is: what was computed is worth more.
    """
    try:
        if path.is_symlink():  # to what is not the run's
            return
        granted = path.parent.stat().st_mode & 0o777
        mode = stat.S_IMODE(path.stat().st_mode)
        # A folder may hand on its group, too.
        wanted = (mode & ~0o777 | granted) if path.is_dir() else granted & 0o666
        if mode != wanted:
            path.chmod(wanted)
    except FileNotFoundError:
        raise
    except OSError as error:
        log.warning("permissions stay as they are", path=str(path), reason=error.strerror)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_older_attempt(lock: Path, token: int) -> None:
    """Kill the holder if it is an older attempt on this host, and really that process."""
    try:
        holder = json.loads(lock.read_text())
        host, pid, older = holder["host"], int(holder["pid"]), int(holder["token"])
        command = holder["command"]
    except (ValueError, KeyError, TypeError):
        return  # its holder is just writing its name
    if host != socket.gethostname() or older >= token:
        return
    try:
        process = psutil.Process(pid)
        if process.cmdline() == command:  # else its number was given to another
            log.warning("ending an attempt that was replaced", **holder)
            process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
