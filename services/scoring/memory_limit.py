"""How many samples the device's memory holds at once, as batches have shown."""

import structlog

logger = structlog.get_logger()

GOOD_BATCHES = 64
"""As large as may be, after which twice as much is tried: what ran short may have been taken by
somebody else, or by larger images."""


class MemoryLimit:
    """The most samples in a batch of one reward; no limit until one did not fit."""

    def __init__(self, reward: str) -> None:
        """Know nothing yet; `reward` is its name, for the log."""
        self._reward = reward
        self._good = 0
        self.samples = float("inf")
        """Most samples in a batch."""

    def learn(self, samples: int, fitting: int | None) -> None:
        """A batch has been scored.

        Args:
            samples: how many it had.
            fitting: how many of them fit at once, if not all did.
        """
        if fitting is not None:
            self._good = 0
            if fitting < self.samples:
                self.samples = fitting
                logger.warning(
                    "out of memory: smaller batches from now on",
                    reward=self._reward,
                    max_samples=fitting,
                )
        elif samples >= self.samples:
            self._good += 1
            if self._good == GOOD_BATCHES:
                self._good = 0
                self.samples *= 2
                logger.info(
                    "trying larger batches", reward=self._reward, max_samples=int(self.samples)
                )
