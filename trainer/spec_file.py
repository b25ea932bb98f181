"""A job spec as a file: read, with overrides, and what is wrong with it in words. No torch here."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from salon.errors import InvalidRequest
from trainer import overrides as command_line
from trainer.denoising.config import LoraConfig
from trainer.places import find, looked_for
from trainer.prompts.sources import is_named
from trainer.reference import read_reference
from trainer.sections import submitting
from trainer.spec import ALGORITHMS, EvaluationSpec, JobSpec, RewardSpec, hint
from trainer.spec_yaml import YamlError, parse
from trainer.stopping import StopRule

_FORMS = {
    "prompts": "prompts: [a red ball, a blue box]",
    "rewards": "rewards: [{name: jpeg_compressibility, weight: 1}]",
    "rewards.name": "rewards: [{name: jpeg_compressibility}]",
    "rewards.weight": "rewards: [{name: jpeg_compressibility, weight: 0.5}]",
    "rewards.reference": "rewards: [{name: l2, reference: target.png}]",
    "eval_rewards": "eval_rewards: [clip_score]",
    "evaluation": "evaluation: {prompts: [a green hat]}",
    "evaluation.prompts": "evaluation: {prompts: [a green hat]}",
    "algorithm": "algorithm: {name: ddpo}",
    "stop_when": "stop_when: [{metric: eval/kl, above: 0.1}]",
}
"""How what lists and sections hold is written, by its key."""

MAX_PROBLEMS = 20  # that are told of one spec
MAX_BYTES = 16 * 1024 * 1024
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")


def load_spec(path: Path, overrides: Sequence[str]) -> JobSpec:
    """Read a YAML file, apply `dotted.key=value` overrides, and check the whole.

    Models that are local folders and references become absolute paths, prompt sets, files and
    functions become their prompts: the result means the same wherever it is run. What the file
    names is looked for beside it, then in the working folder; what an override names the other way
    round.

    Raises:
        InvalidRequest: one line for each thing wrong, naming key, value and the way out.
    """
    values = _read(path)
    folders = (path.absolute().parent, Path.cwd())
    _locate(_with_names(values), folders)
    for override in overrides:
        command_line.apply(values, override)
    # What was typed in the working folder is first meant from there.
    _locate(_with_names(values), folders[::-1])
    try:
        spec = JobSpec.model_validate(values, context=submitting(folders))
    except ValidationError as error:
        problems = [
            _explain(problem)
            for problem in error.errors()
            # Said of a default that depends on a field for which there is an error already.
            if problem["type"] != "default_factory_not_called"
        ]
    else:
        problems = [*_missing(spec, folders)]
    if problems:
        more = len(problems) - MAX_PROBLEMS
        if more > 0:
            problems[MAX_PROBLEMS:] = [f"and {more} more"]
        lines = "\n".join(problems)
        raise InvalidRequest(f"{path}:\n{lines}" if "\n" in lines else f"{path}: {lines}")
    return spec


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidRequest(f"no job spec at {str(path)!r}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidRequest(
                f"{path} has more than {MAX_BYTES // 1024**2} MiB: put its prompts into a text file"
            )
        values = parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidRequest(f"cannot read job spec {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"job spec {path} is not UTF-8: {error}") from None
    except YamlError as error:
        raise InvalidRequest(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"{path}: a job spec is a mapping of keys to values")
    return values


def _with_names(values: dict[str, Any]) -> dict[str, Any]:
    """`values`, in which a reward that is only named became its section."""
    rewards = values.get("rewards")
    if isinstance(rewards, list):
        rewards[:] = [{"name": r} if isinstance(r, str) else r for r in rewards]
    return values


def _locate(values: dict[str, Any], folders: Sequence[Path]) -> None:
    """Make the paths absolute of what is there; the rest is a hub id, a set, or missing."""
    rewards, evaluation = values.get("rewards"), values.get("evaluation")
    entries = rewards if isinstance(rewards, list) else []
    for section, keys in (
        (values, ("model", "prompts")),
        (evaluation, ("diversity_model", "prompts")),
        *((entry, ("reference",)) for entry in entries),
    ):
        for key in keys:
            text = section.get(key) if isinstance(section, dict) else None
            if not isinstance(text, str) or not text or (key == "prompts" and is_named(text)):
                continue
            if found := find(text, folders):
                section[key] = str(found)


def _missing(spec: JobSpec, folders: Sequence[Path]) -> Iterator[str]:
    """Of what lies in no folder: a reference that is no picture, a model that is no hub id."""
    for i, reward in enumerate(spec.rewards):
        if reward.reference is None:
            continue
        if not Path(reward.reference).is_absolute():
            places = looked_for(reward.reference, folders)
            yield (
                f"rewards.{i}.reference: cannot read reference {reward.reference}: No such file; "
                f"looked for {places}"
            )
            continue
        try:
            read_reference(reward.reference)
        except InvalidRequest as error:
            yield f"rewards.{i}.reference: {error}"
    models = {"model": spec.model, "evaluation.diversity_model": spec.evaluation.diversity_model}
    for key, model in models.items():
        if model is None or Path(model).is_absolute():
            continue
        places = looked_for(model, folders)
        id_ = _HUB_ID.fullmatch(model)
        if id_ is None:
            yield f"{key}: no folder {model!r} (looked for {places}), and a hub id is owner/name"
        elif near := _resembling(folders, *id_.groups()):
            yield (
                f"{key}: no folder {model!r} (looked for {places}), though there is {near}; if it "
                "is meant as a hub id, submit where there is none so like it"
            )


def _resembling(folders: Sequence[Path], owner: str, name: str) -> Path | None:
    """What may have been meant by `owner/name`: it lies in `owner`, and is called much the same.

    A folder that is but called as an organisation on the hub says nothing.
    """
    for parent in (folder / owner for folder in folders):
        names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
        if near := difflib.get_close_matches(name, names, n=1):
            return parent / near[0]
    return None


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
    form = _FORMS.get(".".join(part for part in location if isinstance(part, str)), "")
    form = form and f"; e.g. {form}"
    if problem["type"] == "missing":
        return f"{key}: {message}{form}"
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    got = problem["input"]
    quotes = problem["type"] == "string_type" and isinstance(got, int | float)
    way_out = "; put quotes around a text" if quotes else ""
    return f"{key}: {message} (got {got!r:.100}){way_out}{form}"


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
