"""Loads a Stable Diffusion pipeline whole: every weight of every part is its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import nn

from salon.checkpoint_keys import damage, fault, further_layers
from salon.errors import InvalidRequest
from trainer.denoising.pipelines.folder import ENCODER_OF, WAY_OUT, PipelineFolder
from trainer.runtime.hub import reason_of

# The safety checker is left out: it blacks out images, which no reward should see. A watermark
# changes them, too.
_OPTIONS: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}

_LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
TOKENIZERS = tuple(ENCODER_OF)


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
    for part in folder.classes | folder.others:
        _class(folder, part)
    folder.check()
    parts: dict[str, Any] = {part: _load_part(folder, part) for part in folder.classes}
    for part in folder.others:
        file = "scheduler/scheduler_config.json" if part == "scheduler" else f"the files in {part}/"
        with _naming(folder, f"its {part} cannot be made of {file}"):
            parts[part] = _class(folder, part).from_pretrained(folder.path / part)
    with _naming(folder, "its parts are no pipeline"):
        pipeline = getattr(diffusers, folder.kind).from_pretrained(
            folder.path, dtype=torch.float32, **parts, **_OPTIONS[folder.kind]
        )
    for name, encoder in ENCODER_OF.items():
        if tokenizer := getattr(pipeline, name, None):
            with _naming(folder, f"its {name} cannot be used"):
                _check_tokenizer(folder, name, tokenizer, getattr(pipeline, encoder))
    return pipeline


@contextmanager
def _naming(folder: PipelineFolder, problem: str) -> Iterator[None]:
    """Within, whatever a library raises is `problem` of the model, and its words the reason.

    What it makes of a configuration, it may raise anything of.

    Raises:
        InvalidRequest: that.
    """
    try:
        yield
    except InvalidRequest:
        raise
    except Exception as error:
        raise folder.refusal(f"{problem}: {reason_of(error)}") from error


def _class(folder: PipelineFolder, part: str) -> Any:
    library, name = (folder.classes | folder.others)[part]
    kind = getattr(_LIBRARIES[library], name, None)
    if kind is None:
        version = _LIBRARIES[library].__version__
        raise folder.refusal(
            f"model_index.json names a {name} of {library} as its {part}, which {library} {version}"
            f" does not have; {WAY_OUT}"
        )
    return kind


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


def _load_part(folder: PipelineFolder, part: str) -> nn.Module:
    """A part of a pipeline, all of whose weights are its own, and numbers.

    Raises:
        InvalidRequest: it cannot be made of its configuration, or weights are missing, of other
            shapes, of layers that it does not have, NaN or infinite.
    """
    kind = _class(folder, part)
    options: dict[str, Any] = {"subfolder": part}
    with _naming(folder, f"its {part} cannot be made of {part}/config.json"):
        if issubclass(kind, diffusers.ModelMixin):
            config = kind.load_config(folder.path, **options)
            build = kind.from_config
            dtype = "torch_dtype"
        else:
            config = kind.config_class.from_pretrained(folder.path, **options)
            build = kind
            dtype = "dtype"
            options["ignore_mismatched_sizes"] = True  # otherwise their names are not told
        with torch.device("meta"):
            network = build(config)
    shapes = folder.shapes(part)
    # Diffusers tells the first alone, and transformers would fill theirs at random.
    mismatched = [
        (name, shapes[name], weight.shape)
        for name, weight in network.state_dict().items()
        if name in shapes and shapes[name] != tuple(weight.shape)
    ]
    _refuse(folder, part, fault([], [], mismatched))
    options |= {dtype: torch.float32, "use_safetensors": True}
    with _naming(folder, f"its {part} cannot be loaded"):
        module, found = kind.from_pretrained(folder.path, output_loading_info=True, **options)
    unexpected = found["unexpected_keys"]
    weights = module.state_dict()
    if part in ENCODER_OF.values():
        unexpected = further_layers(unexpected, weights)
    _refuse(folder, part, fault(found["missing_keys"], unexpected, found["mismatched_keys"]))
    _refuse(folder, part, damage(weights.items(), folder.headers(part)))
    loaded: nn.Module = module
    return loaded


def _refuse(folder: PipelineFolder, part: str, reason: str) -> None:
    if reason:
        raise folder.refusal(f"its {part} {reason}; fetch or write it anew")


def _check_tokenizer(folder: PipelineFolder, name: str, tokenizer: Any, encoder: nn.Module) -> None:
    """See that what it makes of texts can be read by the text encoder beside it.

    Raises:
        InvalidRequest: it knows no words, as one does that transformers 5 makes of missing files,
            more than the encoder, or gives longer texts than that reads.
    """
    words = tokenizer.get_vocab()
    if set(words) <= set(tokenizer.all_special_tokens):
        raise folder.refusal(f"its {name} has no words: are all of its files there?")
    config: Any = encoder.config
    if max(words.values()) >= config.vocab_size:
        raise folder.refusal(
            f"its {name} knows {max(words.values()) + 1} words and its {ENCODER_OF[name]} only "
            f"{config.vocab_size}: one of the two is another model's"
        )
    longest = tokenizer.model_max_length
    if not isinstance(longest, int) or not 0 < longest <= config.max_position_embeddings:
        raise folder.refusal(
            f"its {name} has a model_max_length of {longest!r}, but its {ENCODER_OF[name]} reads "
            f"{config.max_position_embeddings} tokens: set it to that in "
            f"{name}/tokenizer_config.json"
        )
