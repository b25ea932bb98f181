"""The converter against open_clip's architecture, written here from torch's own parts."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from salon.errors import InvalidRequest
from salon.serving import ModelConfig, Sample
from services.models.clip import Clip
from services.models.open_clip import to_transformers
from services.rewards.hpsv2 import HpsV2, HpsV2Config
from tests.fixtures.clip import WIDTH, clip_config
from tiny.tokenizer import MAX_TOKENS

CONTEXT = MAX_TOKENS


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 2 * width), "gelu": nn.GELU()}
        self.mlp = nn.Sequential(OrderedDict(layers, c_proj=nn.Linear(2 * width, width)))

    def forward(self, x, mask=None):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, heads, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, size, patch, width, heads, layers, out):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, layers)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(len(pixels), 1, -1)
        x = torch.cat([start, patches], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """ViT-H-14's structure (plain GELU), 32 x 32 pixels, two layers."""

    def __init__(self, vocabulary):
        super().__init__()
        self.visual = Visual(32, 8, 32, 4, 2, WIDTH)
        self.transformer = Transformer(32, 4, 2)
        self.token_embedding = nn.Embedding(vocabulary, 32)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, 32))
        self.ln_final = nn.LayerNorm(32)
        self.text_projection = nn.Parameter(torch.randn(32, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_text(self, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection


@pytest.fixture(scope="module")
def architecture(clip_folder, tmp_path_factory):
    """A folder of the CLIP that a checkpoint was fine-tuned from: GELU, as laion's ViT-H-14."""
    folder = tmp_path_factory.mktemp("architecture")
    for path in clip_folder.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    clip_config(tokenizer, hidden_act="gelu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original(architecture):
    torch.manual_seed(0)
    model = OpenClip(len(CLIPTokenizer.from_pretrained(architecture)))
    for weights in model.parameters():
        if weights.ndim > 0:
            nn.init.normal_(weights, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("hps") / "HPS.pt"
    torch.save({"epoch": 3, "state_dict": original.state_dict()}, path)
    return path


@torch.no_grad()
def test_hpsv2_scores_as_the_checkpoint_it_was_converted_from(
    original, checkpoint, architecture, clip_folder
):
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(4)]
    prompts = ["a red three on a blue background", "a green one", "", "a red three " * 20]
    reward = HpsV2(HpsV2Config(model=str(checkpoint), architecture=str(architecture)))
    scores = reward.score([Sample(*pair, {}) for pair in zip(images, prompts, strict=True)])

    processor = Clip.load(ModelConfig(model=str(clip_folder)))
    pixels = processor.image_processor(images, torch.device("cpu"))
    tokens = processor.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
    )
    expected = functional.cosine_similarity(
        original.visual(pixels), original.encode_text(tokens.input_ids)
    )
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert "HPS.pt@" in reward.version and f"{architecture.name}@" in reward.version


def test_the_architecture_of_the_published_checkpoint_is_named_whole():
    """Every name of a ViT-H-14, 32 and 24 layers deep, becomes one of laion's CLIPModel."""

    def names(prefix, layers):
        parts = ["ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"]
        for n in range(layers):
            block = f"{prefix}transformer.resblocks.{n}"
            yield from (f"{block}.{part}.{kind}" for part in parts for kind in ("weight", "bias"))
            yield from (f"{block}.attn.in_proj_{kind}" for kind in ("weight", "bias"))

    whole = ["positional_embedding", "text_projection", "logit_scale", "token_embedding.weight"]
    whole += ["ln_final.weight", "ln_final.bias", "visual.class_embedding", "visual.proj"]
    whole += ["visual.positional_embedding", "visual.conv1.weight"]
    whole += [
        f"visual.{norm}.{kind}" for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")
    ]
    state = {name: torch.empty(3, 3) for name in [*whole, *names("visual.", 32), *names("", 24)]}
    vision = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
    vision |= {"patch_size": 14}
    text = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = CLIPConfig(projection_dim=1024, vision_config=vision, text_config=text)
    with torch.device("meta"):
        model = CLIPModel(config)
    assert to_transformers(state, "HPS.pt").keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"visual.trunk.stem.weight": torch.zeros(1)}, "no name of an open_clip CLIP"),
        ({"logit_scale": torch.zeros(())}, r"is no CLIPModel: it lacks \d+ weights"),
    ],
)
def test_another_checkpoint_is_refused(architecture, tmp_path, state, problem):
    torch.save({"state_dict": state}, tmp_path / "other.pt")
    config = HpsV2Config(model=str(tmp_path / "other.pt"), architecture=str(architecture))
    with pytest.raises(InvalidRequest, match=problem):
        HpsV2(config)
