"""A Stable Diffusion pipeline taken apart into what reinforcement learning needs of it."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from numpy.typing import NDArray
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from salon.errors import SalonError
from trainer.denoising.conditioning import Conditioning
from trainer.denoising.lora import ADAPTER, add_lora, has_lora
from trainer.denoising.pipelines.loading import TOKENIZERS, load_pipeline
from trainer.denoising.pipelines.prompt_reading import PromptReader
from trainer.denoising.precision import Precision, autocast, freeze_in


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
            InvalidRequest: as `load_pipeline` does.
        """
        return cls(load_pipeline(model), device)

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

    def use_scheduler(self, name: Literal["ddim", "ddpm"]) -> DDIMScheduler | DDPMScheduler:
        """The same, in the place of the model's own: what is saved draws as it was trained to.

        Raises:
            ValueError: as `scheduler` does.
        """
        self.pipeline.scheduler = self.scheduler(name)
        return self.pipeline.scheduler

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one sample's latents."""
        config = self.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @property
    def prompt_reader(self) -> PromptReader:
        """Tells what the text encoders read of prompts."""
        tokenizers = [getattr(self.pipeline, name, None) for name in TOKENIZERS]
        return PromptReader([tokenizer for tokenizer in tokenizers if tokenizer is not None])

    def add_lora(
        self, *, rank: int, alpha: float, target_modules: Sequence[str], seed: int
    ) -> None:
        """Freeze the UNet, in the precision set, and give it adapters; see `add_lora`."""
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
                "the model draws pixels that are no finite numbers: before the first update its "
                "folder is damaged; after it training diverged: lower learning_rate or, if "
                f"precision {self.precision} overflows, take a wider one"
            )
        return to_uint8(pixels.float())

    def save(self, folder: Path) -> None:
        """Write what was trained into `folder`, as safetensors, with the scheduler in use.

        The whole pipeline, for its class's `from_pretrained(folder)`; or with LoRA the adapter,
        `pytorch_lora_weights.safetensors`, for `load_lora_weights(folder)`, and `scheduler/`.
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
            self.pipeline.scheduler.save_pretrained(folder / "scheduler")
            return
        self.pipeline.save_pretrained(folder, safe_serialization=True)
        for name in TOKENIZERS:
            if tokenizer := getattr(self.pipeline, name, None):
                # transformers 5 writes tokenizer.json alone; releases before it read two files.
                tokenizer.backend_tokenizer.model.save(str(folder / name))


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels [N, 3, H, W] in [-1, 1] to uint8 [N, H, W, 3], by rounding, not truncation.

    Rounding is what diffusers and kvablack/ddpo-pytorch do before they score a JPEG's size.
    """
    scaled = (pixels / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
