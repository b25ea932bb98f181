"""A job spec as a file: read, with overrides, and what is wrong with it in words. No torch here."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from salon.errors import InvalidRequest
from trainer.denoising.config import LoraConfig
from trainer.reference import read_reference
from trainer.sections import SUBMITTING
from trainer.spec import ALGORITHMS, EvaluationSpec, JobSpec, RewardSpec, hint
from trainer.stopping import StopRule


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
        for override in overrides:
            _apply(loaded, override)
        values: Any = OmegaConf.to_container(loaded, resolve=True)
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


def _apply(loaded: DictConfig, override: str) -> None:
    """Set what `override` names; in a list by its place there, as in `rewards.0.weight=2`."""
    key, _, text = override.partition("=")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        OmegaConf.update(loaded, key, value["value"])  # type: ignore[index, call-overload]
    except (OmegaConfBaseException, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidRequest(f"override {override!r} cannot be applied: {reason}") from None


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
        return f"{key}: unknown key; {hint(str(location[-1]), known)}"
    if problem["type"] == "union_tag_not_found":
        return f"{key}.name: Field required; known: {', '.join(ALGORITHMS)}"
    if problem["type"] == "union_tag_invalid":
        name = problem["ctx"]["tag"]
        return f"{key}.name: no algorithm {name!r}; {hint(name, list(ALGORITHMS))}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("missing", "value_error"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message} (got {problem['input']!r:.100})"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    nested: dict[str, type[BaseModel]] = {
        **ALGORITHMS,
        "lora": LoraConfig,
        "evaluation": EvaluationSpec,
        "rewards": RewardSpec,
        "stop_when": StopRule,
    }
    model: type[BaseModel] = JobSpec
    for part in location:
        model = nested.get(str(part), model)
    return sorted(model.model_fields)
