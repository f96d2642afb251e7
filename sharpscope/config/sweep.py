"""The one description of a sweep: which fine-tunings are made, and the study that measures them all."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sharpscope.config.fields import check_keys, checked_fields
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.config.studyfile import line_of, read_mapping
from sharpscope.errors import ConfigError, shown

__all__ = ["SweepConfig", "SweepTrial", "load_sweep"]


@dataclass(frozen=True)
class SweepTrial:
    """One fine-tuning of a sweep.

    ``name``: the name of its pair; ``way``: its method or recipe, as the keyword that ``finetune`` takes; ``settings``:
    the hyperparameters it is given.
    """

    name: str
    way: Mapping[str, Any] = field(hash=False)
    seed: int
    settings: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True)
class SweepConfig:
    """Every combination of ``methods`` and ``recipes``, the values in ``grid`` and ``seeds`` is one fine-tuning.

    ``grid``: hyperparameter -> the values that it takes; ``set``: hyperparameters that all have in common. ``study``:
    how the fine-tuned models are measured; its model, data root, class names, templates and device are those of the
    training too. Raises ConfigError, naming the field, for a value that is missing, empty or given twice.
    """

    zeroshot: str
    train: str
    study: StudyConfig
    methods: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    grid: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    set: dict[str, Any] = field(default_factory=dict)
    val: str | None = None

    def __post_init__(self) -> None:
        if not (self.methods or self.recipes):
            object.__setattr__(self, "methods", ("wise-ft",))
        lists = {"methods and recipes": (*self.methods, *self.recipes), "seeds": self.seeds}
        lists |= {f"grid.{k}": v for k, v in self.grid.items()}
        for name, values in lists.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise ConfigError(f"{name}: needs a list of values, e.g. [1.0e-5, 3.0e-5].")
            if twice := [v for i, v in enumerate(values) if v in values[:i]]:
                raise ConfigError(f"{name}: '{shown(twice[0], 60)}' is given twice.")
        if both := [name for name in self.grid if name in self.set]:
            raise ConfigError(f"set.{both[0]}: is among grid too; one of the two would change nothing.")
        if self.study.pairs:
            raise ConfigError("study: pairs are what the sweep makes; leave them out.")

    def trials(self) -> tuple[SweepTrial, ...]:
        """Every fine-tuning, named after its method, its values of ``grid`` and its seed."""
        out = []
        for by, *values in itertools.product((*self.methods, *self.recipes), *self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            way = {"recipe" if by in self.recipes else "method": by}
            parts = [by, *(f"{name}{_spelled(value)}" for name, value in chosen.items())]
            for seed in self.seeds:
                name = "-".join([*parts, f"seed{seed}"])
                out.append(SweepTrial(name, way, seed, {**self.set, **chosen}))
        return tuple(out)

    def planned(self) -> StudyConfig:
        """The study with the pairs of all trials, whose files do not exist yet."""
        pairs = tuple(PairConfig(trial.name, self.zeroshot, trial.name) for trial in self.trials())
        return dataclasses.replace(self.study, pairs=pairs)


def _spelled(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


def load_sweep(path: str | os.PathLike[str]) -> SweepConfig:
    """The sweep in the YAML file ``path``, read as strictly as a study file.

    >>> load_sweep("sweep.yaml").trials()[0].name  # doctest: +SKIP
    'wise-ft-lr1e-05-epochs5-seed0'

    Raises ConfigError with the file and the line.
    """
    data, lines, name = read_mapping(path)
    try:
        check_keys(data, SweepConfig)
        if missing := [key for key in ("zeroshot", "train", "study") if key not in data]:
            raise ConfigError(f"{missing[0]}: is missing; a sweep needs zeroshot, train and study.")
        for key in ("grid", "set", "study"):
            if not isinstance(data.get(key, {}), dict):
                raise ConfigError(f"{key}: needs a mapping.")
        inner = {key: data.pop(key, {}) for key in ("grid", "set", "study")}
        try:
            study = StudyConfig.from_dict(inner["study"], source="study")
        except ConfigError as error:
            raise ConfigError(str(error).replace("study: ", "study.", 1)) from None
        defaults = {"methods": (), "recipes": (), "seeds": (0,), "val": None}
        plain = checked_fields(_Plain, {**defaults, **data})
        return SweepConfig(study=study, grid=inner["grid"], set=inner["set"], **plain)
    except ConfigError as error:
        line = line_of(str(error), lines)
        raise ConfigError(f"{name}{f', line {line}' if line else ''}: {error}") from None


@dataclass(frozen=True)
class _Plain:
    """The fields of a sweep that have one plain type each."""

    zeroshot: str
    train: str
    methods: tuple[str, ...]
    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    val: str | None
