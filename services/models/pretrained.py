"""Models, tokenizers and image processors of transformers, from a folder or the hub."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils import logging as transformers_logging

from salon.checkpoint_keys import damage, fault, further_layers, odd_types
from salon.errors import InvalidRequest
from services.models.weights import reason_of, types_of

Module = TypeVar("Module", bound=nn.Module)


def load_model(
    kind: type[PreTrainedModel],
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    without: Collection[str] = (),
) -> PreTrainedModel:
    """A model of class `kind` in evaluation mode, from a folder or a hub id.

    Args:
        kind: the class.
        source: the folder or hub id.
        device: where it runs.
        dtype: what the weights are cast to.
        without: parts that are not used, by how the names of their weights begin: they may miss.

    Raises:
        InvalidRequest: there is no such model, it is of another class, weights are missing or of
            other shapes (transformers would fill those with random numbers), of a type that is
            none of a network, NaN or infinite, or there are layers that its configuration leaves
            out.
    """
    # Otherwise transformers raises on other shapes without naming them.
    report = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = load_part(kind, source, **report, dtype=dtype)
    missing = [name for name in found["missing_keys"] if not name.startswith(tuple(without))]
    weights = model.state_dict()
    further = further_layers(found["unexpected_keys"], weights)
    try:
        stored = _stored(source)
    except Exception as error:  # as of a type that transformers does not know
        raise _unloadable(kind, source, error) from error
    types = types_of({name: weight for state in stored.values() for name, weight in state.items()})
    odd = odd_types(types, _floating(weights))
    _check(kind, source, fault(missing, further, found["mismatched_keys"], odd))
    _check(kind, source, damage(weights.items(), stored))
    return freeze(model.to(device))


def build_model(
    kind: type[PreTrainedModel],
    config: PretrainedConfig,
    state: Mapping[str, Tensor],
    source: str,
    device: torch.device,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """A model of class `kind` in evaluation mode, from its configuration and its weights.

    Args:
        kind: the class.
        config: its configuration.
        state: its weights by transformers' names; of other parts than its own they are left out.
        source: where they are from, for errors.
        device: where it runs.
        dtype: what the weights are cast to.

    Raises:
        InvalidRequest: nothing can be made of `config`, or weights are missing, do not have its
            shapes, are of layers that it leaves out, of a type that is none of a network, NaN or
            infinite.
    """
    try:
        with torch.device("meta"):
            network = kind(config).state_dict()
    except Exception as error:  # whatever a value in it leads to
        raise InvalidRequest(
            f"no {kind.__name__} can be made of the configuration for {source!r}: "
            f"{reason_of(error)}; give the folder or hub id of the model that it was made from"
        ) from error
    expected = {name: weights.shape for name, weights in network.items()}
    own = {name: weights for name, weights in state.items() if name in expected}
    mismatched = [
        (name, weights.shape, expected[name])
        for name, weights in own.items()
        if weights.shape != expected[name]
    ]
    further = further_layers(state.keys() - own.keys(), expected)
    odd = odd_types(types_of(own), _floating(network))
    _check(kind, source, fault(expected.keys() - own.keys(), further, mismatched, odd))
    _quieten()
    model = kind.from_pretrained(None, config=config, state_dict=own, dtype=dtype)
    _check(kind, source, damage(model.state_dict().items(), {source: own}))
    return freeze(model.to(device))


def load_part(kind: Any, source: str, **options: Any) -> Any:
    """`kind.from_pretrained(source)`: a tokenizer, an image processor, a configuration.

    Raises:
        InvalidRequest: `source` is no folder or hub id, or has no such part.
    """
    _quieten()
    try:
        part = kind.from_pretrained(source, **options)
        _check_words(part)
    except Exception as error:  # of pickled weights come all kinds
        raise _unloadable(kind, source, error) from error
    return part


def _unloadable(kind: Any, source: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(
        f"{source!r} cannot be loaded as {kind.__name__}: {reason_of(error)}; give a folder "
        "that save_pretrained wrote, or a hub id (offline, one that is in the hub's cache)"
    )


def freeze(model: Module) -> Module:
    """The model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def _check_words(part: Any) -> None:
    # What transformers makes of a folder without a tokenizer's files reads all texts alike.
    if hasattr(part, "get_vocab") and set(part.get_vocab()) <= set(part.all_special_tokens):
        raise ValueError("it has no words")


def _quieten() -> None:
    # Its progress bars and reports would tear the service's log, which is one JSON object a line.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _stored(source: str) -> dict[str, dict[str, Tensor]]:
    """What each file of a model holds that was loaded, without the numbers.

    Args:
        source: a folder or a hub id.
    """
    here = Path(source).is_dir()
    folder = Path(source if here else snapshot_download(source, local_files_only=True))
    # In the order in which transformers looks for them.
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        path = folder / name
        if not path.is_file():
            continue
        names = {name}
        if path.suffix == ".json":
            names = set(json.loads(path.read_bytes())["weight_map"].values())
        return {name: load_state_dict(folder / name, map_location="meta") for name in sorted(names)}
    return {}


def _floating(weights: Mapping[str, Tensor]) -> list[str]:
    return [name for name, weight in weights.items() if weight.is_floating_point()]


def _check(kind: type[PreTrainedModel], source: str, reason: str) -> None:
    if reason:
        raise InvalidRequest(
            f"{source!r} is no {kind.__name__}: it {reason}; give the folder, file or hub id of one"
        )
