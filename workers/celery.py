"""The app that `celery -A workers worker` finds."""

from typing import Any

from celery.signals import setup_logging

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
