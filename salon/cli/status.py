"""`salon status`: what runs, what answers, what waits."""

from collections.abc import Mapping
from typing import Any

import grpc
import redis
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kombu.exceptions import OperationalError
from rich.table import Table
from rich.text import Text

from salon.cli.jobs import AsJson
from salon.cli.records import record_as_json
from salon.cli.score import known_targets
from salon.cli.specs import rewards_of
from salon.cli.stack import STAND_IN
from salon.cli.terminal import EXIT_ERROR, console, print_json, print_table
from salon.client import RewardClient
from salon.client.channel import connect
from salon.errors import SalonError, StackUnavailable, from_rpc_error
from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue.broker import TRAIN_QUEUE, create_app, score_queue, served_queues
from salon.queue.connection import connect_now
from salon.redis_url import shown
from salon.reward.v1 import reward_pb2
from salon.settings import Settings, load_settings
from salon.stack import lifecycle
from salon.stack.state import is_alive

ANSWER_SECONDS = 3.0  # for a reward service


def status(as_json: AsJson = False) -> None:
    """Show the stack's processes, Redis, the rewards, the queues and the jobs that are not over.

    The exit code is 0 where all that is known of answers, else 1.
    """
    settings = load_settings()
    found = {"stack": _stack(settings), "rewards": _rewards(settings), **_redis(settings)}
    found["healthy"] = _is_healthy(found)
    if as_json:
        print_json(found)
    else:
        _print(found, settings)
    if not found["healthy"]:
        raise typer.Exit(EXIT_ERROR)


def _stack(settings: Settings) -> dict[str, Any] | None:
    state = lifecycle.running(settings)
    if state is None:
        return None
    children = [{"name": "stack", **state}, *state["children"]]
    processes = [
        {"name": part["name"], "pid": part["pid"], "running": is_alive(part)} for part in children
    ]
    return {"processes": processes, "failing": state["failing"]}


def _rewards(settings: Settings) -> list[dict[str, Any]]:
    """Every reward that is known to be served somewhere, and what its service answers."""
    targets: dict[str, list[str]] = {}
    for reward, target in known_targets(settings).items():
        targets.setdefault(target, []).extend([reward] if reward else [])
    rows = []
    for target, expected in targets.items():
        hosted, error = _ask(settings, target)
        for name in sorted({*expected, *hosted}) or [""]:
            here = name in hosted
            rows.append(
                {
                    "reward": name or None,
                    "target": target,
                    "healthy": here,
                    "version": hosted[name].version if here else None,
                    "stand_in": hosted[name].stand_in if here else None,
                    "error": None if here else error,
                }
            )
    return rows


def _ask(settings: Settings, target: str) -> tuple[dict[str, reward_pb2.Reward], str]:
    """What a service scores now, by name, and why it does not score others."""
    try:
        # First, because it says at once that nobody listens; calls of the client are patient.
        with connect(target, security=settings.security, retries=False) as channel:
            request = health_pb2.HealthCheckRequest(service="readiness")
            health = health_pb2_grpc.HealthStub(channel).Check(request, timeout=ANSWER_SECONDS)
        if health.status != health_pb2.HealthCheckResponse.SERVING:
            return {}, "it starts, or it drains"
        with RewardClient(target, security=settings.security) as client:
            rewards = client.list_rewards(ANSWER_SECONDS)
    except grpc.RpcError as error:
        return {}, str(from_rpc_error(error, target))
    except SalonError as error:
        return {}, str(error)
    return {each.name: each for each in rewards}, "its service does not host it"


def _redis(settings: Settings) -> dict[str, Any]:
    """Redis, and what it alone knows: workers, queues, jobs."""
    url = shown(settings.redis_url)
    try:
        client = connect_now(settings.redis_url)
        store = JobStore(client)
        served = served_queues(create_app(settings))
        jobs = store.unfinished()
        rewards = {name for job in jobs for name in rewards_of(job.spec)}
        if lifecycle.running(settings):  # else who names them may only score
            rewards |= settings.reward_targets.keys()
        names = {TRAIN_QUEUE, *served, *(score_queue(reward) for reward in rewards)}
        queues = [
            {"queue": name, "waiting": client.llen(name), "served": name in served}
            for name in sorted(names)
        ]
    except (StackUnavailable, redis.RedisError, OperationalError) as error:
        return {"redis": {"url": url, "error": str(error)}, "queues": [], "jobs": []}
    return {
        "redis": {"url": url, "error": None},
        "queues": queues,
        "jobs": [record_as_json(job) for job in jobs],
    }


def _is_healthy(found: Mapping[str, Any]) -> bool:
    processes = found["stack"]["processes"] if found["stack"] else []
    return (
        found["redis"]["error"] is None
        and all(part["running"] for part in processes)
        and not (found["stack"] and found["stack"]["failing"])
        and all(reward["healthy"] for reward in found["rewards"])
        and not any(_lacks_worker(queue, found) for queue in found["queues"])
    )


def _lacks_worker(queue: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a worker is missing: who only scores, or answers, needs none that trains."""
    jobs = [job for job in found["jobs"] if job["state"] != JobState.WAITING]
    if queue["queue"] == TRAIN_QUEUE and not (queue["waiting"] or jobs or found["stack"]):
        return False
    return not queue["served"]


def _print(found: Mapping[str, Any], settings: Settings) -> None:
    if found["stack"] is None:
        console.print("no local stack runs from this state folder: `salon up` starts one")
    else:
        table = Table("process", "pid", "state", box=None)
        for part in found["stack"]["processes"]:
            if part["name"] in found["stack"]["failing"]:
                state = _bad("dies whenever it is started")
            else:
                state = _good("running") if part["running"] else _bad("gone")
            table.add_row(part["name"], str(part["pid"]), state)
        print_table(table)
    error = found["redis"]["error"]
    answer = _bad(error) if error else _good(f"{found['redis']['url']} answers")
    console.print(Text("redis  ").append(answer), soft_wrap=True)
    table = Table("reward", "served at", box=None)
    table.add_column("health", overflow="fold")
    for row in found["rewards"]:
        health = _good("healthy") if row["healthy"] else _bad(row["error"])
        if row["stand_in"]:
            health = health.append(f" ({STAND_IN})", style="yellow")
        table.add_row(row["reward"] or "—", row["target"], health)
    print_table(table)
    if found["queues"]:
        table = Table("queue", "waiting", box=None)
        table.add_column("worker", overflow="fold")
        hints = {
            score_queue(reward): f": start one with `python -P -m workers -Q {score_queue(reward)}`"
            for reward in settings.reward_targets
        }
        for row in found["queues"]:
            said = f"none answers{hints.get(row['queue'], '')}"
            absent = Text(said, style="red" if _lacks_worker(row, found) else "")
            worker = _good("yes") if row["served"] else absent
            table.add_row(row["queue"], str(row["waiting"]), worker)
        print_table(table)
    for job in found["jobs"]:
        why = " ".join(job["reason"].split())
        console.print(f"{job['id']} is {job['state']}{why and f': {why}'}", soft_wrap=True)


def _good(text: str) -> Text:
    return Text(text, style="green")


def _bad(text: str) -> Text:
    return Text(text, style="red")
