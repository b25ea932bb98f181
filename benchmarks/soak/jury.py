"""The services under test: started, killed, started again, and their memory watched."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from salon.client.channel import connect

MEBIBYTE = 1024 * 1024
LEAST_READINGS = 8


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """One `python -m services MODULE`, at the same port in each of its lives."""

    module: str
    flags: Sequence[str]
    log: Path
    port: int = field(default_factory=_free_port)
    process: "subprocess.Popen[bytes] | None" = None
    lives: list[list[float]] = field(default_factory=list)
    """MiB of resident memory of each life, read while it was healthy."""

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def is_dead(self) -> bool:
        """Whether its process has ended."""
        return self.process is not None and self.process.poll() is not None

    def start(self) -> None:
        """Begin a life."""
        command = [sys.executable, "-m", "services", self.module, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.flags], stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        self.lives.append([])

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def is_healthy(self) -> bool:
        """Whether it answers and is ready to score."""
        request = health_pb2.HealthCheckRequest(service="readiness")
        with connect(self.target, retries=False) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=1)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def read_memory(self) -> None:
        """Take a reading, if it is healthy."""
        if self.process is None or self.is_dead:
            return
        if self.lives[-1] or self.is_healthy():  # once ready, always ready
            self.lives[-1].append(psutil.Process(self.process.pid).memory_info().rss / MEBIBYTE)

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-2000:]


def memory_table(services: Sequence[Service]) -> dict[str, list[dict[str, Any]]]:
    """For each service, of each life long enough: the medians of its first and last quarter."""
    return {
        service.module: [
            {"life": number, **_quarters(life)}
            for number, life in enumerate(service.lives, 1)
            if len(life) >= LEAST_READINGS
        ]
        for service in services
    }


def _quarters(readings: Sequence[float]) -> dict[str, Any]:
    quarter = len(readings) // 4
    first, last = median(readings[:quarter]), median(readings[-quarter:])
    return {
        "readings": len(readings),
        "first_quarter_mib": round(first, 1),
        "last_quarter_mib": round(last, 1),
        "growth": round(last / first - 1, 4),
    }
