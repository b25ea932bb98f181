import io
import re

import pytest
from rich.console import Console

from salon.cli.records import jobs_table
from salon.cli.watch import Screen, watch
from salon.jobs.lease import acquire
from salon.jobs.record import Event, JobState
from salon.jobs.store import JobStore


def iteration(number, reward, seconds=2.0, total=10):
    data = {
        "iteration": number,
        "iterations": total,
        "reward_mean": 0.0,  # of a normalised sum, which says nothing to people
        "reward_std": 1.0,
        "rewards/brightness/mean": reward,
        "rewards/brightness/std": 0.25,
        "samples_per_second": 32.0,
        "reward_wait_fraction": 0.125,
        "reward_wait_seconds": 0.25,
        "seconds": seconds,
        "dropped": 0,
    }
    return Event(f"{number}-0", "iteration", data)


def render(renderable):
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_the_screen_shows_progress_reward_speed_wait_and_time_left():
    screen = Screen("tiny-1")
    screen.feed(Event("0-1", "state", {"state": "running", "owner": "host:1", "attempt": 1}))
    for number in range(1, 5):
        screen.feed(iteration(number, reward=-1.0 + number / 10))
    text = render(screen)
    assert "tiny-1  running" in text
    assert "iteration 4/10" in text
    assert "brightness" in text
    assert "−0.60 ± 0.25" in text
    assert "0.00 ± 1.00" not in text
    assert "0.0 ± 1.0" not in text
    assert "32.0" in text
    assert "12.5% of the time (0.25 s)" in text
    assert "ETA 0:00:12" in text  # 6 iterations of 2 s
    assert "▁▃▅█" in text


def test_several_rewards_are_each_shown():
    event = iteration(1, reward=2.0)
    event.data.update({"rewards/second/mean": 5.0, "rewards/second/std": 0.5})
    screen = Screen("tiny-1")
    screen.feed(event)
    assert "second" in render(screen)
    assert "brightness 2.00 ± 0.25  second 5.00 ± 0.50" in screen.line(event)


def test_the_last_evaluation_and_every_warning_stay_on_the_screen():
    screen = Screen("tiny-1")
    told = [("evaluation", "e 1"), ("warning", "w 1"), ("evaluation", "e 2"), ("warning", "w 2")]
    for kind, text in told:
        event = Event("1-0", kind, {"text": text})
        screen.feed(event)
        assert screen.line(event) == text
    screen.feed(Event("2-0", "state", {"state": "succeeded"}))
    text = render(screen)
    assert "e 1" not in text
    assert all(shown in text for shown in ("e 2", "w 1", "w 2"))


def test_the_curve_fits_its_width_however_long_the_job():
    screen = Screen("tiny-1")
    for number in range(1, 1001):
        screen.feed(iteration(number, reward=float(number), total=1000))
    curve = screen._curve("brightness")
    assert len(curve) <= 48
    assert (curve[0], curve[-1]) == ("▁", "█")
    assert list(curve) == sorted(curve)


def test_an_iteration_that_was_run_twice_counts_once():
    screen = Screen("tiny-1")
    for number in (1, 2, 3, 2, 3):
        screen.feed(iteration(number, reward=float(number)))
    assert len(screen._curve("brightness")) == 3


def test_a_wait_is_shown_until_it_is_over():
    screen = Screen("tiny-1")
    screen.feed(Event("0-1", "waiting", {"text": "waiting for reward service jpeg at host:1"}))
    assert "waiting for reward service jpeg at host:1" in render(screen)
    screen.feed(iteration(1, 0.0))
    assert "host:1" not in render(screen)


def test_what_a_job_asks_is_shown_until_it_goes_on():
    screen = Screen("tiny-1")
    event = Event("0-1", "question", {"question": "1-a", "text": "asks: Which?"})
    assert screen.line(event) == "asks: Which?"
    screen.feed(event)
    assert "asks: Which?" in render(screen)
    screen.feed(Event("0-2", "state", {"state": "waiting", "reason": "asks: Which?"}))
    text = render(screen)
    assert "tiny-1  waiting" in text
    assert text.count("asks: Which?") == 1
    screen.feed(Event("0-3", "state", {"state": "queued", "reason": ""}))
    assert "asks: Which?" not in render(screen)


def test_the_reason_of_a_failure_is_shown():
    screen = Screen("tiny-1")
    screen.feed(Event("0-1", "state", {"state": "failed", "reason": "disk [full]"}))
    assert "failed" in render(screen)
    assert "disk [full]" in render(screen)


UNSHOWABLE = [
    ("iteration", {}, "lacks 'iteration'"),
    ("iteration", iteration(1, "high").data, "rewards/brightness/mean"),
    ("iteration", iteration(1, 0.5).data | {"iterations": None}, "no number as iterations"),
    ("state", {"state": "dancing"}, "'dancing' is not a valid JobState"),
    ("state", {"state": "running", "owner": "x"}, "lacks 'attempt'"),
    ("evaluation", {"text": [1]}, "no text as text: \\[1\\]"),
    ("warning", {}, "lacks 'text'"),
    ("question", {"question": "1-a"}, "lacks 'text'"),
]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("kind", "data", "words"), UNSHOWABLE)
def test_an_event_that_cannot_be_shown_is_one_warning(redis_client, terminal, kind, data, words):
    store = JobStore(redis_client)
    job = store.submit("tiny", {}).id
    lease = acquire(redis_client, job, "host:1", "/runs/x", 30, 3)
    lease.emit(kind, data)
    lease.emit("iteration", iteration(2, -0.5).data)
    lease.finish(JobState.SUCCEEDED)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    assert watch(store, job, console).state is JobState.SUCCEEDED
    text = console.file.getvalue()
    assert re.search(rf"history cannot be shown: its {kind} .*{words}", text)
    assert "iteration 2/10" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_ends_with_the_job(redis_client, terminal):
    store = JobStore(redis_client)
    job = store.submit("tiny", {}).id
    lease = acquire(redis_client, job, "host:1", "/runs/x", 30, 3)
    lease.emit("stage", {"text": "loading models/x"})
    lease.emit("iteration", iteration(1, -0.5).data)
    lease.finish(JobState.SUCCEEDED)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    assert watch(store, job, console).state is JobState.SUCCEEDED
    text = console.file.getvalue()
    assert "iteration 1/10" in text
    assert "succeeded" in text
    assert ("loading models/x" in text) is not terminal


def test_the_table_of_jobs(redis_client):
    store = JobStore(redis_client)
    job = store.submit("tiny", {})
    assert job.id in render(jobs_table([job]))
    assert "queued" in render(jobs_table([job]))


def test_means_that_differ_by_rounding_alone_are_a_flat_line():
    screen = Screen("tiny-1")
    for number, reward in enumerate([0.3, 0.1 + 0.2, 0.3], start=1):
        screen.feed(iteration(number, reward))
    assert "▁▁▁" in render(screen)


def test_a_single_sample_has_a_score_without_a_spread():
    event = iteration(1, reward=-2.0)
    event.data["rewards/brightness/std"] = None
    screen = Screen("tiny-1")
    screen.feed(event)
    assert "brightness −2.0  " in screen.line(event)
    assert "−2.0" in render(screen)
