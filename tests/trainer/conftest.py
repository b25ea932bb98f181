"""Stable Diffusion pipelines small enough for tests: real classes, random weights, 8x8 latents."""

import json
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from salon.errors import SampleError
from salon.reward.v1.reward_pb2 import ERROR_CODE_INVALID_IMAGE
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.rewards.scorer import ScoredBatch

MAX_TOKENS = 8


def make_tokenizer(folder):
    printable = [chr(code) for code in range(33, 127)]
    tokens = [
        *printable,
        *(character + "</w>" for character in printable),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(
        str(folder),
        model_max_length=MAX_TOKENS,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def make_text_config(tokenizer, layers, **changes):
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )


def make_unet(**changes):
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **changes,
    )


def make_vae():
    return AutoencoderKL(
        latent_channels=4,
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_pipeline(folder):
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    return StableDiffusionPipeline(
        text_encoder=CLIPTextModel(make_text_config(tokenizer, layers=1)),
        tokenizer=tokenizer,
        unet=make_unet(cross_attention_dim=16),
        vae=make_vae(),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_xl_pipeline(folder):
    torch.manual_seed(1)
    tokenizer = make_tokenizer(folder)
    pooled, time = 12, 8
    return StableDiffusionXLPipeline(
        text_encoder=CLIPTextModel(make_text_config(tokenizer, layers=2)),
        text_encoder_2=CLIPTextModelWithProjection(
            make_text_config(tokenizer, layers=3, projection_dim=pooled)
        ),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=make_unet(
            cross_attention_dim=32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time,
            projection_class_embeddings_input_dim=6 * time + pooled,
        ),
        vae=make_vae(),
        # As SDXL 1.0 has it: its own sampler knows nothing of set_alpha_to_one, DDIM does.
        scheduler=EulerDiscreteScheduler.from_config(
            {**BETAS, "steps_offset": 1, "timestep_spacing": "leading", "set_alpha_to_one": False}
        ),
        add_watermarker=False,
    )


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """The same pipeline as a folder that diffusers loads."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline(tmp_path_factory.mktemp("tokenizer")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory):
    """Of Stable Diffusion XL."""
    folder = tmp_path_factory.mktemp("xl-pipeline")
    make_xl_pipeline(tmp_path_factory.mktemp("xl-tokenizer")).save_pretrained(folder)
    return folder


@pytest.fixture
def diffusion(pipeline_folder):
    return Diffusion.load(str(pipeline_folder))


@pytest.fixture
def xl_diffusion(xl_folder):
    return Diffusion.load(str(xl_folder))


class BrightnessScorer:
    """Mean brightness, and red's share of it; image 0 of a batch may be refused by the first."""

    def __init__(self):
        self.submitted = []
        self.carried = []
        self.refuse_first = False

    def submit(self, images, prompts, metadata=None, references=None):
        self.submitted.append((images, list(prompts)))
        self.carried.append((metadata, references))
        scores = images.mean(axis=(1, 2, 3)) / 255
        valid = np.ones(len(images), dtype=bool)
        if self.refuse_first:
            valid[0], scores[0] = False, np.nan
        future = Future()
        refused = SampleError(ERROR_CODE_INVALID_IMAGE, "sample 0, reward brightness: refused")
        errors = () if valid.all() else (refused,)
        redness = images[..., 0].mean(axis=(1, 2)) / 255
        per_reward = {"brightness": scores, "redness": redness}
        future.set_result(ScoredBatch(per_reward, valid, errors))
        return future


@pytest.fixture
def scorer():
    return BrightnessScorer()
