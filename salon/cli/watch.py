"""Follow a job in the terminal: progress, rewards, speed, what it waits for, when it will end."""

import re
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from salon.cli.queue import Queue
from salon.cli.records import STYLES
from salon.jobs.record import Event, Job, JobState
from salon.jobs.store import JobStore
from salon.numbers import decimals_for, is_number, is_rounding, mean_and_std, significant

BARS = "▁▂▃▄▅▆▇█"
RECENT = 10  # iterations over which the speed is taken
WIDTH = 48  # columns of a curve and of the progress bar, where there is room for them
MEASURED_SHOWN = 3
QUEUE_SECONDS = 5.0  # between two looks at what a queued job waits for

_NUMBERS = (
    *("iteration", "iterations", "seconds"),
    *("samples_per_second", "reward_wait_fraction", "reward_wait_seconds"),
)
"""Of an iteration."""


class Screen:
    """What is known of one job, as rich renders it; fed with the job's events."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.state = JobState.QUEUED
        self.reason = ""
        self.note = "waiting for a training worker"
        self.evaluated = ""
        self.warnings: list[str] = []
        self._decimals: dict[str, int] = {}  # by reward: the same on the whole screen
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
                if (mean := data[f"rewards/{reward}/mean"]) is not None:
                    self._means[reward][data["iteration"]] = mean
        elif event.kind == "evaluation":
            self.evaluated = data["text"]
        elif event.kind == "warning":
            self.warnings.append(data["text"])
        elif event.kind in ("stage", "waiting", "question"):
            self.note = data["text"]

    def line(self, event: Event) -> str:
        """One event as one line, for output that is no terminal."""
        data = event.data
        if event.kind == "iteration":
            scores = [f"{r} {self._score(data, r)}" for r in _rewards(data)] or [
                " ".join(measured) for measured in _measured(data)
            ]
            parts = (
                f"iteration {data['iteration']}/{data['iterations']}",
                *scores,
                f"{data['samples_per_second']:.1f} samples/s",
                f"waiting {data['reward_wait_fraction']:.0%}",
                f"ETA {self._eta()}",
            )
            return "  ".join(parts)
        if event.kind == "state":
            return f"{data['state']}  {data.get('reason', '')}".rstrip()
        return str(data.get("text", event.kind))

    def _score(self, data: Mapping[str, Any], reward: str) -> str:
        """Mean and spread, with as many decimals as the first spread of that reward supports."""
        mean, std = data[f"rewards/{reward}/mean"], data.get(f"rewards/{reward}/std")
        decimals = self._decimals.setdefault(reward, decimals_for(std or mean))
        return mean_and_std(mean, std, decimals)

    def _eta(self) -> str:
        if not self._seconds:
            return "–"
        left = self._last["iterations"] - self._last["iteration"]
        seconds = round(left * sum(self._seconds) / len(self._seconds))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def _curve(self, reward: str, width: int = WIDTH) -> str:
        values = [mean for _, mean in sorted(self._means[reward].items())]
        if not values:
            return ""
        step = max(1, -(-len(values) // width))
        means = [
            sum(values[i : i + step]) / len(values[i : i + step])
            for i in range(0, len(values), step)
        ]
        low, high = min(means), max(means)
        # Means that differ by rounding alone are a flat line.
        span = 1.0 if is_rounding(high - low, max(abs(low), abs(high))) else high - low
        return "".join(BARS[int((mean - low) / span * (len(BARS) - 1))] for mean in means)

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """The whole screen."""
        yield self._render(options.max_width)

    def _render(self, width: int) -> RenderableType:
        title = Text.assemble(
            (self.job, "bold"), "  ", (self.state.value, STYLES[self.state.value])
        )
        parts: list[RenderableType] = [title]
        if self._last:
            parts += [self._progress(width), self._numbers(width)]
        if self.evaluated:
            parts.append(Text(self.evaluated, style="dim"))
        parts += [Text(warning, style="bold yellow") for warning in self.warnings]
        if self.note:
            parts.append(Text(self.note, style="yellow"))
        if self.reason:
            parts.append(Text(self.reason, style=STYLES[self.state.value]))
        return Group(*parts)

    def _progress(self, width: int) -> RenderableType:
        done, total = self._last["iteration"], self._last["iterations"]
        said, left = f"iteration {done}/{total}", f"ETA {self._eta()}"
        room = width - len(said) - len(left) - 4
        if room < 4:
            return Text(f"{said}  {left}")
        row = Table.grid(padding=(0, 2))
        row.add_row(said, ProgressBar(total=total, completed=done, width=min(WIDTH, room)), left)
        return row

    def _numbers(self, width: int) -> RenderableType:
        last = self._last
        rows = [("samples/s", f"{last['samples_per_second']:.1f}")]
        waited = f"{last['reward_wait_fraction']:.1%} of the time"
        rows.append(("waiting for rewards", f"{waited} ({last['reward_wait_seconds']:.2f} s)"))
        if last.get("dropped"):
            rows.append(("dropped", f"{last['dropped']:.0f} samples"))
        rewards = _rewards(last)
        names = max(len(name) for name in [*rewards, *(name for name, _ in rows)])
        room = max(4, min(WIDTH, width - names - 2))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for reward in rewards:
            table.add_row(reward, self._score(last, reward))
            table.add_row("", Text(self._curve(reward, room), style="cyan"))
        if not rewards:
            rows += _measured(last)
        for row in rows:
            table.add_row(*row)
        return table


def _rewards(data: Mapping[str, Any]) -> list[str]:
    """Their names; what is shown is their scores: a normalised sum of them has no level."""
    return [
        name.removeprefix("rewards/").removesuffix("/mean")
        for name in data
        if name.startswith("rewards/") and name.endswith("/mean")
    ]


def _measured(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of an algorithm without rewards, the first of what it measures itself, as name and value."""
    own = [
        (name, significant(value))
        for name, value in data.items()
        if name not in (*_NUMBERS, "time", "samples")
        and isinstance(value, int | float)
        and is_number(value)
    ]
    return own[:MEASURED_SHOWN]


def _showable(event: Event) -> Event:
    """`event`; or, where it lacks what is shown of its kind, a warning in its place.

    Whoever may write to Redis chose what it holds, and so did other releases.
    """
    try:
        _check(event.kind, event.data)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        lacks = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        text = f"entry {event.id} of the job's history cannot be shown: its {event.kind} {lacks}"
        return Event(event.id, "warning", {"text": text})
    return event


def _check(kind: str, data: Mapping[str, Any]) -> None:
    """Whether `Screen` can take and show such an event.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it cannot.
    """
    if kind == "state":
        JobState(data["state"])
        texts = {"reason": data.get("reason", "")}
        if "owner" in data:
            texts["owner"], _ = data["owner"], data["attempt"]
    elif kind in ("evaluation", "warning", "stage", "waiting", "question"):
        texts = {"text": data["text"]}
    else:
        texts = {}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"has no text as {name}: {text!r:.100}")
    if kind == "iteration":
        numbers = {name: data[name] for name in _NUMBERS} | {"dropped": data.get("dropped") or 0}
        for reward in _rewards(data):
            scores = {f"rewards/{reward}/{name}" for name in ("mean", "std")}
            numbers |= {name: data[name] for name in scores if data.get(name) is not None}
        for name, number in numbers.items():
            if not (isinstance(number, int | float) and is_number(number)):
                raise TypeError(f"has no number as {name}: {number!r:.100}")


def watch(store: JobStore, job: str, console: Console, queue: Queue | None = None) -> Job:
    """Show `job` until it is over and return its final record.

    In a terminal the screen is redrawn in place; elsewhere each event is one line.

    Args:
        store: where the job is.
        job: its id.
        console: shows it.
        queue: asked what the job waits for while nothing runs it; None: nobody is.

    Raises:
        JobNotFound: no such job.
    """
    store.get(job)
    screen = Screen(job)
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(screen, console=console, refresh_per_second=4):
            for event in _events(store, job, queue, block_seconds=0.5):
                screen.feed(event)
    else:
        for event in _events(store, job, queue, block_seconds=1.0):
            screen.feed(event)
            if event.kind != "result":
                console.print(screen.line(event), markup=False, highlight=False, soft_wrap=True)
    return store.get(job)


def _events(
    store: JobStore, job: str, queue: Queue | None, block_seconds: float
) -> Iterator[Event]:
    """Those of the job, and `waiting` while it is queued, whenever it waits for something else."""
    queued, told, looked = True, "", 0.0
    for found in store.follow(job, block_seconds):
        event = found and _showable(found)
        if event is not None:
            if event.kind == "state":
                queued, told = event.data["state"] == JobState.QUEUED, ""
            yield event
        elif queue is not None and queued and time.monotonic() - looked > QUEUE_SECONDS:
            looked = time.monotonic()
            try:
                text = queue.waits_for(store.get(job))
            except (RedisError, OperationalError):
                continue  # the store waits for Redis, and says so if it waits in vain
            # Numbers count up while it waits for the same thing.
            if (plain := re.sub(r"\d+", "", text)) != told:
                told = plain
                yield Event("", "waiting", {"text": text})
