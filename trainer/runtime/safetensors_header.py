"""The header of a safetensors file, read without torch.

Format: github.com/huggingface/safetensors, README: 8 bytes, the length of a JSON object that has
each tensor's dtype, shape and place in the bytes that follow it.
"""

import json
import struct
from pathlib import Path
from typing import Any

from salon.errors import one_line

_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 100_000_000  # as safetensors itself has it


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Where the weights of a model are: `<stem>.safetensors`, or what its index names.

    None of them has to be there.

    Raises:
        ValueError: the index is none.
        OSError: it cannot be read.
    """
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole]
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({folder / Path(shard).name for shard in shards})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index.name} is no index of weights: {one_line(error)}") from None


def read_header(path: Path) -> dict[str, Any]:
    """What is said of each tensor, by its name.

    Raises:
        ValueError: the file is no safetensors file, or is not whole.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
        if start == _POINTER:
            raise ValueError("it is a pointer of Git LFS: fetch the file with git lfs pull")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"it is cut short at {size} bytes, or no safetensors file")
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            shapes = [tensor["shape"] for tensor in header.values()]
            if not all(isinstance(side, int) for shape in shapes for side in shape):
                raise ValueError
            if not all(isinstance(tensor["dtype"], str) for tensor in header.values()):
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            raise ValueError("it is no safetensors file") from None
    if size != 8 + length + end:
        raise ValueError(f"it has {size} bytes where its header says {8 + length + end}")
    return dict(header)
