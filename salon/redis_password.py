"""The password of the stack's own Redis.

That of SALON_REDIS_URL; without one in there a random one, in a file that only the user of the
stack may read, where every process with the same settings finds it.
"""

import json
import secrets
from pathlib import Path

from salon import redis_url
from salon.errors import SalonError
from salon.private import make_private, write_private


def _stored(state_dir: Path, url: str) -> str:
    """The password of the stack that was started with these settings; empty if none was.

    Raises:
        OSError: it is there, and this user may not read it.
        SalonError: it is damaged.
    """
    file = _password_file(state_dir)
    try:
        stored = json.loads(file.read_text())
        port, password = stored["port"], stored["password"]
        if not isinstance(password, str) or not password.isascii():
            raise TypeError("no password that was made here")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (ValueError, LookupError, TypeError, RecursionError):
        raise SalonError(
            f"{file} is damaged: delete it, then `salon down` and `salon up`"
        ) from None
    # Another Redis, at another port, has nothing to do with it.
    return password if port == redis_url.own_port(url) else ""


def with_stored_password(state_dir: Path, url: str) -> str:
    """`url`, with the password of the stack unless it has one."""
    if redis_url.own_port(url) is None or redis_url.password(url) or redis_url.lacks_colon(url):
        return url
    stored = _stored(state_dir, url)
    return redis_url.with_password(url, stored) if stored else url


def with_new_password(state_dir: Path, url: str) -> str:
    """`url` with a password: the one it has, the stored one, or a new one, which is stored."""
    url = with_stored_password(state_dir, url)
    if redis_url.password(url):
        return url
    redis_folder(state_dir)
    password = secrets.token_urlsafe(32)
    stored = {"port": redis_url.own_port(url), "password": password}
    write_private(_password_file(state_dir), json.dumps(stored))
    return redis_url.with_password(url, password)


def redis_folder(state_dir: Path) -> Path:
    """Where configuration, password and data of that Redis lie, for its user alone."""
    make_private(state_dir)
    folder = state_dir.absolute() / "redis"
    make_private(folder)
    folder.chmod(0o700)  # also one that an older release made
    return folder


def _password_file(state_dir: Path) -> Path:
    return state_dir / "redis" / "password"
