"""What the service counts, for Prometheus; the names follow Triton's `nv_inference_*`."""

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from salon.errors import InvalidRequest

logger = structlog.get_logger()

PREFIX = "salon_inference"
# Waiting for a batch takes from a fraction of a millisecond to a caller's deadline, scoring one
# from a JPEG's millisecond to a language model's minute.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

Why = Literal["expired", "cancelled"]


class Metrics:
    """Counters of one server, in a registry of its own; safe to use from any thread."""

    def __init__(self, rewards: Iterable[str]) -> None:
        """Count for `rewards`, which all appear at once, at zero.

        Any other name counts as the reward "": what callers make up must not become series.
        """
        # Otherwise every series has a second one that tells when it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._rewards = frozenset(rewards)
        self._requests = self._counter("request", "Calls that ended.", "reward", "code")
        self._images = self._counter("image", "Images received.", "reward")
        self._image_bytes = self._counter(
            "image_bytes", "Bytes of images received, as sent or referred to.", "reward"
        )
        self._executions = self._counter("exec", "Calls of the reward's score method.", "reward")
        self._dropped = self._counter(
            "dropped_samples",
            "Samples that nobody waited for any more when their batch was formed.",
            *("reward", "why"),
        )
        self._hits = self._counter("cache_hits", "Samples answered from the cache.", "reward")
        self._misses = self._counter("cache_misses", "Samples not in the cache.", "reward")
        self._queue_seconds = self._histogram(
            "queue_duration_seconds", "How long a sample waited for its batch.", SECONDS
        )
        self._compute_seconds = self._histogram(
            "compute_duration_seconds", "How long the score method took for a batch.", SECONDS
        )
        self._batch_size = self._histogram("batch_size", "Samples scored together.", SAMPLES)
        self._pending = Gauge(
            f"{PREFIX}_pending_samples",
            "Samples held: waiting or being scored.",
            ("reward",),
            registry=self.registry,
        )
        # Memory, CPU time and open files of the process.
        ProcessCollector(registry=self.registry)
        self._start_at_zero()

    def request(self, reward: str, code: str, images: int = 0, image_bytes: int = 0) -> None:
        """A call ended with the gRPC status `code`, such as OK; it brought this many images."""
        known = self._known(reward)
        self._requests.labels(known, code).inc()
        self._images.labels(known).inc(images)
        self._image_bytes.labels(known).inc(image_bytes)

    def queued(self, reward: str, seconds: float) -> None:
        """A sample waited this long for its batch to be formed."""
        self._queue_seconds.labels(self._known(reward)).observe(seconds)

    def executed(self, reward: str, samples: int, seconds: float) -> None:
        """`Reward.score` was called with this many samples and took this long."""
        known = self._known(reward)
        self._executions.labels(known).inc()
        self._batch_size.labels(known).observe(samples)
        self._compute_seconds.labels(known).observe(seconds)

    def pending(self, reward: str, change: int) -> None:
        """So many more samples are held; negative: fewer."""
        self._pending.labels(self._known(reward)).inc(change)

    def dropped(self, reward: str, samples: int, why: Why) -> None:
        """Samples were not scored, since their caller stopped waiting."""
        self._dropped.labels(self._known(reward), why).inc(samples)

    def cached(self, reward: str, hit: bool) -> None:
        """The cache was asked for a sample."""
        (self._hits if hit else self._misses).labels(self._known(reward)).inc()

    def _known(self, reward: str) -> str:
        return reward if reward in self._rewards else ""

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"{PREFIX}_{name}", meaning, ("reward",), buckets=buckets, registry=self.registry
        )

    def _start_at_zero(self) -> None:
        """Make every series, so that a rate can be taken from the first event on."""
        of_reward = (
            *(self._images, self._image_bytes, self._executions, self._hits, self._misses),
            *(self._queue_seconds, self._compute_seconds, self._batch_size, self._pending),
        )
        for reward in self._rewards:
            for metric in of_reward:
                metric.labels(reward)
            self._requests.labels(reward, "OK")
            for why in get_args(Why):
                self._dropped.labels(reward, why)


def serve_metrics(metrics: Metrics, host: str, port: int) -> Callable[[], None]:
    """Serve `metrics` over HTTP, at any path, from threads of its own.

    Args:
        metrics: what to serve.
        host: the address to listen at.
        port: 0 picks a free one; the log says which.

    Returns:
        What stops it again.

    Raises:
        InvalidRequest: it cannot listen there.
    """
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise InvalidRequest(
            f"cannot serve metrics at {host}:{port}: {error.strerror}; "
            "choose another --metrics-port"
        ) from None
    logger.info("serving metrics", host=host, port=server.server_port)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
