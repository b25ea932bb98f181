"""A trainer's scorer, and whether it gives true scores."""

import io
import signal

import numpy as np
from PIL import Image

from tests.fixtures.stack import wait_until
from trainer.rewards.queue_scorer import QueueScorer
from trainer.runtime.interrupt import Interrupt


def photos(count, seed=0):
    """Noise of different strength, so that every image has its own size."""
    random = np.random.default_rng(seed)
    strength = np.linspace(1, 127, count)[:, None, None, None]
    return (128 + strength * random.uniform(-1, 1, (count, 32, 32, 3))).round().astype(np.uint8)


def kilobytes(images):
    sizes = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=95)
        sizes.append(len(buffer.getvalue()) / 1000)
    return np.array(sizes)


REWARDS = ("jpeg_compressibility", "jpeg_incompressibility")


class Harness:
    def __init__(self, stack, deadline=60.0, settings=None, rewards=REWARDS, references=None):
        self.notes = []
        self.interrupt = Interrupt()
        self.scorer = QueueScorer(
            stack.app,
            stack.redis,
            settings or stack.settings,
            rewards=rewards,
            on_reward_error="fail",
            deadline_seconds=deadline,
            interrupt=self.interrupt,
            on_waiting=self.notes.append,
            references=references,
        )

    def submit(self, images):
        return self.scorer.submit(images, ["a prompt"] * len(images))

    def expire(self):
        """Let the deadline of what is pending pass now, whenever that was sent."""
        for pending in self.scorer._window.requests():
            pending.deadline = 0.0


def assert_scored(future, images, seconds=60):
    batch = future.result(timeout=seconds)
    size = kilobytes(images)
    np.testing.assert_allclose(batch.per_reward["jpeg_compressibility"], -size, rtol=1e-12)
    np.testing.assert_allclose(batch.per_reward["jpeg_incompressibility"], size, rtol=1e-12)
    assert batch.valid.all()
    assert batch.errors == ()


def hold_batch(stack, harness):
    """A batch that a worker has handed to a service which is stopped in the middle of it."""
    stack.start("jpeg", "scoring")
    warm = photos(2)
    assert_scored(harness.submit(warm), warm)
    stack.signal("jpeg", signal.SIGSTOP)  # holds the batch in the service
    images = photos(5)
    future = harness.submit(images)
    wait_until(lambda: stack.redis.keys("salon:attempts:*"), "a worker has the batch")
    return future, images
