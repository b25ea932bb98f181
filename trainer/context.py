"""What the process of a job gives to its algorithm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.rewards.scorer import RewardScorer
from trainer.runtime.interrupt import Interrupt
from trainer.runtime.ranks import Ranks


@dataclass(frozen=True)
class Context:
    """One for each process of an attempt."""

    ranks: Ranks
    """The processes that share the job, this one's place among them, and its device."""
    interrupt: Interrupt
    """Asks it to stop; to be looked at wherever much time passes."""
    scorer: Callable[[Sequence[str]], RewardScorer]
    """Scores samples by the rewards of these names; closed when the attempt ends."""
    stage: Callable[[str], None]
    """Tells whoever watches what goes on."""
    warn: Callable[[str], None]
    """Tells whoever watches of something that ends nothing."""
    debug: bool = False
    """Check what costs time to check."""
