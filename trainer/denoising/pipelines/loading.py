"""Loads a Stable Diffusion pipeline whole: every weight of every part is its own."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from salon.checkpoint_keys import Mismatch, fault, further_layers
from salon.errors import InvalidRequest
from trainer.denoising.pipelines.folder import WAY_OUT, PipelineFolder
from trainer.runtime.hub import reason_of

# The safety checker is left out: it blacks out images, which no reward should see. A watermark
# changes them, too.
_OPTIONS: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}

_LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
_ENCODER_OF = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
TOKENIZERS = tuple(_ENCODER_OF)


def load_pipeline(model: str) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A diffusers folder, or a model of the hub by its id, in fp32, from safetensors alone.

    Raises:
        InvalidRequest: there is no such model, or it is none of Stable Diffusion 1.x, 2.x and XL,
            its weights are not safetensors, a file is missing or broken, a part's weights are not
            those of its configuration, or it cannot be drawn with; see `PipelineFolder`.
    """
    # What they report would tear the log, and what is wrong is an error here.
    for library in _LIBRARIES.values():
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    folder = _folder(model)
    folder.check()
    try:
        parts = {
            part: _load_part(getattr(_LIBRARIES[library], name), folder, part)
            for part, (library, name) in folder.classes.items()
        }
        pipeline = getattr(diffusers, folder.kind).from_pretrained(
            folder.path, dtype=torch.float32, **parts, **_OPTIONS[folder.kind]
        )
        for name in TOKENIZERS:
            if tokenizer := getattr(pipeline, name, None):
                _check_tokenizer(name, tokenizer, getattr(pipeline, _ENCODER_OF[name]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise folder.refusal(reason_of(error)) from error
    return pipeline


def _folder(model: str) -> PipelineFolder:
    """Where the files of `model` are, which may first have to come from the hub.

    Raises:
        InvalidRequest: there is no such model, or it is of another kind.
    """
    if Path(model).is_dir():
        return PipelineFolder(Path(model), model)
    try:
        index = hf_hub_download(model, "model_index.json")
    except RemoteEntryNotFoundError as error:
        raise InvalidRequest(
            f"model {model!r} of the hub has no model_index.json, so that it is no pipeline of "
            f"diffusers; {WAY_OUT}"
        ) from error
    except (OSError, ValueError) as error:
        raise _unloadable(model, error) from error
    kind = PipelineFolder(Path(index).parent, model).kind
    try:
        files = getattr(diffusers, kind).download(model, use_safetensors=True, **_OPTIONS[kind])
    except (OSError, ValueError) as error:
        raise _unloadable(model, error) from error
    return PipelineFolder(Path(files), model)


def _unloadable(model: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"model {model!r} cannot be loaded: {reason_of(error)}; {WAY_OUT}")


def _load_part(kind: Any, folder: PipelineFolder, part: str) -> nn.Module:
    """A part of a pipeline, all of whose weights are its own.

    Raises:
        ValueError: some are missing, of other shapes, or of layers that it does not have.
    """
    options: dict[str, Any] = {"subfolder": part, "use_safetensors": True}
    if issubclass(kind, diffusers.ModelMixin):
        options["torch_dtype"] = torch.float32
        mismatched = _mismatched(kind, folder, part)  # of which diffusers tells the first alone
    else:
        options |= {"dtype": torch.float32, "ignore_mismatched_sizes": True}
        mismatched = []
    if reason := fault([], [], mismatched):
        raise ValueError(f"its {part} {reason}; fetch or write it anew")
    module, found = kind.from_pretrained(folder.path, output_loading_info=True, **options)
    unexpected = found["unexpected_keys"]
    if part in _ENCODER_OF.values():
        unexpected = further_layers(unexpected, module.state_dict())
    if reason := fault(found["missing_keys"], unexpected, found["mismatched_keys"]):
        raise ValueError(f"its {part} {reason}; fetch or write it anew")
    loaded: nn.Module = module
    return loaded


def _mismatched(kind: Any, folder: PipelineFolder, part: str) -> list[Mismatch]:
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(folder.path, subfolder=part))
    shapes = folder.shapes(part)
    return [
        (name, shapes[name], weight.shape)
        for name, weight in network.state_dict().items()
        if name in shapes and shapes[name] != tuple(weight.shape)
    ]


def _check_tokenizer(name: str, tokenizer: Any, encoder: nn.Module) -> None:
    """See that what it makes of texts can be read by the text encoder beside it.

    Raises:
        ValueError: it knows no words, as one does that transformers 5 makes of missing files, more
            than the encoder, or gives longer texts than that reads.
    """
    words = tokenizer.get_vocab()
    if set(words) <= set(tokenizer.all_special_tokens):
        raise ValueError(f"its {name} has no words: are all of its files there?")
    config: Any = encoder.config
    if max(words.values()) >= config.vocab_size:
        raise ValueError(
            f"its {name} knows {max(words.values()) + 1} words and its {_ENCODER_OF[name]} only "
            f"{config.vocab_size}: one of the two is another model's"
        )
    if tokenizer.model_max_length > config.max_position_embeddings:
        raise ValueError(
            f"its {name} has a model_max_length of {tokenizer.model_max_length}, but its "
            f"{_ENCODER_OF[name]} reads {config.max_position_embeddings} tokens: set it to that in "
            f"{name}/tokenizer_config.json"
        )
