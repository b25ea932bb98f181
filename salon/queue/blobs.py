"""Claim check: leave bytes in Redis, pass on a short reference."""

import hashlib
import secrets
import time

import redis
from pydantic import BaseModel, ConfigDict, Field

from salon.errors import Overloaded, SalonError
from salon.queue.refusals import Refused


class BlobMissing(SalonError):
    """The blob was deleted after use or has expired."""


class Reference(BaseModel):
    """What travels on the broker in place of the bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(pattern=r"^salon:blob:[0-9a-f]{32}$")
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires_at: float  # seconds since the epoch


class BlobStore:
    """Bytes under random keys, each with an expiry, so that a crash leaks nothing for ever."""

    def __init__(self, client: redis.Redis, expiry_seconds: int) -> None:
        self._client = client
        self._expiry_seconds = expiry_seconds

    def put(self, data: bytes) -> Reference:
        """Store `data` and return its reference.

        Raises:
            Overloaded: Redis is full (its policy is noeviction: it refuses rather than forgets),
                and stays so for as long as the client waits.
        """
        key = f"salon:blob:{secrets.token_hex(16)}"
        try:
            self._client.set(key, data, ex=self._expiry_seconds)
        except Refused as error:
            if not error.is_full:
                raise
            raise Overloaded(
                f"Redis has no room for a blob of {len(data)} bytes ({error}): "
                "raise its maxmemory or score smaller batches"
            ) from error
        return Reference(
            key=key,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            expires_at=time.time() + self._expiry_seconds,
        )

    def get(self, reference: Reference) -> bytes:
        """The bytes behind `reference`.

        Raises:
            BlobMissing: deleted or expired.
            SalonError: the bytes are not those that were stored.
        """
        data: bytes | None = self._client.get(reference.key)
        if data is None:
            raise BlobMissing(f"blob {reference.key} is gone: used already, or expired")
        if len(data) != reference.size or hashlib.sha256(data).hexdigest() != reference.sha256:
            raise SalonError(
                f"blob {reference.key} does not match its digest: {len(data)} bytes, "
                f"{reference.size} expected"
            )
        return data

    def delete(self, reference: Reference) -> None:
        """Forget the bytes; deleting twice is no error."""
        self._client.delete(reference.key)
