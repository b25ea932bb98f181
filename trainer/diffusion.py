"""A StableDiffusionPipeline taken apart into what reinforcement learning needs of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from salon.errors import InvalidRequest
from trainer.seeds import derive_seed

ADAPTER = "default"


class Diffusion:
    """Prompts in, uint8 images out; the UNet is what training changes, all else is frozen.

    Everything is in fp32: the log-probabilities of reduced precision differ from themselves by
    more than the clip range.

    Args:
        pipeline: of Stable Diffusion 1.x's shape.
        device: where everything runs.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, device: str | torch.device = "cpu"
    ) -> None:
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            # Evaluation mode throughout: dropout would make a step's ratio differ from 1.
            module.eval()
            module.requires_grad_(module is pipeline.unet)
        self.pipeline = pipeline
        self.unet = pipeline.unet
        self.device = torch.device(device)
        # Latents are not bounded by ±1 as pixels are, hence no clipping of predicted samples.
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        self._embeddings: dict[str, Tensor] = {}

    @classmethod
    def load(cls, model: str, device: str | torch.device = "cpu") -> Self:
        """Load a diffusers folder, or a model of the hub by its id, from safetensors alone.

        The safety checker is left out: it blacks out images, which no reward should see.

        Raises:
            InvalidRequest: there is no such model, or it is no StableDiffusionPipeline, or its
                weights are not safetensors.
        """
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                model,
                dtype=torch.float32,
                use_safetensors=True,
                safety_checker=None,
                requires_safety_checker=False,
            )
        except (OSError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InvalidRequest(
                f"model {model!r} cannot be loaded as a StableDiffusionPipeline: {reason}; give a "
                "folder that has a model_index.json, or a hub id, with weights in safetensors"
            ) from error
        return cls(pipeline, device)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one sample's latents."""
        config = self.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def has_lora(self) -> bool:
        """Whether training changes adapters rather than the UNet's own weights."""
        return ADAPTER in getattr(self.unet, "peft_config", {})

    def add_lora(
        self, *, rank: int, alpha: float, target_modules: Sequence[str], seed: int
    ) -> None:
        """Freeze the UNet and put a trainable low-rank adapter on its linear layers.

        Raises:
            InvalidRequest: no layer of the UNet is called as `target_modules` says.
        """
        self.unet.requires_grad_(False)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=list(target_modules),
            init_lora_weights="gaussian",
        )
        # peft draws from the global generators; lend it forked ones that depend on the seed alone.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "lora"))
            try:
                self.unet.add_adapter(config, adapter_name=ADAPTER)
            except ValueError as error:
                raise InvalidRequest(
                    f"lora.target_modules {list(target_modules)}: {error}"
                ) from error

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of those that training changes, in a fixed order."""
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """[N, L, D] text embeddings; the text encoder sees each distinct prompt once.

        It sees it alone: rounding depends on the batch, and a resumed run forms other batches.
        """
        for prompt in set(prompts) - self._embeddings.keys():
            self._embeddings[prompt], _ = self.pipeline.encode_prompt(
                prompt, self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return torch.cat([self._embeddings[prompt] for prompt in prompts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents [N, C, h, w] to images uint8 [N, H, W, 3]."""
        scaled = latents / self.pipeline.vae.config.scaling_factor
        return to_uint8(self.pipeline.vae.decode(scaled, return_dict=False)[0])

    def save(self, folder: Path) -> None:
        """Write what was trained into `folder`, as safetensors.

        The whole pipeline, for `StableDiffusionPipeline.from_pretrained(folder)`; or with LoRA the
        adapter alone, `pytorch_lora_weights.safetensors`, for `load_lora_weights(folder)`.
        """
        if self.has_lora:
            layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
            StableDiffusionPipeline.save_lora_weights(
                folder,
                unet_lora_layers=layers,
                # Readers take alpha from here; without it they assume alpha = rank.
                unet_lora_adapter_metadata=self.unet.peft_config[ADAPTER].to_dict(),
            )
            return
        self.pipeline.save_pretrained(folder, safe_serialization=True)
        # transformers 5 writes tokenizer.json alone; releases before it read these two files.
        self.pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels [N, 3, H, W] in [-1, 1] to uint8 [N, H, W, 3], by rounding, not truncation.

    Rounding is what diffusers and kvablack/ddpo-pytorch do before they score a JPEG's size.
    """
    scaled = (pixels / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
