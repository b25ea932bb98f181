import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from salon import RewardClient
from salon.errors import InvalidRequest
from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from services.models.vgg import Vgg19
from services.rewards import perceptual
from services.rewards.perceptual import feature_distance, gram, style_distance
from services.server.reward_modules import load_rewards
from tests.fixtures.vgg import narrow_vgg
from tests.salon.files import noise


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(narrow_vgg(), path)
    return path


@pytest.fixture(scope="module")
def rewards(weights):
    return {reward.name: reward for reward in load_rewards("perceptual", {"model": str(weights)})}


def pair(height, width, channels=3, seed=0):
    image, reference = (
        noise(height, width, channels, seed),
        noise(height, width, channels, seed + 1),
    )
    return Sample(image, "", {}, reference)


def maps(image, layer):
    pixels = torch.from_numpy(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)[None]
    [found] = Vgg19(narrow_vgg(), "conv5_1").maps(pixels, [layer])
    return found[0].double().numpy()


def content(sample):
    """Johnson et al. 2016, equation 2: the squared norm over C H W."""
    difference = maps(sample.image, "conv4_2") - maps(sample.reference, "conv4_2")
    return (difference**2).sum() / difference.size


def style(sample):
    """Gatys et al. 2016, equations 3 to 5, sum by sum, with w = 1/5."""
    total = 0.0
    for block in range(1, 6):
        grams = []
        for image in (sample.image, sample.reference):
            vectors = maps(image, f"conv{block}_1")
            channels, places = vectors.shape[0], vectors.shape[1] * vectors.shape[2]
            vectors = vectors.reshape(channels, places)
            grams.append(np.einsum("ik,jk->ij", vectors, vectors))
        squares = ((grams[0] - grams[1]) ** 2).sum()
        total += squares / (4 * channels**2 * places**2) / 5
    return total


def test_gram_by_hand():
    two_maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    # Products of the rows (1 2 3 4) and (0 1 0 1), over four places.
    assert gram(two_maps).tolist() == [[[30 / 4, 6 / 4], [6 / 4, 2 / 4]]]


def test_distances_by_hand():
    two_maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    nothing = torch.zeros_like(two_maps)
    assert feature_distance(two_maps, nothing).tolist() == [(1 + 4 + 9 + 16 + 1 + 1) / 8]
    # (30² + 6² + 6² + 2²) / (4 · 2² · 4²)
    assert style_distance(two_maps, nothing).tolist() == [976 / 256]


def test_style_does_not_care_where_things_are():
    one = torch.rand(1, 3, 4, 4)
    assert style_distance(one, one.flip(-1)).item() == pytest.approx(0, abs=1e-6)
    assert feature_distance(one, one.flip(-1)).item() > 0.01


def test_half_precision_does_not_overflow():
    large = torch.full((1, 2, 64, 64), 200.0, dtype=torch.float16)
    assert gram(large).tolist() == [[[40000.0] * 2] * 2]


@pytest.mark.parametrize(("name", "definition"), [("perceptual", content), ("style", style)])
@pytest.mark.parametrize("shape", [(32, 32, 3), (17, 40, 3), (24, 24, 1)])
def test_the_score_is_minus_the_papers_distance(rewards, name, definition, shape):
    sample = pair(*shape)
    [score] = rewards[name].score([sample])
    assert score == pytest.approx(-definition(sample), rel=1e-4)
    assert score < -1e-3


@pytest.mark.parametrize("name", ["perceptual", "style"])
def test_an_image_is_at_no_distance_from_itself(rewards, name):
    reward, image = rewards[name], noise(32, 32)
    assert reward.score([Sample(image, "", {}, image.copy())]) == [0]
    assert reward.score([reward.example()]) == [reward.upper_bound]


@pytest.mark.parametrize("name", ["perceptual", "style"])
def test_a_batch_of_many_sizes_scores_as_its_samples_alone(rewards, name, monkeypatch):
    monkeypatch.setattr(perceptual, "_PIXELS_PER_PASS", 3 * 32 * 32)
    target = noise(32, 32, seed=9)
    samples = [pair(32, 32, seed=seed) for seed in range(4)]
    samples += [Sample(noise(32, 32, seed=seed), "", {}, target) for seed in range(4)]
    samples += [pair(16, 40), pair(32, 32, channels=1), pair(40, 16), pair(64, 64)]
    order = np.random.default_rng(0).permutation(len(samples))
    alone = [rewards[name].score([sample])[0] for sample in samples]
    together = rewards[name].score([samples[index] for index in order])
    assert together == pytest.approx([alone[index] for index in order], rel=1e-5)
    assert len(set(alone)) == len(alone)


@pytest.mark.parametrize(("name", "side"), [("perceptual", 8), ("style", 16)])
def test_images_smaller_than_the_network_reads_are_refused(rewards, name, side):
    results = rewards[name].score([pair(side, side), pair(side - 1, 32), pair(32, 32)])
    assert isinstance(results[0], float) and isinstance(results[2], float)
    assert results[1].code == reward_pb2.ERROR_CODE_INVALID_SAMPLE
    assert f"each side must be at least {side}" in str(results[1])


def test_the_cost_is_the_area(rewards):
    assert rewards["style"].cost(pair(256, 512)) == 0.5


def test_the_version_changes_with_the_weights_and_the_dtype(rewards, tmp_path):
    save_file(narrow_vgg(seed=1), tmp_path / "vgg.safetensors")
    options = {"model": str(tmp_path / "vgg.safetensors")}
    versions = {reward.version for reward in load_rewards("perceptual", options)}
    half = load_rewards("perceptual:Style", options | {"dtype": "bfloat16"})
    assert len({rewards["style"].version, *versions, half[0].version}) == 3


def test_half_precision_is_close(rewards, weights):
    options = {"model": str(weights), "dtype": "bfloat16"}
    [half] = load_rewards("perceptual:Perceptual", options)
    sample = pair(32, 32)
    assert half.score([sample]) == pytest.approx(rewards["perceptual"].score([sample]), rel=0.05)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(InvalidRequest, match="nowhere"):
        load_rewards("perceptual", {"model": str(tmp_path / "nowhere.safetensors")})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda bias: bias.fill_(torch.nan), "NaN or infinity, as float32, in 1 weight, such as"),
        (lambda bias: bias.long(), r"has 1 weight, such as features.0.bias \(int64\), which is no"),
    ],
)
def test_weights_that_are_no_numbers_are_named(tmp_path, spoil, words):
    state = narrow_vgg()
    state["features.0.bias"] = spoil(state["features.0.bias"].clone())
    path = tmp_path / "vgg.safetensors"
    save_file(state, path)
    with pytest.raises(InvalidRequest, match=f"weights '{path}': it .*{words}"):
        load_rewards("perceptual", {"model": str(path)})


def test_served_over_grpc(start_service, weights, rewards):
    service = start_service("perceptual", "--model", str(weights))
    samples = [pair(32, 32), pair(32, 32, seed=5)]
    images = [sample.image for sample in samples]
    references = [sample.reference for sample in samples]
    with RewardClient(service.target) as client:
        for name, reward in rewards.items():
            outcomes = client.score(images, reward=name, references=references)
            assert [outcome.score for outcome in outcomes] == pytest.approx(
                reward.score(samples), rel=1e-4
            )
        [missing] = client.score(images[:1], reward="style")
        assert missing.error.code == reward_pb2.ERROR_CODE_MISSING_INPUT
