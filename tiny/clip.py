"""Train the tiny CLIP from nothing: `python -m tiny.clip --out models/tiny-clip-digits`."""

import argparse
import math
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

import structlog
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from salon import logs
from tiny.digits import SIZE, Handwriting, draw, handwriting
from tiny.prompts import Scene
from tiny.record import Effort, replacing, write_record
from tiny.retrieval import measure_retrieval
from tiny.schedule import cosine_with_warmup
from tiny.split import FIT_SCENES, familiar_images, held_out_images
from tiny.tokenizer import MAX_TOKENS, write_tokenizer

log = structlog.get_logger()

SEED = 0
PROJECTION = 128
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels CLIP was trained on, red, green, blue in 0..1: OPENAI_CLIP_MEAN and _STD of
transformers.image_utils."""

LARGEST_SCALE = 100.0
"""Bound of the logit scale: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.5."""

CARD = Template("""\
---
license: apache-2.0
stand_in: true
library_name: transformers
pipeline_tag: zero-shot-image-classification
---

# tiny-clip-digits

A CLIP of $parameters parameters that knows one kind of picture, a handwritten digit in coloured ink
on coloured paper, 32x32 RGB, and one kind of caption, "a red three on a blue background". It has
the classes and the layout of `openai/clip-vit-large-patch14`, so that code for the large model can
be run, tested and shown on a small machine, offline.

## Use

```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("models/tiny-clip-digits")
processor = CLIPProcessor.from_pretrained("models/tiny-clip-digits")
inputs = processor(text=captions, images=images, padding=True, return_tensors="pt")
probabilities = model(**inputs).logits_per_image.softmax(dim=-1)
```

`AutoProcessor`, `AutoImageProcessor` and `AutoTokenizer` load it too. Without torchvision,
transformers 5 takes the processor built on Pillow by itself; the pixels are the same.

## Data

The handwriting of scikit-learn's `load_digits` (Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", CC BY 4.0, https://archive.ics.uci.edu/dataset/80), drawn in colour by
`tiny/digits.py`. 1437 written digits and $recipe_captions captions were trained on; 360 digits and
70 captions were kept for the test.

## Recipe

`python -m tiny.clip --out models/tiny-clip-digits`, seed 0: $recipe_steps steps in $seconds s on
$threads thread ($machine, torch $torch). The loss is CLIP's symmetric contrastive loss. A batch
shows every trained digit in each of $recipe_colour_pairs pairs of colours, about
$recipe_images images: no caption comes twice in it, so none is a false negative, and each image
meets captions that differ from its own in nothing but the digit. The first $recipe_easy_percent %
of the steps show dark ink on light paper only. AdamW, cosine schedule.

## Quality

On handwriting that training never saw, drawn with captions it saw and with captions it did not see:

| | familiar captions | held-out captions |
|---|---|---|
| images | $familiar_images | $held_out_images |
| image to text: the right one of 560 captions | $familiar_image_to_text | $held_out_image_to_text |
| its digit is right | $familiar_digit | $held_out_digit |
| its ink is right | $familiar_ink | $held_out_ink |
| its paper is right | $familiar_paper | $held_out_paper |
| text to image: the right one of | $familiar_choices | $held_out_choices |
| … found | $familiar_text_to_image | $held_out_text_to_image |

`quality.json` holds all figures unrounded.

## Limits

It knows nothing but these digits. Any other text is spelled in bytes and means nothing to it.
""")


@dataclass(frozen=True)
class ClipRecipe:
    """Steps of the training, pairs of colours in a batch, and the share of easy steps."""

    steps: int = 1800
    colour_pairs: int = 14
    easy_share: float = 0.25
    learning_rate: float = 1e-3


def to_pixel_values(images: Tensor) -> Tensor:
    """What CLIP's image processor makes of uint8 images [N, 3, 32, 32]: float32, normalised."""
    mean, std = (torch.tensor(part)[:, None, None] for part in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def build_image_processor() -> CLIPImageProcessorPil:
    """CLIP's own, for images of 32x32."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP for images of 32x32 and the tokenizer's vocabulary."""
    vision = {
        "image_size": SIZE,
        "patch_size": 4,
        "projection_dim": PROJECTION,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    text = {
        "vocab_size": len(tokenizer),
        "projection_dim": PROJECTION,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def train_clip(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    writing: Handwriting,
    recipe: ClipRecipe,
    generator: torch.Generator,
) -> None:
    """Minimise the symmetric contrastive loss (Radford et al. 2021, figure 3) on drawn batches."""
    model.train()
    matrices = [weights for weights in model.parameters() if weights.ndim > 1]
    others = [weights for weights in model.parameters() if weights.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = cosine_with_warmup(optimizer, recipe.steps)
    by_colours = _by_colours()
    easy = [group for group in by_colours if group[0].dark_on_light]
    for step in range(recipe.steps):
        choice = easy if step < recipe.easy_share * recipe.steps else by_colours
        picks = torch.randperm(len(choice), generator=generator)[: recipe.colour_pairs]
        scenes = [scene for pick in picks.tolist() for scene in choice[pick]]
        tokens = tokenizer([scene.prompt for scene in scenes], padding=True, return_tensors="pt")
        pixels = to_pixel_values(draw(scenes, writing, generator))
        loss = model(**tokens, pixel_values=pixels, return_loss=True).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        if step % 100 == 0 or step == recipe.steps - 1:
            log.info("clip", step=step, images=len(scenes), loss=round(loss.item(), 4))
    model.eval().requires_grad_(False)


def _by_colours() -> list[list[Scene]]:
    """The scenes to train on, those of the same ink and paper together."""
    groups: dict[tuple[str, str], list[Scene]] = defaultdict(list)
    for scene in FIT_SCENES:
        groups[scene.ink, scene.paper].append(scene)
    return list(groups.values())


def make_clip(recipe: ClipRecipe, folder: Path) -> None:
    """Train, write model and processor to the folder, measure what was written, add the card."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    train, _ = handwriting()
    tokenizer = write_tokenizer(folder)
    model = build_clip(tokenizer)
    start = time.perf_counter()
    train_clip(model, tokenizer, train, recipe, generator)
    effort = Effort.since(start)
    model.save_pretrained(folder)
    CLIPProcessor(build_image_processor(), tokenizer).save_pretrained(folder)
    # transformers 4 reads these instead of processor_config.json and tokenizer.json.
    build_image_processor().save_pretrained(folder)
    write_tokenizer(folder)
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    familiar, held_out = familiar_images(), held_out_images()
    sections = {
        "recipe": {
            **asdict(recipe),
            "captions": len(FIT_SCENES),
            "images": recipe.colour_pairs * len(FIT_SCENES) // 56,
            "easy_percent": round(100 * recipe.easy_share),
        },
        "familiar": {
            "choices": len(set(familiar.scenes)),
            **asdict(measure_retrieval(model, processor, familiar)),
        },
        "held_out": {
            "choices": len(set(held_out.scenes)),
            **asdict(measure_retrieval(model, processor, held_out)),
        },
    }
    log.info("quality", **sections)
    write_record(folder, CARD, effort, model.num_parameters(), sections)


def main() -> None:
    """Train into a folder aside and put it in place of the old one when all is done."""
    parser = argparse.ArgumentParser(prog="python -m tiny.clip", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    out: Path = parser.parse_args().out
    logs.configure("tiny-clip")
    with replacing(out) as folder:
        make_clip(ClipRecipe(), folder)


if __name__ == "__main__":
    main()
