"""Models, tokenizers and image processors of transformers, from a folder or the hub."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from salon.errors import InvalidRequest

Module = TypeVar("Module", bound=nn.Module)


def load_model(
    kind: type[PreTrainedModel], source: str, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """A model of class `kind` in evaluation mode, from a folder or a hub id.

    Raises:
        InvalidRequest: there is no such model, it is of another class, or weights are missing or of
            other shapes: transformers would fill those with random numbers.
    """
    # Otherwise transformers raises on other shapes without naming them.
    report = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = load_part(kind, source, **report, dtype=dtype)
    _check_whole(kind, source, found["missing_keys"], found["mismatched_keys"])
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
        state: its weights by transformers' names; further ones are left out.
        source: where they are from, for errors.
        device: where it runs.
        dtype: what the weights are cast to.

    Raises:
        InvalidRequest: weights are missing or do not have the shapes of `config`.
    """
    with torch.device("meta"):
        expected = {name: weights.shape for name, weights in kind(config).state_dict().items()}
    own = {name: weights for name, weights in state.items() if name in expected}
    mismatched = [
        (name, weights.shape, expected[name])
        for name, weights in own.items()
        if weights.shape != expected[name]
    ]
    _check_whole(kind, source, expected.keys() - own.keys(), mismatched)
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
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InvalidRequest(
            f"{source!r} cannot be loaded as {kind.__name__}: {_first_line(error)}; give a folder "
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
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    if missing:
        raise InvalidRequest(
            f"{source!r} is no {kind.__name__}: it lacks {len(missing)} weights, such as "
            f"{min(missing)}; give the folder, file or hub id of one"
        )
    if mismatched:
        name, found, expected = min(mismatched)
        raise InvalidRequest(
            f"{source!r} does not fit its configuration: {name} has shape {tuple(found)}, not "
            f"{tuple(expected)}, and {len(mismatched) - 1} more differ; one of the two is another "
            "model's"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
