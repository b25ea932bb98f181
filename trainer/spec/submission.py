"""What can be told of a job's models and device where it is submitted, without torch."""

import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from salon.errors import InvalidRequest
from salon.settings import Settings
from salon.stack.state import is_alive, read_state

_LOCAL_HOSTS = (None, "", "localhost", "127.0.0.1", "::1")
_SEES_GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"


def trains_here(settings: Settings) -> bool:
    """Whether a stack runs from this state folder, and jobs go to a Redis of this host.

    That address alone would say nothing: a tunnel or a published port has it, too.
    """
    if urlsplit(settings.redis_url).hostname not in _LOCAL_HOSTS:
        return False
    state = read_state(settings)
    return state is not None and is_alive(state)


def check_diversity_model(model: str, here: bool) -> None:
    """Refuse a folder that is not there, or is no model's; which may be where the trainers are.

    Args:
        model: a folder or a hub id.
        here: whether the trainers are known to run on this host.

    Raises:
        InvalidRequest: one line: what is wrong with it.
    """
    if not Path(model).is_dir():
        check_absent("evaluation.diversity_model", Path(model), here)
    elif not (Path(model) / "config.json").is_file():
        raise InvalidRequest(
            f"evaluation.diversity_model: {model} has no config.json: give the folder of a "
            "CLIPModel, or null"
        )


def check_device(device: str, here: bool) -> None:
    """Refuse `device: cuda` where the trainers run here and torch sees no GPU; `here` as above.

    Raises:
        InvalidRequest: there is none.
    """
    if device != "cuda" or not here or find_spec("torch") is None:
        return
    if not _sees_gpu():
        raise InvalidRequest(
            "device: cuda was asked for, but torch sees no GPU on this host; use auto or cpu"
        )


@cache  # for each of `--seeds`
def _sees_gpu() -> bool:
    # In another process: this one does without torch's seconds and memory.
    return not subprocess.run([sys.executable, "-P", "-c", _SEES_GPU], check=False).returncode


def check_absent(key: str, path: Path, here: bool) -> None:
    """Refuse what is no folder: a file, or nothing at an absolute path; `here` as above.

    Raises:
        InvalidRequest: one line: the key, and what to give.
    """
    if path.is_file():
        raise InvalidRequest(
            f"{key}: {path} is a file: give a folder that save_pretrained wrote (diffusers' "
            "from_single_file reads a single file, and its save_pretrained writes such a folder)"
        )
    if path.is_absolute() and here:
        raise InvalidRequest(f"{key}: there is no folder {path}; give one, or a hub id")
