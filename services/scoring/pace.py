"""How fast samples are scored, and so how long those that wait may take."""

SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 60.0
UNMEASURED_RATE = 10.0  # samples a second, until a batch has been scored
RECENT = 0.2  # the weight of the last batch in the running rate


class Pace:
    """The running rate of one reward, in samples a second."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._rate = 0.0

    def learn(self, samples: int, seconds: float) -> None:
        """A batch of so many samples took so long."""
        rate = samples / max(seconds, 1e-6)
        self._rate += (rate - self._rate) * (RECENT if self._rate else 1.0)

    def estimate(self, pending: float, scoring: int, seconds: float) -> float:
        """Seconds that `pending` samples may take, at the rate of late and of this very batch.

        Args:
            pending: samples, with those being scored.
            scoring: samples in the batch being scored; 0: none is.
            seconds: how long it has taken so far.
        """
        rate = self._rate or UNMEASURED_RATE
        if scoring:
            rate = min(rate, scoring / max(seconds, 1e-6))
        return min(max(pending / rate, SHORTEST_SECONDS), LONGEST_SECONDS)
