"""`python -m benchmarks.soak`: tables, and on the last line everything found, as JSON."""

import json
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.machine import describe_machine, versions
from benchmarks.soak.clients import DONE, Ending, Task, run_clients
from benchmarks.soak.jury import Service, memory_table
from benchmarks.soak.ledger import Ledger, show
from benchmarks.soak.pool import Expected, expect, make_pool
from benchmarks.soak.verdict import find_faults, most_passing
from salon.errors import SalonError, ServiceUnavailable
from salon.wire.images import Pixels
from services.server.reward_modules import choose_rewards

CLIP = Path("models/tiny-clip-digits")
TRIPWIRE = "benchmarks.soak.tripwire"
IMAGES = 96
CLIENTS = 16
PROCESSES = 4
KILLS = (1 / 6, 1 / 3)
"""After which part of the requests all services are killed; their last life is the longest."""
READING_SECONDS = 0.5
START_SECONDS = 120.0


def soak(requests: int, seed: int, limit_seconds: float, clip: bool) -> dict[str, Any]:
    """Start the services, send all requests, kill twice, stop the services.

    Args:
        requests: how many.
        seed: of everything that is chosen at random.
        limit_seconds: after that, requests that have not ended are lost.
        clip: with a network among the rewards.

    Returns:
        Everything found, ready for JSON.

    Raises:
        ServiceUnavailable: a service did not start, or died by itself; the message ends with its
            last words.
    """
    pool = make_pool(IMAGES)
    with tempfile.TemporaryDirectory(prefix="salon-soak-") as name:
        folder = Path(name)
        services, expected = _services(folder, pool, clip)
        unique = list({service.port: service for service in services.values()}.values())
        try:
            for service in unique:
                service.start()
            _await_health(unique)
            tasks = _tasks(services, expected, pool, folder / "shared", seed, requests)
            ledger, seconds = _run(tasks, unique, requests, limit_seconds)
        finally:
            for service in unique:
                service.kill()
    kills = min(len(service.lives) for service in unique) - 1
    result = {
        "benchmark": "soak",
        **ledger.summary(),
        "most_passing": most_passing(kills, min(CLIENTS, requests), len(unique)),
        "seconds": seconds,
        "seed": seed,
        "kills": kills,
        "rewards": sorted(services),
        "memory": memory_table(unique),
        "machine": describe_machine(),
        "versions": versions(),
    }
    return {**result, "faults": find_faults(result)}


def _services(
    folder: Path, pool: Sequence[Pixels], clip: bool
) -> tuple[dict[str, Service], dict[str, Expected]]:
    """Services and what they must answer, by reward; nothing is started yet."""
    services: dict[str, Service] = {}
    expected: dict[str, Expected] = {}
    modules = {"jpeg": {}, TRIPWIRE: {}, **({"clip_score": {"model": str(CLIP)}} if clip else {})}
    for module, options in modules.items():
        rewards = [choice.load() for choice in choose_rewards(module, options)]
        flags = [f"--{name}={value}" for name, value in options.items()]
        flags += ["--shared-dir", str(folder / "shared")]
        service = Service(module, flags, folder / f"{module}.log")
        services |= {reward.name: service for reward in rewards}
        expected |= expect(rewards, pool)
    return services, expected


def _tasks(
    services: Mapping[str, Service],
    expected: Mapping[str, Expected],
    pool: Sequence[Pixels],
    shared_dir: Path,
    seed: int,
    requests: int,
) -> list[Task]:
    clients = min(CLIENTS, requests)
    shares = [range(client, requests, clients) for client in range(clients)]
    targets = {reward: service.target for reward, service in services.items()}
    return [
        Task(targets, expected, pool, shared_dir, seed, shares[start::PROCESSES])
        for start in range(min(PROCESSES, clients))
    ]


def _run(
    tasks: Sequence[Task], services: Sequence[Service], requests: int, limit_seconds: float
) -> tuple[Ledger, float]:
    """Let the clients loose; the ledger, and the seconds it took."""
    ledger = Ledger(requests)
    kills = [round(part * requests) for part in KILLS]
    start = time.monotonic()
    next_reading = start
    with _running(tasks) as (processes, endings):
        working = len(tasks)
        while working and time.monotonic() < start + limit_seconds:
            try:
                ending = endings.get(timeout=READING_SECONDS)
            except queue.Empty:
                if not any(process.is_alive() for process in processes):
                    break  # one of them died; what it did not send is lost
                ending = None
            else:
                working -= ending is DONE
            if ending is not None:
                ledger.enter(ending)
            _check_alive(services)
            if kills and ledger.ended >= kills[0]:
                kills.pop(0)
                for service in services:
                    service.kill()
                    service.start()
            if time.monotonic() >= next_reading:
                next_reading = time.monotonic() + READING_SECONDS
                for service in services:
                    service.read_memory()
    return ledger, time.monotonic() - start


@contextmanager
def _running(
    tasks: Sequence[Task],
) -> Iterator[tuple[list[SpawnProcess], "Queue[Ending | None]"]]:
    """The client processes, ended however the block ends, and what they report."""
    # gRPC does not survive a fork.
    context = multiprocessing.get_context("spawn")
    endings: Queue[Ending | None] = context.Queue()
    processes = [context.Process(target=run_clients, args=(task, endings)) for task in tasks]
    try:
        for process in processes:
            process.start()
        yield processes, endings
    finally:
        for process in processes:
            process.kill()
            process.join()


def _check_alive(services: Sequence[Service]) -> None:
    """Each that was killed runs again by now; of one that does not, no client would get answers."""
    for service in services:
        if service.is_dead:
            raise ServiceUnavailable(f"{service.module} died: {service.last_words()}")


def _await_health(services: Sequence[Service]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for service in services:
        while not service.is_healthy():
            if service.is_dead or time.monotonic() > deadline:
                raise ServiceUnavailable(f"{service.module} did not start: {service.last_words()}")
            time.sleep(0.1)


def main(
    requests: Annotated[int, typer.Option(min=1, help="How many.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Another one, another soak.")] = 0,
    limit: Annotated[float, typer.Option(min=1, help="Seconds for all of it.")] = 3600,
    clip: Annotated[bool, typer.Option(help=f"With {CLIP} among the rewards.")] = CLIP.exists(),
) -> None:
    """Send the requests, print tables and, last, JSON; exit 1 if it found a fault."""
    # Idle threads of torch would take the cores from the services.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Otherwise the services would outlive it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        result = soak(requests, seed, limit, clip)
    except SalonError as error:
        sys.exit(str(error))
    show(result, Console())
    print(json.dumps(result))
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    typer.run(main)
