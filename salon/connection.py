"""Connections to Redis: a patient one that waits out a restart, and one that answers at once."""

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, InvalidResponse, RedisError
from redis.retry import Retry

from salon.errors import StackUnavailable
from salon.redis_url import missing_files, own_port, password, shown

RETRIES = 60  # with at most 1 s between two, a minute: a restart of Redis with its log to replay
SOCKET_SECONDS = 10.0  # longer than any blocking read made here


class RedisRefused(StackUnavailable):
    """Something answers there, but not to us."""


def connect(url: str) -> redis.Redis:
    """A client that waits out a restart of Redis for about a minute before it raises.

    A command whose answer was lost is sent again. Salon's commands bear that: at worst an event of
    a job appears twice, or an attempt is counted twice.
    """
    return redis.Redis.from_url(
        url,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), RETRIES),
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=5.0,
        health_check_interval=15,
    )


def connect_once(url: str, timeout_seconds: float) -> redis.Redis:
    """A client that raises as soon as Redis is away, or silent for `timeout_seconds`."""
    return redis.Redis.from_url(
        url,
        retry=Retry(ExponentialBackoff(), 0),
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
    )


def connect_now(url: str) -> redis.Redis:
    """A client for the command line.

    Raises:
        StackUnavailable: nothing answers at `url`, or it is no URL of a Redis.
        RedisRefused: what answers there is no Redis, or one that wants another password.
    """
    try:
        if missing := missing_files(url):
            raise StackUnavailable(f"SALON_REDIS_URL names {missing[0]}, which is no file")
        client = connect_once(url, timeout_seconds=2.0)
        client.ping()
    except (ValueError, TypeError) as error:
        # Its words may quote what is before a / in a password.
        why = str(error) if "@" not in url else "write / @ ? # of a password as %2F %40 %3F %23"
        raise StackUnavailable(f"SALON_REDIS_URL is {shown(url)!r}: {why}") from None
    except AuthenticationError:
        raise RedisRefused(_refusal(url)) from None
    except (InvalidResponse, UnicodeDecodeError) as error:
        raise RedisRefused(
            f"what answers at {shown(url)} is no Redis ({error}): stop it, or set SALON_REDIS_URL "
            "to another address"
        ) from None
    except RedisError as error:
        start = "start one with `salon up`" if own_port(url) else "see that this Redis runs"
        raise StackUnavailable(
            f"no Salon stack answers at {shown(url)} ({error}): {start}, "
            "or set SALON_REDIS_URL to one that runs"
        ) from None
    return client


def _refusal(url: str) -> str:
    given = "does not take the password it was given" if password(url) else "asks for a password"
    return (
        f"the Redis at {shown(url)} {given}: SALON_REDIS_URL has it as "
        "redis://:PASSWORD@HOST:PORT/0; that of `salon up` lies in its SALON_STATE_DIR, by default "
        ".salon in the folder where it was called: call `salon` there"
    )
