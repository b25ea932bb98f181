"""A Stable Diffusion pipeline taken apart into what reinforcement learning needs of it."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from salon.checkpoint_keys import Mismatch, fault, further_layers
from salon.errors import InvalidRequest, SalonError
from trainer.conditioning import Conditioning
from trainer.hub import unreachable
from trainer.lora import ADAPTER, add_lora, has_lora
from trainer.pipeline_folder import PipelineFolder
from trainer.precision import Precision, autocast, freeze_in

# The safety checker is left out: it blacks out images, which no reward should see. A watermark
# changes them, too.
_OPTIONS: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}

_LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
_ENCODER_OF = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
_TOKENIZERS = tuple(_ENCODER_OF)


class Diffusion:
    """Prompts in, uint8 images out; the UNet is what training changes, all else is frozen.

    Weights are in fp32, but for those of a UNet that is frozen in reduced precision.

    Args:
        pipeline: of Stable Diffusion 1.x, 2.x or XL.
        device: where everything runs.

    Attributes:
        precision: of the UNet's and the VAE's arithmetic, to be set before adapters are added. The
            text encoders stay at fp32: they see each prompt only once.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
        device: str | torch.device = "cpu",
    ) -> None:
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                # Evaluation mode throughout: dropout would make a step's ratio differ from 1.
                module.eval()
                module.requires_grad_(module is pipeline.unet)
        self.pipeline = pipeline
        self.unet = pipeline.unet
        self.device = torch.device(device)
        self.precision: Precision = "fp32"
        self._is_xl = isinstance(pipeline, StableDiffusionXLPipeline)
        self._encoded: dict[str, Conditioning] = {}

    @classmethod
    def load(cls, model: str, device: str | torch.device = "cpu") -> Self:
        """Load a diffusers folder, or a model of the hub by its id, from safetensors alone.

        Raises:
            InvalidRequest: there is no such model, or it is none of Stable Diffusion 1.x, 2.x and
                XL, its weights are not safetensors, a file is missing or broken, a part's weights
                are not those of its configuration, or it cannot be drawn with; see
                `trainer.pipeline_folder`.
        """
        folder = _folder(model)
        folder.check()
        kind = getattr(diffusers, folder.kind)
        try:
            parts = {
                part: _load_part(getattr(_LIBRARIES[library], name), folder, part)
                for part, (library, name) in folder.classes.items()
            }
            pipeline = kind.from_pretrained(
                folder.path, dtype=torch.float32, **parts, **_OPTIONS[folder.kind]
            )
            for name in _TOKENIZERS:
                if tokenizer := getattr(pipeline, name, None):
                    _check_tokenizer(name, tokenizer, getattr(pipeline, _ENCODER_OF[name]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            raise folder.refusal(str(error).strip().splitlines()[0]) from error
        return cls(pipeline, device)

    def scheduler(self, name: Literal["ddim", "ddpm"]) -> DDIMScheduler | DDPMScheduler:
        """That scheduler with the noise schedule of the model's own.

        Raises:
            ValueError: the model's scheduler has no such noise schedule.
        """
        config = self.pipeline.scheduler.config
        if "beta_schedule" not in config:
            raise ValueError(
                f"the model's scheduler, {type(self.pipeline.scheduler).__name__}, has no betas: "
                "neither DDIM nor DDPM can take its place; use a model of Stable Diffusion's kind"
            )
        kind = DDIMScheduler if name == "ddim" else DDPMScheduler
        # Latents are not bounded by ±1 as pixels are, hence no clipping of predicted samples.
        return kind.from_config(config, clip_sample=False, thresholding=False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one sample's latents."""
        config = self.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def add_lora(
        self, *, rank: int, alpha: float, target_modules: Sequence[str], seed: int
    ) -> None:
        """Freeze the UNet, in the precision set, and give it adapters; see `trainer.lora`."""
        freeze_in(self.unet, self.precision)
        add_lora(self.unet, rank=rank, alpha=alpha, target_modules=target_modules, seed=seed)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of those that training changes, in a fixed order."""
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Of N prompts; the text encoders see each distinct prompt once.

        They see it alone: rounding depends on the batch, and a resumed run forms other batches.
        """
        for prompt in set(prompts) - self._encoded.keys():
            encoded = self.pipeline.encode_prompt(
                prompt=prompt,
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            if self._is_xl:
                self._encoded[prompt] = Conditioning(encoded[0], encoded[2], self._time_ids())
            else:
                self._encoded[prompt] = Conditioning(encoded[0])
        return Conditioning.cat([self._encoded[prompt] for prompt in prompts])

    def _time_ids(self) -> Tensor:
        """[1, 6] fp32: an image of full size, not cropped, as the pipeline asks for by default."""
        size = [side * self.pipeline.vae_scale_factor for side in self.latent_shape[1:]]
        return torch.tensor([[*size, 0, 0, *size]], device=self.device).float()

    def unconditional(self) -> Conditioning:
        """Of one sample: what classifier-free guidance takes for no prompt.

        The empty prompt, or where Stable Diffusion XL was trained so, zeros.
        """
        empty = self.encode([""])
        if empty.pooled is None or not self.pipeline.config.force_zeros_for_empty_prompt:
            return empty
        return Conditioning(
            torch.zeros_like(empty.embeddings), torch.zeros_like(empty.pooled), empty.time_ids
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents fp32 [N, C, h, w] to images uint8 [N, H, W, 3].

        Raises:
            SalonError: pixels are not finite; as uint8 they would be a black image, with a score.
        """
        vae = self.pipeline.vae
        scaled = latents / vae.config.scaling_factor
        deviation = getattr(vae.config, "latents_std", None)
        if self._is_xl and deviation is not None:
            mean = latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
            scaled = scaled * latents.new_tensor(deviation).view(1, -1, 1, 1) + mean
        # Stable Diffusion XL's own VAE overflows in fp16, which is what force_upcast says.
        exact = self._is_xl and vae.config.force_upcast
        with nullcontext() if exact else autocast(self.precision, self.device):
            pixels = vae.decode(scaled, return_dict=False)[0]
        if not torch.isfinite(pixels).all():
            raise SalonError(
                "the model draws pixels that are no finite numbers: training diverged; lower "
                f"learning_rate or, if precision {self.precision} overflows, take a wider one"
            )
        return to_uint8(pixels.float())

    def save(self, folder: Path) -> None:
        """Write what was trained into `folder`, as safetensors.

        The whole pipeline, for its class's `from_pretrained(folder)`; or with LoRA the adapter
        alone, `pytorch_lora_weights.safetensors`, for `load_lora_weights(folder)`.
        """
        if has_lora(self.unet):
            # As convert_state_dict_to_diffusers has it, which knows the names of attention alone;
            # readers take all names to be of one kind, and would leave out those of the other.
            layers = {
                name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): weight
                for name, weight in get_peft_model_state_dict(self.unet).items()
            }
            self.pipeline.save_lora_weights(
                folder,
                unet_lora_layers=layers,
                # Readers take alpha from here; without it they assume alpha = rank.
                unet_lora_adapter_metadata=self.unet.peft_config[ADAPTER].to_dict(),
            )
            return
        self.pipeline.save_pretrained(folder, safe_serialization=True)
        for name in _TOKENIZERS:
            if tokenizer := getattr(self.pipeline, name, None):
                # transformers 5 writes tokenizer.json alone; releases before it read two files.
                tokenizer.backend_tokenizer.model.save(str(folder / name))


def _folder(model: str) -> PipelineFolder:
    """Where the files of `model` are, which may first have to come from the hub.

    Raises:
        InvalidRequest: there is no such model, or it is of another kind.
    """
    if Path(model).is_dir():
        return PipelineFolder(Path(model), model)
    try:
        index = hf_hub_download(model, "model_index.json")
        kind = PipelineFolder(Path(index).parent, model).kind
        download = getattr(diffusers, kind).download
        return PipelineFolder(Path(download(model, use_safetensors=True, **_OPTIONS[kind])), model)
    except (OSError, ValueError) as error:
        reason = unreachable(error) or str(error).strip().splitlines()[0]
        raise InvalidRequest(
            f"model {model!r} cannot be loaded: {reason}; give a folder that has a "
            "model_index.json, or a hub id, with weights in safetensors"
        ) from error


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


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels [N, 3, H, W] in [-1, 1] to uint8 [N, H, W, 3], by rounding, not truncation.

    Rounding is what diffusers and kvablack/ddpo-pytorch do before they score a JPEG's size.
    """
    scaled = (pixels / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
