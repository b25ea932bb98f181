"""Ways from images to JPEG rewards: a method call, a gRPC call, the queue."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from salon.client import RewardClient
from salon.queue.broker import create_app
from salon.queue.connection import connect
from salon.serving import Sample
from salon.settings import Settings
from services.rewards.jpeg import JpegCompressibility
from trainer.rewards.queue_scorer import QueueScorer
from trainer.runtime.interrupt import Interrupt

REWARD = JpegCompressibility.name
WORKERS = 2
"""Threads that call the reward or the service, as many as processes of the local stack's scoring
worker. In-process both threads score at once; the service scores on one thread, whichever way a
batch came."""
DEADLINE_SECONDS = 120.0

Images = NDArray[np.uint8]
Scores = NDArray[np.float64]
Wait = Callable[[], Scores]
Submit = Callable[[Images], Wait]
"""Hands over a batch [n, H, W, 3]; what it returns waits for the n scores."""


def score_in_process(images: Images) -> Scores:
    """The reward class called as it is, in this process and this thread."""
    return np.array(JpegCompressibility().score([Sample(image, "", {}) for image in images]))


def score_by_call(client: RewardClient, images: Images) -> Scores:
    """One direct gRPC call, or several if the batch exceeds a message.

    Raises:
        SampleError: an image has no score.
    """
    outcomes = client.score(images, reward=REWARD, deadline=DEADLINE_SECONDS)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return np.array([outcome.score for outcome in outcomes], dtype=np.float64)


@contextmanager
def queue_scorer(settings: Settings) -> Iterator[QueueScorer]:
    """The trainer's own scorer, on the parts that `settings` lead to."""
    with create_app(settings) as app, connect(settings.redis_url) as client:
        scorer = QueueScorer(
            app,
            client,
            settings,
            rewards=[REWARD],
            on_reward_error="fail",
            deadline_seconds=DEADLINE_SECONDS,
            interrupt=Interrupt(),
            on_waiting=print,
        )
        try:
            yield scorer
        finally:
            scorer.close()


@contextmanager
def all_ways(settings: Settings) -> Iterator[dict[str, Submit]]:
    """Each way by its name, connected; one of them uses the shared directory of `settings`."""
    with (
        ThreadPoolExecutor(WORKERS) as threads,
        RewardClient(settings.reward_target) as client,
        queue_scorer(settings.model_copy(update={"shared_dir": None})) as scorer,
        queue_scorer(settings) as sharing,
    ):

        def in_process(images: Images) -> Wait:
            return threads.submit(score_in_process, images).result

        def grpc(images: Images) -> Wait:
            return threads.submit(score_by_call, client, images).result

        yield {
            "in_process": in_process,
            "grpc": grpc,
            "queue": _through(scorer),
            "queue_by_reference": _through(sharing),
        }


def _through(scorer: QueueScorer) -> Submit:
    def submit(images: Images) -> Wait:
        future = scorer.submit(images, [""] * len(images))
        return lambda: future.result().per_reward[REWARD]

    return submit


def score_one_by_one(submit: Submit, batches: Sequence[Images]) -> Scores:
    """One batch in flight: each is submitted when the one before it is scored."""
    return np.concatenate([submit(images)() for images in batches])


def score_overlapped(submit: Submit, batches: Sequence[Images]) -> Scores:
    """All batches in flight: `WORKERS` at a time are worked on, the others wait their turn."""
    waits = [submit(images) for images in batches]
    return np.concatenate([wait() for wait in waits])
