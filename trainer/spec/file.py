"""A job spec as a file: read, with overrides, and what is wrong with it in words. No torch here."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from salon.errors import InvalidRequest
from trainer.algorithms import AlgorithmUnusable, job_class, names
from trainer.spec import overrides as command_line
from trainer.spec.job_spec import JobSpec, class_of
from trainer.spec.places import find
from trainer.spec.prompts.sources import is_named
from trainer.spec.sections import submitting
from trainer.spec.yaml import YamlError, parse

_FORMS = {
    "prompts": "prompts: [a red ball, a blue box]",
    "prompts.prompt": "prompts: [{prompt: a red ball}]",
    "prompts.metadata": "prompts: [{prompt: a red ball, metadata: {answers: [red]}}]",
    "prompts.reference": "prompts: [{prompt: a red ball, reference: ball.png}]",
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
MAX_QUOTED = 500  # characters of a text in an error; of longer ones, the first 100
MAX_BYTES = 16 * 1024 * 1024


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
    written: list[Any] = [values, list(overrides)]
    try:
        return _checked(path, values, overrides, written)
    except InvalidRequest as error:
        raise InvalidRequest(_cut(str(error), written)) from None


def _checked(
    path: Path, values: dict[str, Any], overrides: Sequence[str], written: list[Any]
) -> JobSpec:
    """The rest of `load_spec`, which adds to `written` what its errors may quote."""
    folders = (path.absolute().parent, Path.cwd())
    meant = _overridden(copy.deepcopy(values), overrides)
    written.append(meant)
    try:
        kind = class_of(meant)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error}") from None
    _locate(_with_names(values), kind.paths, folders)
    values = _overridden(values, overrides)
    # What was typed in the working folder is first meant from there.
    _locate(values, kind.paths, folders[::-1])
    try:
        spec = kind.model_validate(values, context=submitting(folders))
    except ValidationError as error:
        problems = [
            _explain(problem, kind, meant["algorithm"]["name"])
            for problem in error.errors()
            # Said of a default that depends on a field for which there is an error already.
            if problem["type"] != "default_factory_not_called"
        ]
    else:
        problems = [*spec.missing(folders)]
    if problems:
        more = len(problems) - MAX_PROBLEMS
        if more > 0:
            problems[MAX_PROBLEMS:] = [f"and {more} more"]
        lines = "\n".join(problems)
        raise InvalidRequest(f"{path}:\n{lines}" if "\n" in lines else f"{path}: {lines}")
    return spec


def _cut(message: str, written: Any) -> str:
    """`message`, in which no text of a spec is longer than anybody reads."""
    texts = {text for text in _texts(written) if len(text) > MAX_QUOTED}
    for text in sorted(texts, key=len, reverse=True):
        for quoted in (text, repr(text)[1:-1]):
            message = message.replace(quoted, f"{text[:100]!r}"[1:-1] + "…")
    return message


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        yield from _texts([*values, *values.values()])
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value)


def _overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    values = _with_names(values)
    for override in overrides:
        command_line.apply(values, override)
    return _with_names(values)


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


def _locate(values: dict[str, Any], paths: Sequence[str], folders: Sequence[Path]) -> None:
    """Make the paths absolute of what is there; the rest is a hub id, a set, or missing."""
    for path in paths:
        *sections, key = path.split(".")
        for section in _sections(values, sections):
            text = section.get(key)
            if not isinstance(text, str) or not text or (key == "prompts" and is_named(text)):
                continue
            if found := find(text, folders):
                section[key] = str(found)


def _sections(values: Any, path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The mappings at a path; * is every entry of a list."""
    if not path:
        if isinstance(values, dict):
            yield values
    elif path[0] == "*":
        for entry in values if isinstance(values, list) else ():
            yield from _sections(entry, path[1:])
    elif isinstance(values, dict):
        yield from _sections(values.get(path[0]), path[1:])


def _explain(problem: Mapping[str, Any], kind: type[JobSpec], algorithm: str) -> str:
    location = [part for part in problem["loc"] if part != "function-before"]
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        *path, name = location
        if others := [*_others_with(path, str(name), algorithm)]:
            whose = " and ".join(others)
            return f"{key}: unknown key; it is one of {whose}, and this is a job of {algorithm}"
        return f"{key}: unknown key; {_meant(kind, path, str(name))}"
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


def _meant(kind: type[JobSpec], path: Sequence[str | int], key: str) -> str:
    """The way out for one who wrote `key` into the section at `path`: here, or in another one."""
    here = "".join(f"{part}." for part in path)
    own = _section_at(kind, path).model_fields
    everywhere = list(_keys(kind))
    if elsewhere := [dotted for dotted in everywhere if dotted.rpartition(".")[2] == key]:
        return f"did you mean {' or '.join(elsewhere)}?"
    if near := difflib.get_close_matches(key, own, n=1):
        return f"did you mean {here}{near[0]}?"
    names = {dotted.rpartition(".")[2]: dotted for dotted in reversed(everywhere)}
    if near := difflib.get_close_matches(key, names, n=1, cutoff=0.8):
        return f"did you mean {names[near[0]]}?"
    return f"known: {', '.join(sorted(own))}"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a section and of those in it, dotted; of lists, those of the first entry."""
    for name, field in section.model_fields.items():
        yield prefix + name
        entry = "0." if get_origin(field.annotation) is list else ""
        for inner in _models_in(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.{entry}")


def _others_with(path: Sequence[str | int], key: str, algorithm: str) -> Iterator[str]:
    """The other algorithms whose jobs have that key in that section."""
    for name in names():
        try:
            fields = _section_at(job_class(name), path).model_fields
        except AlgorithmUnusable:  # of no use as a hint; who asks for it is told
            continue
        if name != algorithm and key in fields:
            yield name


def _section_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The class of the section at a path; where another kind of job has none, the last there is."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(iter(_models_in(field.annotation)), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a type speaks of: itself, or those in `list[…]` and `… | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
