"""What a training job is, typed and complete. No torch here: `salon submit` checks it."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, model_validator
from yaml import YAMLError

from salon.errors import InvalidRequest
from salon.local_services import needs_of
from salon.settings import Settings
from trainer.ddpo.config import DDPOConfig
from trainer.denoising.config import LoraConfig
from trainer.reference import read_reference
from trainer.rwr.config import RWRConfig
from trainer.sections import SUBMITTING, EvaluationSpec, Prompts, RewardSpec, Section
from trainer.stopping import StopRule

__all__ = ["EvaluationSpec", "JobSpec", "RewardSpec", "check_inputs", "load_spec"]

_NEEDS = {
    "metadata": "metadata with every sample",
    "instance": "an instance that was fitted to examples",
}


AlgorithmConfig = Annotated[DDPOConfig | RWRConfig, Field(discriminator="name")]
_ALGORITHMS: dict[str, type[BaseModel]] = {"ddpo": DDPOConfig, "rwr": RWRConfig}


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
    rewards: list[RewardSpec] = Field(min_length=1, description="Their weighted sum is maximised.")
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
                raise ValueError(f"{key}: {metric} is not measured; {_hint(metric, measured)}")
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


def load_spec(path: Path, overrides: list[str]) -> JobSpec:
    """Read a YAML file, apply `dotted.key=value` overrides, and check the whole.

    Models that are local folders and references become absolute paths, prompt sets, files and
    functions become their prompts: the result means the same wherever it is run.

    Raises:
        InvalidRequest: one line for each thing wrong, naming key, value and the way out.
    """
    if not path.is_file():
        raise InvalidRequest(f"no job spec at {str(path)!r}")
    for override in overrides:
        if "=" not in override:
            raise InvalidRequest(f"override {override!r} is not of the form dotted.key=value")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise InvalidRequest(f"{path}: a job spec is a mapping of keys to values")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(overrides))
        values: Any = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{path}: {' '.join(str(error).split())}") from None
    for section, key in ((values, "model"), (values.get("evaluation"), "diversity_model")):
        model = section.get(key) if isinstance(section, dict) else None
        if isinstance(model, str) and Path(model).is_dir():
            section[key] = str(Path(model).absolute())
    try:
        spec = JobSpec.model_validate(values, context=SUBMITTING)
    except ValidationError as error:
        problems = "\n".join(
            _explain(problem)
            for problem in error.errors()
            # Said of a default that depends on a field for which there is an error already.
            if problem["type"] != "default_factory_not_called"
        )
        raise InvalidRequest(
            f"{path}:\n{problems}" if "\n" in problems else f"{path}: {problems}"
        ) from None
    return spec.model_copy(update={"rewards": [_located(reward) for reward in spec.rewards]})


def check_inputs(spec: JobSpec, settings: Settings) -> None:
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


def _located(reward: RewardSpec) -> RewardSpec:
    """With the absolute path of its reference, which can be read."""
    if reward.reference is None:
        return reward
    read_reference(reward.reference)
    return reward.model_copy(update={"reference": str(Path(reward.reference).absolute())})


def _explain(problem: Any) -> str:
    location = [part for part in problem["loc"] if part != "function-before"]
    if location[:1] == ["algorithm"]:
        del location[1:2]  # pydantic's mark of which algorithm it is; no key of the spec
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        return f"{key}: unknown key; {_hint(str(location[-1]), known)}"
    if problem["type"] == "union_tag_not_found":
        return f"{key}.name: Field required; known: {', '.join(_ALGORITHMS)}"
    if problem["type"] == "union_tag_invalid":
        name = problem["ctx"]["tag"]
        return f"{key}.name: no algorithm {name!r}; {_hint(name, list(_ALGORITHMS))}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("missing", "value_error"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message} (got {problem['input']!r:.100})"


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    nested: dict[str, type[BaseModel]] = {
        **_ALGORITHMS,
        "lora": LoraConfig,
        "evaluation": EvaluationSpec,
        "rewards": RewardSpec,
        "stop_when": StopRule,
    }
    model: type[BaseModel] = JobSpec
    for part in location:
        model = nested.get(str(part), model)
    return sorted(model.model_fields)
