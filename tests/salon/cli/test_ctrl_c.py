"""Interrupts that arrive where nothing can be raised."""

import subprocess
import sys

import pytest

SCRIPT = """
import signal, time, weakref
from salon.cli.ctrl_c import never_lose_ctrl_c

class Thing:
    pass

never_lose_ctrl_c()
thing = Thing()
try:
    reference = weakref.ref(thing, lambda _: {callback})
    del thing  # runs the callback, whose exceptions Python drops
    print("went on", flush=True)
    time.sleep({seconds})
    print("slept")
except KeyboardInterrupt:
    print("interrupted")
"""


def run(callback, seconds):
    script = SCRIPT.format(callback=callback, seconds=seconds)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_was_dropped_comes_again(number):
    """SIGTERM with a handler that raises what Ctrl-C does, as `salon run` has."""
    if number == "SIGTERM":
        callback = "(_ for _ in ()).throw(KeyboardInterrupt)"
    else:
        callback = "signal.raise_signal(signal.SIGINT)"
    done = run(callback, seconds=50)
    assert done.stdout.split("\n") == ["went on", "interrupted", ""]
    assert done.stderr == ""


def test_other_errors_that_can_be_raised_nowhere_are_printed_as_ever():
    done = run("1 / 0", seconds=0)
    assert done.stdout.split("\n") == ["went on", "slept", ""]
    assert "Exception ignored" in done.stderr
    assert "ZeroDivisionError" in done.stderr
