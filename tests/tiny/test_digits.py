import torch

from tiny.digits import draw, handwriting, random_scenes
from tiny.prompts import SCENES
from tiny.quality import find_colours, jpeg_kilobytes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_handwriting_is_divided_without_overlap():
    train, test = handwriting()
    assert train.glyphs.shape == (1437, 8, 8)
    assert test.glyphs.shape == (360, 8, 8)
    assert train.glyphs.min() == 0 and train.glyphs.max() == 1
    assert set(test.labels.tolist()) == set(range(10))
    seen = {glyph.numpy().tobytes() for glyph in train.glyphs}
    assert not any(glyph.numpy().tobytes() in seen for glyph in test.glyphs)


def test_images_are_rgb_bytes_and_follow_the_seed():
    train, _ = handwriting()
    images = draw(SCENES[:20], train, seeded())
    assert images.shape == (20, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(images, draw(SCENES[:20], train, seeded()))
    assert not torch.equal(images, draw(SCENES[:20], train, seeded(1)))


def test_images_show_the_inks_and_papers_of_their_prompts():
    _, test = handwriting()
    found = find_colours(draw(SCENES, test, seeded()))
    right = sum(pair == (scene.ink, scene.paper) for pair, scene in zip(found, SCENES, strict=True))
    assert right / len(SCENES) > 0.98


def test_file_sizes_vary():
    train, _ = handwriting()
    images = draw(random_scenes(200, seeded()), train, seeded())
    sizes = torch.tensor([jpeg_kilobytes(image) for image in images])
    assert sizes.std() > 0.05
