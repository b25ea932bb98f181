"""Jobs that raise the rewards of what is made from prompts, and compare before with after.

No torch here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from salon.errors import InvalidRequest, SalonError
from salon.settings import Settings
from trainer.algorithms import hint
from trainer.spec.credentials import check_credentials
from trainer.spec.job_spec import AlgorithmConfig, JobSpec
from trainer.spec.needs import HELD_OUT, check_needs
from trainer.spec.places import looked_for, missing_model
from trainer.spec.prompts.rows import Row
from trainer.spec.reference import read_reference
from trainer.spec.sections import EvaluationSpec, Prompts, RewardName, RewardSpec
from trainer.spec.stopping import StopRule
from trainer.spec.submission import check_diversity_model, trains_here

_MEASURED_BY = {
    "eval/kl": "set evaluation.kl: true",
    "eval/diversity": "name an evaluation.diversity_model",
}


class SamplingConfig(AlgorithmConfig):
    """What an algorithm says that draws samples, so many in an iteration."""

    samples_per_iteration: int

    @property
    def compares_within_prompts(self) -> bool:
        """Whether it compares a sample with those of its prompt in the same iteration alone."""
        return False


class RewardedJob(JobSpec):
    """Of the job's iterations: samples of its prompts are scored, and the scores maximised."""

    paths: ClassVar[tuple[str, ...]] = (
        "prompts",
        "prompts.*.reference",
        "evaluation.prompts",
        "evaluation.prompts.*.reference",
        "evaluation.diversity_model",
        "rewards.*.reference",
    )

    how_to_load: ClassVar[Path | None] = None
    """For the card of a trained model: a section in Markdown, a template of the spec."""

    algorithm: SamplingConfig
    prompts: Prompts
    rewards: list[RewardSpec] = Field(
        min_length=1,
        description="Their weighted sum is maximised. Each is a section, or its name alone.",
    )
    eval_rewards: list[RewardName] = Field(
        [], description="Rewards to report before and after; training never asks for them."
    )
    evaluation: EvaluationSpec = Field(description="What is compared before and after training.")
    stop_when: list[StopRule] = Field(
        [], description="Training ends before its last iteration where one of these rules applies."
    )
    on_reward_error: Literal["fail", "drop"] = Field(
        "fail", description="A sample without a score ends the job, or is left out."
    )
    reward_deadline_seconds: float = Field(
        600.0, gt=0, description="How long a batch may wait for its scores."
    )
    push_to_hub: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$",
        description="user/name on the Hugging Face hub, where the trained model goes at the end; "
        "the token is HF_TOKEN of the trainer's environment.",
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [reward.name for reward in self.rewards] + self.eval_rewards
        if len(set(names)) < len(names):
            raise ValueError(
                f"rewards and eval_rewards: each may be listed once, got {names}; what is trained "
                "on is evaluated, too"
            )
        return self

    @model_validator(mode="after")
    def _groups_can_be_compared(self) -> Self:
        ways = {reward.name: reward.normalize for reward in self.rewards}
        if "group" not in ways.values():
            return self
        if set(ways.values()) != {"group"}:
            raise ValueError(
                f"rewards: normalize: group is for all rewards or none, got {ways}: by one reward "
                "a sample would be compared with its prompt's, by another with all"
            )
        if self.algorithm.compares_within_prompts:
            raise ValueError(
                "rewards: normalize: group compares samples within their prompt already, reward by "
                "reward (GDPO): leave out algorithm.advantages, or normalize: group to compare "
                "their weighted sums (GRPO)"
            )
        self._check_groups("rewards: normalize: group", "normalize: zscore")
        return self

    def _check_groups(self, option: str, way_out: str) -> None:
        samples, prompts = self.algorithm.samples_per_iteration, len(self.prompts)
        if samples < 2 * prompts:
            raise ValueError(
                f"{option} compares the samples of one prompt, but "
                f"algorithm.samples_per_iteration is {samples} for {prompts} prompts: take more "
                f"samples, fewer prompts, or {way_out}"
            )

    @model_validator(mode="after")
    def _samples_are_compared_with_others(self) -> Self:
        if self.algorithm.compares_within_prompts:
            self._check_groups("algorithm.advantages: group", "advantages: per_prompt")
        return self

    @model_validator(mode="after")
    def _evaluation_is_held_out(self) -> Self:
        # The generator sees no more of a row than its prompt.
        trained, held_out = (
            {row.prompt for row in rows} for rows in (self.prompts, self.evaluation.prompts)
        )
        shared = sorted(trained & held_out)
        if shared:
            raise ValueError(
                f"evaluation.prompts: {len(shared)} of them are training prompts too, e.g. "
                f"{shared[0]!r}; evaluate on prompts that training never uses"
            )
        return self

    @model_validator(mode="after")
    def _what_is_watched_is_measured(self) -> Self:
        evaluation = self.evaluation
        names = [reward.name for reward in self.rewards] + self.eval_rewards
        watched = {f"stop_when.{i}.metric": rule.metric for i, rule in enumerate(self.stop_when)}
        measured = evaluation.metrics(names)
        if evaluation.keep_best is not None:
            watched["evaluation.keep_best"] = evaluation.keep_best
        for key, metric in watched.items():
            if metric not in measured:
                way_out = _MEASURED_BY.get(metric) or hint(metric, measured)
                raise ValueError(f"{key}: {metric} is not measured; {way_out}")
        if watched and evaluation.every is None:
            raise ValueError(
                f"{next(iter(watched))}: there is nothing to watch between before and after: set "
                "evaluation.every"
            )
        minimised = [f"eval/{reward.name}/mean" for reward in self.rewards if reward.weight < 0]
        if evaluation.keep_best in ["eval/kl", *minimised]:
            raise ValueError(
                f"evaluation.keep_best: the highest {evaluation.keep_best} is the worst here; "
                "choose a metric of which more is better"
            )
        return self

    @property
    def base_model(self) -> str | None:
        """A folder or a hub id: what is trained; None where training starts from nothing."""
        return None

    def front_matter(self) -> dict[str, Any]:
        """What https://huggingface.co/docs/hub/model-cards#model-card-metadata lists."""
        return {"tags": ["reinforcement-learning", self.algorithm.name]}

    @property
    def refusal(self) -> Callable[[str], SalonError] | None:
        """What is wrong with a reward that a small model stands in for; None where nothing is."""
        return None

    def missing(self, folders: Sequence[Path]) -> Iterator[str]:
        """See `JobSpec.missing`: a reference that is no picture, a model that is no hub id."""
        for key, reference in self._references():
            if not Path(reference).is_absolute():
                yield (
                    f"{key}: cannot read reference {reference}: No such file; looked for "
                    f"{looked_for(reference, folders)}"
                )
                continue
            try:
                read_reference(reference)
            except InvalidRequest as error:
                yield f"{key}: {error}"
        if self.evaluation.diversity_model is not None:
            yield from missing_model(
                "evaluation.diversity_model", self.evaluation.diversity_model, folders
            )

    @property
    def rows(self) -> Mapping[str, Sequence[Row]]:
        """Those of training and those of evaluation, by their keys in the spec."""
        return {"prompts": self.prompts, HELD_OUT: self.evaluation.prompts}

    def _references(self) -> Iterator[tuple[str, str]]:
        """Each file that samples are compared with, once, by a key that names it."""
        named = [(f"rewards.{i}", reward.reference) for i, reward in enumerate(self.rewards)]
        for key, rows in self.rows.items():
            named += [(f"{key}.{i}", row.reference) for i, row in enumerate(rows)]
        first: dict[str, str] = {}
        for key, reference in named:
            if reference is not None:
                first.setdefault(reference, f"{key}.reference")
        yield from ((key, reference) for reference, key in first.items())

    def check_references(self) -> None:
        """Read every file that samples are compared with.

        Raises:
            InvalidRequest: one of them is no picture, or not there.
        """
        for key, reference in self._references():
            try:
                read_reference(reference)
            except InvalidRequest as error:
                raise InvalidRequest(f"{key}: {error}") from None

    def check_inputs(self, settings: Settings, *, here: bool = False) -> None:
        """See `JobSpec.check_inputs`."""
        check_needs(self.rewards, self.eval_rewards, self.rows, settings)
        if self.evaluation.diversity_model is not None:
            on_this_host = here or trains_here(settings)
            check_diversity_model(self.evaluation.diversity_model, on_this_host)
        super().check_inputs(settings, here=here)

    def check_credentials(self) -> None:
        """See `JobSpec.check_credentials`."""
        check_credentials(self.trackers, self.push_to_hub)
