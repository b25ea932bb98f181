"""Connections to Redis: a patient one that waits out a restart, and one that answers at once."""

import logging

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, InvalidResponse, RedisError
from redis.retry import Retry

from salon.errors import InvalidRequest, StackUnavailable
from salon.redis_url import is_misread, missing_files, own_port, password, shown
from salon.refusals import Patience, typed

# Not structlog's, which prints to stdout where nobody has set it up, as in the `salon` command.
log = logging.getLogger(__name__)

SOCKET_SECONDS = 10.0  # longer than any blocking read made here
CONNECT_SECONDS = 5.0


class RedisRefused(StackUnavailable):
    """Something answers there, but not to us."""


class RedisMisnamed(StackUnavailable):
    """SALON_REDIS_URL is no URL of a Redis, whatever runs."""


def connect(url: str) -> redis.Redis:
    """A client that waits out a restart or a refusal of Redis for about a minute, then raises.

    A command whose answer was lost is sent again. Salon's commands bear that: at worst an event of
    a job appears twice, or an attempt is counted twice.
    """
    client = redis.Redis.from_url(
        url,
        retry=Patience(),
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
        RedisRefused: what answers there is no Redis, or one that wants another password.
    """
    check_url(url)
    try:
        client = connect_once(url, timeout_seconds=2.0)
        client.ping()
    except AuthenticationError:
        raise RedisRefused(_refusal(url)) from None
    except (InvalidResponse, UnicodeDecodeError) as error:
        raise RedisRefused(
            f"what answers at {shown(url)} is no Redis ({error}): stop it, or set SALON_REDIS_URL "
            "to another address"
        ) from None
    except ValueError as error:  # what is no name of a host shows when it is looked up
        raise _misnamed(url, error) from None
    except RedisError as error:
        start = "start one with `salon up`" if own_port(url) else "see that this Redis runs"
        raise StackUnavailable(
            f"no Salon stack answers at {shown(url)} ({error}): {start}, "
            "or set SALON_REDIS_URL to one that runs"
        ) from None
    return connect(url)


def check_url(url: str) -> None:
    """Refuse what no Redis can be reached by; nothing is connected.

    Raises:
        RedisMisnamed: it is no URL of a Redis, or names files that are not there.
    """
    try:
        if is_misread(url):
            raise RedisMisnamed(
                f"SALON_REDIS_URL is {shown(url)!r}: behind the address comes nothing but "
                "/DATABASE, a number; write / @ ? # of a password as %2F %40 %3F %23"
            )
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


def _refusal(url: str) -> str:
    given = "does not take the password it was given" if password(url) else "asks for a password"
    return (
        f"the Redis at {shown(url)} {given}: SALON_REDIS_URL has it as "
        "redis://:PASSWORD@HOST:PORT/0; that of `salon up` lies in its SALON_STATE_DIR, by default "
        ".salon in the folder where it was called: call `salon` there"
    )
