import hashlib
import time

import pytest

from salon.errors import Overloaded, SalonError
from salon.queue.blobs import BlobMissing, BlobStore, Reference
from salon.queue.connection import connect_once
from tests.fixtures.redis import RedisServer


@pytest.fixture
def blobs(redis_client):
    return BlobStore(redis_client, expiry_seconds=60)


def test_bytes_come_back(blobs):
    data = bytes(range(256)) * 100
    reference = blobs.put(data)
    assert blobs.get(reference) == data
    assert reference.size == 25600
    assert reference.sha256 == hashlib.sha256(data).hexdigest()
    assert reference.expires_at == pytest.approx(time.time() + 60, abs=5)


def test_a_reference_is_a_few_hundred_bytes_of_json(blobs):
    reference = blobs.put(b"x" * 1_000_000)
    text = reference.model_dump_json()
    assert len(text) < 300
    assert Reference.model_validate_json(text) == reference


def test_a_deleted_blob_is_missing_and_may_be_deleted_again(blobs):
    reference = blobs.put(b"x")
    blobs.delete(reference)
    blobs.delete(reference)
    with pytest.raises(BlobMissing, match="used already, or expired"):
        blobs.get(reference)


def test_a_blob_expires_by_itself(blobs, redis_client):
    reference = blobs.put(b"x")
    assert 0 < redis_client.ttl(reference.key) <= 60


def test_altered_bytes_are_not_returned(blobs, redis_client):
    reference = blobs.put(b"right")
    redis_client.set(reference.key, b"wrong")
    with pytest.raises(SalonError, match="does not match its digest"):
        blobs.get(reference)


def test_a_full_redis_is_named(tmp_path):
    server = RedisServer(tmp_path, "--maxmemory", "2mb")
    try:
        store = BlobStore(connect_once(server.url, 5.0), 60)
        with pytest.raises(Overloaded, match="maxmemory"):
            for _ in range(10):
                store.put(b"x" * 1_000_000)
    finally:
        server.stop()
