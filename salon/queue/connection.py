"""Connections to Redis: a patient one that waits out a restart, and one that answers at once."""

import logging
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, InvalidResponse, RedisError, ResponseError
from redis.retry import Retry

from salon.errors import InvalidRequest, StackUnavailable
from salon.queue.refusals import Patience, typed
from salon.redis_url import (
    database,
    is_misread,
    lacks_colon,
    missing_files,
    no_options,
    own_port,
    password,
    shown,
)

# Not structlog's, which prints to stdout where nobody has set it up, as in the `salon` command.
log = logging.getLogger(__name__)

SOCKET_SECONDS = 10.0  # longer than any blocking read made here
CONNECT_SECONDS = 5.0


class RedisRefused(StackUnavailable):
    """What answers there does not answer to us, or nothing can at such a URL: no use in waiting."""


class RedisMisnamed(RedisRefused):
    """SALON_REDIS_URL is no URL of a Redis, whatever runs."""


def connect(url: str) -> redis.Redis:
    """A client that waits out a restart or a refusal of Redis for about a minute, then raises.

    A command whose answer was lost is sent again. Salon's commands bear that: at worst an event of
    a job appears twice, or an attempt is counted twice.
    """
    client = redis.Redis.from_url(
        url,
        retry=Patience(way_out=f"; {_way_back(url)}"),
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=15,
    )
    return _with_refusals(client)


def connect_once(url: str, timeout_seconds: float) -> redis.Redis:
    """A client that raises as soon as Redis is away, refuses, or says nothing for so long."""
    client = redis.Redis.from_url(
        url,
        retry=Retry(ExponentialBackoff(), 0),
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
    )
    return _with_refusals(client)


def connect_now(url: str) -> redis.Redis:
    """A patient client for the command line, of a Redis that answers now.

    Raises:
        StackUnavailable: nothing answers at `url`.
        RedisMisnamed: it is no URL of a Redis, or names files that are not there.
        RedisRefused: what answers there is no Redis, or one that wants another password or has no
            such database.
    """
    check_url(url)
    try:
        client = connect_once(url, timeout_seconds=2.0)
        client.ping()
    except AuthenticationError:
        raise RedisRefused(_refusal(url)) from None
    except ResponseError as error:
        if not ("DB index" in str(error) or "out of range" in str(error)):
            raise _unavailable(url, error) from None
        raise RedisRefused(
            f"the Redis at {shown(url)} has no database {database(url)}: {_databases(url)}"
        ) from None
    except (InvalidResponse, UnicodeDecodeError) as error:
        raise RedisRefused(
            f"what answers at {shown(url)} is no Redis ({error}): stop it, or set SALON_REDIS_URL "
            "to another address"
        ) from None
    except ValueError as error:  # what is no name of a host shows when it is looked up
        raise _misnamed(url, error) from None
    except RedisError as error:
        raise _unavailable(url, error) from None
    return connect(url)


def check_url(url: str) -> None:
    """Refuse what no Redis can be reached by; nothing is connected.

    Raises:
        RedisMisnamed: it is no URL of a Redis, or names files that are not there.
    """
    try:
        if lacks_colon(url):
            raise RedisMisnamed(
                f"SALON_REDIS_URL is {shown(url)!r}: a password alone is written with a colon, "
                "redis://:PASSWORD@HOST:PORT/0, and a user who has none with one behind, "
                "redis://USER:@HOST:PORT/0"
            )
        if is_misread(url):
            raise RedisMisnamed(
                f"SALON_REDIS_URL is {shown(url)!r}: behind the address comes nothing but "
                "/DATABASE, a number; write / @ ? # of a password as %2F %40 %3F %23"
            )
        if options := no_options(url):
            tls = " and, of rediss://, ssl_ca_certs and its like"
            raise RedisMisnamed(
                f"SALON_REDIS_URL is {shown(url)!r}: no option {options[0]:.100}; there are db, "
                f"username, password, socket_timeout{tls}"
            )
        if urlsplit(url).port == 0:
            raise RedisMisnamed(f"SALON_REDIS_URL is {shown(url)!r}: no Redis listens at port 0")
        if missing := missing_files(url):
            raise RedisMisnamed(f"SALON_REDIS_URL names {missing[0]}, which is no file")
        # What redis-py does not take as an option shows when a connection is made of it.
        redis.Redis.from_url(url).connection_pool.make_connection()
        url.encode()  # a half character of a password would be found only where it is sent
    except (ValueError, TypeError) as error:
        raise _misnamed(url, error) from None
    except RedisError as error:
        raise RedisMisnamed(f"SALON_REDIS_URL is {shown(url)!r}: {error}") from None


def _misnamed(url: str, error: Exception) -> RedisMisnamed:
    # Its words may quote what is before a / in a password.
    why = str(error) if "@" not in url else "write / @ ? # of a password as %2F %40 %3F %23"
    return RedisMisnamed(f"SALON_REDIS_URL is {shown(url)!r}: {why}")


def check_keeps_keys(client: redis.Redis) -> None:
    """Refuse a Redis that makes room by forgetting: jobs, queues and leases would be gone.

    One without a limit (maxmemory 0) never does, whatever its policy.

    Raises:
        InvalidRequest: it would, and how to mend that.
    """
    try:
        memory = client.info("memory")
    except redis.ResponseError as error:  # a user who may not ask
        log.warning("cannot see whether Redis evicts keys: %s", error)
        return
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory") and policy != "noeviction":
        raise InvalidRequest(
            f"this Redis forgets keys when its {memory['maxmemory']} bytes are full "
            f"(maxmemory-policy {policy}), and with them jobs and their queues: set "
            "maxmemory-policy noeviction there, or use a Redis that is no cache"
        )


def _with_refusals(client: redis.Redis) -> redis.Redis:
    pool = client.connection_pool
    pool.connection_class = typed(pool.connection_class)
    return client


def _databases(url: str) -> str:
    client = connect_once(url, timeout_seconds=2.0)
    client.connection_pool.connection_kwargs["db"] = 0
    try:
        count = int(client.config_get("databases")["databases"])
    except (RedisError, LookupError, ValueError):  # it may not be asked
        return "the first is 0, and there are 16 unless its setting `databases` says otherwise"
    return f"its setting `databases` is {count}, so the last is {count - 1}"


def _unavailable(url: str, error: RedisError) -> StackUnavailable:
    return StackUnavailable(
        f"no Salon stack answers at {shown(url)} ({error}): {_way_back(url)}, "
        "or set SALON_REDIS_URL to one that runs"
    )


def _way_back(url: str) -> str:
    return "start one with `salon up`" if own_port(url) else "see that this Redis runs"


def _refusal(url: str) -> str:
    given = "does not take the password it was given" if password(url) else "asks for a password"
    return (
        f"the Redis at {shown(url)} {given}: SALON_REDIS_URL has it as "
        "redis://:PASSWORD@HOST:PORT/0; that of `salon up` lies in its SALON_STATE_DIR, by default "
        ".salon in the folder where it was called: call `salon` there"
    )
