"""The parts that a score passes through, as processes of their own: Redis, service and worker."""

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.ports import free_port
from salon.errors import ServiceUnavailable
from salon.queue.connection import connect
from salon.redis_password import with_new_password
from salon.settings import Settings
from salon.stack.embedded_redis import redis_program
from salon.stack.programs import programs
from salon.stack.supervisor import Supervisor

PARTS = ("redis", "jpeg", "scoring")
READY_SECONDS = 60.0
POLL_SECONDS = 0.1


@contextmanager
def running_parts(shared_dir: Path | None = None) -> Iterator[Settings]:
    """Start the parts on free ports in a temporary folder, exactly as the local stack starts them.

    They are stopped, and the folder is deleted, however the block ends.

    Args:
        shared_dir: for images by reference; None: they travel through Redis.

    Yields:
        Settings that lead to the parts. The worker may need a moment more to take its first task.

    Raises:
        ServiceUnavailable: a part did not start; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="salon-benchmark-") as name:
        folder = Path(name)
        settings = Settings(
            redis_url=with_new_password(folder, f"redis://127.0.0.1:{free_port()}/0"),
            reward_target=f"127.0.0.1:{free_port()}",
            state_dir=folder,
            runs_dir=folder / "runs",
            shared_dir=shared_dir,
        )
        supervisor = Supervisor(folder / "logs")
        try:
            for program in (redis_program(folder, settings.redis_url), *programs(settings)):
                if program.name in PARTS:
                    environment = {**program.environment, **_environment(settings)}
                    supervisor.add(replace(program, environment=environment))
            _await_ready(settings, supervisor)
            yield settings
        finally:
            supervisor.stop()


def _await_ready(settings: Settings, supervisor: Supervisor) -> None:
    host, _, port = settings.reward_target.rpartition(":")
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        for child in supervisor.children:
            if not child.pid:
                raise ServiceUnavailable(f"{child.program.name} died: {_last_words(settings)}")
        try:
            # Not a gRPC channel: a Ctrl-C in mid-poll left one that hung while Python ended.
            socket.create_connection((host, int(port)), timeout=0.2).close()
        except OSError:
            time.sleep(POLL_SECONDS)
            continue
        with connect(settings.redis_url) as client:
            client.ping()
        return
    raise ServiceUnavailable(
        f"the reward service did not start within {READY_SECONDS:.0f} s: {_last_words(settings)}"
    )


def _last_words(settings: Settings) -> str:
    files = sorted((settings.state_dir / "logs").glob("*.log"))
    return "\n".join(f"{file.stem}: {file.read_text(errors='replace')[-500:]}" for file in files)


def _environment(settings: Settings) -> dict[str, str]:
    values = settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return {f"SALON_{name.upper()}": str(value) for name, value in values.items()}
