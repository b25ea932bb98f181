"""The first stage of latent diffusion: a small AutoencoderKL, 32x32 RGB to latents of 4x8x8."""

import structlog
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from tiny.digits import SIZE, Handwriting, draw, random_scenes
from tiny.schedule import cosine_with_warmup

log = structlog.get_logger()

KL_WEIGHT = 1e-3
"""About the evidence lower bound of a Laplace likelihood of scale 0.012 on pixels in -1..1."""


def to_model_range(images: Tensor) -> Tensor:
    """Pixels as the models take them: uint8 0..255 to float32 -1..1."""
    return images.float() / 127.5 - 1


def build_autoencoder() -> AutoencoderKL:
    """An untrained AutoencoderKL that makes images four times smaller along each side."""
    channels = (16, 32, 64)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=SIZE,
        layers_per_block=1,
        block_out_channels=channels,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    )


def train_autoencoder(
    writing: Handwriting, steps: int, batch: int, generator: torch.Generator
) -> AutoencoderKL:
    """Train on freshly drawn images, and set `scaling_factor` so that latents have unit std.

    The loss is L1 on pixels plus `KL_WEIGHT` times the mean KL divergence of a latent element
    from a standard normal (Rombach et al. 2022, https://arxiv.org/abs/2112.10752, appendix G).
    """
    autoencoder = build_autoencoder().train()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=2e-3, weight_decay=0)
    schedule = cosine_with_warmup(optimizer, steps)
    for step in range(steps):
        images = draw(random_scenes(batch, generator), writing, generator)
        pixels = to_model_range(images)
        posterior = autoencoder.encode(pixels).latent_dist
        decoded = autoencoder.decode(posterior.sample(generator)).sample
        error = functional.l1_loss(decoded, pixels)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        (error + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log.info("autoencoder", step=step, l1=round(error.item(), 4), kl=round(kl.item(), 3))
    autoencoder.eval().requires_grad_(False)
    mean, std = encode(autoencoder, draw(random_scenes(1024, generator), writing, generator))
    latents = mean + std * torch.randn(mean.shape, generator=generator)
    autoencoder.register_to_config(scaling_factor=1 / latents.std().item())
    return autoencoder


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each float32 [N, 4, 8, 8], of the latents of uint8 images."""
    parts = [
        autoencoder.encode(to_model_range(part)).latent_dist for part in torch.split(images, 256)
    ]
    return torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])
