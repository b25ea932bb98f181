"""What Prometheus reads, parsed by its own client."""

import urllib.request

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from salon.errors import InvalidRequest
from services.scoring.metrics import Metrics, serve_metrics
from tests.fixtures.service import free_port


@pytest.fixture
def metrics():
    return Metrics(["jpeg", "aesthetic"])


@pytest.fixture
def read(metrics):
    """The values of one metric by reward and further label; `read(name)`."""
    return lambda name: values(generate_latest(metrics.registry).decode(), name)


def values(page, name):
    samples = [
        sample for family in text_string_to_metric_families(page) for sample in family.samples
    ]
    return {
        (sample.labels.pop("reward"), *sample.labels.values()): sample.value
        for sample in samples
        if sample.name == f"salon_inference_{name}"
    }


def test_calls_images_and_bytes_are_counted(metrics, read):
    metrics.request("jpeg", "OK", images=3, image_bytes=100)
    metrics.request("jpeg", "OK", images=1, image_bytes=50)
    metrics.request("jpeg", "RESOURCE_EXHAUSTED", images=8, image_bytes=7)
    calls = read("request_total")
    assert calls[("jpeg", "OK")] == 2
    assert calls[("jpeg", "RESOURCE_EXHAUSTED")] == 1
    assert calls[("aesthetic", "OK")] == 0
    assert read("image_total")[("jpeg",)] == 12
    assert read("image_bytes_total")[("jpeg",)] == 157


def test_batches_and_waiting_fall_into_buckets(metrics, read):
    metrics.executed("jpeg", samples=5, seconds=0.02)
    metrics.executed("jpeg", samples=8, seconds=2.0)
    metrics.queued("jpeg", 0.004)
    assert read("exec_total")[("jpeg",)] == 2
    assert read("batch_size_sum")[("jpeg",)] == 13
    sizes = read("batch_size_bucket")
    assert [sizes[("jpeg", size)] for size in ("4.0", "8.0", "+Inf")] == [0, 2, 2]
    assert read("compute_duration_seconds_sum")[("jpeg",)] == pytest.approx(2.02)
    seconds = read("compute_duration_seconds_bucket")
    assert [seconds[("jpeg", limit)] for limit in ("0.01", "0.025", "2.5")] == [0, 1, 2]
    waited = read("queue_duration_seconds_bucket")
    assert [waited[("jpeg", limit)] for limit in ("0.0025", "0.005")] == [0, 1]


def test_pending_rises_and_falls(metrics, read):
    metrics.pending("jpeg", 5)
    metrics.pending("jpeg", -3)
    assert read("pending_samples") == {("jpeg",): 2, ("aesthetic",): 0}


def test_drops_and_the_cache_are_counted(metrics, read):
    metrics.dropped("jpeg", 4, "expired")
    metrics.dropped("jpeg", 1, "cancelled")
    for hit in (True, True, False):
        metrics.cached("aesthetic", hit)
    dropped = read("dropped_samples_total")
    assert (dropped[("jpeg", "expired")], dropped[("jpeg", "cancelled")]) == (4, 1)
    assert dropped[("aesthetic", "expired")] == 0
    assert read("cache_hits_total") == {("jpeg",): 0, ("aesthetic",): 2}
    assert read("cache_misses_total") == {("jpeg",): 0, ("aesthetic",): 1}


def test_names_that_callers_make_up_are_one_series(metrics, read):
    for index in range(100):
        metrics.request(f"made-up-{index}", "NOT_FOUND")
    names = {reward for reward, _ in read("request_total")}
    assert names == {"jpeg", "aesthetic", ""}
    assert read("request_total")[("", "NOT_FOUND")] == 100


def test_two_servers_of_one_process_count_apart():
    first, second = Metrics(["jpeg"]), Metrics(["jpeg"])
    first.request("jpeg", "OK")
    labels = {"reward": "jpeg", "code": "OK"}
    name = "salon_inference_request_total"
    assert second.registry.get_sample_value(name, labels) == 0


def test_they_are_served_over_http_until_stopped(metrics):
    port = free_port()
    stop = serve_metrics(metrics, "127.0.0.1", port)
    metrics.request("jpeg", "OK")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    assert values(page, "request_total")[("jpeg", "OK")] == 1
    assert "\nprocess_resident_memory_bytes " in page
    with pytest.raises(InvalidRequest, match=f"127.0.0.1:{port}: Address already in use"):
        serve_metrics(metrics, "127.0.0.1", port)
    stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
