"""Ctrl-C that does not get lost."""

import os
import signal
import sys
from threading import Timer

AGAIN_SECONDS = 0.05


def never_lose_ctrl_c() -> None:
    """Interrupt again where KeyboardInterrupt was raised in code that can raise nothing.

    Python runs the signal's handler between any two instructions of the main thread. In a callback
    of the garbage collector (`__del__`, a weak reference's) the exception is printed as "ignored",
    and what should have ended goes on (https://docs.python.org/3/library/sys.html#sys.unraisablehook).
    """
    sys.unraisablehook = _interrupt_again


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # Later: here it could not be raised either.
        Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)
