"""Train the tiny aesthetic head: `python -m tiny.aesthetic --clip … --out …`."""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor

from salon import logs
from tiny.clip import PROJECTION
from tiny.colourfulness import colourfulness
from tiny.digits import draw, handwriting
from tiny.record import Effort, replacing, write_record
from tiny.retrieval import embed_images
from tiny.schedule import cosine_with_warmup
from tiny.score_head import ScoreHead
from tiny.split import FIT_SCENES, familiar_images, held_out_images

log = structlog.get_logger()

SEED = 0
FILE = "head.safetensors"

CARD = Template("""\
---
license: apache-2.0
stand_in: true
---

# tiny-aesthetic-digits

A head of $parameters parameters on the image embedding of tiny-clip-digits, in the layout of
LAION's improved aesthetic predictor (`sac+logos+ava1-l14-linearMSE.pth`,
https://github.com/christophschuhmann/improved-aesthetic-predictor):
$recipe_width-1024-128-64-16-1, linear throughout, dropouts between.

**It does not know what is beautiful.** It stands in for an aesthetic score where the real one is
too large, and predicts how colourful an image is: M3 of Hasler & Süsstrunk 2003, "Measuring
colourfulness in natural images", computed by `tiny/colourfulness.py`. The score is 1 + M3 / 20,
which puts the digits between about 1 and 10.

## Use

`head.safetensors` holds `layers.0`, `layers.2`, `layers.4`, `layers.6` and `layers.7`, each with
weight and bias, float16. The input is the image embedding of tiny-clip-digits
(`CLIPModel.get_image_features`) divided by its Euclidean norm.

## Recipe

`python -m tiny.aesthetic --clip models/tiny-clip-digits --out models/tiny-aesthetic-digits`, seed
0: $recipe_steps steps of $recipe_batch embeddings out of $recipe_examples in $seconds s on $threads
thread ($machine, torch $torch). AdamW on the mean squared error, cosine schedule, no dropout. The
embeddings are those of images drawn from 1437 written digits (scikit-learn's `load_digits`,
CC BY 4.0) and 490 captions; CLIP was not trained on colourfulness and is not changed.

## Quality

On handwriting that neither CLIP nor head ever saw, drawn with captions they saw and did not see:

| | familiar captions | held-out captions |
|---|---|---|
| images | $familiar_images | $held_out_images |
| R², share of the variance that is predicted | $familiar_r2 | $held_out_r2 |
| root of the mean squared error | $familiar_rmse | $held_out_rmse |
| standard deviation of the score itself | $familiar_std | $held_out_std |

`quality.json` holds all figures unrounded.
""")


@dataclass(frozen=True)
class AestheticRecipe:
    """Images drawn, steps of the training, embeddings in a batch, and AdamW's learning rate."""

    examples: int = 9800
    steps: int = 3000
    batch: int = 256
    learning_rate: float = 1e-3


def target_score(images: Tensor) -> Tensor:
    """What the head shall predict, float32 [N], of uint8 images [N, 3, H, W]: 1 + M3 / 20."""
    return 1 + colourfulness(images) / 20


def train_head(
    embeddings: Tensor, scores: Tensor, recipe: AestheticRecipe, generator: torch.Generator
) -> ScoreHead:
    """Fit scores, float32 [N], from unit vectors, float32 [N, width]."""
    # In evaluation mode: on a linear map dropout would be a penalty on its weights, and pull
    # all scores towards their mean.
    head = ScoreHead(embeddings.shape[1]).eval()
    nn.init.constant_(head.get_parameter("layers.7.bias"), scores.mean().item())
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=0)
    schedule = cosine_with_warmup(optimizer, recipe.steps)
    for step in range(recipe.steps):
        picks = torch.randint(len(scores), (recipe.batch,), generator=generator)
        loss = functional.mse_loss(head(embeddings[picks]), scores[picks])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == recipe.steps - 1:
            log.info("aesthetic", step=step, loss=round(loss.item(), 4))
    return head.requires_grad_(False)


def measure_fit(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """R² = 1 - mean squared error / variance, and what it is made of."""
    error = functional.mse_loss(predicted, true)
    variance = true.var(correction=0)
    return {
        "r2": (1 - error / variance).item(),
        "rmse": error.sqrt().item(),
        "std": variance.sqrt().item(),
    }


def load_head(folder: Path) -> ScoreHead:
    """The head as stored, in float32."""
    head = ScoreHead(PROJECTION)
    head.load_state_dict(load_file(folder / FILE))
    return head.eval().requires_grad_(False)


def make_head(recipe: AestheticRecipe, clip: Path, folder: Path) -> None:
    """Train, write the head to the folder, measure what was written, add the card."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    train, _ = handwriting()
    model = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPProcessor.from_pretrained(clip)
    start = time.perf_counter()
    scenes = [FIT_SCENES[index % len(FIT_SCENES)] for index in range(recipe.examples)]
    images = draw(scenes, train, generator)
    embeddings = embed_images(model, processor, images)
    head = train_head(embeddings, target_score(images), recipe, generator)
    effort = Effort.since(start)
    save_file({name: part.half() for name, part in head.state_dict().items()}, folder / FILE)
    head = load_head(folder)
    sections: dict[str, dict[str, float | int | str]] = {"recipe": asdict(recipe)}
    sections["recipe"]["width"] = PROJECTION
    for name, test in (("familiar", familiar_images()), ("held_out", held_out_images())):
        predicted = head(embed_images(model, processor, test.images))
        fit = measure_fit(predicted, target_score(test.images))
        sections[name] = {"images": len(test.images), **fit}
    log.info("quality", **sections)
    parameters = sum(weights.numel() for weights in head.parameters())
    write_record(folder, CARD, effort, parameters, sections)


def main() -> None:
    """Train into a folder aside and put it in place of the old one when all is done."""
    parser = argparse.ArgumentParser(prog="python -m tiny.aesthetic", description=__doc__)
    parser.add_argument("--clip", type=Path, required=True, help="the CLIP that embeds the images")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args()
    logs.configure("tiny-aesthetic")
    with replacing(arguments.out) as folder:
        make_head(AestheticRecipe(), arguments.clip, folder)


if __name__ == "__main__":
    main()
