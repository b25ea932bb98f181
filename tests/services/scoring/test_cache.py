"""Keys by brute force over samples that are nearly alike, and the bound."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salon.reward.v1 import reward_pb2 as pb
from salon.serving import Sample
from services.scoring.cache import ScoreCache

PIXELS = np.arange(24, dtype=np.uint8)


def key(reward="r", version="1", **changes):
    sample = {"image": PIXELS.reshape(2, 4, 3), "prompt": "p", "metadata": {}} | changes
    return ScoreCache.key(reward, version, Sample(**sample))


def score(value):
    return pb.Outcome(score=value)


def test_equal_samples_have_one_key_however_their_pixels_lie_in_memory():
    wide = np.zeros((2, 8, 3), np.uint8)
    wide[:, ::2] = PIXELS.reshape(2, 4, 3)
    assert not wide[:, ::2].flags.c_contiguous
    assert key() == key(image=wide[:, ::2]) == key(image=PIXELS.reshape(2, 4, 3).copy())
    assert key(metadata={"a": 1, "b": [2]}) == key(metadata={"b": [2], "a": 1})
    assert len(key()) == 32


def test_whatever_the_score_depends_on_changes_the_key():
    image = PIXELS.reshape(2, 4, 3)
    other = image.copy()
    other[1, 3, 2] ^= 1
    keys = [
        key(),
        key(reward="r1", version=""),
        key(reward="", version="r1"),
        key(version="2"),
        key(prompt=""),
        key(prompt="p1"),
        key(image=other),
        *(key(image=PIXELS.reshape(shape)) for shape in [(4, 2, 3), (1, 8, 3), (24, 1, 1)]),
        key(reference=image),
        key(reference=other),
        key(image=other, reference=image),
        *(key(metadata={"a": value}) for value in (1, "1", True, None, [1], {"b": 1}, [])),
        key(metadata={"a": 1, "b": 1}),
    ]
    assert len(set(keys)) == len(keys)


@given(st.lists(st.text(max_size=3), min_size=6, max_size=6))
def test_no_text_can_pass_for_its_neighbours(parts):
    first, second = parts[:3], parts[3:]
    keys = [key(reward=r, version=v, prompt=p) for r, v, p in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)


def test_what_was_put_is_got():
    cache = ScoreCache(2)
    outcome = pb.Outcome(score=0.0, details={"caption": "a cat"})
    cache.put(b"a", outcome)
    assert cache.get(b"a") == outcome
    assert cache.get(b"b") is None


def test_the_one_not_asked_for_longest_makes_room():
    cache = ScoreCache(2)
    for name in (b"a", b"b"):
        cache.put(name, score(1))
    cache.get(b"a")
    cache.put(b"c", score(2))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
    cache.put(b"a", score(3))
    cache.put(b"d", score(4))
    assert (cache.get(b"a"), cache.get(b"c")) == (score(3), None)


@pytest.mark.parametrize(
    "outcome", [pb.Outcome(), pb.Outcome(error=pb.SampleError(code=pb.ERROR_CODE_REWARD_FAILED))]
)
def test_only_scores_are_kept(outcome):
    cache = ScoreCache(2)
    cache.put(b"a", outcome)
    assert cache.get(b"a") is None


def test_threads_never_see_another_ones_score():
    cache = ScoreCache(50)
    keys = [str(index).encode() for index in range(100)]

    def work(start):
        wrong = 0
        for index in itertools.islice(itertools.cycle(range(100)), start, start + 2000):
            found = cache.get(keys[index])
            wrong += found is not None and found.score != index
            cache.put(keys[index], score(index))
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    assert sum(cache.get(name) is not None for name in keys) == 50
