"""Hyperparameters of DDPO, checked before a job is queued; imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer.denoising.config import DenoisingConfig, require_multiple
from trainer.denoising.job import DenoisingJob


def _default_updates(fields: dict[str, Any]) -> int:
    return 1 if fields.get("estimator") == "score_function" else 4


class DDPOConfig(DenoisingConfig):
    """DDPO-IS and DDPO-SF; defaults are those of the paper's table in appendix D.5 for DDPO-IS."""

    name: Literal["ddpo"] = Field("ddpo", description="Which algorithm this section configures.")

    estimator: Literal["importance", "score_function"] = Field(
        "importance",
        description="Of the policy gradient: DDPO-IS, several clipped updates on the samples of an "
        "iteration, or DDPO-SF, one update without importance ratios; paper 4.3.",
    )
    updates_per_iteration: int = Field(
        default_factory=_default_updates,
        ge=1,
        description="Gradient updates per pass over the samples, each on an equal share of them; "
        "paper D.1: 4 (of 64 samples), and 1 (of all 256) with score_function.",
    )
    inner_epochs: int = Field(
        1, ge=1, description="Passes over the samples per iteration; 1 in both implementations."
    )
    clip_range: float = Field(
        1e-4,
        gt=0,
        lt=1,
        description="The importance ratio is clipped to 1 ± this; paper D.1. Small because the "
        "log-probability is a mean over latent dimensions.",
    )
    timestep_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of a sample's timesteps that an update trains on, drawn anew for each "
        "sample and update; 1 in both implementations. Less is faster and noisier, not biased.",
    )
    kl_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL divergence from the model that training started from, added "
        "to the loss as in DPOK (Fan et al. 2023); none in the paper. Costs another UNet pass per "
        "pair, and for a whole UNet a frozen copy.",
    )
    staleness: Literal[0, 1] = Field(
        0,
        description="1: sample the next iteration while the last rewards of this one arrive, with "
        "the parameters from before this one's updates. Pays where rewards are slow; importance "
        "ratios stay exact, but start outside of a narrow clip_range: widen it.",
    )

    advantages: Literal["per_prompt", "group", "global"] = Field(
        "per_prompt",
        description="What a reward is compared with: the latest rewards of its prompt (paper D.3), "
        "its prompt's samples of this iteration alone (GRPO, Shao et al. 2024), or all samples of "
        "this iteration. Rewards with normalize: group are compared as in GDPO instead; with them "
        "this must not be group.",
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

    @property
    def compares_within_prompts(self) -> bool:
        """See `SamplingConfig.compares_within_prompts`."""
        return self.advantages == "group"

    @model_validator(mode="after")
    def _counts_fit_together(self) -> Self:
        require_multiple(self, "updates_per_iteration")
        if self.per_prompt_min_count > self.per_prompt_buffer:
            raise ValueError(
                f"per_prompt_min_count ({self.per_prompt_min_count}) must not exceed "
                f"per_prompt_buffer ({self.per_prompt_buffer}): no prompt could ever reach it"
            )
        return self

    @model_validator(mode="after")
    def _score_function_is_on_policy(self) -> Self:
        if self.estimator == "importance":
            return self
        for field, needed in (("updates_per_iteration", 1), ("inner_epochs", 1), ("staleness", 0)):
            if getattr(self, field) != needed:
                raise ValueError(
                    f"{field} is {getattr(self, field)}, but estimator: score_function holds only "
                    "for samples of the very parameters that it updates: set it to "
                    f"{needed}, or take estimator: importance"
                )
        return self


class DDPOJob(DenoisingJob):
    """A job of DDPO."""

    builder: ClassVar[str] = "trainer.ddpo.algorithm:build"
    health: ClassVar[Mapping[str, str]] = {
        "approx_kl": "½ (log ratio)², how far an update moves the policy; alarming far above "
        "½ clip_range²",
        "clipfrac": "share of steps whose ratio left the clip range; alarming near 1, where "
        "clipping holds most of them back",
        **DenoisingJob.health,
    }

    algorithm: DDPOConfig
