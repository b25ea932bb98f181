"""The tables of options in docs/: rendered from the configs, so that page and code say the same.

So is that of the settings in the environment.

`python -m trainer.options` writes them anew between the marks that name them, such as
`<!-- options ddpo -->` … `<!-- end -->`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from salon.settings import Settings
from trainer.algorithms import job_class
from trainer.denoising.config import DenoisingConfig, LoraConfig
from trainer.denoising.job import DenoisingJob
from trainer.spec.prompts.rows import Row
from trainer.spec.sections import EvaluationSpec, RewardSpec
from trainer.spec.stopping import StopRule

PAGES = ("ddpo.md", "rwr.md", "commands.md")
_DOCS = Path(__file__).parents[1] / "docs"
_MARKED = re.compile(r"(<!-- options (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _own(config: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The fields that a section adds to those of the class it builds on, or redefines."""
    shared = config.__mro__[1].model_fields if issubclass(config.__mro__[1], BaseModel) else {}
    return {
        name: field
        for name, field in config.model_fields.items()
        if name not in shared or field.description != shared[name].description
    }


def _algorithm(name: str) -> type[BaseModel]:
    """The section of that algorithm."""
    config: Any = job_class(name).model_fields["algorithm"].annotation
    section: type[BaseModel] = config
    return section


TABLES: dict[str, Mapping[str, FieldInfo]] = {
    "job": DenoisingJob.model_fields,
    "row": Row.model_fields,
    "rewards": RewardSpec.model_fields,
    "evaluation": EvaluationSpec.model_fields,
    "stop_when": StopRule.model_fields,
    "denoising": _own(DenoisingConfig),
    "ddpo": _own(_algorithm("ddpo")),
    "rwr": _own(_algorithm("rwr")),
    "lora": LoraConfig.model_fields,
    "settings": {f"SALON_{name.upper()}": at for name, at in Settings.model_fields.items()},
}
"""Fields by the name that a page's mark has."""


def render(page: str) -> str:
    """The text of a page with all its tables written anew.

    Raises:
        ValueError: a mark names no table.
    """

    def write(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        if name not in TABLES:
            raise ValueError(f"no table of options {name!r}; there are {', '.join(TABLES)}")
        return f"{opening}{_table(TABLES[name])}{closing}"

    return _MARKED.sub(write, page)


def _table(fields: Mapping[str, FieldInfo]) -> str:
    lines = ["| key | default | |", "|---|---|---|"]
    for name, field in fields.items():
        # A table's cell is Markdown: a bar would end it, and <reward> would be a tag.
        description = (field.description or "").replace("|", "\\|").replace("<", "&lt;")
        meaning = " ".join([*_choices(field), description])
        lines.append(f"| `{name}` | {_default(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _choices(field: FieldInfo) -> list[str]:
    """The values of a Literal, as one phrase; nothing where there are none to choose from."""
    parts = (field.annotation, *get_args(field.annotation))
    values = next((get_args(part) for part in parts if get_origin(part) is Literal), ())
    return [" or ".join(f"`{value}`" for value in values) + "."] if len(values) > 1 else []


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined:
        return "see right" if field.default_factory is not None else "**required**"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, (list, tuple, dict)):
        return ", ".join(f"`{part}`" for part in value) or "none"
    if _is_switch(value):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"`{value}`" if str(value) not in ("", "{}") else "none"


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def main() -> None:
    """Write the tables of every page."""
    for name in PAGES:
        path = _DOCS / name
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
