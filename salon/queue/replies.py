"""The way back from scoring workers to a trainer: one Redis stream for each scorer.

A stream, not Celery's result backend: reading it does not consume it, so a reader whose connection
broke continues from the last entry it saw; and one blocking read waits for all batches at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import redis
import structlog

log = structlog.get_logger()

MAX_LENGTH = 10_000


class ReplyKind(StrEnum):
    """What a worker says about a batch."""

    SCORED = "scored"  # body: a serialized salon.reward.v1.ScoreResponse
    WAITING = "waiting"  # body: why the batch waits, for people; more replies follow
    RESEND = "resend"  # body: why the service has no use for the shared file; nothing follows
    FAILED = "failed"  # body: why it will never be scored, for people


@dataclass(frozen=True)
class Reply:
    """One message about one batch."""

    batch: str
    kind: ReplyKind
    body: bytes
    error: str = ""
    """Of one that is FAILED, the name of the error's class; empty from an older worker."""


class ReplyStream:
    """Replies to one scorer."""

    def __init__(self, client: redis.Redis, name: str, expiry_seconds: int) -> None:
        self._client = client
        self._key = f"salon:replies:{name}"
        self._expiry_seconds = expiry_seconds
        self._last = b"0-0"

    def send(self, reply: Reply) -> None:
        """Append a reply and renew the stream's expiry, in one transaction."""
        fields: dict[str, str | bytes] = {
            "batch": reply.batch,
            "kind": reply.kind.value,
            "body": reply.body,
        }
        if reply.error:
            fields["error"] = reply.error
        pipeline = self._client.pipeline(transaction=True)
        pipeline.xadd(self._key, fields, maxlen=MAX_LENGTH, approximate=True)
        pipeline.expire(self._key, self._expiry_seconds)
        pipeline.execute()

    def read(self, block_seconds: float) -> Iterator[Reply]:
        """Replies not yet read; waits at most `block_seconds` for the first of them.

        One that cannot be read, as of a worker of another release, is named in the log and left.
        """
        answer = self._client.xread({self._key: self._last}, block=int(block_seconds * 1000))
        for _, entries in answer or []:
            for identifier, fields in entries:
                self._last = identifier
                try:
                    kind = ReplyKind(fields[b"kind"].decode())
                    error = fields.get(b"error", b"").decode(errors="replace")
                    reply = Reply(fields[b"batch"].decode(), kind, fields[b"body"], error)
                except (KeyError, ValueError) as error:
                    log.warning("a reply that cannot be read", reason=repr(error))
                    continue
                yield reply

    def delete(self) -> None:
        """Forget the stream."""
        self._client.delete(self._key)
