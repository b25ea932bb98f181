"""Stable Diffusion pipelines with random weights: one for two CPU cores, and SD 1.5's size."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tiny.tokenizer import write_tokenizer

# 1.06 million parameters of the UNet, latents 4 x 16 x 16, images 32 x 32.
TINY: dict[str, dict[str, Any]] = {
    "unet": {
        **{"sample_size": 16, "layers_per_block": 1, "block_out_channels": (32, 64)},
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        **{"cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 16},
    },
    "vae": {
        **{"sample_size": 32, "layers_per_block": 1, "block_out_channels": (16, 32)},
        **{"latent_channels": 4, "norm_num_groups": 8},
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "text_encoder": {
        **{"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16},
    },
}
# As the config.json files of stable-diffusion-v1-5 have it; what they leave to diffusers' defaults
# (four blocks of two layers, 320 to 1280 channels, 8 heads) is left to them here, too.
SD15: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": {
        **{"sample_size": 512, "layers_per_block": 2, "latent_channels": 4},
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    "text_encoder": {
        **{"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768},
        **{"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77},
    },
}
CONFIGURATIONS = {"tiny": TINY, "sd15": SD15}


def build_unet(size: str) -> UNet2DConditionModel:
    """An untrained UNet on the default device."""
    return UNet2DConditionModel(**CONFIGURATIONS[size]["unet"])


def write_model(folder: Path, size: str, device: str) -> None:
    """Write a StableDiffusionPipeline, the same one each time.

    Args:
        folder: where to.
        size: a key of `CONFIGURATIONS`.
        device: where the weights are drawn.
    """
    configuration = CONFIGURATIONS[size]
    tokenizer = _tokenizer(configuration["text_encoder"]["max_position_embeddings"])
    torch.manual_seed(0)
    with torch.device(device):
        unet = build_unet(size)
        vae = AutoencoderKL(**configuration["vae"])
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                **configuration["text_encoder"],
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,  # at 0 the last step has no noise, and TRL's log-probability is NaN
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _tokenizer(length: int) -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=length)
