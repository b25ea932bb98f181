import math

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer

from salon.errors import InvalidRequest
from services.models.blip import BlipScorer, published_config, to_transformers
from services.models.image_processor import ImageProcessor
from services.rewards.imagereward import MAX_TOKENS, MEAN, STD, ImageReward, ImageRewardConfig
from tests.fixtures.rewards import load_rewards


@pytest.fixture(scope="module")
def reward(blip_folder):
    return ImageReward(ImageRewardConfig(model=str(blip_folder)))


class Forward:
    """ImageReward's forward pass, written from the papers of ViT, BERT and BLIP."""

    def __init__(self, model):
        self.state = model.state_dict()
        self.vision, self.text = model.config.vision_config, model.config.text_config

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x, name, eps):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias

    @staticmethod
    def attend(query, key, value, heads):
        """Attention of one sequence: each [L, D]."""
        parts = (part.chunk(heads, 1) for part in (query, key, value))
        seen = [
            (q @ k.T / math.sqrt(q.shape[1])).softmax(-1) @ v
            for q, k, v in zip(*parts, strict=True)
        ]
        return torch.cat(seen, 1)

    def see(self, pixels):
        """[1 + patches, D] of one image [3, H, W]."""
        config, eps = self.vision, self.vision.layer_norm_eps
        weights = self.state["vision_model.embeddings.patch_embedding.weight"]
        bias = self.state["vision_model.embeddings.patch_embedding.bias"]
        side = config.patch_size
        patches = pixels.unfold(1, side, side).unfold(2, side, side)  # [3, rows, columns, P, P]
        patches = patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
        x = patches @ weights.flatten(1).T + bias
        x = torch.cat([self.state["vision_model.embeddings.class_embedding"][0], x])
        x = x + self.state["vision_model.embeddings.position_embedding"][0]
        for n in range(config.num_hidden_layers):
            layer = f"vision_model.encoder.layers.{n}"
            normed = self.norm(x, f"{layer}.layer_norm1", eps)
            qkv = self.linear(normed, f"{layer}.self_attn.qkv").chunk(3, 1)
            seen = self.attend(*qkv, config.num_attention_heads)
            x = x + self.linear(seen, f"{layer}.self_attn.projection")
            hidden = self.linear(self.norm(x, f"{layer}.layer_norm2", eps), f"{layer}.mlp.fc1")
            x = x + self.linear(functional.gelu(hidden), f"{layer}.mlp.fc2")
        return self.norm(x, "vision_model.post_layernorm", eps)

    def bert_attention(self, x, other, name):
        query, key, value = (
            self.linear(source, f"{name}.self.{part}")
            for source, part in ((x, "query"), (other, "key"), (other, "value"))
        )
        seen = self.attend(query, key, value, self.text.num_attention_heads)
        out = self.linear(seen, f"{name}.output.dense")
        return self.norm(x + out, f"{name}.output.LayerNorm", self.text.layer_norm_eps)

    def score(self, pixels, tokens):
        eps, image = self.text.layer_norm_eps, self.see(pixels)
        x = self.state["text_encoder.embeddings.word_embeddings.weight"][tokens]
        x = x + self.state["text_encoder.embeddings.position_embeddings.weight"][: len(tokens)]
        x = self.norm(x, "text_encoder.embeddings.LayerNorm", eps)
        for n in range(self.text.num_hidden_layers):
            layer = f"text_encoder.encoder.layer.{n}"
            x = self.bert_attention(x, x, f"{layer}.attention")
            x = self.bert_attention(x, image, f"{layer}.crossattention")
            hidden = functional.gelu(self.linear(x, f"{layer}.intermediate.dense"))
            out = self.linear(hidden, f"{layer}.output.dense")
            x = self.norm(x + out, f"{layer}.output.LayerNorm", eps)
        first = x[0]
        for n in (0, 2, 4, 6, 7):
            first = self.linear(first, f"head.layers.{n}")
        return (first.item() - 0.16717362830052426) / 1.0333394966054072


def test_the_score_is_the_standardised_head_on_the_first_token(reward, blip_folder, samples):
    forward = Forward(BlipScorer.from_pretrained(blip_folder).double())
    tokenizer = AutoTokenizer.from_pretrained(blip_folder)
    images = [sample.image for sample in samples]
    pixels = ImageProcessor(32, (32, 32))(images, torch.device("cpu")).double()
    tokens = [
        tokenizer(sample.prompt, truncation=True, max_length=16)["input_ids"] for sample in samples
    ]
    expected = [forward.score(*pair) for pair in zip(pixels, tokens, strict=True)]
    assert reward.score(samples) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert max(expected) - min(expected) > 0.01


def test_a_batch_scores_as_its_samples_do_alone(reward, samples):
    """Prompts of other lengths are padded together; padding is not attended to."""
    alone = [reward.score([sample])[0] for sample in samples]
    assert reward.score(samples) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def published_names():
    """Of ImageReward.pt, as its modules name them: timm's ViT-L, BLIP's BERT, the MLP."""

    def affine(*prefixes):
        return [f"{prefix}.{kind}" for prefix in prefixes for kind in ("weight", "bias")]

    vision = ["cls_token", "pos_embed", *affine("patch_embed.proj", "norm")]
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for n in range(24):
        vision += affine(*(f"blocks.{n}.{part}" for part in parts))
    text = ["embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"]
    text += ["embeddings.position_ids", *affine("embeddings.LayerNorm")]
    inner = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    for n in range(12):
        layer = f"encoder.layer.{n}"
        for attention in ("attention", "crossattention"):
            text += affine(*(f"{layer}.{attention}.{part}" for part in inner))
        text += affine(*(f"{layer}.{p}" for p in ("intermediate.dense", "output.dense")))
        text += affine(f"{layer}.output.LayerNorm")
    names = [f"blip.visual_encoder.{name}" for name in vision]
    names += [f"blip.text_encoder.{name}" for name in text]
    names += affine("blip.vision_proj", "blip.text_proj")
    return names + affine(*(f"mlp.layers.{n}" for n in (0, 2, 4, 6, 7)))


def test_every_published_name_is_one_of_the_full_size_network():
    with torch.device("meta"):
        network = BlipScorer(published_config())
    state = {name: torch.empty(0) for name in published_names()}
    assert to_transformers(state).keys() == network.state_dict().keys()
    shapes = {name: tuple(weights.shape) for name, weights in network.state_dict().items()}
    assert shapes["vision_model.embeddings.position_embedding"] == (1, 197, 1024)
    assert shapes["vision_model.encoder.layers.23.self_attn.qkv.weight"] == (3072, 1024)
    assert shapes["text_encoder.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert shapes["text_encoder.embeddings.word_embeddings.weight"] == (30524, 768)
    assert shapes["head.layers.0.weight"] == (1024, 768)
    # ImageReward.pt has 1.79 GB of float32, and the projections left out make 2 MB of it.
    assert sum(weights.numel() for weights in network.parameters()) == pytest.approx(
        446e6, rel=0.01
    )


def test_the_published_constants():
    assert (MEAN, STD, MAX_TOKENS) == (0.16717362830052426, 1.0333394966054072, 35)
    config = published_config()
    assert config.vision_config.layer_norm_eps == 1e-6
    assert config.text_config.layer_norm_eps == 1e-12
    assert config.text_config.num_attention_heads == 12
    assert config.text_config.encoder_hidden_size == 1024


def test_the_head_stays_in_float32(blip_folder):
    half = ImageReward(ImageRewardConfig(model=str(blip_folder), dtype="bfloat16"))
    kinds = {
        type(module): module.weight.dtype
        for module in half._model.modules()
        if isinstance(module, nn.Conv2d)
    }
    assert kinds == {nn.Conv2d: torch.bfloat16}
    assert {weights.dtype for weights in half._model.head.parameters()} == {torch.float32}
    assert half.version.endswith(f"+bfloat16+transformers-{transformers.__version__}")


def test_half_precision_stays_close(reward, blip_folder, samples):
    half = ImageReward(ImageRewardConfig(model=str(blip_folder), dtype="bfloat16"))
    full = reward.score(samples)
    spread = max(full) - min(full)
    assert half.score(samples) == pytest.approx(full, abs=0.2 * spread)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"blip.text_proj.weight": torch.zeros(1)}, r"is no BlipScorer: it lacks \d+ weights"),
        ({"blip": "not a tensor"}, "hold a str at 'blip'"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, blip_folder, content, problem):
    torch.save(content, tmp_path / "other.pt")
    options = {"model": str(tmp_path / "other.pt"), "tokenizer": str(blip_folder)}
    with pytest.raises(InvalidRequest, match=problem):
        load_rewards("imagereward", options)
