"""pickscore, hpsv2 and clip_score against CLIPModel's own logits."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from transformers import CLIPModel, CLIPProcessor

from salon import RewardClient
from salon.errors import InvalidRequest
from salon.reward.v1 import reward_pb2 as pb
from salon.serving import Sample
from services.rewards.clip_score import ClipScore, ClipScoreConfig
from services.rewards.hpsv2 import HpsV2, HpsV2Config
from services.rewards.pickscore import PickScore, PickScoreConfig
from tests.fixtures.rewards import load_rewards
from tiny.digits import draw, handwriting, random_scenes

TINY_CLIP = "models/tiny-clip-digits"


def drawn_digits(count):
    """Scenes drawn at random, and an image of each by hands that training never saw."""
    generator = torch.Generator().manual_seed(5)
    scenes = random_scenes(count, generator)
    _, unseen = handwriting()
    return scenes, list(draw(scenes, unseen, generator).permute(0, 2, 3, 1).numpy())


def prompts(scenes):
    return [scene.prompt for scene in scenes]


@pytest.fixture(scope="module")
def pairs():
    """Images of the size that the tower reads: no resize stands between them and the reference."""
    rng = np.random.default_rng(1)
    prompts = ["a red three on a blue background", "a green one", "a red three", "", "purple"]
    return [Sample(rng.integers(0, 256, (32, 32, 3), np.uint8), prompt, {}) for prompt in prompts]


@pytest.fixture(scope="module")
def logits(clip_folder, pairs):
    """exp(logit scale) times the cosine of each pair, and that factor."""
    model, processor = (
        CLIPModel.from_pretrained(clip_folder),
        CLIPProcessor.from_pretrained(clip_folder),
    )

    def logits(prompts):
        images = [pair.image for pair in pairs]
        inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(**inputs).logits_per_image.diagonal().tolist()

    return logits, model.logit_scale.exp().item()


def test_pickscore_is_the_cosine_times_the_logit_scale(clip_folder, pairs, logits):
    expected, _ = logits
    reward = PickScore(PickScoreConfig(model=str(clip_folder)))
    scores = reward.score(pairs)
    assert scores == pytest.approx(expected([pair.prompt for pair in pairs]), rel=1e-4)
    assert max(scores) - min(scores) > 0.1


def test_hpsv2_is_the_cosine(clip_folder, pairs, logits):
    expected, scale = logits
    scores = HpsV2(HpsV2Config(model=str(clip_folder))).score(pairs)
    cosines = [logit / scale for logit in expected([pair.prompt for pair in pairs])]
    assert scores == pytest.approx(cosines, abs=1e-5)
    assert HpsV2.lower_bound <= min(scores) < max(scores) <= HpsV2.upper_bound


@pytest.mark.parametrize(("height", "width"), [(32, 21), (16, 32)])
def test_hpsv2_sees_the_whole_of_an_image_that_is_not_square(clip_folder, pairs, height, width):
    """Its authors pad with black to a square, where the other CLIP rewards crop one."""
    samples = [replace(pair, image=pair.image[:height, :width]) for pair in pairs]
    top, left = (32 - height) // 2, (32 - width) // 2
    rows, columns = (top, 32 - height - top), (left, 32 - width - left)
    padded = [
        replace(sample, image=np.pad(sample.image, (rows, columns, (0, 0)))) for sample in samples
    ]
    reward = HpsV2(HpsV2Config(model=str(clip_folder)))
    assert reward.score(samples) == pytest.approx(reward.score(padded), abs=1e-6)
    cropping = ClipScore(ClipScoreConfig(model=str(clip_folder)))
    assert cropping.score(samples) != pytest.approx(cropping.score(padded), abs=1e-3)


def test_clip_score_is_two_and_a_half_times_the_cosine_where_it_is_positive(
    clip_folder, pairs, logits
):
    expected, scale = logits
    scores = ClipScore(ClipScoreConfig(model=str(clip_folder))).score(pairs)
    cosines = [logit / scale for logit in expected([pair.prompt for pair in pairs])]
    assert scores == pytest.approx([2.5 * max(cosine, 0) for cosine in cosines], abs=1e-5)
    assert min(cosines) < 0 < max(cosines), "both branches are seen"


def test_clip_score_asks_what_its_template_says(clip_folder, pairs, logits):
    expected, scale = logits
    config = ClipScoreConfig(model=str(clip_folder), template="on {prompt}")
    scores = ClipScore(config).score(pairs)
    asked = expected([f"on {pair.prompt}" for pair in pairs])
    assert scores == pytest.approx([2.5 * max(x / scale, 0) for x in asked], abs=1e-5)


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "clip_score"])
def test_any_sizes_and_gray_share_a_batch(clip_folder, samples, name):
    [reward] = load_rewards(name, {"model": str(clip_folder), "device": "cpu"})
    scores = reward.score(samples)
    alone = [reward.score([sample])[0] for sample in samples]
    assert scores == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert all(isinstance(score, float) and np.isfinite(score) for score in scores)
    assert reward.name == name
    assert pb.INPUT_PROMPT in reward.inputs


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "clip_score"])
def test_the_version_names_the_weights_their_dtype_and_transformers(clip_folder, name):
    [reward] = load_rewards(name, {"model": str(clip_folder), "dtype": "bfloat16"})
    code = re.escape(f"transformers-{transformers.__version__}")
    pattern = rf"1\+{re.escape(clip_folder.name)}@[0-9a-f]{{12}}\+bfloat16\+{code}"
    assert re.match(pattern, reward.version)


def test_the_version_of_clip_score_holds_its_template(clip_folder):
    config = ClipScoreConfig(model=str(clip_folder), template="A photo depicts {prompt}")
    assert ClipScore(config).version.endswith("+A photo depicts {prompt}")


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "clip_score"])
def test_a_trained_model_prefers_the_prompt_that_an_image_shows(name):
    [reward] = load_rewards(name, {"model": TINY_CLIP, "device": "cpu"})
    scenes, images = drawn_digits(16)
    own = reward.score([Sample(*pair, {}) for pair in zip(images, prompts(scenes), strict=True)])
    others = prompts(scenes[1:] + scenes[:1])
    other = reward.score([Sample(*pair, {}) for pair in zip(images, others, strict=True)])
    assert np.mean(np.greater(own, other)) > 0.9


def test_it_is_served(start_service):
    scenes, images = drawn_digits(4)
    service = start_service("pickscore", "--model", TINY_CLIP)
    with RewardClient(service.target) as client:
        outcomes = client.score(images, prompts(scenes))
        nameless = client.score(images[:1])
        description = client.describe()
    reward = PickScore(PickScoreConfig(model=TINY_CLIP))
    pairs = zip(images, prompts(scenes), strict=True)
    expected = reward.score([Sample(*pair, {}) for pair in pairs])
    assert [outcome.score for outcome in outcomes] == pytest.approx(expected, rel=1e-3)
    assert {outcome.version for outcome in outcomes} == {description.version} == {reward.version}
    assert nameless[0].error.code == pb.ERROR_CODE_MISSING_INPUT


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("clip_score", {"template": "a photo"}, r"option template of clip_score: .*\{prompt\}"),
        ("pickscore", {"processor": "models"}, "'models' cannot be loaded as AutoTokenizer"),
        ("hpsv2", {"dtype": "int8"}, "option dtype of hpsv2"),
        ("pickscore", {"device": "tpu"}, "device 'tpu' is none of auto, cpu, cuda and cuda:N"),
        ("pickscore", {"head": "x"}, "pickscore has no option 'head'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(clip_folder, name, options, problem):
    with pytest.raises(InvalidRequest, match=problem):
        load_rewards(name, {"model": str(clip_folder)} | options)
