import subprocess
import sys

import numpy as np
import pytest

from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from services.rewards.l2 import L2
from tests.fixtures.service import REPOSITORY
from tests.salon.files import noise


def image(*values):
    return np.array(values, np.uint8).reshape(1, -1, 3)


def test_the_score_is_minus_the_mean_square_of_pixels_in_0_to_1():
    sample = Sample(image(0, 255, 51, 0, 0, 102), "", {}, image(255, 255, 0, 0, 51, 0))
    # Differences 1, 0, 0.2, 0, 0.2, 0.4.
    assert L2().score([sample]) == [pytest.approx(-(1 + 0.04 + 0.04 + 0.16) / 6, abs=1e-7)]


def test_the_bounds_are_reached():
    black, white = np.zeros((4, 5, 1), np.uint8), np.full((4, 5, 1), 255, np.uint8)
    pairs = [(black, white), (white, black), (white, white)]
    scores = L2().score([Sample(one, "", {}, other) for one, other in pairs])
    assert scores == [L2.lower_bound, L2.lower_bound, L2.upper_bound]


def test_a_large_image_is_summed_exactly():
    one, other = noise(700, 900), noise(700, 900, seed=1)
    expected = -np.mean((one / 255.0 - other / 255.0) ** 2)
    [score] = L2().score([Sample(one, "", {}, other)])
    assert score == pytest.approx(expected, rel=1e-12)


def test_a_sample_without_a_fitting_reference_fails_alone():
    one = noise(4, 4)
    results = L2().score(
        [Sample(one, "", {}, noise(4, 5)), Sample(one, "", {}, one), Sample(one, "", {})]
    )
    assert results[0].code == reward_pb2.ERROR_CODE_INVALID_SAMPLE
    assert results[1] == 0
    assert results[2].code == reward_pb2.ERROR_CODE_MISSING_INPUT


def test_its_example_can_be_scored():
    assert L2().score([L2().example()]) == [0]


def test_it_needs_no_torch():
    program = "import sys, services.rewards.l2; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)
