"""Hyperparameters that all algorithms on a denoising UNet share; imports no torch."""

import difflib
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trainer.spec.rewarded_job import SamplingConfig
from trainer.spec.sections import Section


class LoraConfig(Section):
    """Low-rank adapters on the UNet's attention (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(4, ge=1, description="Rank r of each adapter; 4 as in TRL's DDPO trainer.")
    alpha: float = Field(
        4.0, gt=0, description="Scale: adapters are multiplied by alpha / rank; 4 as in TRL."
    )
    target_modules: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        description="Names (endings) of the linear layers that get an adapter: all of attention.",
    )


def unknown_targets(targets: Iterable[str], layers: Iterable[str]) -> str:
    """What is wrong with `target_modules` for a UNet with these layers; empty if nothing is."""
    names = [f".{layer}" for layer in layers]
    unknown = [t for t in targets if not any(name.endswith(f".{t}") for name in names)]
    if not unknown:
        return ""
    ends = {name.rpartition(".")[2] for name in names}
    near = {t: difflib.get_close_matches(t, sorted(ends | {"to_out.0"}), n=1) for t in unknown}
    meant = [f"{match[0]} for {t}" for t, match in near.items() if match]
    return (
        f"lora.target_modules {unknown}: no layer of the UNet has such a name; "
        + (f"did you mean {', '.join(meant)}? " if meant else "")
        + "those of attention are to_q, to_k, to_v and to_out.0"
    )


def _default_learning_rate(fields: dict[str, Any]) -> float:
    return 1e-5 if fields.get("lora") is None else 3e-4


class DenoisingConfig(SamplingConfig):
    """How samples are drawn and how a UNet is trained on them; "paper" is Black et al. 2023.

    Where the paper is silent the default is that of the authors' code: `jannerm/ddpo`
    (`config/base.py`) or its PyTorch successor `kvablack/ddpo-pytorch` (`config/base.py`).
    """

    samples_per_iteration: int = Field(
        256, ge=1, description="Images sampled and scored per iteration; paper D.1."
    )
    sample_batch_size: int = Field(
        8,
        ge=1,
        description="Images sampled at once, and sent to be scored while the next are sampled; "
        "8 as in ddpo-pytorch's config/dgx.py. Bounded by memory alone.",
    )
    sampling_steps: int = Field(50, ge=2, description="Denoising steps T of one image; paper D.5.")
    scheduler: Literal["ddim", "ddpm"] = Field(
        "ddim",
        description="The steps' Gaussians: those of DDIM with eta (Song et al. 2021), as both "
        "public implementations have, or those of DDPM (Ho et al. 2020).",
    )
    guidance_scale: float = Field(
        5.0,
        ge=1,
        description="Classifier-free guidance weight w, in sampling and in training; paper D.5 "
        "and E.1. 1 means no guidance, and one UNet pass in place of two.",
    )
    eta: float = Field(
        1.0,
        gt=0,
        le=1,
        description="DDIM noise scale; 1 (ancestral sampling) in both public implementations. "
        "0 would be deterministic, a policy without a density. DDPM has none.",
    )
    rows_per_forward: int = Field(
        8,
        ge=1,
        description="(sample, timestep) pairs in one UNet pass of an update. Changes memory and "
        "speed, never the gradient; guidance doubles the rows the UNet sees.",
    )

    lora: LoraConfig | None = Field(
        None, description="Train low-rank adapters; null trains the whole UNet, as the paper does."
    )
    learning_rate: float = Field(
        default_factory=_default_learning_rate,
        gt=0,
        description="AdamW's; 1e-5 for the whole UNet (paper D.5), 3e-4 for LoRA (paper C).",
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta 1; paper D.5.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's beta 2; paper D.5.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon; paper D.5.")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's weight decay; paper D.5.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="The gradient of an update is scaled down to this norm; paper D.5."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep an exponential moving average of the trained weights, with this decay, "
        "and evaluate and save that; null: none, as in the paper.",
    )

    precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32",
        description="Of the networks' arithmetic, as the paper trains; the trained weights and all "
        "log-probabilities are fp32 in any case. fp16 is ddpo-pytorch's, with loss scaling.",
    )
    tf32: bool = Field(
        False,
        description="Let an NVIDIA GPU round the factors of fp32 products to 10 bits: faster, less "
        "exact. Off: log-probabilities are compared at the scale of the clip range.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    row_threads: int = Field(
        1,
        gt=0,
        description="On a CPU: parts of a pass at once, each on its share of torch's threads and "
        "with a gradient of its own until they are added. On two cores, 2 pays where a pass lasts "
        "a tenth of a second or more.",
    )
    compile: bool = Field(
        False, description="torch.compile the UNet, on a GPU: minutes once, then faster."
    )

    @property
    def batches(self) -> int:
        """Of `sample_batch_size` samples, in an iteration."""
        return self.samples_per_iteration // self.sample_batch_size

    @model_validator(mode="after")
    def _batches_fill_an_iteration(self) -> Self:
        require_multiple(self, "sample_batch_size")
        return self


def require_multiple(config: DenoisingConfig, field: str) -> None:
    """Refuse a `samples_per_iteration` that `field` does not divide.

    Raises:
        ValueError: naming both, and the next number that fits.
    """
    samples, divisor = config.samples_per_iteration, getattr(config, field)
    if samples % divisor:
        raise ValueError(
            f"samples_per_iteration ({samples}) must be a multiple of {field} ({divisor}); "
            f"the next that fits is {samples + divisor - samples % divisor}"
        )
