"""Layers of a UNet that no prompt has reached yet, computed once for both halves of guidance."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    DownBlock2D,
    UNetMidBlock2DCrossAttn,
)
from torch import Tensor, nn


@contextmanager
def shared_prefix(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within, the second half of each batch for `unet` repeats the first's latents and timesteps.

    Up to the first cross-attention both halves are then the same numbers, which are computed, and
    differentiated, once. In Stable Diffusion 1 and 2 that is a self-attention at full resolution
    and the layers before it; where the first blocks have no attention, these blocks too. Outputs
    and gradients are those of a whole pass but for rounding. Nothing is shared where the prompt
    reaches the first layers (Stable Diffusion XL adds pooled embeddings to the timestep's), or
    under gradient checkpointing, which computes layers again when this has ended.

    Raises:
        RuntimeError: entered twice at a time, which would take a half of a half.
    """
    if _first_half in unet.conv_in._forward_pre_hooks.values():
        raise RuntimeError("the prefix of this UNet is shared already")
    handles = []
    for layer in _prefix(unet):
        handles.append(layer.register_forward_pre_hook(_first_half))
        handles.append(layer.register_forward_hook(_both_halves))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _prefix(unet: UNet2DConditionModel) -> list[nn.Module]:
    told_early = unet.config.addition_embed_type or unet.config.class_embed_type
    if told_early or unet.is_gradient_checkpointing:
        return []
    layers: list[nn.Module] = [unet.conv_in]
    blocks: list[Any] = [*unet.down_blocks, unet.mid_block]
    for block in blocks:
        if isinstance(block, DownBlock2D):
            layers += [*block.resnets, *(block.downsamplers or ())]
            continue
        if isinstance(block, CrossAttnDownBlock2D | UNetMidBlock2DCrossAttn):
            layers += _before_text(block.resnets[0], block.attentions[0])
        break
    return layers


def _before_text(resnet: nn.Module, attention: Any) -> list[nn.Module]:
    if not isinstance(attention, Transformer2DModel):  # two of them, in Versatile Diffusion
        return [resnet]
    layers = [resnet, attention.norm, attention.proj_in]
    block: Any = attention.transformer_blocks[0]
    return layers if block.only_cross_attention else [*layers, block.norm1, block.attn1]


def _first_half(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x[: len(x) // 2] if isinstance(x, Tensor) else x for x in inputs)


def _both_halves(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.cat([output, output])
