"""Scores by what they were computed from, so that the same sample is not scored twice."""

import hashlib
import json
import struct
import threading
from collections import OrderedDict

import numpy as np

from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from salon.wire.images import Pixels


class ScoreCache:
    """The last scores, up to a number of them; safe to use from any thread.

    Only scores are kept, never errors: what failed may succeed the next time.
    """

    def __init__(self, max_scores: int) -> None:
        """Keep at most `max_scores`; the one not asked for longest makes room.

        Memory is about 750 bytes a score, and whatever details the reward gives with it.
        """
        self._max_scores = max_scores
        self._outcomes: OrderedDict[bytes, reward_pb2.Outcome] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def key(reward: str, version: str, sample: Sample) -> bytes:
        """32 bytes that differ whenever the score could: SHA-256 of all that it depends on."""
        digest = hashlib.sha256()
        metadata = json.dumps(dict(sample.metadata), sort_keys=True)
        for text in (reward, version, sample.prompt, metadata):
            _add(digest, text.encode())
        for image in (sample.image, sample.reference):
            _add_image(digest, image)
        return digest.digest()

    def get(self, key: bytes) -> reward_pb2.Outcome | None:
        """The outcome kept under `key`, to be read, not changed."""
        with self._lock:
            outcome = self._outcomes.get(key)
            if outcome is not None:
                self._outcomes.move_to_end(key)
            return outcome

    def put(self, key: bytes, outcome: reward_pb2.Outcome) -> None:
        """Keep `outcome`, if it is a score."""
        if outcome.WhichOneof("result") != "score":
            return
        with self._lock:
            self._outcomes[key] = outcome
            self._outcomes.move_to_end(key)
            if len(self._outcomes) > self._max_scores:
                self._outcomes.popitem(last=False)


# Each part goes in behind its length, so that no two samples give the same bytes to hash.
def _add(digest: "hashlib._Hash", part: bytes | memoryview) -> None:
    digest.update(struct.pack("<Q", len(part)))
    digest.update(part)


def _add_image(digest: "hashlib._Hash", image: Pixels | None) -> None:
    if image is None:
        _add(digest, b"")
        return
    _add(digest, repr(image.shape).encode())
    _add(digest, np.ascontiguousarray(image).data.cast("B"))
