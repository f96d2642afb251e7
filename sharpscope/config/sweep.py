"""The one description of a sweep: which fine-tunings are made, and the study that measures them all."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sharpscope.config.fields import check_keys, checked_fields
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.config.studyfile import line_of, read_mapping
from sharpscope.config.sweepdraws import Design, drawn, read_ranges
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
    """Every combination of ``methods`` and ``recipes``, values in ``grid``, draws and ``seeds`` is one fine-tuning.

    ``grid``: hyperparameter -> the values that it takes; ``set``: hyperparameters that all have in common. ``draw``:
    how many configurations are drawn from ``ranges`` (hyperparameter -> a list of values, or a mapping with low, high,
    scale and whole) by ``design`` and ``draw_seed``; every method, recipe and combination of ``grid`` is a stratum that
    gets the same ones (``config.sweepdraws``). ``study``: how the fine-tuned models are measured; its model, data root,
    class names, templates and device are those of the training too. Raises ConfigError, naming the field, for a value
    that is missing, empty or given twice, and for a hyperparameter in two places.
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
    draw: int | None = None
    ranges: dict[str, Any] = field(default_factory=dict)
    design: Design = "random"
    draw_seed: int = 0

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
        for one, other in itertools.combinations(("grid", "ranges", "set"), 2):
            if both := [name for name in getattr(self, one) if name in getattr(self, other)]:
                raise ConfigError(f"{other}.{both[0]}: is among {one} too; one of the two would change nothing.")
        for name in ("ranges", "design", "draw_seed"):
            if self.draw is None and getattr(self, name) != getattr(SweepConfig, name, {}):
                raise ConfigError(f"{name}: changes nothing without draw, the number of configurations to draw.")
        self._draws()  # mistakes in the ranges are told here
        if self.study.pairs:
            raise ConfigError("study: pairs are what the sweep makes; leave them out.")
        if self.study.split_units:
            raise ConfigError("study: split_units needs the ranks of torchrun, which share no sweep; leave it out.")

    def trials(self) -> tuple[SweepTrial, ...]:
        """Every fine-tuning, named after its method, its values of ``grid``, its draw and its seed."""
        out = []
        draws = self._draws()
        for by, *values in itertools.product((*self.methods, *self.recipes), *self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            way = {"recipe" if by in self.recipes else "method": by}
            parts = [by, *(f"{name}{_spelled(value)}" for name, value in chosen.items())]
            for (draw, settings), seed in itertools.product(draws.items(), self.seeds):
                name = "-".join([*parts, *filter(None, [draw]), f"seed{seed}"])
                out.append(SweepTrial(name, way, seed, {**self.set, **chosen, **settings}))
        return tuple(out)

    def _draws(self) -> dict[str, dict[str, Any]]:
        """Name of a draw -> its values; one without a name and values where nothing is drawn."""
        if self.draw is None:
            return {"": {}}
        found = drawn(self.draw, read_ranges(self.ranges), self.design, self.draw_seed)
        # only among random draws is the first of 8 the first of 16 as well
        whole = "" if self.design == "random" else f"of{self.draw}"
        return {f"draw{i}{whole}": values for i, values in enumerate(found)}

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
        for key in _MAPPINGS:
            if not isinstance(data.get(key, {}), dict):
                raise ConfigError(f"{key}: needs a mapping.")
        inner = {key: data.pop(key, {}) for key in _MAPPINGS}
        try:
            study = StudyConfig.from_dict(inner["study"], source="study")
        except ConfigError as error:
            raise ConfigError(str(error).replace("study: ", "study.", 1)) from None
        return SweepConfig(**{**inner, "study": study}, **checked_fields(_Plain, {**_defaults(), **data}))
    except ConfigError as error:
        line = line_of(str(error), lines)
        raise ConfigError(f"{name}{f', line {line}' if line else ''}: {error}") from None


_MAPPINGS: Final = ("grid", "ranges", "set", "study")


@dataclass(frozen=True)
class _Plain:
    """The fields of a sweep that have one plain type each."""

    zeroshot: str
    train: str
    methods: tuple[str, ...]
    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    val: str | None
    draw: int | None
    design: Design
    draw_seed: int


def _defaults() -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(SweepConfig) if f.default is not dataclasses.MISSING}
