"""Hyperparameters of DDPO, checked before a job is queued; imports no torch."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LoraConfig(BaseModel):
    """Low-rank adapters on the UNet's attention (Hu et al. 2021, arXiv 2106.09685)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(4, ge=1, description="Rank r of each adapter; 4 as in TRL's DDPO trainer.")
    alpha: float = Field(
        4.0, gt=0, description="Scale: adapters are multiplied by alpha / rank; 4 as in TRL."
    )
    target_modules: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        description="Names (endings) of the linear layers that get an adapter: all of attention.",
    )


def _default_learning_rate(fields: dict[str, Any]) -> float:
    return 1e-5 if fields.get("lora") is None else 3e-4


class DDPOConfig(BaseModel):
    """The importance-sampling variant, DDPO-IS; defaults are the paper's table in appendix D.5.

    Where the paper is silent the default is that of the authors' code: `jannerm/ddpo`
    (`config/base.py`) or its PyTorch successor `kvablack/ddpo-pytorch` (`config/base.py`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["ddpo"] = Field("ddpo", description="Which algorithm this section configures.")

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
        "0 would be deterministic, a policy without a density.",
    )

    updates_per_iteration: int = Field(
        4,
        ge=1,
        description="Gradient updates per pass over the samples, each on an equal share of them; "
        "paper D.1 (4 of 64 samples).",
    )
    inner_epochs: int = Field(
        1, ge=1, description="Passes over the samples per iteration; 1 in both implementations."
    )
    rows_per_forward: int = Field(
        8,
        ge=1,
        description="(sample, timestep) pairs in one UNet pass of an update. Changes memory and "
        "speed, never the gradient; guidance doubles the rows the UNet sees.",
    )
    clip_range: float = Field(
        1e-4,
        gt=0,
        lt=1,
        description="The importance ratio is clipped to 1 ± this; paper D.1. Small because the "
        "log-probability is a mean over latent dimensions.",
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

    advantage_clip: float = Field(
        10.0,
        gt=0,
        description="Advantages are clipped to ± this; ADV_CLIP_MAX in jannerm/ddpo "
        "(ddpo/training/policy_gradient.py).",
    )
    per_prompt_buffer: int = Field(
        32,
        ge=1,
        description="Latest rewards kept per prompt for its mean and spread; 32 in both "
        "implementations.",
    )
    per_prompt_min_count: int = Field(
        16,
        ge=1,
        description="Below so many kept rewards a prompt is normalised by the mean and spread of "
        "all of the iteration's samples; 16 in both implementations.",
    )

    @model_validator(mode="after")
    def _counts_fit_together(self) -> Self:
        samples = self.samples_per_iteration
        for field in ("sample_batch_size", "updates_per_iteration"):
            divisor = getattr(self, field)
            if samples % divisor:
                raise ValueError(
                    f"samples_per_iteration ({samples}) must be a multiple of {field} ({divisor}); "
                    f"the next that fits is {samples + divisor - samples % divisor}"
                )
        if self.per_prompt_min_count > self.per_prompt_buffer:
            raise ValueError(
                f"per_prompt_min_count ({self.per_prompt_min_count}) must not exceed "
                f"per_prompt_buffer ({self.per_prompt_buffer}): no prompt could ever reach it"
            )
        return self
