"""Hyperparameters of reward-weighted regression; imports no torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer.denoising.config import DenoisingConfig
from trainer.denoising.job import DenoisingJob

INVERSE_TEMPERATURE, PERCENTILE = 0.2, 0.9


def _default_epochs(fields: dict[str, Any]) -> int:
    return 50 if fields.get("weighting") == "sparse" else 5


class RWRConfig(DenoisingConfig):
    """RWR and RWR-sparse; defaults are the paper's table in appendix D.5."""

    name: Literal["rwr"] = Field("rwr", description="Which algorithm this section configures.")

    samples_per_iteration: int = Field(
        10_240,
        ge=1,
        description="Images sampled and scored per iteration; 10k in paper D.5, 10,240 in "
        "jannerm/ddpo (config/base.py; for the sparse variant as the 1,024 that are kept).",
    )
    weighting: Literal["softmax", "sparse"] = Field(
        "softmax",
        description="Softmax: every sample counts, by the exponential of its reward. Sparse: the "
        "best are kept and count alike. Paper 4.2; in its 6.1 neither is the better one.",
    )
    inverse_temperature: float = Field(
        INVERSE_TEMPERATURE,
        ge=0,
        description="Of softmax: rewards are multiplied by it, so the larger, the more the best "
        "alone count, and 0 makes all count alike. Paper D.5, for kilobytes and aesthetic scores; "
        "rewards of another scale need another. jannerm/ddpo calls it temperature.",
    )
    percentile: float = Field(
        PERCENTILE,
        ge=0,
        lt=1,
        description="Of sparse: the share of the samples to discard; 0.9 keeps the best tenth. "
        "Paper D.5.",
    )
    per_prompt: bool = Field(
        True,
        description="Compare a sample with those of its own prompt (paper D.3) or, if false, with "
        "all of the iteration, as jannerm/ddpo does in its softmax runs on file sizes.",
    )
    epochs: int = Field(
        default_factory=_default_epochs,
        ge=1,
        description="Passes over the samples that count, per iteration; 5 of softmax and 50 of "
        "sparse (jannerm/ddpo, config/base.py), which make the 400 updates of paper D.5.",
    )
    batch_size: int = Field(
        128,
        ge=1,
        description="Samples per gradient update, as near as equal shares come to it; paper D.5.",
    )

    @model_validator(mode="after")
    def _options_are_of_the_weighting(self) -> Self:
        field, default, other = (
            ("percentile", PERCENTILE, "sparse")
            if self.weighting == "softmax"
            else ("inverse_temperature", INVERSE_TEMPERATURE, "softmax")
        )
        value = getattr(self, field)
        if value != default:
            raise ValueError(
                f"{field} ({value}) belongs to weighting: {other}, but weighting is "
                f"{self.weighting}: leave it out, or set weighting: {other}"
            )
        return self


class RWRJob(DenoisingJob):
    """A job of RWR."""

    builder: ClassVar[str] = "trainer.rwr.algorithm:build"
    health: ClassVar[Mapping[str, str]] = {
        "effective_samples": "so many samples of equal weight would say as much as the weighted",
        **DenoisingJob.health,
    }

    algorithm: RWRConfig
