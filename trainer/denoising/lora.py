"""Low-rank adapters on a UNet: added, fused while sampling, switched off for the reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from salon.errors import InvalidRequest
from trainer.denoising.config import unknown_targets
from trainer.runtime.seeds import derive_seed

ADAPTER = "default"


def has_lora(unet: UNet2DConditionModel) -> bool:
    """Whether training changes adapters rather than the UNet's own weights."""
    return ADAPTER in getattr(unet, "peft_config", {})


def add_lora(
    unet: UNet2DConditionModel,
    *,
    rank: int,
    alpha: float,
    target_modules: Sequence[str],
    seed: int,
) -> None:
    """Put a trainable low-rank adapter, in fp32, on linear layers of a frozen UNet.

    Raises:
        InvalidRequest: no layer of the UNet is called as one of `target_modules` says, or it is of
            a kind that takes no adapter.
    """
    # peft is content with one that is there.
    if wrong := unknown_targets(target_modules, (name for name, _ in unet.named_modules())):
        raise InvalidRequest(wrong)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(target_modules),
        init_lora_weights="gaussian",
    )
    # peft draws from the global generators; lend it forked ones that depend on the seed alone.
    with torch.random.fork_rng(devices=[unet.device] if unet.device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "lora"))
        try:
            unet.add_adapter(config, adapter_name=ADAPTER)
        except ValueError as error:
            raise InvalidRequest(f"lora.target_modules {list(target_modules)}: {error}") from error
    cast_training_params(unet, torch.float32)


@contextmanager
def fused_lora(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within, the adapters' products are part of the weights, so that no layer runs twice.

    Afterwards the weights are bit for bit what they were: they are put back, not subtracted from.
    Weights in reduced precision are left alone, and so is a UNet without adapters: adding to such
    weights would round away what training changed.
    """
    if not has_lora(unet) or unet.dtype != torch.float32:
        yield
        return
    layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    with torch.no_grad():
        kept = [weight.clone() for weight in weights]
        unet.fuse_lora()
    try:
        yield
    finally:
        with torch.no_grad():
            unet.unfuse_lora()
            torch._foreach_copy_(weights, kept)


@contextmanager
def without_lora(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within, the UNet is the one that training started from."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()
