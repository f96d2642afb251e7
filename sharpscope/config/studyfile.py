"""Study files: a StudyConfig as YAML, read strictly.

A key that is unknown or given twice, a value of the wrong type, an alias, a tag: each is refused by one ConfigError
that names the file and the line. Plain values are read as YAML 1.2 reads them (``1e-3`` is a number, ``no`` a text).
Relative paths in a study file are relative to the folder the command is started in, as they are for flags.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import yaml

from sharpscope.config.spellings import current_key
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, shown

__all__ = ["dump", "line_of", "load", "parse", "read_mapping"]

_LARGEST: Final = 1 << 20
_PLAIN: Final = {
    "tag:yaml.org,2002:null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?[0-9]+"), list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        list("-+0123456789."),
    ),
}
"""The plain scalars of YAML 1.2's core schema, in the order in which they are tried."""


class _Loader(yaml.SafeLoader):
    """Composes nodes only; building Python values is ours."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (yaml's own class attribute)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are refused; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern.pattern})$"), _first)


def load(path: str | os.PathLike[str]) -> StudyConfig:
    """The study in the YAML file ``path``; raises ConfigError."""
    return _study(*read_mapping(path))


def parse(text: str, source: str = "study") -> StudyConfig:
    """The study in YAML ``text``; raises ConfigError that names ``source``, the line and the key."""
    return _study(*_data(text, source), source)


def read_mapping(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, int], str]:
    """(plain data, the line of every named value, the file's name for messages) of a YAML file; raises ConfigError."""
    name = shown(os.fspath(path))
    if not Path(path).is_file():
        problem = "is not a regular file" if Path(path).exists() else "there is no such study file"
        raise ConfigError(f"{name}: {problem}.")
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ConfigError(f"{name}: is larger than 1 MiB, so it is not a study file.")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not a text file in UTF-8 (byte {error.start}).") from None
    return (*_data(text, name), name)


def _data(text: str, source: str) -> tuple[dict[str, Any], dict[str, int]]:
    lines: dict[str, int] = {}
    try:
        nodes = list(yaml.compose_all(text, _Loader))
        if len(nodes) != 1 or not isinstance(nodes[0], yaml.MappingNode):
            raise ConfigError(f"{source}: needs one YAML document of the form 'key: value'.")
        return _value(nodes[0], "", lines), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: {shown(error.problem or error.context)}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: is not YAML: {shown(error)}.") from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply to be a study file.") from None


def _study(data: dict[str, Any], lines: dict[str, int], source: str) -> StudyConfig:
    try:
        return StudyConfig.from_dict(data, source="")
    except ConfigError as error:
        message = str(error).removeprefix(": ")
        line = line_of(message, {current_key(name): line for name, line in lines.items()})
        raise ConfigError(f"{source}{f', line {line}' if line else ''}: {message}") from None


def dump(config: StudyConfig) -> str:
    """The study as YAML that ``parse`` turns back into an equal one."""
    return yaml.dump(config.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _value(node: yaml.Node, name: str, lines: dict[str, int]) -> Any:
    """The node as plain data; notes on which line every named value stands."""
    lines.setdefault(name, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_value(item, f"{name}[{i}]", lines) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        return _mapping(node, name, lines)
    if isinstance(node, yaml.ScalarNode):
        match node.tag:
            case "tag:yaml.org,2002:str":
                return node.value
            case "tag:yaml.org,2002:null":
                return None
            case "tag:yaml.org,2002:bool" if node.value.lower() in ("true", "false"):
                return node.value.lower() == "true"
            case "tag:yaml.org,2002:int" if _fits("tag:yaml.org,2002:int", node.value) and len(node.value) < 400:
                return int(node.value)
            case "tag:yaml.org,2002:float" if _fits("tag:yaml.org,2002:float", node.value):
                return float(re.sub(r"\.(?=[iInN])", "", node.value))
    tag = shown(node.tag.replace("tag:yaml.org,2002:", "!!"), 60)
    raise _error(node, f"cannot be read as {tag}; write a plain text, number, list or mapping")


def _mapping(node: yaml.MappingNode, name: str, lines: dict[str, int]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            raise _error(key_node, "a key has to be a plain word")
        key = key_node.value
        if key in data:
            raise _error(key_node, f"the key '{shown(key, 60)}' is given twice")
        inner = f"{name}.{key}" if name else key
        lines[inner] = key_node.start_mark.line + 1
        data[key] = _value(value_node, inner, lines)
    return data


def _fits(tag: str, text: str) -> bool:
    return _PLAIN[tag][0].fullmatch(text) is not None


def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def line_of(message: str, lines: dict[str, int]) -> int | None:
    """The line of the value that ``message`` begins with, or of the unknown key it names."""
    where = message.partition(":")[0]
    if where in lines:
        unknown = re.search(r"unknown key '([^']*)'", message)
        return lines.get(f"{where}.{unknown[1]}" if unknown else where, lines[where])
    unknown = re.match(r"unknown key '([^']*)'", message)
    return lines.get(unknown[1]) if unknown else None
