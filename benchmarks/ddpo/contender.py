"""A trainer as a process: a command a line on standard input, a line of JSON for each answer."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from benchmarks.ddpo.workload import Assignment

Answer = Mapping[str, Any]


class Contender(Protocol):
    """What is asked of every trainer that is measured."""

    def iterate(self) -> Answer:
        """One iteration, by its figures.

        `seconds`, and of them those of `sampling` and of the `update`; `cpu_seconds` of the
        process, which a busy neighbour changes less; `reward_mean`; and `peak_bytes`.
        """
        ...

    def gradients(self, case: str, out: str, dtype: str) -> Answer:
        """Write the gradient of the loss on the case at `case` to the safetensors file `out`.

        All arithmetic is in `dtype`, float32 or float64. The answer is the `loss`.
        """
        ...


def serve(build: Callable[[Assignment], AbstractContextManager[Contender]]) -> None:
    """Build a contender from the first line, and call the method that each further line names.

    A line is {"do": method, argument: value, …}. What libraries print goes to standard error.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    assignment = Assignment.from_json(json.loads(sys.stdin.readline()))
    torch.set_num_threads(assignment.threads)
    with build(assignment) as contender:
        print("{}", file=answers)
        for line in sys.stdin:
            command = json.loads(line)
            answer = getattr(contender, command.pop("do"))(**command)
            print(json.dumps(answer), file=answers)


class Stopwatch:
    """Wall-clock seconds by name; waits for the GPU before it looks at the clock."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        """Call, and add the seconds that it took to those of `name`."""
        start = self.now()
        try:
            return call()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start

    def now(self) -> float:
        """The clock, once all kernels have ended."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def peak_bytes(device: str) -> int:
    """The most memory that tensors took on the GPU since this was last asked.

    On the CPU it is that of the whole process, since its start.
    """
    if device == "cuda":
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * 1024
