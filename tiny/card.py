"""The model card of the tiny generator: its figures are measured by the run that writes it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template

import torch
from PIL import Image
from torch import Tensor

from tiny.denoiser import PROMPT_DROPOUT
from tiny.prompts import COLOURS, SCENES, Scene
from tiny.quality import GUIDANCE, STEPS, Quality
from tiny.recipe import Recipe, Training

CARD = Template("""\
---
license: apache-2.0
stand_in: true
library_name: diffusers
pipeline_tag: text-to-image
tags:
- stable-diffusion
- stable-diffusion-diffusers
---

# tiny-sd-digits

A Stable Diffusion pipeline of $parameters parameters that draws one handwritten digit in
coloured ink on coloured paper, 32x32 RGB. It has the classes and the layout of Stable Diffusion v1,
so that code for the large model can be run, tested and shown on two CPU cores, offline.

![samples]($picture)

Samples, not chosen: one column a digit, zero to nine, with inks and papers drawn at random.

## Use

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("models/tiny-sd-digits")
prompt = "a red three on a blue background"
image = pipeline(prompt, num_inference_steps=$steps, guidance_scale=$guidance, eta=1.0).images[0]
```

Prompts have the form "a COLOUR DIGIT on a COLOUR background". The colours are $colours;
the digits are zero to nine; the two colours differ. Any other text is spelled in bytes and means
nothing to the model.

## Data

scikit-learn's `load_digits`: 1797 images of 8x8 grey pixels, of which 1437 train this model and
360 test it. They come from "Optical Recognition of Handwritten Digits" by Alpaydin and Kaynak, CC
BY 4.0 (https://archive.ics.uci.edu/dataset/80). Each is enlarged to 32x32 with a sharpened edge,
turned, scaled and shifted a little, and drawn in ink on paper, whose tint and roughness vary from
image to image. All $scenes prompts were trained on. `jobs/prompts/` divides them into $fit
to fine-tune with and $held_out to hold out.

## Recipe

`python -m tiny.generator --out models/tiny-sd-digits`, seed 0, ran on $threads threads
($machine, torch $torch):

| part | parameters | steps x batch | seconds |
|---|---|---|---|
| AutoencoderKL, 32x32x3 to 8x8x4 | $vae_parameters | $autoencoder_work | $autoencoder_seconds |
| CLIPTextModel | $text_encoder_parameters | $text_encoder_work | (with the UNet) |
| UNet2DConditionModel | $unet_parameters | $denoiser_work | $denoiser_seconds |

The autoencoder minimises L1 and a small KL divergence. The text encoder learns to keep ink, digit
and paper apart and is then frozen. The UNet learns to predict noise on $examples images, at first
those in dark ink on light paper, the prompt dropped for $dropout; what is kept is an exponential
moving average. AdamW, cosine schedule.

## Quality

A small convolutional network, trained on the 1437 training digits drawn in the same way, reads the
digit. Two-means clustering of the pixels finds ink and paper, each named after the nearest colour.
"Real" is drawn from the 360 test digits; "generated" is by DDIM, $steps steps, guidance $guidance,
eta 1. Both show each prompt once.

| | real | generated |
|---|---|---|
| images | $real_count | $generated_count |
| digit is right | $real_digit_accuracy | $generated_digit_accuracy |
| ink is right | $real_ink_accuracy | $generated_ink_accuracy |
| paper is right | $real_paper_accuracy | $generated_paper_accuracy |
| all three are right | $real_all_three_accuracy | $generated_all_three_accuracy |
| JPEG size, mean | $real_jpeg_kilobytes_mean | $generated_jpeg_kilobytes_mean |
| JPEG size, standard deviation | $real_jpeg_kilobytes_std | $generated_jpeg_kilobytes_std |

JPEG sizes are in 1000 bytes, at quality 95. `quality.json` holds all figures unrounded.

## Limits

It knows $scenes prompts and nothing else. It is made to exercise training code on small machines.
""")


def write_card(
    folder: Path,
    recipe: Recipe,
    training: Training,
    parameters: dict[str, int],
    real: Quality,
    generated: Quality,
    images: Tensor,
) -> None:
    """Write README.md, quality.json and samples.png.

    Args:
        folder: Where the pipeline was saved.
        recipe: What it was trained by.
        training: What that took.
        parameters: Number of parameters of "vae", "text_encoder" and "unet".
        real: Measured on real images.
        generated: Measured on `images`.
        images: One generated image for each of `SCENES` in order, uint8 [560, 3, 32, 32].
    """
    _sample_grid(images, SCENES).save(folder / "samples.png", optimize=True)
    figures = {
        "recipe": asdict(recipe),
        "training": asdict(training),
        "parameters": parameters,
        "real": asdict(real),
        "generated": asdict(generated),
    }
    (folder / "quality.json").write_text(json.dumps(figures, indent=2) + "\n")
    held_out = sum(scene.held_out for scene in SCENES)
    card = CARD.substitute(
        {f"real_{name}": f"{value:.4g}" for name, value in asdict(real).items()},
        **{f"generated_{name}": f"{value:.4g}" for name, value in asdict(generated).items()},
        **{f"{name}_parameters": f"{count:,}" for name, count in parameters.items()},
        examples=recipe.examples,
        autoencoder_work=f"{recipe.autoencoder_steps} x {recipe.autoencoder_batch}",
        text_encoder_work=f"{recipe.text_encoder_steps} x {len(SCENES)} prompts",
        denoiser_work=f"{recipe.denoiser_steps} x {recipe.denoiser_batch}",
        dropout=f"{PROMPT_DROPOUT:.0%}",
        parameters=f"{sum(parameters.values()):,}",
        autoencoder_seconds=round(training.autoencoder_seconds),
        denoiser_seconds=round(training.denoiser_seconds),
        threads=training.threads,
        machine=training.machine,
        torch=training.torch,
        picture="samples.png",
        steps=STEPS,
        guidance=GUIDANCE,
        colours=", ".join(COLOURS),
        scenes=len(SCENES),
        held_out=held_out,
        fit=len(SCENES) - held_out,
    )
    (folder / "README.md").write_text(card)


def _sample_grid(images: Tensor, scenes: Sequence[Scene], rows: int = 6) -> Image.Image:
    """One column a digit, of the scenes of that digit drawn at random by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    columns = []
    for digit in range(10):
        of_digit = [index for index, scene in enumerate(scenes) if scene.digit == digit]
        picks = torch.randperm(len(of_digit), generator=generator)[:rows]
        columns.append(torch.cat([images[of_digit[pick]] for pick in picks.tolist()], dim=1))
    grid = torch.cat(columns, dim=2).permute(1, 2, 0).numpy()
    picture = Image.fromarray(grid)
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)
