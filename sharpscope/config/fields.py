"""Strict reading of dataclass fields: every value in its declared type, or one ConfigError that names the key."""

from __future__ import annotations

import dataclasses
import numbers
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sharpscope.errors import ConfigError, did_you_mean, shown

__all__ = ["check_keys", "checked_fields", "plain"]


def plain(value: Any) -> Any:
    """``value`` as YAML and JSON have it: lists for tuples, all the way down."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def check_keys(data: Mapping[str, Any], kind: type, where: str = "") -> None:
    """Raise ConfigError for a key of ``data`` that is not a field of ``kind``; the message names the nearest field."""
    known = [f.name for f in dataclasses.fields(kind)]
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}unknown key '{shown(key, 60)}'.{did_you_mean(str(key), known)}")


def checked_fields(kind: type, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Every field's value in its declared type (a list as a tuple, 1 as 1.0); else ConfigError."""
    hints = get_type_hints(kind)
    return {f.name: _typed(values[f.name], hints[f.name], where + f.name) for f in dataclasses.fields(kind)}


def _typed(value: Any, hint: Any, name: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _typed(value, next(a for a in inner if a is not type(None)), name)
    if origin is Literal:
        if isinstance(value, str) and value in inner:
            return value
        raise ConfigError(
            f"{name}: '{shown(value, 60)}' is none of {', '.join(inner)}." + did_you_mean(str(value), inner)
        )
    if origin is tuple:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise ConfigError(f"{name}: needs a list, got {_got(value)}.")
        return tuple(_typed(v, inner[0], f"{name}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            what = "texts" if inner[1] is str else "numbers"
            raise ConfigError(f"{name}: needs a mapping from names to {what}, got {_got(value)}.")
        return {k: _typed(v, inner[1], f"{name}.{shown(k, 40)}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return _nested(value, hint, name)
    return _scalar(value, hint, name)


def _nested(value: Any, kind: Any, name: str) -> Any:
    if isinstance(value, kind):
        value = vars(value)
    wanted = [f.name for f in dataclasses.fields(kind) if _has_no_default(f)]
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: needs {', '.join(wanted)}; got {_got(value)}.")
    check_keys(value, kind, f"{name}: ")
    if missing := [key for key in wanted if key not in value]:
        raise ConfigError(f"{name}: has no {' and no '.join(missing)}; it needs {', '.join(wanted)}.")
    made = kind(**value)
    return kind(**checked_fields(kind, vars(made), f"{name}."))


def _has_no_default(one: dataclasses.Field[Any]) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _scalar(value: Any, kind: type, name: str) -> Any:
    """One bool, int, float or str; numpy numbers are taken, numbers in quotes and 1.5 for a whole number are not."""
    truth = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if kind is bool and truth:
        return bool(value)
    if kind is int and isinstance(value, numbers.Integral) and not truth:
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and not truth:
        return float(value) + 0.0  # -0.0 becomes 0.0: the same point of the path has one spelling
    if kind is str and isinstance(value, str):
        if not value.strip():
            raise ConfigError(f"{name}: is empty; leave it out for the default.")
        return str(value)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
    raise ConfigError(f"{name}: needs {wanted}, got {_got(value)}.")


def _got(value: Any) -> str:
    return "nothing" if value is None else f"{shown(repr(value), 60)}"
