"""Models, tokenizers and image processors of transformers, from a folder or the hub."""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from salon.checkpoint_keys import Mismatch, fault, further_layers
from salon.errors import InvalidRequest
from services.models.weights import reason_of

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
            other shapes (transformers would fill those with random numbers), or there are layers
            that its configuration leaves out.
    """
    # Otherwise transformers raises on other shapes without naming them.
    report = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = load_part(kind, source, **report, dtype=dtype)
    missing = [name for name in found["missing_keys"] if not name.startswith(tuple(without))]
    further = further_layers(found["unexpected_keys"], model.state_dict())
    _check_whole(kind, source, missing, further, found["mismatched_keys"])
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
        InvalidRequest: weights are missing, do not have the shapes of `config`, or are of layers
            that it leaves out.
    """
    with torch.device("meta"):
        expected = {name: weights.shape for name, weights in kind(config).state_dict().items()}
    own = {name: weights for name, weights in state.items() if name in expected}
    mismatched = [
        (name, weights.shape, expected[name])
        for name, weights in own.items()
        if weights.shape != expected[name]
    ]
    further = further_layers(state.keys() - own.keys(), expected)
    _check_whole(kind, source, expected.keys() - own.keys(), further, mismatched)
    _quieten()
    model = kind.from_pretrained(None, config=config, state_dict=own, dtype=dtype)
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
        raise InvalidRequest(
            f"{source!r} cannot be loaded as {kind.__name__}: {reason_of(error)}; give a folder "
            "that save_pretrained wrote, or a hub id (offline, one that is in the hub's cache)"
        ) from error
    return part


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


def _check_whole(
    kind: type[PreTrainedModel],
    source: str,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[Mismatch],
) -> None:
    if reason := fault(missing, unexpected, mismatched):
        raise InvalidRequest(
            f"{source!r} is no {kind.__name__}: it {reason}; give the folder, file or hub id of one"
        )
