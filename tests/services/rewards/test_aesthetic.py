import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from salon import RewardClient
from salon.errors import InvalidRequest
from salon.serving import ModelConfig, Sample
from services.models.clip import Clip
from services.models.score_head import WIDTHS
from services.rewards.aesthetic import Aesthetic, AestheticConfig
from services.server.reward_modules import load_rewards
from tests.fixtures.clip import WIDTH
from tiny.digits import draw, handwriting
from tiny.prompts import Scene

LINEAR = (0, 2, 4, 6, 7)
TINY_HEAD = "tiny-aesthetic-digits/head.safetensors"


def published_head(width, seed=0):
    """A state dict named and shaped as sac+logos+ava1-l14-linearMSE.pth is."""
    torch.manual_seed(seed)
    sizes = (width, *WIDTHS)
    state = {}
    for place, n in enumerate(LINEAR):
        state[f"layers.{n}.weight"] = torch.randn(sizes[place + 1], sizes[place]) / 8
        state[f"layers.{n}.bias"] = torch.randn(sizes[place + 1])
    return state


@pytest.fixture(scope="module", params=["safetensors", "pth", "checkpoint"])
def head(request, tmp_path_factory):
    """The head in a file of each kind, and its state dict."""
    folder, state = tmp_path_factory.mktemp("head"), published_head(WIDTH)
    if request.param == "safetensors":
        save_file(state, folder / "head.safetensors")
        return folder / "head.safetensors", state
    torch.save(state if request.param == "pth" else {"state_dict": state}, folder / "head.pth")
    return folder / "head.pth", state


def make(clip_folder, head, **options):
    return Aesthetic(AestheticConfig(model=str(clip_folder), head=str(head), **options))


def test_the_score_is_the_heads_affine_map_of_the_unit_embedding(clip_folder, head, samples):
    path, state = head
    images = [sample.image for sample in samples]
    rows = Clip.load(ModelConfig(model=str(clip_folder))).embed_images(images).double()
    assert rows.norm(dim=1).tolist() == pytest.approx([1.0] * 5)
    for n in LINEAR:
        rows = rows @ state[f"layers.{n}.weight"].double().T + state[f"layers.{n}.bias"].double()
    # A score near 0 is a sum of larger terms, and has their rounding.
    expected = pytest.approx(rows[:, 0].tolist(), rel=1e-4, abs=1e-5)
    assert make(clip_folder, path).score(samples) == expected


def test_the_head_is_the_published_module(clip_folder, tmp_path, samples):
    """The module as its authors write it, its dropouts inert in evaluation."""
    published = nn.Module()
    published.layers = nn.Sequential(
        nn.Linear(WIDTH, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
    torch.save(published.eval().state_dict(), tmp_path / "head.pth")
    embeddings = Clip.load(ModelConfig(model=str(clip_folder))).embed_images(
        [sample.image for sample in samples]
    )
    with torch.no_grad():
        expected = published.layers(embeddings)[:, 0].tolist()
    assert make(clip_folder, tmp_path / "head.pth").score(samples) == pytest.approx(expected)


def test_the_head_stays_in_float32(clip_folder, tmp_path, samples):
    """Weights that float16 cannot hold: a head cast with its CLIP would give infinity."""
    state = published_head(WIDTH)
    state["layers.7.bias"] = torch.tensor([1e6])
    save_file(state, tmp_path / "head.safetensors")
    reward = make(clip_folder, tmp_path / "head.safetensors", dtype="float16", device="cpu")
    assert reward.score(samples) == pytest.approx([1e6] * 5, rel=1e-3)


def broken(name, value):
    state = published_head(WIDTH)
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (broken("layers.4.bias", None), "it lacks layers.4.bias"),
        (broken("layers.1.weight", torch.zeros(2, 2)), "it has also layers.1.weight"),
        (broken("layers.2.weight", torch.zeros(128, 9)), r"layers.2.weight of shape \(128, 9\)"),
        (broken("layers.6.weight", torch.zeros(64)), "a weight that is no matrix"),
        (published_head(WIDTH + 1), f"takes embeddings of {WIDTH + 1} numbers"),
        ({"state_dict": {"a": 1}}, "hold a int at 'a'"),
        (
            broken("layers.7.bias", torch.tensor([torch.nan])),
            "NaN or infinity, as float32, in 1 weight, such as layers.7.bias of .*head.pth",
        ),
        (
            broken("layers.7.bias", torch.tensor([1])),
            r"head.pth'.*such as layers.7.bias \(int64\), which is no type",
        ),
    ],
)
def test_a_head_of_another_layout_is_one_clear_line(clip_folder, tmp_path, state, problem):
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(InvalidRequest, match=problem) as caught:
        load_rewards("aesthetic", {"model": str(clip_folder), "head": str(tmp_path / "head.pth")})
    assert "\n" not in str(caught.value)


def test_it_is_served(start_service):
    """On the tiny models, whose head was trained to rate colourfulness."""
    flags = {"model": "models/tiny-clip-digits", "head": f"models/{TINY_HEAD}"}
    options = ["--model", flags["model"], "--set", f"head={flags['head']}"]
    service = start_service("aesthetic", *options)
    scenes = [Scene("black", 3, "white"), Scene("red", 3, "blue"), Scene("blue", 3, "yellow")]
    _, unseen = handwriting()
    images = draw(scenes, unseen, torch.Generator().manual_seed(1)).permute(0, 2, 3, 1).numpy()
    with RewardClient(service.target) as client:
        outcomes = client.score(images)
        description = client.describe()
    [reward] = load_rewards("aesthetic", flags)
    scores = [outcome.score for outcome in outcomes]
    assert scores == pytest.approx(reward.score([Sample(x, "", {}) for x in images]), rel=1e-3)
    assert scores[0] + 1 < min(scores[1:])
    assert description.version == reward.version
    assert f"+{TINY_HEAD.rpartition('/')[2]}@" in reward.version
    assert reward.version.endswith(f"+float32+transformers-{transformers.__version__}")
