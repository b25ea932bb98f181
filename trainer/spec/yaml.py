"""YAML as data: a text in it is that text, and nothing it says is looked up or expanded."""

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_VALUES = 1_000_000
"""In one text, each alias counted as all that it stands for."""

# Ends of a line to YAML 1.1 alone, which PyYAML reads: it would fold or cut a prompt there.
_BREAKS = re.compile("[\x85\u2028\u2029]")
_QUOTED = ("'", '"', "|", ">", "&", "*", "!")


class YamlError(ValueError):
    """The text is no YAML that a spec may be written in; the message says where and why."""


class _Loader(yaml.SafeLoader):
    """Plain scalars by the core schema of YAML 1.2 (yaml.org/spec/1.2.2, 10.3.2).

    In PyYAML's own, of YAML 1.1, `1e-4` is a text, and `no`, `12:30` and `2024-01-01` are none.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as PyYAML has it, and filled below

    def construct_scalar(self, node: Node) -> Any:
        value = super().construct_scalar(node)  # type: ignore[arg-type]
        if not isinstance(value, str):
            return value
        try:  # an escaped pair of surrogates is one character, as in JSON; a half is none
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise YamlError(f"half of a character (a lone surrogate){_place(node)}") from None

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, ScalarNode) or not isinstance(self.construct_object(key), str):
                raise YamlError(f"a key must be a text{_place(key)}")
            if key.value in keys:
                raise YamlError(f"duplicate key {key.value!r}{_place(key)}")
            keys.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts into quotes each text that `_Loader`, or a reader of YAML 1.1, would take for none."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
        )


def parse(text: str) -> Any:
    """What the text of a file holds; None for an empty one.

    Raises:
        YamlError: it is not YAML, has a key twice or one that is no text, or would grow past
            `MAX_VALUES`.
    """
    if found := _BREAKS.search(text):
        line = text.count("\n", 0, found.start()) + 1
        code = ord(found[0])
        raise YamlError(
            f"line {line} has the character U+{code:04X}, at which YAML would break the text: "
            rf'write it as "\u{code:04x}" in double quotes'
        )
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None


def dump(value: Any) -> str:
    """The text of which `parse` makes `value`: of mappings, lists, texts, numbers, bools, None."""
    # In ASCII: what YAML 1.1 takes for the end of a line is escaped, too.
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    return text


def parse_value(text: str) -> Any:
    """What stands behind an override's `=`; a text without quotes is taken as it is written.

    Raises:
        YamlError: as `parse` does.
    """
    plain = text.strip()
    # YAML would take for a comment what begins with "#" or follows " #".
    if plain.startswith("#"):
        return plain
    value = parse(text)
    return plain if isinstance(value, str) and not plain.startswith(_QUOTED) else value


def _count(node: Node, counts: dict[int, int]) -> int:
    """Values under `node`; the counts of nodes that are being counted are 0."""
    if id(node) in counts:
        if counts[id(node)] == 0:
            raise YamlError(f"an alias stands for what it is a part of{_place(node)}")
        return counts[id(node)]
    counts[id(node)] = 0
    total = 1
    if isinstance(node, SequenceNode):
        total += sum(_count(child, counts) for child in node.value)
    elif isinstance(node, MappingNode):
        total += sum(_count(key, counts) + _count(value, counts) for key, value in node.value)
    if total > MAX_VALUES:
        raise YamlError(f"it has more than {MAX_VALUES} values")
    counts[id(node)] = total
    return total


def _place(node: Node) -> str:
    return f", in line {node.start_mark.line + 1}"
