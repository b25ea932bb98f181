"""A reward that fails where the prompt says so; served as `python -m services` serves any other."""

from collections.abc import Sequence

from salon.serving import Reward, Sample

RAISE = "raise"
NAN = "nan"


class Tripwire(Reward):
    """The mean of the pixels, unless the prompt trips it."""

    name = "tripwire"
    version = "1"
    description = "The mean of the pixels."

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """The mean of each image; NaN or an error where the prompt asks for it."""
        return [_judge(sample) for sample in samples]


def _judge(sample: Sample) -> float:
    if sample.prompt == RAISE:
        raise ValueError("tripped")
    return float("nan") if sample.prompt == NAN else float(sample.image.mean())
