"""Structured logs: one JSON object a line on stderr, for our own events and libraries' alike."""

import logging
import sys
import threading
from types import TracebackType
from typing import Any

import structlog

# They tell of every task that it came and that it went, in 1.3 kB.
CHATTY = ("celery.worker.strategy", "celery.app.trace")


def configure(service: str, **fields: Any) -> None:
    """Send every log of this process to stderr as JSON lines; also what ends it or a thread of it.

    Each line has `timestamp` (ISO 8601, UTC), `level`, `event`, `service`, the event's own fields,
    and `exception` with the full traceback where there is one. Call it once, at the start.

    Args:
        service: the process's name in its logs, such as `reward-service`.
        fields: what else each line has, in every thread.
    """
    fields["service"] = service

    def add_fields(
        _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        return {**fields, **event}

    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_fields,
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_death
    threading.excepthook = _log_death_of_thread
    structlog.configure(
        processors=[*processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )


def _log_death(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        structlog.get_logger().critical("uncaught exception", exc_info=(kind, error, trace))


def _log_death_of_thread(died: threading.ExceptHookArgs) -> None:
    name = died.thread.name if died.thread else ""
    info = (died.exc_type, died.exc_value, died.exc_traceback)
    structlog.get_logger().critical("uncaught exception", thread=name, exc_info=info)
