"""The images of the soak, and the score that each reward must give each of them."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from benchmarks.photographs import cut_squares, find_photographs
from benchmarks.soak.plan import prompt_of
from salon.serving import Reward, Sample
from salon.wire.images import Pixels

SIDES = (16, 24, 32, 48, 64, 96)
# A network's last bits depend on how many samples it scores at once.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Expected:
    """What one reward must answer."""

    version: str
    scores: Sequence[float]
    """Of each image of the pool."""

    def agrees(self, image: int, score: float) -> bool:
        """Whether `score` is that of the image, up to the last bits of a network."""
        return math.isclose(
            score,
            self.scores[image],
            rel_tol=RELATIVE_TOLERANCE,
            abs_tol=ABSOLUTE_TOLERANCE,
        )


def make_pool(count: int) -> list[Pixels]:
    """`count` images uint8 [side, side, 3] of several sides, cut from photographs."""
    files = find_photographs()
    cuts_of_each = -(-count // len(SIDES))
    pool = [image for side in SIDES for image in cut_squares(files, cuts_of_each, side)]
    return pool[:count]


def png(image: Pixels) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def expect(rewards: Sequence[Reward], pool: Sequence[Pixels]) -> Mapping[str, Expected]:
    """By the rewards' names; each image is scored alone, in this process."""
    samples = [Sample(image, prompt_of(index), {}) for index, image in enumerate(pool)]
    return {
        reward.name: Expected(reward.version, [_score(reward, sample) for sample in samples])
        for reward in rewards
    }


def _score(reward: Reward, sample: Sample) -> float:
    [result] = reward.score([sample])
    if not isinstance(result, float):
        raise TypeError(f"reward {reward.name} returned {result!r}, not a float")
    return result
