import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tiny.generator import train_generator
from tiny.prompts import SCENES
from tiny.quality import generate
from tiny.recipe import Recipe

BRIEF = Recipe(
    autoencoder_steps=2,
    autoencoder_batch=4,
    examples=8,
    text_encoder_steps=2,
    denoiser_steps=2,
    denoiser_batch=4,
    classifier_steps=2,
    classifier_batch=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train_generator(BRIEF, folder)
    return folder


def test_recipe_writes_a_pipeline_that_draws(folder: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    images = generate(pipeline, [scene.prompt for scene in SCENES[:2]], torch.Generator())
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.uint8


def test_card_states_what_was_measured(folder: Path):
    figures = json.loads((folder / "quality.json").read_text())
    card = (folder / "README.md").read_text()
    assert "$" not in card
    assert f"| ink is right | {figures['real']['ink_accuracy']:.4g} |" in card
    assert f"{figures['parameters']['unet']:,}" in card
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
