"""The text encoder: a two-layer CLIPTextModel that learns the prompts before the UNet learns."""

import structlog
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tiny.prompts import COLOURS, SCENES

log = structlog.get_logger()

TEXT_WIDTH = 64


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids as StableDiffusionPipeline makes them: int64 [N, model_max_length]."""
    ids: Tensor = tokenizer(
        prompts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained two-layer CLIP text encoder for the tokenizer's vocabulary."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def train_text_encoder(tokenizer: CLIPTokenizer, steps: int) -> CLIPTextModel:
    """Train it so that ink, digit and paper can each be read linearly from its mean output.

    This takes the place of CLIP's contrastive training, and the result is frozen as in Stable
    Diffusion. Trained together with the UNet instead, it drowned the digit in the colours: after
    3000 steps images had the right colours and digits at random.
    """
    text_encoder = build_text_encoder(tokenizer).train()
    tokens = tokenize(tokenizer, [scene.prompt for scene in SCENES])
    names = list(COLOURS)
    targets = [
        torch.tensor([names.index(scene.ink) for scene in SCENES]),
        torch.tensor([scene.digit for scene in SCENES]),
        torch.tensor([names.index(scene.paper) for scene in SCENES]),
    ]
    heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, count) for count in (8, 10, 8))
    optimizer = torch.optim.AdamW([*text_encoder.parameters(), *heads.parameters()], lr=1e-3)
    for _ in range(steps):
        output = text_encoder(tokens).last_hidden_state.mean(dim=1)
        losses = [
            functional.cross_entropy(head(output), target)
            for head, target in zip(heads, targets, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses)
        optimizer.step()
    log.info("text encoder", losses=[round(loss.item(), 4) for loss in losses])
    return text_encoder.eval().requires_grad_(False)
