"""The folder of a diffusers pipeline, as far as it can be judged without torch.

`salon submit` asks it about a local folder, and the trainer about any before it reads weights.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from salon.checkpoint_keys import fault, odd_types
from salon.errors import InvalidRequest
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

_PREDICTIONS = (None, "epsilon", "v_prediction", "sample")  # without one it is epsilon
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")

# Of config.json: what is counted with here, before a class of transformers sees it.
_WIDTHS = {"text_encoder": ("hidden_size",), "text_encoder_2": ("hidden_size", "projection_dim")}


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

    def check(self) -> None:
        """See that it can be drawn with.

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
        noise = self._json("scheduler/scheduler_config.json")
        if reason := self._oddity(configs) or _noise_oddity(noise):
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


def _noise_oddity(config: dict[str, Any]) -> str:
    """Of a scheduler's noise: what neither DDIM nor DDPM can be made of."""
    where = "scheduler/scheduler_config.json has"
    prediction = config.get("prediction_type")
    if prediction not in _PREDICTIONS:
        return f"{where} prediction_type {prediction!r}; known are epsilon, v_prediction and sample"
    steps = config.get("num_train_timesteps", 1000)
    if not _is_whole(steps):
        return (
            f"{where} num_train_timesteps {steps!r}: it is a whole number above 0, 1000 for all of "
            "Stable Diffusion"
        )
    betas = config.get("trained_betas")
    if betas is None:
        schedule = config.get("beta_schedule", "linear")
        if schedule not in _BETAS:
            return (
                f"{where} beta_schedule {schedule!r}; known are {', '.join(_BETAS)}, and that of "
                "Stable Diffusion is scaled_linear"
            )
        betas = [config.get("beta_start", 0.0001), config.get("beta_end", 0.02)]
    elif not isinstance(betas, list) or len(betas) != steps:
        return f"{where} trained_betas that are no list of {steps} numbers, its num_train_timesteps"
    for beta in betas:
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta <= 1:
            return f"{where} a beta of {beta!r}: it is the share of noise of a step, 0 to 1"
    return ""


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _size_oddity(unet: dict[str, Any], vae: dict[str, Any]) -> str:
    size = unet.get("sample_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if all(isinstance(side, int) and side > 0 for side in sides):
        return ""
    blocks = vae.get("block_out_channels")
    factor = 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 1
    return (
        f"unet/config.json has sample_size {size!r}, so that nobody knows how large to draw: set it"
        f" to the image's side over {factor}, or to [height, width] of such, e.g. {512 // factor} "
        "for 512 x 512"
    )


def _width_oddity(configs: dict[str, dict[str, Any]], where: str) -> str:
    """Of texts that are wider or narrower than what the UNet reads."""
    unet = configs["unet"]
    for part, keys in _WIDTHS.items():
        for key in keys if part in configs else ():
            if not _is_whole(value := configs[part][key]):
                return f"{part}/config.json has {key} {value!r}: it is a whole number above 0"
    encoders = [configs[part] for part in _WIDTHS if part in configs]
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
