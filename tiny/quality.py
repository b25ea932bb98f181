"""How good the tiny generator is: its digits, its colours and its file sizes, beside real ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from tiny.autoencoder import to_model_range
from tiny.digits import SIZE, Handwriting, draw, random_scenes
from tiny.prompts import COLOURS, Scene

STEPS = 20
GUIDANCE = 5.0


@dataclass(frozen=True)
class Quality:
    """What was measured on `count` images; accuracies in 0..1, JPEG sizes in 1000 bytes."""

    count: int
    digit_accuracy: float
    ink_accuracy: float
    paper_accuracy: float
    all_three_accuracy: float
    jpeg_kilobytes_mean: float
    jpeg_kilobytes_std: float


def train_classifier(
    writing: Handwriting, steps: int, batch: int, generator: torch.Generator
) -> nn.Module:
    """A small convolutional network from images -1..1 [N, 3, 32, 32] to digit logits [N, 10]."""
    widths = (3, 16, 32, 64)
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        scenes = random_scenes(batch, generator)
        logits = model(to_model_range(draw(scenes, writing, generator)))
        loss = functional.cross_entropy(logits, torch.tensor([scene.digit for scene in scenes]))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], generator: torch.Generator
) -> Tensor:
    """Images for the prompts, uint8 [N, 3, 32, 32], by DDIM with eta 1."""
    images = []
    for start in range(0, len(prompts), 112):
        images += pipeline(
            list(prompts[start : start + 112]),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            eta=1.0,
            generator=generator,
            output_type="pt",
        ).images
    return (torch.stack(images) * 255).round().to(torch.uint8)


def find_colours(images: Tensor) -> list[tuple[str, str]]:
    """The names (ink, paper) of the two colours of each of the uint8 images [N, 3, 32, 32].

    Two-means clustering of an image's pixels; the paper is the cluster with most of the border.
    """
    pixels = images.float().flatten(2).transpose(1, 2)
    edge = torch.ones(SIZE, SIZE, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    edge = edge.flatten()
    border = pixels[:, edge].median(dim=1, keepdim=True).values
    farthest = (pixels - border).norm(dim=2).argmax(dim=1)
    centres = torch.stack([border[:, 0], pixels[torch.arange(len(pixels)), farthest]], dim=1)
    for _ in range(10):
        nearest = functional.one_hot(torch.cdist(pixels, centres).argmin(dim=2), 2).float()
        sizes = nearest.sum(dim=1)[:, :, None]
        sums = nearest.transpose(1, 2) @ pixels
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    on_border = nearest[:, edge].sum(dim=1)
    paper = on_border.argmax(dim=1)
    named = torch.cdist(centres, torch.tensor(list(COLOURS.values())).float()).argmin(dim=2)
    names = list(COLOURS)
    return [
        (names[pair[1 - side]], names[pair[side]])
        for pair, side in zip(named.tolist(), paper.tolist(), strict=True)
    ]


def jpeg_kilobytes(image: Tensor) -> float:
    """Size of a uint8 image [3, H, W] as JPEG at quality 95, in 1000 bytes."""
    buffer = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=95)
    return buffer.tell() / 1000


def measure(images: Tensor, scenes: Sequence[Scene], classifier: nn.Module) -> Quality:
    """How well uint8 images [N, 3, 32, 32] show their scenes."""
    digits = classifier(to_model_range(images)).argmax(dim=1)
    colours = find_colours(images)
    right = torch.tensor(
        [
            (digit == scene.digit, ink == scene.ink, paper == scene.paper)
            for digit, (ink, paper), scene in zip(digits.tolist(), colours, scenes, strict=True)
        ]
    )
    digit, ink, paper = right.float().mean(dim=0).tolist()
    sizes = torch.tensor([jpeg_kilobytes(image) for image in images])
    return Quality(
        count=len(images),
        digit_accuracy=digit,
        ink_accuracy=ink,
        paper_accuracy=paper,
        all_three_accuracy=right.all(dim=1).float().mean().item(),
        jpeg_kilobytes_mean=sizes.mean().item(),
        jpeg_kilobytes_std=sizes.std().item(),
    )
