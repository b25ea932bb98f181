"""Weights from a file or the Hugging Face hub, and a short name for what they are."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor

from salon.checkpoint_keys import damage, fault, odd_types
from salon.errors import InvalidRequest, one_line

_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<file>[\w.+/-]+))?")
_PICKLED = (".pth", ".pt", ".bin")
_MODEL_FILES = {".safetensors", *_PICKLED, ".json", ".jinja", ".txt", ".model"}
_FINGERPRINT_DIGITS = 12


def is_file(source: str) -> bool:
    """Whether `source` names one file, here or on the hub, rather than a folder or a hub id."""
    return Path(source).is_file() or (":" in source and not Path(source).exists())


def load_state_dict(source: str) -> dict[str, Tensor]:
    """The tensors of one file by name, on the CPU, in the dtypes they were saved in.

    Args:
        source: the path of a .safetensors, .pth, .pt or .bin file, or `owner/name:file` for a file
            on the Hugging Face hub. Nothing is unpickled but tensors (`weights_only`). Where the
            file holds its tensors under a key `state_dict`, as training checkpoints do, those are
            returned.

    Raises:
        InvalidRequest: there is no such file, or it does not hold a state dict.
    """
    path = _local_file(source)
    if path.suffix not in (".safetensors", *_PICKLED):
        raise InvalidRequest(
            f"weights {source!r} end in none of .safetensors, {', '.join(_PICKLED)}"
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # What is no archive of tensors ends in whatever its first bytes happen to mean to torch.
    except Exception as error:
        raise InvalidRequest(
            f"weights {source!r} cannot be read: {path.name} {_format(path)}: {reason_of(error)}; "
            "give a .safetensors file, such as safetensors.torch.save_file writes of a state dict "
            "in the program that made it"
        ) from error
    return _tensors(source, loaded)


def check_weights(state: Mapping[str, Tensor], source: str) -> None:
    """See that all of them are floating-point numbers, and finite.

    Raises:
        InvalidRequest: they are not; it names them and `source`.
    """
    reason = fault([], [], [], odd_types(types_of(state), state)) or damage(
        state.items(), {source: state}
    )
    if reason:
        raise InvalidRequest(f"weights {source!r}: it {reason}; give a whole file")


def types_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Such as `float32`, by name."""
    return {name: str(weight.dtype).removeprefix("torch.") for name, weight in state.items()}


def reason_of(error: Exception) -> str:
    """Why something could not be loaded, in one line, without torch's advice to unpickle it."""
    text = str(error)
    if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in text:
        return one_line(error)
    named = re.search(r"GLOBAL ([\w.]+)", text)
    what = f"it asks for {named[1]}" if named else "it holds other things"
    return f"{what}, where weights are tensors alone, and to read that may run code"


def version_of(
    revision: str, sources: Iterable[str], dtype: torch.dtype, packages: Iterable[str] = ()
) -> str:
    """A reward's version: the revision of its code, its weights, their dtype, others' code.

    Such as `1+openai-clip-vit-large-patch14@32bd64288804+float16+transformers-5.23.0`.

    Args:
        revision: goes up when the code would score the same sample differently.
        sources: files, folders and hub ids, as `fingerprint` takes them; repeats count once.
        dtype: of the network.
        packages: another release of which may score the same sample differently.

    Raises:
        InvalidRequest: as `fingerprint` does.
    """
    named = [f"{_name(source)}@{fingerprint(source)}" for source in dict.fromkeys(sources)]
    releases = [f"{package}-{version(package)}" for package in packages]
    return "+".join([revision, *named, str(dtype).removeprefix("torch."), *releases])


def fingerprint(source: str) -> str:
    """12 hexadecimal digits that change with the weights: the part of a version that names them.

    Args:
        source: a file, whose SHA-256 it is; a folder, over whose weight and configuration files it
            is taken, with their names; or a hub id, `owner/name` or `owner/name:file`, whose commit
            it is.

    Raises:
        InvalidRequest: there is no such file, folder or hub id.
    """
    path = Path(source)
    if path.is_file():
        return _digest(path)[:_FINGERPRINT_DIGITS]
    if path.is_dir():
        return _folder_digest(path)[:_FINGERPRINT_DIGITS]
    if ":" not in source:
        source = f"{source}:config.json"
    # The hub's cache keeps a file as …/snapshots/<commit>/<file>.
    depth = len(Path(source.partition(":")[2]).parts)
    return _local_file(source).parents[depth - 1].name[:_FINGERPRINT_DIGITS]


def _name(source: str) -> str:
    path = Path(source)
    return path.resolve().name if path.exists() else re.sub(r"[^\w.-]+", "-", source)


def _local_file(source: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    found = _HUB_ID.fullmatch(source)
    if found is None or found["file"] is None:
        raise InvalidRequest(
            f"no file {source!r}: give the path of a file, or owner/name:file for one on the hub"
        )
    try:
        return Path(hf_hub_download(found["repository"], found["file"]))
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"no file {source!r} here, in the hub's cache or on the hub: {reason_of(error)}; "
            "give the path of a file, or download it first (HF_HOME says where the cache is)"
        ) from error


def _tensors(source: str, loaded: object) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise InvalidRequest(
            f"weights {source!r} hold a {type(loaded).__name__}, not a state dict of tensors"
        )
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            raise InvalidRequest(
                f"weights {source!r} hold a {type(value).__name__} at {name!r}, not a tensor: "
                "save the state dict alone"
            )
    return dict(loaded)


def _format(path: Path) -> str:
    """What the file is, as a predicate."""
    if path.suffix == ".safetensors":
        return "is no whole safetensors file"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            script = any(Path(name).name == "constants.pkl" for name in archive.namelist())
        return "is a TorchScript archive, a program" if script else "is an archive of torch.save"
    with path.open("rb") as file:
        start = file.read(1)
    if not start:
        return "is empty"
    return "is a bare pickle" if start == b"\x80" else "is no file of torch.save"


def _folder_digest(folder: Path) -> str:
    whole = hashlib.sha256()
    files = [path for path in folder.rglob("*") if path.suffix in _MODEL_FILES and path.is_file()]
    if not files:
        raise InvalidRequest(f"folder {str(folder)!r} holds no weights and no configuration")
    for path in sorted(files):
        whole.update(f"{path.relative_to(folder).as_posix()}\0{_digest(path)}\0".encode())
    return whole.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
