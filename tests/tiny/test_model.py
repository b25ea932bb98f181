"""The committed model, as every user loads it."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tiny.digits import draw, handwriting
from tiny.prompts import SCENES
from tiny.quality import generate, measure, train_classifier

FOLDER = Path(__file__).parents[2] / "models" / "tiny-sd-digits"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_folder_is_small_and_holds_no_pickles():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert {path.suffix for path in files} <= {".json", ".txt", ".md", ".png", ".safetensors"}
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {path.name for path in files}


def test_noise_schedule_is_that_of_stable_diffusion(pipeline: StableDiffusionPipeline):
    config = pipeline.scheduler.config
    assert config.steps_offset == 1
    assert config.prediction_type == "epsilon"
    assert config.beta_schedule == "scaled_linear"
    assert not config.clip_sample
    assert not config.set_alpha_to_one


def test_latents_have_unit_scale(pipeline: StableDiffusionPipeline):
    train, _ = handwriting()
    images = draw(SCENES, train, torch.Generator().manual_seed(1)).float() / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(images).latent_dist
    latents = (
        posterior.sample(torch.Generator().manual_seed(2)) * pipeline.vae.config.scaling_factor
    )
    assert latents.shape == (len(SCENES), 4, 8, 8)
    assert latents.std().item() == pytest.approx(1, abs=0.05)


def test_images_show_the_digit_and_the_colours_of_the_prompt(pipeline: StableDiffusionPipeline):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, _ = handwriting()
    classifier = train_classifier(train, steps=400, batch=96, generator=generator)
    scenes = SCENES[::7]
    images = generate(pipeline, [scene.prompt for scene in scenes], generator)
    quality = measure(images, scenes, classifier)
    assert quality.count == 80
    assert quality.digit_accuracy >= 0.85
    assert quality.ink_accuracy >= 0.9
    assert quality.paper_accuracy >= 0.95
    assert quality.jpeg_kilobytes_std > 0.03
