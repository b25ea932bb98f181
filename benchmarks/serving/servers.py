"""The JPEG reward behind every server.

mosec and LitServe run it in one worker process, as they do by default, and again in as many as
Salon's service, which is one process, has threads to run it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.ports import free_port
from benchmarks.serving.callers import Caller, InProcess, Salon
from benchmarks.serving.peers import LitServeForm, LitServeJson, Mosec
from benchmarks.serving.processes import await_score, running
from services.rewards.jpeg import THREADS


@contextmanager
def jpeg_servers(folder: Path, shared_dir: Path) -> Iterator[dict[str, Caller]]:
    """The JPEG reward served by each of the servers, and called in the client's own process."""
    with ExitStack() as stack:
        names = ("salon", "mosec", "litserve", "mosec_workers", "litserve_workers")
        ports = {name: free_port() for name in names}
        targets = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        commands = {
            "salon": [
                *("-m", "services", "jpeg", "--port", str(ports["salon"])),
                *("--shared-dir", str(shared_dir)),
            ],
            "mosec": _mosec(1, ports["mosec"]),
            "litserve": _litserve(1, ports["litserve"]),
            "mosec_workers": _mosec(THREADS, ports["mosec_workers"]),
            "litserve_workers": _litserve(THREADS, ports["litserve_workers"]),
        }
        servers = {
            name: stack.enter_context(running(command, folder / f"{name}.log"))
            for name, command in commands.items()
        }
        callers: dict[str, Caller] = {
            "salon": Salon(targets["salon"]),
            "mosec": Mosec(targets["mosec"]),
            "litserve": LitServeForm(targets["litserve"]),
            "mosec_workers": Mosec(targets["mosec_workers"]),
            "litserve_workers": LitServeForm(targets["litserve_workers"]),
        }
        for name, caller in callers.items():
            await_score(caller, servers[name], folder / f"{name}.log")
        yield {
            "in_process": InProcess("jpeg:JpegCompressibility"),
            **callers,
            "salon_by_reference": Salon(targets["salon"], shared_dir=shared_dir),
            "litserve_json": LitServeJson(targets["litserve"]),
        }


def _mosec(workers: int, port: int) -> list[str]:
    return [
        *("-m", "benchmarks.serving.mosec_server", str(workers), "--address", "127.0.0.1"),
        *("--port", str(port), "--timeout", "60000", "--log-level", "warning"),
    ]


def _litserve(workers: int, port: int) -> list[str]:
    return ["-m", "benchmarks.serving.litserve_server", str(workers), str(port)]
