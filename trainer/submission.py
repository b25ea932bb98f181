"""What can be told of a job's models and device where it is submitted, without torch."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from salon.errors import InvalidRequest
from salon.settings import Settings
from trainer.denoising.config import LoraConfig, unknown_targets
from trainer.pipeline_folder import PipelineFolder

_LOCAL_HOSTS = (None, "", "localhost", "127.0.0.1", "::1")
_SEES_GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"


def check_generator(model: str, lora: LoraConfig | None, settings: Settings) -> None:
    """Refuse a folder that is not there or cannot be drawn with, and LoRA on layers it lacks.

    A folder that is not here may be where the trainers are, unless they run here, too.

    Raises:
        InvalidRequest: one line: what is wrong with it.
    """
    if not Path(model).is_dir():
        _check_absent("model", Path(model), settings)
        return
    folder = PipelineFolder(Path(model), model)
    folder.check()
    layers = {name.rpartition(".")[0] for name in folder.shapes("unet")}
    if lora is not None and (wrong := unknown_targets(lora.target_modules, layers)):
        raise InvalidRequest(f"algorithm.{wrong}")


def check_diversity_model(model: str, settings: Settings) -> None:
    """Refuse a folder that is not there, or is no model's.

    Raises:
        InvalidRequest: one line: what is wrong with it.
    """
    if not Path(model).is_dir():
        _check_absent("evaluation.diversity_model", Path(model), settings)
    elif not (Path(model) / "config.json").is_file():
        raise InvalidRequest(
            f"evaluation.diversity_model: {model} has no config.json: give the folder of a "
            "CLIPModel, or null"
        )


def check_device(device: str, settings: Settings) -> None:
    """Refuse `device: cuda` where the trainers run here and torch sees no GPU.

    Raises:
        InvalidRequest: there is none.
    """
    if device != "cuda" or not _trains_here(settings) or find_spec("torch") is None:
        return
    # In another process: this one does without torch's seconds and memory.
    if subprocess.run([sys.executable, "-c", _SEES_GPU], check=False).returncode:
        raise InvalidRequest(
            "device: cuda was asked for, but torch sees no GPU on this host; use auto or cpu"
        )


def _check_absent(key: str, path: Path, settings: Settings) -> None:
    if path.is_file():
        raise InvalidRequest(
            f"{key}: {path} is a file: give a folder that save_pretrained wrote (diffusers' "
            "from_single_file reads a single file, and its save_pretrained writes such a folder)"
        )
    if path.is_absolute() and _trains_here(settings):
        raise InvalidRequest(f"{key}: there is no folder {path}; give one, or a hub id")


def _trains_here(settings: Settings) -> bool:
    """Whether the stack is that of this host, as far as its Redis tells."""
    return urlsplit(settings.redis_url).hostname in _LOCAL_HOSTS
