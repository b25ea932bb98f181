import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from salon.errors import InvalidRequest
from services.models.image_processor import CLIP_MEAN, CLIP_STD, ImageProcessor

CPU = torch.device("cpu")
LEVEL = 1 / 255 / min(CLIP_STD)
"""One of 256 levels, after normalisation, in the channel where it is largest."""


@pytest.fixture(scope="module")
def photograph(photo):
    return np.asarray(Image.open(photo))  # 427 x 640


def reference(image, size=224, **options):
    """The image processor of transformers that resizes with Pillow, as OpenAI's code does."""
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=size, **options)
    return processor(images=[Image.fromarray(image)], return_tensors="pt").pixel_values[0]


@pytest.mark.parametrize(
    ("height", "width"),
    [(427, 640), (640, 427), (512, 512), (225, 640), (224, 224), (100, 150)],
)
def test_pixels_are_within_two_levels_of_pillows(photograph, height, width):
    image = np.resize(photograph, (height, width, 3)) if height > 427 else photograph
    image = image[:height, :width]
    [pixels] = ImageProcessor(224, (224, 224))([image], CPU)
    assert pixels.shape == (3, 224, 224) and pixels.dtype == torch.float32
    difference = (pixels - reference(image)).abs()
    assert difference.max() <= 2.001 * LEVEL
    assert (difference > 1e-5).float().mean() < 0.01


def test_pixels_that_need_no_resize_are_exact(photograph):
    image = photograph[:224, :300]
    [pixels] = ImageProcessor(224, (224, 224))([image], CPU)
    torch.testing.assert_close(pixels, reference(image), rtol=0, atol=1e-6)


def test_images_of_any_size_and_gray_ones_share_a_batch(photograph):
    gray = photograph[:, :, :1]
    batch = ImageProcessor(64, (48, 32))([photograph, gray, photograph[:70, :90]], CPU)
    assert batch.shape == (3, 3, 48, 32)
    gray_levels = batch[1] * torch.tensor(CLIP_STD)[:, None, None]
    spread = gray_levels - gray_levels.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(spread[0], spread[2], rtol=0, atol=1e-5)
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("shape", [(1, 8192), (8192, 1), (4, 701), (300, 16)])
def test_of_a_very_long_image_only_the_middle_is_resized(photograph, shape):
    """What the crop shows is what Pillow shows after resizing the whole image."""
    image = np.resize(photograph, (*shape, 3))
    [pixels] = ImageProcessor(32, (32, 32))([image], CPU)
    assert (pixels - reference(image, size=32)).abs().max() <= 2.001 * LEVEL


def letterboxed(image, size):
    """The longest side to `size` by Pillow in floating point, then black around it."""
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    height, width = (max(1, round(side * size / max(image.shape[:2]))) for side in image.shape[:2])
    canvas = np.zeros((size, size, 3))
    top, left = (size - height) // 2, (size - width) // 2
    for channel in range(3):
        plane = Image.fromarray(image[:, :, channel].astype(np.float32) / 255)
        resized = plane.resize((width, height), Image.Resampling.BICUBIC)
        canvas[top : top + height, left : left + width, channel] = resized
    return ((canvas - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("height", "width", "channels"),
    [(90, 60, 3), (60, 90, 3), (427, 640, 1), (50, 50, 3), (20, 31, 3), (2, 640, 3), (224, 160, 3)],
)
def test_padding_shows_the_whole_image_amid_black(photograph, height, width, channels):
    image = np.resize(photograph, (height, width, 3))[:, :, :channels]
    [pixels] = ImageProcessor(224, (224, 224)).padding()([image], CPU)
    np.testing.assert_allclose(pixels.numpy(), letterboxed(image, 224), rtol=0, atol=1e-4)


def test_it_is_configured_by_the_files_of_the_hub(tmp_path):
    """As openai/clip-vit-large-patch14 has them: a size that is one number, an old class name."""
    config = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_resize": True,
        "do_center_crop": True,
        "do_normalize": True,
        "crop_size": 224,
        "size": 224,
        "resample": 3,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    expected = ImageProcessor(224, (224, 224), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert ImageProcessor.load(str(tmp_path)) == expected


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"size": {"height": 32, "width": 32}}, "shortest edge"),
        ({"resample": 2}, "bicubic"),
        ({"do_center_crop": False}, "crop the centre"),
        ({"crop_size": {"height": 512, "width": 8}}, "out of 224 pixels"),
        ({"crop_size": {"height": -8, "width": 8}}, "crop the centre; it has .*-8"),
        ({"size": {"shortest_edge": 0}}, "shortest edge"),
        ({"image_mean": [0.5]}, r"image_mean \(0.5,\)"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std .* no deviation is 0"),
        ({"image_std": None}, "image_std None"),
    ],
)
def test_another_preprocessing_is_refused(tmp_path, options, problem):
    CLIPImageProcessorPil(**options).save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match=problem):
        ImageProcessor.load(str(tmp_path))
