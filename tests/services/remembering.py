"""A learned reward without a network: its instances are numbers that fits add to."""

from contextlib import contextmanager

from salon.errors import UnknownInstance
from salon.serving import Exported, Fitted, Instance, LearnedReward, Score


class Sum(Instance):
    """Scores with the sum of its fits' steps."""

    def __init__(self, reward, total):
        self.reward = reward
        self.total = total
        self.version = f"1+{total}"

    def score(self, samples):
        prompts = {sample.prompt for sample in samples}
        self.reward.broken |= "break" in prompts
        if self.reward.broken or "raise" in prompts:
            raise ValueError("told to")
        return [Score(float(self.total), {"batch": len(samples)}) for _ in samples]


class Remembering(LearnedReward):
    """How many steps it was fitted in all; the prompt `break` breaks it, as a device may."""

    name = "remembering"
    version = "1"
    description = "The steps of all fits."
    max_batch = 3
    max_import_bytes = 1000
    broken = False

    def __init__(self):
        self._totals = {}

    @contextmanager
    def opened(self, instance):
        if instance not in self._totals:
            raise UnknownInstance(f"no instance {instance!r}: fit it first")
        yield Sum(self, self._totals[instance])

    def probe(self):
        if self.broken:
            raise RuntimeError("an illegal memory access was encountered")

    def fit(self, instance, order, wanted):
        self._totals[instance] = self._totals.get(instance, 0) + order.steps
        examples = float(sum(1 for _ in order.examples))
        return Fitted(f"1+{self._totals[instance]}", {"examples": examples})

    def export(self, instance):
        with self.opened(instance) as opened:
            return Exported(opened.version, str(opened.total).encode())

    def import_(self, instance, data):
        self._totals[instance] = int(data)
        return f"1+{self._totals[instance]}"

    def delete(self, instance):
        self._totals.pop(instance, None)

    def close(self):
        pass
