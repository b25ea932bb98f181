"""A service that has nothing to do gives its memory back."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil

from salon import RewardClient
from tests.fixtures.service import wait_until
from tests.salon.files import encoded

MEBIBYTE = 2**20


def test_memory_of_calls_that_are_over_is_given_back(start_service):
    service = start_service("jpeg")
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss
    flat = encoded(np.zeros((2000, 2000, 3), np.uint8))
    peaks = []
    with RewardClient(service.target) as client, ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            calls = [pool.submit(client.score, [flat] * 4) for _ in range(8)]
            assert all(one.error is None for call in calls for one in call.result(60))
            peaks.append(process.memory_info().rss)
    assert max(peaks) > before + 60 * MEBIBYTE, "or this shows nothing"
    wait_until(
        lambda: process.memory_info().rss < before + 40 * MEBIBYTE, "its memory is given back"
    )
