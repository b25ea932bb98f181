"""The app that `celery -A workers worker` finds."""

from typing import Any

import structlog
from celery.signals import setup_logging, task_postrun, task_prerun

from salon import logs
from salon.broker import create_app
from salon.own_modules import come_last
from salon.settings import load_settings

come_last()  # also for `celery -A workers`

settings = load_settings()
app = create_app(settings)


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    logs.configure("worker")


@task_prerun.connect
def _name_task(kwargs: dict[str, Any], **_: Any) -> None:
    """Every line about a task, also Celery's own, says which job and batch it is about."""
    message = kwargs.get("message", kwargs)
    ids = {name: message[name] for name in ("job", "batch") if message.get(name)}
    structlog.contextvars.bind_contextvars(**ids)


@task_postrun.connect
def _forget_task(**_: Any) -> None:
    structlog.contextvars.clear_contextvars()
