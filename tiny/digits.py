"""Handwritten digits drawn as coloured ink on coloured paper.

The handwriting is scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test
set: 1797 images of 8x8 pixels, values 0..16 (https://archive.ics.uci.edu/dataset/80).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from tiny.prompts import COLOURS, SCENES, Scene

SIZE = 32


@dataclass(frozen=True)
class Handwriting:
    """Digits as written: float32 [N, 8, 8] in 0..1 and their int64 labels [N]."""

    glyphs: Tensor
    labels: Tensor


def handwriting() -> tuple[Handwriting, Handwriting]:
    """The digits in two parts, the same on every call: 1437 to train on, 360 to test with."""
    data = load_digits()
    train, test = train_test_split(
        range(len(data.target)), test_size=360, stratify=data.target, random_state=0
    )
    glyphs = torch.from_numpy(data.images).float() / 16
    labels = torch.from_numpy(data.target).long()
    return Handwriting(glyphs[train], labels[train]), Handwriting(glyphs[test], labels[test])


def draw(scenes: Sequence[Scene], writing: Handwriting, generator: torch.Generator) -> Tensor:
    """One image for each scene: a random hand's digit, placed, coloured and textured at random.

    Returns:
        uint8 [N, 3, 32, 32], RGB.
    """
    glyphs = torch.stack([_pick(writing, scene.digit, generator) for scene in scenes])
    cover = _strokes(glyphs, generator)
    ink = _surface([COLOURS[scene.ink] for scene in scenes], 0.04, generator)
    paper = _surface([COLOURS[scene.paper] for scene in scenes], 0.12, generator)
    image = paper + cover * (ink - paper)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def random_scenes(count: int, generator: torch.Generator) -> list[Scene]:
    """Scenes drawn uniformly, with replacement, from all 560."""
    picks = torch.randint(len(SCENES), (count,), generator=generator)
    return [SCENES[pick] for pick in picks.tolist()]


def _pick(writing: Handwriting, digit: int, generator: torch.Generator) -> Tensor:
    candidates = (writing.labels == digit).nonzero().squeeze(1)
    pick = torch.randint(len(candidates), (), generator=generator)
    return writing.glyphs[candidates[pick]]


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _strokes(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Coverage by ink, [N, 1, 32, 32] in 0..1, of glyphs [N, 8, 8] turned, scaled and shifted."""
    count = len(glyphs)
    angle = _uniform(-0.14, 0.14, count, generator)
    # A pixel of the image looks up the glyph, so a factor above 1 makes the digit smaller.
    shrink = _uniform(1.1, 1.45, count, generator)
    shift = 0.16 * (2 * torch.rand(count, 2, generator=generator) - 1)
    row_x = torch.stack([shrink * angle.cos(), -shrink * angle.sin(), shift[:, 0]], dim=1)
    row_y = torch.stack([shrink * angle.sin(), shrink * angle.cos(), shift[:, 1]], dim=1)
    grid = functional.affine_grid(
        torch.stack([row_x, row_y], dim=1), [count, 1, SIZE, SIZE], align_corners=False
    )
    grey = functional.grid_sample(glyphs[:, None], grid, mode="bicubic", align_corners=False)
    # Bicubic interpolation of 8x8 pixels is a blur; a steep curve around mid-grey gives it an edge.
    weight = _uniform(0.38, 0.54, count, generator)[:, None, None, None]
    return torch.sigmoid(14 * (grey - weight))


def _surface(
    colours: Sequence[tuple[int, int, int]], roughest: float, generator: torch.Generator
) -> Tensor:
    """Colour planes [N, 3, 32, 32] in 0..1, each with its own tint and its own roughness."""
    count = len(colours)
    colour = torch.tensor(colours).float()[:, :, None, None] / 255
    tint = 0.025 * torch.randn(count, 3, 1, 1, generator=generator)
    # Squared, so that most surfaces are smooth and a few are coarse: file sizes then vary.
    roughness = roughest * _uniform(0, 1, count, generator).square()[:, None, None, None]
    mottle = torch.zeros(count, 1, SIZE, SIZE)
    for cells, share in ((8, 0.8), (16, 0.6)):
        noise = torch.randn(count, 1, cells, cells, generator=generator)
        mottle += share * functional.interpolate(noise, SIZE, mode="bicubic")
    return colour + tint + roughness * mottle
