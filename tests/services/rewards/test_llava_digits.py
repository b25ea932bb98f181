"""The rewards that ask LLaVA, on the tiny one of the repository, which knows coloured digits."""

import numpy as np
import pytest
import torch

from salon.serving import Sample
from tests.fixtures.rewards import load_rewards
from tests.fixtures.service import REPOSITORY
from tests.fixtures.text_models import MINILM_LAYERS, minilm
from tiny.digits import draw, handwriting
from tiny.prompts import SCENES

MODEL = str(REPOSITORY / "models" / "tiny-llava-digits")
COUNT = 32


@pytest.fixture(scope="module")
def scenes():
    return [scene for scene in SCENES if scene.held_out][:COUNT]


@pytest.fixture(scope="module")
def images(scenes):
    _, unseen = handwriting()
    drawn = draw(scenes, unseen, torch.Generator().manual_seed(0))
    return [np.ascontiguousarray(image) for image in drawn.permute(0, 2, 3, 1).numpy()]


def test_images_recall_their_own_prompts_best(scenes, images):
    text = {"bertscore_model": str(minilm()), "bertscore_layers": str(MINILM_LAYERS)}
    [reward] = load_rewards("caption_bertscore", {"model": MODEL} | text)
    own = reward.score([Sample(*pair) for pair in _with_prompts(images, scenes)])
    others = reward.score([Sample(*pair) for pair in _with_prompts(images, scenes[::-1])])
    assert np.mean([one.value > other.value for one, other in zip(own, others, strict=True)]) > 0.9
    captions = [score.details["caption"] for score in own]
    right = [caption == scene.prompt for caption, scene in zip(captions, scenes, strict=True)]
    assert np.mean(right) > 0.75


def test_questions_about_colours_are_answered(scenes, images):
    [reward] = load_rewards("vqa_satisfaction", {"model": MODEL})
    questions = ["What color is the number?", "What color is the background?"]
    samples = [
        Sample(image, "", {"questions": questions, "answers": [scene.ink, scene.paper]})
        for image, scene in zip(images, scenes, strict=True)
    ]
    assert np.mean([score.value for score in reward.score(samples)]) > 0.9
    swapped = [
        Sample(image, "", {"questions": questions, "answers": [scene.paper, scene.ink]})
        for image, scene in zip(images, scenes, strict=True)
    ]
    assert np.mean([score.value for score in reward.score(swapped)]) < 0.1


def _with_prompts(images, scenes):
    return [(image, scene.prompt, {}) for image, scene in zip(images, scenes, strict=True)]
