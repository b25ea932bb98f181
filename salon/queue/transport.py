"""kombu's Redis transport for Celery, which bears what Redis refuses, and what is no message."""

from typing import Any

import redis
import structlog
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import Empty

from salon.queue.refusals import patiently, typed

log = structlog.get_logger()

_UNREADABLE = (ValueError, TypeError, AttributeError)


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """The record of messages that are being worked on."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note one; it left its queue already, so that it would be lost if this were given up."""
        patiently(lambda: super(QoS, self).append(message, delivery_tag))

    def ack(self, delivery_tag: str) -> None:
        """Forget one, or it would be worked on again."""
        patiently(lambda: super(QoS, self).ack(delivery_tag))

    def restore_by_tag(
        self, tag: str, client: redis.Redis | None = None, leftmost: bool = False
    ) -> None:
        """Put one back into its queue; what is none is forgotten, or it would end every worker."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (*_UNREADABLE, KeyError) as error:
            log.error("what is kept for a lost worker is no message: dropped", reason=repr(error))
            self._remove_from_indices(tag).execute()


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """Reads queues as kombu does."""

    QoS = QoS

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._connparams(asynchronous)
        parameters["connection_class"] = typed(parameters["connection_class"])
        return parameters

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        # Anybody who may write to Redis may put anything there, and it has left the queue.
        except _UNREADABLE as error:
            log.error("what was in a queue is no message: dropped", reason=repr(error)[:200])
            raise Empty from None


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's, with channels of this kind."""

    Channel = Channel


def use() -> None:
    """Let it be what `redis://` and `rediss://` stand for, in every Celery app of this process.

    Given as Celery's `broker_transport` it would not be asked for sockets, and TLS would lose its
    defaults.
    """
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))
