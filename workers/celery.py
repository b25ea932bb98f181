"""The app that `celery -A workers worker` finds."""

import os
import sys
from typing import Any

import redis
import structlog
from celery.signals import celeryd_init, setup_logging, task_postrun, task_prerun, worker_ready

from salon import logs
from salon.errors import InvalidRequest, SalonError
from salon.own_modules import come_last
from salon.queue.broker import create_app
from salon.queue.connection import check_keeps_keys, check_url, connect_once
from salon.settings import load_settings

try:
    settings = load_settings()
    check_url(settings.redis_url)
except SalonError as error:  # of who started this worker
    sys.exit(str(error))
app = create_app(settings)


@celeryd_init.connect
def _look_here_last(**_: Any) -> None:
    come_last()  # also for `celery -A workers`


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    logs.configure("worker")


@task_prerun.connect
def _name_task(kwargs: dict[str, Any], **_: Any) -> None:
    """Every line about a task, also Celery's own, says which job and batch it is about."""
    message = kwargs.get("message", kwargs)
    if not isinstance(message, dict):  # anybody who may write to Redis may send anything
        return
    ids = {name: message[name] for name in ("job", "batch") if message.get(name)}
    structlog.contextvars.bind_contextvars(**ids)


@task_postrun.connect
def _forget_task(**_: Any) -> None:
    structlog.contextvars.clear_contextvars()


@worker_ready.connect
def _check_redis(**_: Any) -> None:
    """End where Redis may forget what is in its queues; it answers by now."""
    log = structlog.get_logger()
    try:
        check_keeps_keys(connect_once(settings.redis_url, timeout_seconds=5.0))
    except InvalidRequest as error:
        log.error("cannot work with this Redis", reason=str(error))
        raise SystemExit(os.EX_CONFIG) from None
    except redis.RedisError as error:
        log.warning("cannot look at the policy of Redis", reason=str(error))
