"""Renamed flags, values of flags, and keys of study files and manifests, which are still taken; defaults of before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sharpscope.errors import ConfigError

__all__ = ["EARLIER_DEFAULTS", "current_arguments", "current_key", "current_keys", "current_value"]

_KEYS: Final = {"eval_limit": "limit"}
"""Old name of a study's field -> its present name; for study files, for manifests of older runs, and for flags."""

EARLIER_DEFAULTS: Final[dict[str, Any]] = {"atol_share": 0.0, "perturbation_size": None}
"""Field of a study -> its former default, which holds for older run directories that do not name the field."""

_FLAGS: Final[Mapping[str, Mapping[str, str]]] = {
    "run": _KEYS,
    "plan": _KEYS,
    "inspect": {"csv": "out"},
    "convert": {"head": "head_file"},
    "evaluate": {"data": "datasets"},
    "report": {"results": "export"},
    "table": {"style": "rows"},
}
"""Command -> its old flags -> today's."""

_VALUES: Final[Mapping[str, Mapping[str, Mapping[str, str]]]] = {
    "finetune": {"precision": {"float32": "full", "bfloat16": "bf16", "float16": "fp16"}},
}
"""Command -> flag -> its old values -> today's."""


def current_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a study under their current names; raises ConfigError for a key given under both names."""
    for old, new in _KEYS.items():
        if old in data and new in data:
            raise ConfigError(f"{new}: is given twice, once by its old name {old}.")
    return {current_key(key): value for key, value in data.items()}


def current_key(key: str) -> str:
    """The current name of a study's key; a key that was never renamed is returned unchanged."""
    return _KEYS.get(key, key)


def current_value(command: str, flag: str, value: str) -> str:
    """The current word for ``value`` of a command's flag; a value that was never renamed is returned unchanged."""
    return _VALUES.get(command, {}).get(flag, {}).get(value, value)


def current_arguments(command: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the arguments of a command in current words, one line for the user about each replaced word)."""
    current, hints, flag = [], [], ""
    for argument in arguments:
        word, equals, value = argument.partition("=")
        if word.startswith("--"):
            flag = word[2:].replace("-", "_")
            if new := _FLAGS.get(command, {}).get(flag):
                hints.append(f"{word} is called {_dashed(new)} now; the old flag is still taken.")
                flag, word = new, _dashed(new)
        else:
            word, equals, value = "", "", argument
        told = current_value(command, flag, value)
        if told != value:
            hints.append(f"{_dashed(flag)} {value} is called {told} now; the old word is still taken.")
        current.append(f"{word}{equals}{told}")
    return current, hints


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"
