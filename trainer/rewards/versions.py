"""Which versions of its rewards a job meets: scores of two versions are not comparable."""

import structlog

log = structlog.get_logger()


class RewardVersions:
    """The version that each reward answered as last, over all attempts of a job."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def note(self, reward: str, version: str) -> None:
        """Say when it is another one than before, where the job's log keeps it."""
        known = self._last.setdefault(reward, version)
        if known != version:
            log.warning("reward changed its version", reward=reward, before=known, now=version)
            self._last[reward] = version

    def state_dict(self) -> dict[str, str]:
        """Versions by reward, for a checkpoint."""
        return dict(self._last)

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on with what an earlier attempt met."""
        self._last = dict(state)
