"""The folder of a diffusers pipeline, as far as it can be judged without torch.

`salon submit` asks it about a local folder, and the trainer about any before it reads weights.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from salon.checkpoint_keys import fault, odd_types
from salon.errors import InvalidRequest
from salon.wire.images.limits import ImageLimits
from trainer.runtime.safetensors_header import read_header, weight_files

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
XL = KINDS[1]
WAY_OUT = "give a folder or a hub id of a diffusers pipeline, with weights in safetensors"

_STEMS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""Parts that have weights, and how the files of those are called."""

_OWN = ("weight", "bias")
"""How the names of their weights end, of all of these parts."""

_NOISE = "scheduler/scheduler_config.json"
ENCODER_OF = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}

# What the classes take where a config.json leaves a key out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "unet": {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280},
    "vae": {"latent_channels": 4},
    "text_encoder": {"hidden_size": 512, "projection_dim": 512},
    "text_encoder_2": {"hidden_size": 512, "projection_dim": 512},
}

_NOT_DRAWN = {
    "time_cond_proj_dim": "it is distilled to be told the guidance scale, as LCM's are: take the "
    "model that it was distilled from",
    "class_embed_type": "it wants to be told a class",
    "num_class_embeds": "it wants to be told a class",
}
"""Of a UNet's config.json: inputs that text alone does not give."""

_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
_OF_BETAS = frozenset(
    (
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    )
)
"""Schedulers that add the same noise for the same keys, so that one reads another's."""


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1e9


_Rule = tuple[Callable[[Any], bool], str]
_WHOLE: _Rule = (_is_whole, "it is a whole number above 0")
_BOOL: _Rule = (lambda value: isinstance(value, bool), "it is true or false")


def _one_of(*names: str) -> _Rule:
    return lambda value: value in names, f"known are {', '.join(names)}"


_ENCODER: dict[str, _Rule] = {
    "hidden_size": _WHOLE,
    "num_hidden_layers": _WHOLE,
    "eos_token_id": (
        lambda value: _is_number(value) and value == int(value) >= 0,
        "it is the number of a word",
    ),
}

_RULES: dict[str, dict[str, _Rule]] = {
    "unet/config.json": {
        "norm_eps": (
            lambda value: _is_number(value) and 0 < value < 1,
            "it is a number from 0 to 1, 1e-05 for all of Stable Diffusion",
        ),
        "center_input_sample": _BOOL,
        "flip_sin_to_cos": _BOOL,
        "freq_shift": (_is_number, "it is a number, 0 for all of Stable Diffusion"),
    },
    "vae/config.json": {
        "scaling_factor": (
            lambda value: _is_number(value) and value > 0,
            "it is a number above 0, 0.18215 for Stable Diffusion and 0.13025 for XL",
        ),
        "shift_factor": (
            lambda value: value is None or _is_number(value),
            "it is a number, and null for all of Stable Diffusion",
        ),
        "force_upcast": _BOOL,
    },
    "text_encoder/config.json": _ENCODER,
    "text_encoder_2/config.json": {**_ENCODER, "projection_dim": _WHOLE},
    _NOISE: {
        "prediction_type": _one_of("epsilon", "v_prediction", "sample"),
        "num_train_timesteps": (
            lambda value: _is_whole(value) and value <= 100_000,
            "it is a whole number above 0, 1000 for all of Stable Diffusion",
        ),
        "timestep_spacing": _one_of("leading", "linspace", "trailing"),
        "steps_offset": (
            lambda value: value == 0 or _is_whole(value),
            "it is a whole number from 0 on, 1 for all of Stable Diffusion",
        ),
        "set_alpha_to_one": _BOOL,
        "rescale_betas_zero_snr": _BOOL,
    },
}
"""What is computed with, where a file has it: what it must be, and in words."""


class PipelineFolder:
    """`path`, which the user called `model`.

    Raises:
        InvalidRequest: it has no model_index.json of a Stable Diffusion 1.x, 2.x or XL pipeline.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self._model = model
        if not (path / "model_index.json").is_file():
            raise self.refusal(f"it has no model_index.json; {WAY_OUT}")
        index = self._json("model_index.json")
        self.kind = str(index.get("_class_name"))
        if self.kind not in KINDS:
            raise self.refusal(f"it is a {self.kind}; {WAY_OUT}")
        self.classes = self._classes(index, _STEMS)
        """Library and class of each part that has weights."""
        self.others = self._classes(index, ("scheduler", *ENCODER_OF))
        """Of those that have none."""

    def _classes(self, index: dict[str, Any], parts: Iterable[str]) -> dict[str, tuple[str, str]]:
        classes = {}
        for part in parts:
            match index.get(part):
                case [("diffusers" | "transformers") as library, str(name)]:
                    classes[part] = library, name
                case [str(library), str(name)]:
                    raise self.refusal(
                        f"its {part} is a {name} of {library}, code of its own; {WAY_OUT}"
                    )
                case _:  # [null, null]: this pipeline has none
                    continue
        return classes

    def refusal(self, reason: str) -> InvalidRequest:
        """The error that says so of this model."""
        cached = "" if str(self.path) == self._model else f" (in the hub's cache, {self.path})"
        return InvalidRequest(
            f"model {self._model!r}{cached} cannot be loaded as a {' or a '.join(KINDS)}: {reason}"
        )

    def check(self, steps: int = 1) -> None:
        """See that it can be drawn with, in so many steps.

        Raises:
            InvalidRequest: a part, its weights or its configuration is missing or broken, or the
                configuration asks for what a text does not give, or parts do not fit together.
        """
        if "text_encoder" not in self.classes:
            raise self.refusal(
                "it has no text_encoder: it refines images, and draws none; take the base model"
            )
        parts = self.classes.keys() | self.others.keys()
        tokenizers = [name for name, encoder in ENCODER_OF.items() if encoder in parts]
        xl = ("text_encoder_2",) if self.kind == XL else ()
        for part in ("unet", "vae", *xl, *tokenizers, "scheduler"):
            if part not in parts:
                raise self.refusal(f"its model_index.json names no {part}; {WAY_OUT}")
        for part in self.classes:
            types = {
                name: tensor["dtype"]
                for header in self.headers(part).values()
                for name, tensor in header.items()
            }
            if reason := fault([], [], [], odd_types(types, _OWN)):
                raise self.refusal(f"its {part} {reason}")
        configs = {part: _DEFAULTS[part] | self._config(part) for part in self.classes}
        noise = self._json(_NOISE)
        files = {f"{part}/config.json": config for part, config in configs.items()}
        files[_NOISE] = noise
        odd = [oddity for file in files if (oddity := self._file_oddity(file, files[file]))]
        if reason := "".join(odd[:1]) or self._oddity(configs) or _noise_oddity(noise, steps):
            raise self.refusal(reason)

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The weights of a part by name, each with its shape.

        Raises:
            InvalidRequest: the files of its weights are missing or broken.
        """
        return {
            name: tuple(tensor["shape"])
            for header in self.headers(part).values()
            for name, tensor in header.items()
        }

    def headers(self, part: str) -> dict[str, dict[str, Any]]:
        """What each file of a part's weights says of them, by its path in this folder.

        Raises:
            InvalidRequest: one is missing or broken.
        """
        folder, stem = self.path / part, _STEMS[part]
        try:
            files = weight_files(folder, stem)
        except (OSError, ValueError) as error:
            raise self.refusal(f"in {part}/ {error}; fetch or write it anew") from None
        if not files or not all(file.is_file() for file in files):
            raise self.refusal(self._absence(part, [f for f in files if not f.is_file()]))
        return {str(file.relative_to(self.path)): self._header(file) for file in files}

    def _absence(self, part: str, missing: list[Path]) -> str:
        folder, stem = self.path / part, _STEMS[part]
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        pattern = re.compile(rf"{stem}\.([\w-]+?)(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?")
        if variants := sorted({match[1] for name in names if (match := pattern.fullmatch(name))}):
            return (
                f"its {part} has only the variant {' and '.join(variants)}: load it with "
                f"DiffusionPipeline.from_pretrained(folder, variant={variants[0]!r}) and write it "
                "anew with save_pretrained"
            )
        if pickles := [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]:
            return (
                f"the weights of its {part} are a pickle, {pickles[0]}, which may hold code: "
                "convert them to safetensors, with save_pretrained of whoever trusts them"
            )
        wanted = missing[0].name if missing else f"{stem}.safetensors"
        return f"its {part} has no weights: there is no {part}/{wanted}; fetch or write it anew"

    def _header(self, path: Path) -> dict[str, Any]:
        try:
            return read_header(path)
        except (OSError, ValueError) as error:
            name = path.relative_to(self.path)
            raise self.refusal(f"{name} cannot be read: {error}; fetch or write it anew") from None

    def _config(self, part: str) -> dict[str, Any]:
        config = self._json(f"{part}/config.json")
        whole = config.get("text_config")  # of a CLIP model of which only the text half is read
        return whole if isinstance(whole, dict) else config

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise self.refusal(f"{name} cannot be read: {reason}; fetch or write it anew") from None
        if not isinstance(found, dict):
            raise self.refusal(f"{name} is no JSON object; fetch or write it anew")
        return found

    def _file_oddity(self, file: str, config: Mapping[str, Any]) -> str:
        """What is wrong with a configuration by itself; empty if nothing is."""
        part = file.partition("/")[0]
        named = (self.classes | self.others)[part][1]
        own = config.get("_class_name", named)  # those of 2022 may have none
        if str(own).removeprefix("Flax") != named and not {str(own), named} <= _OF_BETAS:
            return (
                f"{file} has _class_name {own!r:.100}, but model_index.json names a {named}: one of"
                " the two is another model's"
            )
        for key, (fits, words) in _RULES[file].items():
            if key in config and not fits(config[key]):
                return f"{file} has {key} {config[key]!r:.100}: {words}"
        known, end = config.get("vocab_size", 49408), config.get("eos_token_id", 0)
        if part in ENCODER_OF.values() and _is_whole(known) and end >= known:
            return f"{file} has eos_token_id {end}, but a vocab_size of {known}: no text ends in it"
        return ""

    def _oddity(self, configs: dict[str, dict[str, Any]]) -> str:
        """What cannot be drawn with these configurations; empty if all can be."""
        unet, vae = configs["unet"], configs["vae"]
        where = "unet/config.json has"
        for key, reason in _NOT_DRAWN.items():
            if unet.get(key) is not None:
                return f"{where} {key} {unet[key]!r}: {reason}"
        projection = unet.get("encoder_hid_dim_type")
        if projection not in (None, "text_proj"):
            return (
                f"{where} encoder_hid_dim_type {projection!r}: it wants an image with the text; "
                "take the model without that adapter"
            )
        added = unet.get("addition_embed_type")
        if added not in (("text_time",) if self.kind == XL else (None, "text")):
            return (
                f"{where} addition_embed_type {added!r}, which is not what a {self.kind} gives; "
                f"{WAY_OUT}"
            )
        channels = vae["latent_channels"]
        for key in ("in_channels", "out_channels"):
            if unet[key] != channels:
                return (
                    f"{where} {key} {unet[key]!r}, but vae/config.json latent_channels {channels}: "
                    "it is no model of text alone (inpainting has 9, instruction editing 8), or "
                    "one of the two is another model's"
                )
        return _size_oddity(unet, vae) or _width_oddity(configs, where)


def _noise_oddity(config: dict[str, Any], steps: int) -> str:
    """Of a scheduler's noise: what neither DDIM nor DDPM can be made of, or take `steps` with."""
    where = f"{_NOISE} has"
    total, offset = config.get("num_train_timesteps", 1000), config.get("steps_offset", 0)
    if steps > total:
        return f"{where} num_train_timesteps {total}, fewer than sampling_steps {steps}"
    leading = config.get("timestep_spacing", "leading") == "leading"
    if leading and total // steps * (steps - 1) + offset >= total:
        return (
            f"{where} steps_offset {offset}, by which the first of {steps} sampling_steps lies "
            f"beyond its num_train_timesteps {total}: take fewer steps, or an offset of 0"
        )
    return _beta_oddity(config, total)


def _beta_oddity(config: dict[str, Any], total: int) -> str:
    where = f"{_NOISE} has"
    betas = config.get("trained_betas")
    if betas is None:
        keys = ("beta_schedule", "beta_start", "beta_end")
        if missing := [key for key in keys if key not in config]:
            return (
                f"{_NOISE} lacks {' and '.join(missing)}, without which nobody knows the noise "
                "that the model was trained with: fetch or write it anew"
            )
        schedule = config["beta_schedule"]
        if schedule not in _BETAS:
            return (
                f"{where} beta_schedule {schedule!r}; known are {', '.join(_BETAS)}, and that of "
                "Stable Diffusion is scaled_linear"
            )
        betas = [config["beta_start"], config["beta_end"]]
    elif not isinstance(betas, list) or len(betas) != total:
        return f"{where} trained_betas that are no list of {total} numbers, its num_train_timesteps"
    for beta in betas:
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
            return f"{where} a beta of {beta!r}: it is the share of noise of a step, 0 to 1"
    return ""


def _size_oddity(unet: dict[str, Any], vae: dict[str, Any]) -> str:
    size: Any = unet.get("sample_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    blocks = vae.get("block_out_channels")
    factor = 2 ** min(len(blocks) - 1, 16) if isinstance(blocks, list) else 1
    if not all(map(_is_whole, sides)):
        return (
            f"unet/config.json has sample_size {size!r:.100}, so that nobody knows how large to "
            f"draw: set it to the image's side over {factor}, or to [height, width] of such, e.g. "
            f"{512 // factor} for 512 x 512"
        )
    limits = ImageLimits()
    height, width = (side * factor for side in (sides[0], sides[-1]))
    if max(height, width) > limits.max_side or height * width > limits.max_pixels:
        return (
            f"unet/config.json has sample_size {size!r:.100}, for images of {height} x {width}: "
            f"no service takes more than {limits.max_side} a side and {limits.max_pixels} pixels"
        )
    return ""


def _width_oddity(configs: dict[str, dict[str, Any]], where: str) -> str:
    """Of texts that are wider or narrower than what the UNet reads."""
    unet = configs["unet"]
    encoders = [configs[part] for part in ENCODER_OF.values() if part in configs]
    width = sum(config["hidden_size"] for config in encoders)
    projects = unet.get("encoder_hid_dim") is not None
    key = "encoder_hid_dim" if projects else "cross_attention_dim"
    widths = unet[key] if isinstance(unet[key], list) else [unet[key]]
    if any(own != width for own in widths):
        return (
            f"{where} {key} {unet[key]!r}, but its text encoders give vectors of {width}: one of "
            "them is another model's"
        )
    if unet.get("addition_embed_type") == "text_time":
        if not _is_whole(time := unet.get("addition_time_embed_dim")):
            return f"{where} addition_time_embed_dim {time!r}: it is a whole number above 0"
        told = 6 * time + configs["text_encoder_2"]["projection_dim"]
        key = "projection_class_embeddings_input_dim"
        if unet.get(key) != told:
            return (
                f"{where} {key} {unet.get(key)!r}, but is told {told} numbers, of six sizes and a "
                "text: it refines images, or one of its parts is another model's"
            )
    return ""
