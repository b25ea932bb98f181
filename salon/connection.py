"""Connections to Redis: a patient one that waits out a restart, and one that answers at once."""

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from salon.errors import StackUnavailable

RETRIES = 60  # with at most 1 s between two, a minute: a restart of Redis with its log to replay
SOCKET_SECONDS = 10.0  # longer than any blocking read made here


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
    """
    try:
        client = connect_once(url, timeout_seconds=2.0)
    except ValueError as error:
        raise StackUnavailable(f"SALON_REDIS_URL is {url!r}: {error}") from None
    try:
        client.ping()
    except RedisError as error:
        raise StackUnavailable(
            f"no Salon stack answers at {url} ({error}): start one with `salon up`, "
            "or set SALON_REDIS_URL to one that runs"
        ) from None
    return client
