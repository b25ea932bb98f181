"""Train the tiny VGG from nothing: `python -m tiny.vgg --out models/tiny-vgg-digits`."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from salon import logs
from tiny.digits import Handwriting, draw, handwriting
from tiny.prompts import COLOURS, Scene
from tiny.record import Effort, replacing, write_record
from tiny.schedule import cosine_with_warmup
from tiny.split import FIT_SCENES, TestImages, familiar_images, held_out_images

log = structlog.get_logger()

SEED = 0
FILE = "vgg.safetensors"
CONVOLUTIONS = (2, 2, 4, 4, 4)
"""In each block of VGG19 (Simonyan & Zisserman 2015, https://arxiv.org/abs/1409.1556, table 1)."""

WIDTHS = (8, 16, 32, 32, 32)
CLASSES = (10, len(COLOURS), len(COLOURS))
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, red, green, blue in 0..1, as torchvision's VGG takes them:
https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.vgg19.html."""

CARD = Template("""\
---
license: apache-2.0
stand_in: true
---

# tiny-vgg-digits

The convolutions of a VGG19 ($parameters parameters) for features of handwritten digits in coloured
ink on coloured paper, 32x32 RGB: sixteen of them in five blocks of $recipe_convolutions with a max
pool after each, as in torchvision, but narrower: $recipe_widths channels instead of 64, 128, 256,
512, 512. Code for the perceptual and style distances of the large network can be run, tested and
shown with it on a small machine, offline.

## Use

`vgg.safetensors` has the names of torchvision's state dict, `features.0.weight` to
`features.34.bias`, float32; the layers of the classifier are not in it. Pixels in 0..1 are
normalised with ImageNet's mean and standard deviation. Images of 32x32 leave the fifth pool as 1x1.

## Data

The handwriting of scikit-learn's `load_digits` (Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", CC BY 4.0, https://archive.ics.uci.edu/dataset/80), drawn in colour by
`tiny/digits.py`. 1437 written digits and $recipe_scenes combinations of digit and colours were
trained on; 360 digits and 70 combinations were kept for the test.

## Recipe

`python -m tiny.vgg --out models/tiny-vgg-digits`, seed 0: $recipe_steps steps of $recipe_batch
images in $seconds s on $threads thread ($machine, torch $torch). Three linear classifiers on the
output of the fifth pool name digit, ink and paper. Batch normalisation after each convolution is
folded into it afterwards, so that the stored network is a plain VGG19 and computes the same.
AdamW, cosine schedule.

## Quality

What those classifiers read from the stored network, on handwriting that training never saw, drawn
with combinations it saw and did not see:

| | familiar combinations | held-out combinations |
|---|---|---|
| images | $familiar_images | $held_out_images |
| digit is right | $familiar_digit | $held_out_digit |
| ink is right | $familiar_ink | $held_out_ink |
| paper is right | $familiar_paper | $held_out_paper |
| all three are right | $familiar_all_three | $held_out_all_three |

`quality.json` holds all figures unrounded.
""")


@dataclass(frozen=True)
class VggRecipe:
    """Steps of the training, images in a batch, and AdamW's learning rate."""

    steps: int = 2500
    batch: int = 128
    learning_rate: float = 3e-3


def normalise(images: Tensor) -> Tensor:
    """Pixels as VGG takes them: uint8 [N, 3, H, W] to float32, normalised."""
    mean, std = (torch.tensor(part)[:, None, None] for part in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def build_features(widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """VGG19's convolutions, numbered as in torchvision; [N, 3, H, W] to [N, width, H/32, W/32]."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in zip(widths, CONVOLUTIONS, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def with_batch_norm(features: nn.Sequential) -> nn.Sequential:
    """The same convolutions, each followed by batch normalisation."""
    layers: list[nn.Module] = []
    for layer in features:
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*layers)


def without_batch_norm(normalised: nn.Sequential) -> nn.Sequential:
    """The same function in evaluation mode, each normalisation folded into its convolution."""
    layers: list[nn.Module] = []
    for layer in normalised.eval():
        if isinstance(layer, nn.BatchNorm2d) and isinstance(convolution := layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(convolution, layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def labels_of(scenes: Sequence[Scene]) -> Tensor:
    """Digit, ink and paper as numbers, int64 [N, 3]."""
    names = list(COLOURS)
    return torch.tensor(
        [(scene.digit, names.index(scene.ink), names.index(scene.paper)) for scene in scenes]
    )


def train_vgg(
    writing: Handwriting, recipe: VggRecipe, generator: torch.Generator
) -> tuple[nn.Sequential, nn.Linear]:
    """VGG19's features, and a classifier of all three labels on what leaves the fifth pool."""
    normalised = with_batch_norm(build_features()).train()
    classifier = nn.Linear(WIDTHS[-1], sum(CLASSES))
    parameters = [*normalised.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.02)
    schedule = cosine_with_warmup(optimizer, recipe.steps)
    for step in range(recipe.steps):
        picks = torch.randint(len(FIT_SCENES), (recipe.batch,), generator=generator)
        scenes = [FIT_SCENES[pick] for pick in picks.tolist()]
        output = normalised(normalise(draw(scenes, writing, generator))).flatten(1)
        parts = classifier(output).split(CLASSES, dim=1)
        labels = labels_of(scenes).unbind(dim=1)
        losses = [functional.cross_entropy(*pair) for pair in zip(parts, labels, strict=True)]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            log.info("vgg", step=step, losses=[round(loss.item(), 4) for loss in losses])
    features = without_batch_norm(normalised)
    return features.requires_grad_(False), classifier.eval().requires_grad_(False)


@torch.no_grad()
def measure_classes(
    features: nn.Sequential, classifier: nn.Linear, test: TestImages
) -> dict[str, float]:
    """Shares of the test images, 0..1, of which digit, ink, paper and all three are named right."""
    logits = classifier(features(normalise(test.images)).flatten(1)).split(CLASSES, dim=1)
    named = torch.stack([part.argmax(dim=1) for part in logits], dim=1)
    right = named == labels_of(test.scenes)
    digit, ink, paper = right.float().mean(dim=0).tolist()
    all_three = right.all(dim=1).float().mean().item()
    return {"digit": digit, "ink": ink, "paper": paper, "all_three": all_three}


def load_features(folder: Path) -> nn.Sequential:
    """The stored convolutions."""
    features = build_features()
    stored = load_file(folder / FILE)
    features.load_state_dict({name.removeprefix("features."): x for name, x in stored.items()})
    return features.eval().requires_grad_(False)


def make_vgg(recipe: VggRecipe, folder: Path) -> None:
    """Train, write the weights to the folder, measure what was written, add the card."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    train, _ = handwriting()
    start = time.perf_counter()
    features, classifier = train_vgg(train, recipe, generator)
    effort = Effort.since(start)
    stored = {f"features.{name}": part for name, part in features.state_dict().items()}
    save_file(stored, folder / FILE)
    features = load_features(folder)
    sections: dict[str, dict[str, float | int | str]] = {
        "recipe": {
            **asdict(recipe),
            "scenes": len(FIT_SCENES),
            "convolutions": ", ".join(map(str, CONVOLUTIONS)),
            "widths": ", ".join(map(str, WIDTHS)),
        }
    }
    for name, test in (("familiar", familiar_images()), ("held_out", held_out_images())):
        measured = measure_classes(features, classifier, test)
        sections[name] = {"images": len(test.images), **measured}
    log.info("quality", **sections)
    parameters = sum(part.numel() for part in stored.values())
    write_record(folder, CARD, effort, parameters, sections)


def main() -> None:
    """Train into a folder aside and put it in place of the old one when all is done."""
    parser = argparse.ArgumentParser(prog="python -m tiny.vgg", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    out: Path = parser.parse_args().out
    logs.configure("tiny-vgg")
    with replacing(out) as folder:
        make_vgg(VggRecipe(), folder)


if __name__ == "__main__":
    main()
