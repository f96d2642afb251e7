"""All fine-tuning methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from sharpscope.config.fields import checked_fields
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.finetuning.method import Method
from sharpscope.finetuning.methods.car_ft import CarFT
from sharpscope.finetuning.methods.clipfit import CLIPFit
from sharpscope.finetuning.methods.contcoop import ContCoOp
from sharpscope.finetuning.methods.coop import CoOp, KgCoOp
from sharpscope.finetuning.methods.distillation import Distillation
from sharpscope.finetuning.methods.flyp import Flyp
from sharpscope.finetuning.methods.l2_sp import L2SP
from sharpscope.finetuning.methods.ldifs import Ldifs
from sharpscope.finetuning.methods.linear_probe import LinearProbe
from sharpscope.finetuning.methods.lipsum_ft import LipsumFT
from sharpscope.finetuning.methods.lora import LoRA
from sharpscope.finetuning.methods.lp_ft import LpFT
from sharpscope.finetuning.methods.r_adapter import RAdapter
from sharpscope.finetuning.methods.sam import ASAM, SAM
from sharpscope.finetuning.methods.starft import StarFT
from sharpscope.finetuning.methods.tpgm import TPGM
from sharpscope.finetuning.methods.tpgm_project import TPGMProject
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.finetuning.recipes import RECIPES, Source
from sharpscope.vocabulary import Words

__all__ = ["METHODS", "configured", "listing", "recipe_listing", "register_method"]

METHODS: Final[Words[type[Method]]] = Words(
    "method",
    "sharpscope.methods",
    (
        *(WiseFT, LinearProbe, LpFT, L2SP, LipsumFT, Flyp, StarFT, CLIPFit, CoOp, KgCoOp, ContCoOp, RAdapter),
        *(Distillation, CarFT, Ldifs, TPGM, TPGMProject, SAM, ASAM, LoRA),
    ),
)
"""Every fine-tuning method."""


def register_method(method: type[Method]) -> type[Method]:
    """Decorator: make a subclass of ``Method`` (a frozen dataclass) one that ``finetune`` knows by its ``name``.

    Raises ConfigError for a name that is known, and for a class that is not a ``Method`` with a name.
    """
    if not (isinstance(method, type) and issubclass(method, Method) and isinstance(getattr(method, "name", None), str)):
        raise ConfigError(f"method: {shown(repr(method), 100)} is not a subclass of Method with a name.")
    METHODS.add(method)
    return method


def listing() -> str:
    """Every method with its source and hyperparameters, for reading."""
    lines = []
    for kind in METHODS.values():
        method = kind()
        settings = ", ".join(f"{n}={_brief(v)}" for n, v in method.hyperparameters().items())
        lines += [f"{kind.name:<13} {method.description}", f"{'':<13} {kind.source}", f"{'':<13} {settings}"]
    return "\n".join(lines)


def recipe_listing() -> str:
    """Every recipe with its method, what it changes of the method's defaults, and where its authors set it."""
    width = max(map(len, RECIPES))
    lines: list[str] = []
    for row in RECIPES.values():
        defaults = METHODS[row.method]().hyperparameters()
        changed = ", ".join(f"{n}={_brief(v)}" for n, v in row.settings.items() if v != defaults[n])
        lines.append(f"{row.name:<{width}} {row.method}: {row.what}; {changed or 'the defaults'}")
        if row.sources:
            lines.append(f"{'':<{width}} {_places(row.sources)}")
        if row.why:
            names = "all" if set(row.ours) == set(row.settings) else ", ".join(row.ours)
            lines.append(f"{'':<{width}} ours ({names}): {row.why}")
    return "\n".join(lines)


def _places(sources: Sequence[Source]) -> str:
    """Each repository once, with the lines in it."""
    files: dict[str, list[str]] = {}
    for source in sources:
        files.setdefault(f"{source.repository}@{source.commit}", []).append(f"{source.path}:{source.lines}")
    return "; ".join(f"{repository} {' '.join(lines)}" for repository, lines in files.items())


def _brief(value: Any) -> str:
    return (
        f"({len(value)} texts)"
        if isinstance(value, tuple) and value and isinstance(value[0], str)
        else f"[{', '.join(map(_brief, value))}]"
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def configured(method: str | Method, changes: Mapping[str, Any]) -> Method:
    """``method`` with some hyperparameters changed; ConfigError for an unknown one or a value of another type.

    Given ``epochs`` replace a default number of steps; ``warmup`` and ``warmup_epochs`` replace each other.
    A text is read as YAML: ``"0.5"``, ``"none"``, ``"[a, b]"`` (the command line's values).
    """
    start = METHODS.find(method, "method")() if isinstance(method, str) else method
    known = [f.name for f in dataclasses.fields(start)]
    for name in changes:
        if name not in known:
            near = did_you_mean(name, known) or f" Known: {', '.join(known)}."
            raise ConfigError(f"{start.name}: no hyperparameter '{shown(name, 60)}'.{near}")
    values = {**{n: getattr(start, n) for n in known}, **{n: _from_text(v) for n, v in _settled(changes).items()}}
    return type(start)(**checked_fields(type(start), values, f"{start.name}: "))


def _settled(changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes``, and what they replace: epochs a number of steps, a warm-up in steps one in epochs, and back."""
    replaced = {"epochs": ("steps", None), "warmup": ("warmup_epochs", 0.0), "warmup_epochs": ("warmup", 0.0)}
    return {other: off for name, (other, off) in replaced.items() if name in changes} | dict(changes)


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lower() == "none":
        return None
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    if isinstance(read, str):  # YAML 1.1 takes 1e-5 for a text
        try:
            return float(read)
        except ValueError:
            return read
    return read
