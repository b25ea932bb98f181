"""What the local stack runs, as commands."""

import json
from collections.abc import Mapping, Sequence

from salon.own_modules import python
from salon.queue.broker import TRAIN_QUEUE, score_queue
from salon.settings import Settings
from salon.stack.local_services import (
    DEFAULT_REWARDS,
    LocalService,
    address,
    local_services,
    reward_targets,
    service_targets,
)
from salon.stack.supervisor import Program

# Beside a trainer that uses every core, idle OpenMP threads of others cost it dearly.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# And a trainer's own threads must not spin while another process has their core: with that, one
# UNet pass of the tiny generator took 22 ms on two free cores but up to 1800 ms on busy ones;
# sleeping instead, 28 ms and 43 ms.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


def programs(settings: Settings, services: Sequence[LocalService] | None = None) -> list[Program]:
    """Everything the stack runs besides Redis, in the order in which it starts.

    Args:
        settings: those of the stack.
        services: the reward services; None for those of the default rewards.

    Raises:
        InvalidRequest: a tiny model is not there, or SALON_REWARD_TARGET cannot be used.
    """
    if services is None:
        services = local_services(settings, DEFAULT_REWARDS)
    return [
        *(
            _reward_service(settings, service, target)
            for service, target in zip(services, service_targets(settings, services), strict=True)
        ),
        *_workers(settings, reward_targets(settings, services)),
    ]


def _reward_service(settings: Settings, service: LocalService, target: str) -> Program:
    host, port = address(target)
    command = python("services", service.served, "--host", host)
    command += ["--port", str(port), "--max-message-bytes", str(settings.max_message_bytes)]
    if settings.shared_dir is not None:
        command += ["--shared-dir", str(settings.shared_dir)]
    return Program(service.process, [*command, *service.command_options(settings)], ONE_THREAD)


def scoring_workers(targets: Mapping[str, str]) -> dict[str, list[str]]:
    """The rewards whose queues each scoring worker serves, by the worker's name.

    One for each service: one that hangs holds every process of its worker for as long as a call may
    take, and the batches of other services must not wait for that.

    Args:
        targets: host:port by reward.
    """
    services: dict[str, list[str]] = {}
    for reward, target in targets.items():
        services.setdefault(target, []).append(reward)
    if len(services) == 1:
        return {"scoring": list(targets)}
    return {f"scoring-{rewards[0]}": rewards for rewards in services.values()}


def _workers(settings: Settings, targets: Mapping[str, str]) -> list[Program]:
    worker = python("workers", "--without-gossip", "--without-mingle")
    # Without prefetching: a launch that waits behind a busy slot belongs in the queue, for others.
    one_slot = ["-P", "threads", "-c", "1", "--disable-prefetch"]
    two_slots = ["-P", "prefork", "-c", "2"]
    shared = {} if settings.shared_dir is None else {"SALON_SHARED_DIR": str(settings.shared_dir)}
    return [
        *(
            Program(
                name,
                [*worker, *two_slots, "-n", f"{name}@%h", "-Q", _queues(rewards)],
                {**ONE_THREAD, **shared, "SALON_REWARD_TARGETS": json.dumps(targets)},
            )
            for name, rewards in scoring_workers(targets).items()
        ),
        Program(
            "training",
            [*worker, "-n", "training@%h", "-Q", TRAIN_QUEUE, *one_slot],
            {**SLEEPING_THREADS, **shared},
            grace_seconds=settings.grace_seconds + 5,
            umask=-1,  # a run is as open as the folder of runs
        ),
    ]


def _queues(rewards: Sequence[str]) -> str:
    return ",".join(score_queue(reward) for reward in rewards)
