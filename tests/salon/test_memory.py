import subprocess
import sys

from tests.fixtures.service import REPOSITORY

PROGRAM = """
import resource, sys
from salon.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def fill():
    blocks = [b"x" * 28_000_000 for _ in range(4)]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_the_memory_of_one_batch_is_used_for_the_next():
    assert page_faults("by default") > 10_000  # of 4 KiB each
    assert page_faults("kept") < 1000


def test_what_was_freed_is_given_back_when_asked_for():
    program = """
import psutil
from salon.memory import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
resident = psutil.Process().memory_info
blocks = [b"x" * 3_000_000 for _ in range(50)]
above = b"y" * 3_000_000  # what lies above the others keeps glibc from giving them back itself
full = resident().rss
del blocks
kept = resident().rss
assert give_back_freed_memory()
print(full - kept, full - resident().rss)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    without, given_back = map(int, done.stdout.split())
    assert without < 10_000_000
    assert given_back > 140_000_000
