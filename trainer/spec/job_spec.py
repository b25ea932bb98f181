"""What a training job is, typed and complete. No torch here: `salon submit` checks it."""

import difflib
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from salon.errors import InvalidRequest
from salon.settings import Settings
from salon.stack.local_services import needs_of
from trainer.ddpo.config import DDPOConfig
from trainer.denoising.pipelines.submission import (
    check_device,
    check_diversity_model,
    check_generator,
    trains_here,
)
from trainer.rwr.config import RWRConfig
from trainer.spec.credentials import check_credentials
from trainer.spec.sections import EvaluationSpec, Prompts, RewardSpec, Section
from trainer.spec.stopping import StopRule

__all__ = ["EvaluationSpec", "JobSpec", "RewardSpec", "check_inputs"]

_NEEDS = {
    "metadata": "metadata with every sample",
    "instance": "an instance that was fitted to examples",
}

_MEASURED_BY = {
    "eval/kl": "set evaluation.kl: true",
    "eval/diversity": "name an evaluation.diversity_model",
}

AlgorithmConfig = Annotated[DDPOConfig | RWRConfig, Field(discriminator="name")]
ALGORITHMS: dict[str, type[BaseModel]] = {"ddpo": DDPOConfig, "rwr": RWRConfig}


class JobSpec(Section):
    """A whole job. What it leaves out has the defaults written here; unknown keys are errors."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$",
        description="Lower case, digits, dots, dashes; job id and run folder begin with it.",
    )
    model: str = Field(
        description="A diffusers StableDiffusionPipeline or StableDiffusionXLPipeline: a folder or "
        "a hub id."
    )
    prompts: Prompts = Field(
        description="A list, or in one string a prompt set, a text file or module:function."
    )
    rewards: list[RewardSpec] = Field(
        min_length=1,
        description="Their weighted sum is maximised. Each is a section, or its name alone.",
    )
    eval_rewards: list[str] = Field(
        [], description="Rewards to report before and after; training never asks for them."
    )
    iterations: int = Field(ge=1, description="Rounds of sampling, scoring and updating.")
    algorithm: AlgorithmConfig = Field(description="Which algorithm, and its hyperparameters.")
    evaluation: EvaluationSpec = Field(description="What is compared before and after training.")
    stop_when: list[StopRule] = Field(
        [], description="Training ends before its last iteration where one of these rules applies."
    )
    seed: int = Field(0, ge=0, description="Of all randomness in training, and of nothing else.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the generator is trained; auto takes a GPU if there is one."
    )
    num_processes: int = Field(
        1,
        ge=1,
        description="Processes that share each iteration, each with a GPU of its own, on the host "
        "of the training worker. The result does not depend on it, but for rounding.",
    )
    on_reward_error: Literal["fail", "drop"] = Field(
        "fail", description="A sample without a score ends the job, or is left out."
    )
    allow_stand_ins: bool = Field(
        False,
        description="Rewards may be served by small stand-ins, though the generator is none: their "
        "scores are for trying things out.",
    )
    reward_deadline_seconds: float = Field(
        600.0, gt=0, description="How long a batch may wait for its scores."
    )
    checkpoint_every: int = Field(10, ge=1, description="Iterations between two checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="The newest so many are kept.")
    trackers: list[Literal["wandb", "trackio"]] = Field(
        [], description="Where curves and pictures go, besides TensorBoard."
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
        if isinstance(self.algorithm, DDPOConfig) and self.algorithm.advantages == "group":
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
    def _relative_advantages_have_groups(self) -> Self:
        if isinstance(self.algorithm, DDPOConfig) and self.algorithm.advantages == "group":
            self._check_groups("algorithm.advantages: group", "advantages: per_prompt")
        return self

    @model_validator(mode="after")
    def _every_process_has_a_batch(self) -> Self:
        config = self.algorithm
        batches = config.samples_per_iteration // config.sample_batch_size
        if self.num_processes > batches:
            raise ValueError(
                f"num_processes is {self.num_processes}, but an iteration has only {batches} "
                f"batches of {config.sample_batch_size} samples to share out: raise "
                "algorithm.samples_per_iteration, or lower algorithm.sample_batch_size or "
                "num_processes"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_is_held_out(self) -> Self:
        shared = sorted(set(self.prompts) & set(self.evaluation.prompts))
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


def check_inputs(spec: JobSpec, settings: Settings, *, here: bool = False) -> None:
    """Refuse what can be seen to fail where the job is submitted.

    Args:
        spec: the job.
        settings: of the stack that it goes to.
        here: its trainer runs with the environment of this process, and so with its keys.

    Raises:
        InvalidRequest: one line: the key, what is wrong with its value, and the way out.
    """
    _check_rewards(spec, settings)
    on_this_host = here or trains_here(settings)
    check_generator(spec.model, spec.algorithm.lora, on_this_host)
    if spec.evaluation.diversity_model is not None:
        check_diversity_model(spec.evaluation.diversity_model, on_this_host)
    check_device(spec.device, on_this_host)
    if here:
        check_credentials(spec.trackers, spec.push_to_hub)


def _check_rewards(spec: JobSpec, settings: Settings) -> None:
    """Refuse a reward that needs what the job does not send.

    A job sends images and prompts, and a reference where an entry of `rewards` names one. What
    Salon's own rewards need is known here; a reward that has an address of its own says it itself,
    in its first answer to the trainer.

    Raises:
        InvalidRequest: one line: the reward, what it needs and the way out.
    """
    references = {reward.name: reward.reference for reward in spec.rewards}
    for name in [*references, *spec.eval_rewards]:
        needs = needs_of(settings, name)
        given = references.get(name)
        if needs == "nothing" and given is not None:
            raise InvalidRequest(f"{name} compares with no image: take out its reference")
        if needs == "reference" and given is None:
            raise InvalidRequest(
                f"{name} needs an image to compare with: list it under rewards with "
                "`reference: path/to/image.png`, and with `weight: 0` to measure it alone"
            )
        if needs in ("metadata", "instance"):
            raise InvalidRequest(
                f"{name} needs {_NEEDS[needs]}, which a job does not send: take it out of the "
                f"spec; docs/rewards/{name}.md tells how to score with it from Python"
            )


def hint(name: str, known: list[str]) -> str:
    """The way out for one who wrote `name`, which is none of those known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
