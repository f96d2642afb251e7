"""The comparison that several runs named before looking, and whether their sharpness can be compared at all."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

import pandas as pd

from sharpscope.config.spellings import EARLIER_DEFAULTS, current_keys
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.study.named import manifest_of
from sharpscope.tables.rows import measures_in, nearest
from sharpscope.vocabulary import MEASURES

__all__ = ["Primary", "check_comparable", "check_measured", "measured_alpha", "named_primary"]

Path = str | os.PathLike[str]

_OF_EVERY_MEASURE: Final = ("probe", "probe_size")
"""The settings of a study that say on which images sharpness is measured."""
_OF_A_RADIUS: Final = ("perturbation_size", "normalize_logits")
"""Those that change the measures of finite radius beside the radius itself."""
_OF_A_SEARCH: Final = ("pgd_steps", "random_start")
"""Those that decide how far the search for the worst case comes."""


@dataclass(frozen=True)
class Primary:
    """The measure and the alpha of the primary comparison across pairs."""

    measure: str
    alpha: float
    note: str = ""
    """How it was named, where not all runs named it themselves: for the notes of its rows."""


def named_primary(runs: Sequence[Path], measure: str | None = None, alpha: float | None = None) -> Primary:
    """The primary comparison that all ``runs`` named, or the one that is asked for.

    Args:
        runs: run directories. A manifest that does not tell named the defaults.
        measure, alpha: the primary that is asked for; None: the one that the runs named.

    Raises:
        ConfigError: the runs named different ones and none is asked for, or the alpha that is asked for is outside of
            (0, 1].
    """
    if alpha is not None and not 0 < alpha <= 1:
        raise ConfigError(f"--primary-alpha: {alpha} is outside (0, 1]; at alpha 0 no pair has gained anything.")
    told = {run: (str(c["primary_measure"]), float(c["primary_alpha"])) for run, c in _configs(runs)}
    for place, (flag, asked) in enumerate((("--primary-measure", measure), ("--primary-alpha", alpha))):
        if asked is None:
            _one({run: values[place] for run, values in told.items()}, flag)
    first = next(iter(told.values()), (StudyConfig.primary_measure, StudyConfig.primary_alpha))
    chosen = (first[0] if measure is None else measure, first[1] if alpha is None else float(alpha))
    if all(values == chosen for values in told.values()):
        return Primary(*chosen)
    counts = ", ".join(
        f"{m} at alpha {a:g} ({n} of {len(told)})" for (m, a), n in sorted(Counter(told.values()).items())
    )
    return Primary(*chosen, f"named for this comparison; the runs named {counts}")


def _one(values: Mapping[Path, str | float], flag: str) -> None:
    """Raise ConfigError where the runs do not name the same."""
    runs: dict[str | float, Path] = {}
    for run, value in values.items():
        runs.setdefault(value, run)
    if len(runs) > 1:
        (one, first), (other, second), *_ = runs.items()
        what, kind = flag.removeprefix("--").replace("-", "_"), "ALPHA" if flag.endswith("alpha") else "MEASURE"
        raise ConfigError(
            f"correlate: before looking {shown(first)} named the {what} {_word(one)}, {shown(second)} named "
            f"{_word(other)}.\nRemedy: {flag} {kind} compares all pairs by one, and its rows say so."
        )


def check_measured(measure: str, sharpness: pd.DataFrame) -> None:
    """Raise ConfigError where ``measure`` was asked for and is in no row of ``sharpness``, the table of all runs."""
    known = measures_in(sharpness)
    if measure not in known:
        near = did_you_mean(measure, known) or f" The runs have {', '.join(known)}."
        raise ConfigError(f"primary_measure: no run has '{shown(measure, 60)}'.{near}")


def check_comparable(runs: Sequence[Path], measure: str) -> None:
    """Raise ConfigError where the runs took ``measure`` with settings that change what it means.

    Every measure depends on the probe set and its size; one of finite radius also on its radius, on the number of
    images and on whether logits are normalised; a worst case also on its search.
    """
    names = list(_OF_EVERY_MEASURE)
    if measure in MEASURES and (radius := MEASURES[measure].radius):
        names += [*_OF_A_RADIUS, *((radius,) if MEASURES[measure].rho is None else ())]
        names += _OF_A_SEARCH if MEASURES[measure].cost == "worst_case" else ()
    configs = dict(_configs(runs))
    for name in names:
        for run, config in list(configs.items())[1:]:
            first, there = next(iter(configs.items()))
            if there[name] != config[name]:
                raise ConfigError(
                    f"correlate: {name} is {_word(there[name])} in {shown(first)} and {_word(config[name])} in "
                    f"{shown(run)}, so that {measure} is not the same quantity in both.\nRemedy: correlate runs with "
                    f"one {name}{', or another --primary-measure' if name not in _OF_EVERY_MEASURE else ''}."
                )


def _configs(runs: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every run with what its study said, in today's words and with the values of fields that it does not name."""
    for run in runs:
        told = manifest_of(FilePath(run)).get("config")
        names = ("primary_measure", "primary_alpha", *_OF_EVERY_MEASURE, *_OF_A_RADIUS, *_OF_A_SEARCH)
        radii = [m.radius for m in MEASURES.values() if m.radius]
        defaults = {name: getattr(StudyConfig, name) for name in (*names, *radii)} | EARLIER_DEFAULTS
        yield run, defaults | (current_keys(told) if isinstance(told, dict) else {})


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value, 60)


def measured_alpha(sharpness: pd.DataFrame, measure: str, alpha: float) -> float:
    """The alpha above 0 nearest ``alpha`` at which every pair that has ``measure`` has it; ``alpha`` if there is none.

    ``sharpness``: the table of all pairs.
    """
    rows = sharpness[(sharpness["measure"] == measure) & (sharpness["alpha"] > 0)]
    points = [set(own["alpha"].astype(float).round(9)) for _, own in rows.groupby("pair")]
    found = nearest(set.intersection(*points) if points else (), alpha)
    return found if math.isfinite(found) else alpha
