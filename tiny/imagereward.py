"""Train the tiny ImageReward: `python -m tiny.imagereward --clip … --out …`."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

import structlog
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, BertTokenizer, CLIPModel

from salon import logs
from tiny.blip import BlipScorer, build_scorer, write_tokenizer
from tiny.clip import to_pixel_values
from tiny.digits import Handwriting, draw, handwriting
from tiny.preferences import FLAWS, Pairs, draw_pairs, random_flaws
from tiny.prompts import Scene
from tiny.record import Effort, replacing, write_record
from tiny.schedule import cosine_with_warmup
from tiny.split import FIT_SCENES, HELD_OUT_SCENES, TEST_SEED

log = structlog.get_logger()

SEED = 0
DIGIT_SHARE = 0.55
COPIES = 4
"""Test pairs of each held-out scene and flaw."""

MEAN = 0.16717362830052426
STD = 1.0333394966054072
"""Of ImageReward's output, which its users subtract and divide by: `self.mean` and `self.std` in
ImageReward.py of https://github.com/THUDM/ImageReward."""

CARD = Template("""\
---
license: apache-2.0
stand_in: true
---

# tiny-imagereward-digits

A preference model of $parameters parameters: how well one kind of picture, a handwritten digit in
coloured ink on coloured paper, 32x32 RGB, fits a caption such as "a red three on a blue
background". It is built as ImageReward is (Xu et al. 2023, https://arxiv.org/abs/2304.05977), of
transformers' BLIP classes: a vision tower, a text encoder that attends to it, and a head of five
linear layers on its first token. Code for the large model can be run, tested and shown with it on
a small machine, offline.

**Nobody was asked what they prefer.** The choices it learned from follow a rule: an image of the
caption is better than one that shows another digit, ink or paper, and better than a noisy one.

## Use

The folder has `save_pretrained`'s layout with a BlipConfig; `model.safetensors` holds
`vision_model`, `text_encoder` and `head`, float16. `AutoTokenizer` loads the tokenizer, a BERT one
that knows the words of the captions and spells all others. Pixels are normalised as CLIP's. As with
the published model the score is (output - $scale_mean) / $scale_std; it was scaled to have mean 0
and standard deviation 1 over pairs like those it was trained on.

## Data

The handwriting of scikit-learn's `load_digits` (Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", CC BY 4.0, https://archive.ics.uci.edu/dataset/80), drawn in colour by
`tiny/digits.py`. 1437 written digits and $recipe_captions captions were trained on; 360 digits and
70 captions were kept for the test.

## Recipe

`python -m tiny.imagereward --clip models/tiny-clip-digits --out models/tiny-imagereward-digits`,
seed 0: $recipe_steps steps of $recipe_batch pairs in $seconds s on $threads thread
($machine, torch $torch). The vision tower starts as that of tiny-clip-digits; text encoder and head
start from nothing. The loss is that of Bradley and Terry, -log σ(better - worse). The flaw of the
worse image is its digit in $recipe_digit_share of the pairs, the others come equally often. AdamW,
cosine schedule.

## Quality

Share of pairs in which the better image has the higher score, with the stored weights, on
handwriting that training never saw, with captions it saw and captions it did not see:

| what is wrong with the worse image | familiar captions | held-out captions |
|---|---|---|
| pairs of each kind | $familiar_pairs | $held_out_pairs |
| another digit | $familiar_digit | $held_out_digit |
| another ink | $familiar_ink | $held_out_ink |
| another paper | $familiar_paper | $held_out_paper |
| noise | $familiar_noise | $held_out_noise |
| all pairs | $familiar_all | $held_out_all |

`quality.json` holds all figures unrounded.
""")


@dataclass(frozen=True)
class ImageRewardRecipe:
    """Steps of the training, pairs in a batch, and AdamW's learning rates."""

    steps: int = 1300
    batch: int = 64
    learning_rate: float = 1e-3
    vision_learning_rate: float = 2e-4


def score(
    model: BlipScorer, tokenizer: BertTokenizer, captions: list[str], images: Tensor
) -> Tensor:
    """The model's output, float32 [N], for captions and uint8 images [N, 3, 32, 32]."""
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    scores: Tensor = model(to_pixel_values(images), tokens.input_ids, tokens.attention_mask)
    return scores


def preference_loss(better: Tensor, worse: Tensor) -> Tensor:
    """-log σ(better - worse), averaged: Bradley & Terry 1952; Xu et al. 2023, equation 1."""
    return -functional.logsigmoid(better - worse).mean()


def train_scorer(
    model: BlipScorer,
    tokenizer: BertTokenizer,
    writing: Handwriting,
    recipe: ImageRewardRecipe,
    generator: torch.Generator,
) -> None:
    """Fit the model to pairs drawn anew for each step, then scale its output."""
    # Dropout in the linear head would add noise and nothing else, so all of it stays off.
    model.eval()
    eyes = list(model.vision_model.parameters())
    others = [*model.text_encoder.parameters(), *model.head.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": others, "lr": recipe.learning_rate},
            {"params": eyes, "lr": recipe.vision_learning_rate},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.02,
    )
    schedule = cosine_with_warmup(optimizer, recipe.steps)
    for step in range(recipe.steps):
        pairs = _training_pairs(recipe.batch, writing, generator)
        images = torch.cat([pairs.better, pairs.worse])
        better, worse = score(model, tokenizer, pairs.captions * 2, images).chunk(2)
        loss = preference_loss(better, worse)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            right = (better > worse).float().mean().item()
            log.info("imagereward", step=step, loss=round(loss.item(), 4), right=round(right, 3))
    model.requires_grad_(False)
    _rescale(model, tokenizer, _training_pairs(8 * recipe.batch, writing, generator))


def _training_pairs(count: int, writing: Handwriting, generator: torch.Generator) -> Pairs:
    picks = torch.randint(len(FIT_SCENES), (count,), generator=generator)
    scenes = [FIT_SCENES[pick] for pick in picks.tolist()]
    flaws = random_flaws(count, DIGIT_SHARE, generator)
    return draw_pairs(scenes, flaws, writing, generator, FIT_SCENES)


def _rescale(model: BlipScorer, tokenizer: BertTokenizer, pairs: Pairs) -> None:
    """Give the output over these pairs the mean and standard deviation of the published model."""
    images = torch.cat([pairs.better, pairs.worse])
    output = score(model, tokenizer, pairs.captions * 2, images)
    factor = STD / output.std(correction=0)
    weight, bias = (model.head.get_parameter(f"layers.7.{name}") for name in ("weight", "bias"))
    weight.mul_(factor)
    bias.sub_(output.mean()).mul_(factor).add_(MEAN)


@torch.no_grad()
def measure_pairs(
    model: BlipScorer, tokenizer: BertTokenizer, scenes: Sequence[Scene]
) -> dict[str, float]:
    """Share of pairs in the right order, by flaw and in all: one a scene, unseen handwriting."""
    _, test = handwriting()
    generator = torch.Generator().manual_seed(TEST_SEED)
    shares: dict[str, float] = {}
    for flaw in FLAWS:
        pairs = draw_pairs(scenes, [flaw] * len(scenes), test, generator)
        better = score(model, tokenizer, pairs.captions, pairs.better)
        worse = score(model, tokenizer, pairs.captions, pairs.worse)
        shares[flaw] = (better > worse).float().mean().item()
    return {**shares, "all": sum(shares.values()) / len(FLAWS)}


def make_scorer(
    recipe: ImageRewardRecipe, clip: Path, tests: Mapping[str, Sequence[Scene]], folder: Path
) -> None:
    """Train, write model and tokenizer to the folder, measure what was written, add the card.

    `tests` are the scenes to measure with, "familiar" and "held_out" as in `tiny.split`.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    train, _ = handwriting()
    tokenizer = write_tokenizer(folder)
    eyes = CLIPModel.from_pretrained(clip).eval()
    model = build_scorer(eyes, tokenizer, draw(FIT_SCENES, train, generator))
    start = time.perf_counter()
    train_scorer(model, tokenizer, train, recipe, generator)
    effort = Effort.since(start)
    model.half().save_pretrained(folder)
    model = BlipScorer.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sections: dict[str, dict[str, float | int | str]] = {
        "recipe": {**asdict(recipe), "captions": len(FIT_SCENES), "digit_share": DIGIT_SHARE},
        "scale": {"mean": MEAN, "std": STD},
    }
    for name, scenes in tests.items():
        sections[name] = {"pairs": len(scenes), **measure_pairs(model, tokenizer, scenes)}
    log.info("quality", **sections)
    write_record(folder, CARD, effort, model.num_parameters(), sections)


def main() -> None:
    """Train into a folder aside and put it in place of the old one when all is done."""
    parser = argparse.ArgumentParser(prog="python -m tiny.imagereward", description=__doc__)
    parser.add_argument("--clip", type=Path, required=True, help="the CLIP that gives the eyes")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args()
    logs.configure("tiny-imagereward")
    tests = {"familiar": FIT_SCENES, "held_out": HELD_OUT_SCENES * COPIES}
    with replacing(arguments.out) as folder:
        make_scorer(ImageRewardRecipe(), arguments.clip, tests, folder)


if __name__ == "__main__":
    main()
