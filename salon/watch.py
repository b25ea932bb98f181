"""Follow a job in the terminal: progress, rewards, speed, what it waits for, when it will end."""

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from salon.jobs import Event, Job, JobState, JobStore
from salon.numbers import decimals_for, is_rounding, mean_and_std

BARS = "▁▂▃▄▅▆▇█"
RECENT = 10  # iterations over which the speed is taken
STYLES = {
    "succeeded": "bold green",
    "failed": "bold red",
    "cancelled": "yellow",
    "running": "bold cyan",
    "queued": "dim",
}


class Screen:
    """What is known of one job, as rich renders it; fed with the job's events."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.state = JobState.QUEUED
        self.reason = ""
        self.note = "waiting for a training worker"
        self.evaluated = ""
        self.warnings: list[str] = []
        self._means: dict[str, dict[int, float]] = defaultdict(dict)  # by reward and iteration
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._last: Mapping[str, Any] = {}

    def feed(self, event: Event) -> None:
        """Take in one event."""
        data = event.data
        if event.kind == "state":
            self.state = JobState(data["state"])
            self.reason = data.get("reason", "")
            self.note = f"attempt {data['attempt']} on {data['owner']}" if "owner" in data else ""
        elif event.kind == "iteration":
            self.note = ""
            self._last = data
            self._seconds.append(data["seconds"])
            for reward in _rewards(data):
                self._means[reward][data["iteration"]] = data[f"rewards/{reward}/mean"]
        elif event.kind == "evaluation":
            self.evaluated = data["text"]
        elif event.kind == "warning":
            self.warnings.append(data["text"])
        elif event.kind in ("stage", "waiting"):
            self.note = data["text"]

    def line(self, event: Event) -> str:
        """One event as one line, for output that is no terminal."""
        data = event.data
        if event.kind == "iteration":
            scores = "  ".join(f"{reward} {_score(data, reward)}" for reward in _rewards(data))
            return (
                f"iteration {data['iteration']}/{data['iterations']}  {scores}  "
                f"{data['samples_per_second']:.1f} samples/s  "
                f"waiting {data['reward_wait_fraction']:.0%}  ETA {self._eta()}"
            )
        if event.kind == "state":
            return f"{data['state']}  {data.get('reason', '')}".rstrip()
        return str(data.get("text", event.kind))

    def _eta(self) -> str:
        if not self._seconds:
            return "–"
        left = self._last["iterations"] - self._last["iteration"]
        seconds = round(left * sum(self._seconds) / len(self._seconds))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def _curve(self, reward: str, width: int = 48) -> str:
        values = [mean for _, mean in sorted(self._means[reward].items())]
        step = max(1, -(-len(values) // width))
        means = [
            sum(values[i : i + step]) / len(values[i : i + step])
            for i in range(0, len(values), step)
        ]
        low, high = min(means), max(means)
        # Means that differ by rounding alone are a flat line.
        span = 1.0 if is_rounding(high - low, max(abs(low), abs(high))) else high - low
        return "".join(BARS[int((mean - low) / span * (len(BARS) - 1))] for mean in means)

    def __rich__(self) -> RenderableType:
        """The whole screen."""
        title = Text.assemble(
            (self.job, "bold"), "  ", (self.state.value, STYLES[self.state.value])
        )
        parts: list[RenderableType] = [title]
        if self._last:
            parts += [self._progress(), self._numbers()]
        if self.evaluated:
            parts.append(Text(self.evaluated, style="dim"))
        parts += [Text(warning, style="bold yellow") for warning in self.warnings]
        if self.note:
            parts.append(Text(self.note, style="yellow"))
        if self.reason:
            parts.append(Text(self.reason, style=STYLES[self.state.value]))
        return Group(*parts)

    def _progress(self) -> RenderableType:
        done, total = self._last["iteration"], self._last["iterations"]
        row = Table.grid(padding=(0, 2))
        row.add_row(
            f"iteration {done}/{total}",
            ProgressBar(total=total, completed=done, width=40),
            f"ETA {self._eta()}",
        )
        return row

    def _numbers(self) -> RenderableType:
        last = self._last
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        for reward in _rewards(last):
            table.add_row(reward, _score(last, reward))
            table.add_row("", Text(self._curve(reward), style="cyan"))
        table.add_row("samples/s", f"{last['samples_per_second']:.1f}")
        table.add_row(
            "waiting for rewards",
            f"{last['reward_wait_fraction']:.1%} of the time ({last['reward_wait_seconds']:.2f} s)",
        )
        if last.get("dropped"):
            table.add_row("dropped", f"{last['dropped']:.0f} samples")
        return table


def _rewards(data: Mapping[str, Any]) -> list[str]:
    """Their names; what is shown is their scores: a normalised sum of them has no level."""
    return [
        name.split("/")[1]
        for name in data
        if name.startswith("rewards/") and name.endswith("/mean")
    ]


def _score(data: Mapping[str, Any], reward: str) -> str:
    std = data[f"rewards/{reward}/std"]  # None: of a single sample
    return mean_and_std(data[f"rewards/{reward}/mean"], std, decimals_for(std))


def watch(store: JobStore, job: str, console: Console) -> Job:
    """Show `job` until it is over and return its final record.

    In a terminal the screen is redrawn in place; elsewhere each event is one line.

    Raises:
        JobNotFound: no such job.
    """
    store.get(job)
    screen = Screen(job)
    if console.is_terminal:
        with Live(screen, console=console, refresh_per_second=4):
            for event in store.follow(job, block_seconds=0.5):
                if event:
                    screen.feed(event)
    else:
        for event in store.follow(job):
            if event:
                screen.feed(event)
                console.print(screen.line(event), markup=False, highlight=False, soft_wrap=True)
    return store.get(job)


def jobs_table(jobs: list[Job]) -> Table:
    """The jobs, newest first."""
    table = Table("job", "state", "attempts", "submitted", "took", "reason", box=None)
    for job in jobs:
        end = job.finished or time.time()
        took = f"{end - job.started:.0f} s" if job.started else ""
        submitted = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.submitted))
        state = Text(job.state.value, style=STYLES[job.state.value])
        table.add_row(job.id, state, str(job.attempts), submitted, took, Text(job.reason))
    return table
