"""The sections of a job spec that concern prompts, rewards and evaluation; no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from salon.errors import InvalidRequest
from salon.serving import catalogue
from trainer.spec.prompts.rows import Row
from trainer.spec.prompts.sources import resolve_prompts


def submitting(folders: Sequence[Path]) -> dict[str, Sequence[Path]]:
    """Context of the validation in which prompts may be named; elsewhere they are lists.

    Args:
        folders: where files and modules of prompts are looked for.
    """
    return {"folders": folders}


def _read_prompts(value: Any, info: ValidationInfo) -> Any:
    """A list stays; what a string names is looked up where a job is submitted, nowhere else.

    A record that comes from the queue is data: it must not make a trainer read files or import
    modules.
    """
    if not isinstance(value, str) or info.context is None:
        return value
    try:
        return resolve_prompts(value, info.context["folders"])
    except InvalidRequest as error:
        raise ValueError(str(error)) from None


Prompts = Annotated[
    list[Row],
    BeforeValidator(_read_prompts),
    Field(
        min_length=1,
        description="A list of texts and rows, or in one string a prompt set, a text or JSONL "
        "file, or module:function.",
    ),
]


def _called_as_a_reward(name: str) -> str:
    if not catalogue.NAME.fullmatch(name):
        raise ValueError(
            f"{name!r:.100} is no name of a reward: it is up to 128 letters, digits, _ . and -, "
            "such as jpeg_compressibility"
        )
    return name


RewardName = Annotated[str, AfterValidator(_called_as_a_reward)]


MAX_COUNT = 10_000_000


class Section(BaseModel):
    """Frozen; an unknown key in it, or a number that is not finite or a bool, is an error.

    So is a number of things, of which there is at least one, beyond `MAX_COUNT`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        kinds = {field.annotation, *get_args(field.annotation)}
        literal = get_origin(field.annotation) is Literal
        if isinstance(value, bool) and (
            any(type(kind) is int for kind in kinds) if literal else {int, float} & kinds
        ):
            raise ValueError(f"a number is wanted (got {value})")
        counts = int in kinds and any(getattr(bound, "ge", 0) >= 1 for bound in field.metadata)
        if counts and isinstance(value, int) and value > MAX_COUNT:
            raise ValueError(f"at most {MAX_COUNT} is meant (got {value!s:.100})")
        return value


class RewardSpec(Section):
    """One reward and its weight in the sum that is maximised."""

    name: RewardName = Field(
        description="A reward that some service hosts, e.g. jpeg_compressibility."
    )
    weight: float = Field(1.0, description="Its factor in the sum; 0 measures it alone.")
    normalize: Literal["none", "zscore", "group"] = Field(
        "none",
        description="Before weighting: zscore over an iteration's samples, group over those of one "
        "prompt (GDPO); with group, advantages need no statistics of earlier iterations.",
    )
    reference: str | None = Field(
        None, description="The image file that it compares every sample with, for rewards that do."
    )


class EvaluationSpec(Section):
    """Samples of prompts and seeds that training never sees, and what is measured on them."""

    prompts: Prompts
    samples: int = Field(64, ge=2, description="Prompts are taken in turn, each with its own seed.")
    batch_size: int = Field(16, ge=1, description="Images generated and scored at once.")
    every: int | None = Field(
        None, ge=1, description="Iterations between evaluations; null: before and after alone."
    )
    kl: bool = Field(
        False,
        description="Measure eval/kl, the divergence from the base model. Evaluation takes three "
        "times the UNet passes, and without LoRA a frozen copy of the UNet stays in memory.",
    )
    diversity_model: str | None = Field(
        None,
        description="A CLIPModel, a folder or a hub id: measure eval/diversity, the mean pairwise "
        "cosine distance of its image embeddings.",
    )
    keep_best: str | None = Field(
        None,
        description="The model with the highest value of this metric is kept in best/, beside the "
        "last one, e.g. eval/clip_score/mean.",
    )

    def metrics(self, rewards: Sequence[str]) -> list[str]:
        """What is measured and may be watched, if `rewards` are scored."""
        means = [f"eval/{reward}/mean" for reward in rewards]
        diversity = ["eval/diversity"] if self.diversity_model is not None else []
        return means + diversity + ["eval/kl"] * self.kl
