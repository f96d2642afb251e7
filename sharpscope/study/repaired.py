"""The answers of the repaired models of one pair, and of its plain path on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sharpscope.errors import RunDirectoryError, shown
from sharpscope.findings.frames import Answered
from sharpscope.findings.repair import Variant as RepairRun
from sharpscope.scores import Predictions
from sharpscope.study.tasks import Variant
from sharpscope.study.unitfile import Unit

__all__ = ["Repaired", "answered", "pictures"]


_EVERY = slice(None)
At = np.ndarray | slice
"""The positions of the answers that are used."""


def answered(spec: str, units: Sequence[Unit], at: Sequence[At] | None = None) -> Answered:
    """Answers of several models on one data set: which examples are right, or predictions and their metric.

    ``at``: for every unit the positions of the same examples; None takes all.
    """
    where = [_EVERY] * len(units) if at is None else at
    key = next((k for k in units[0].arrays if k.endswith(f":predicted:{spec}")), None)
    if key is None:
        return np.stack([u.arrays[f"correct:{spec}"][w] for u, w in zip(units, where, strict=True)])
    metric, first = key.partition(":")[0], units[0].arrays
    predicted = np.stack([u.arrays[key][w] for u, w in zip(units, where, strict=True)])
    groups = first.get(f"{metric}:groups:{spec}")
    labels = first[f"{metric}:labels:{spec}"][where[0]]
    return Predictions(metric, labels, predicted, None if groups is None else groups[where[0]])


def pictures(specs: Iterable[str], unit: Unit) -> dict[str, np.ndarray]:
    """The numbers of the pictures that a unit of the plain path answers, for sets that have some in common."""
    return {spec: unit.arrays[key] for spec in specs if (key := f"pictures:{spec}") in unit.arrays}


@dataclass(frozen=True)
class Repaired:
    """The units of a pair's repairs. Units of one set may hold answers to all images, or to a fixed part of them."""

    name: str
    """The pair."""
    units: Mapping[str, Unit]
    """All units of the run."""
    variants: Sequence[Variant]
    alphas: Sequence[float]

    @cached_property
    def _found(self) -> list[tuple[Variant, list[tuple[float, Unit]]]]:
        every = [(v, [(a, u) for a in self.alphas if (u := self._unit(v, a)) is not None]) for v in self.variants]
        return [(v, units) for v, units in every if units]

    def _unit(self, variant: Variant, alpha: float) -> Unit | None:
        """The unit of a repair; runs from before masks were numbered have one mask, without a number."""
        names = [variant.name, *([variant.kind] if variant.mask == 1 else [])]
        keys = [f"repair/{self.name}/{name}/{alpha!r}" for name in names]
        return next((self.units[key] for key in keys if key in self.units), None)

    def runs(self, specs: Iterable[str]) -> list[RepairRun]:
        """Every mask of every repair with its answers to the images that all units of a set have."""
        sets = list(specs)
        return [
            RepairRun(
                v.kind,
                v.layers,
                v.target,
                v.select,
                v.density,
                v.kept_fraction,
                "none" if v.group == "straggler" else v.group,
                tuple(alpha for alpha, _ in found),
                {spec: self.compared(spec, [unit for _, unit in found]) for spec in sets},
                v.mask or 1,
            )
            for v, found in self._found
        ]

    def compared(self, spec: str, units: Sequence[Unit]) -> Answered:
        """Answers of ``units`` to the images of ``spec`` on which the repairs are evaluated.

        Raises RunDirectoryError where it is not known which of a unit's answers these are.
        """
        return answered(spec, units, [self._where(spec, unit) for unit in units])

    def pictures(self, specs: Iterable[str], unit: Unit) -> dict[str, np.ndarray]:
        """``pictures`` of those images on which the repairs are evaluated; ``unit``: one of the plain path."""
        return {spec: own[self._where(spec, unit)] for spec, own in pictures(specs, unit).items()}

    def _where(self, spec: str, unit: Unit) -> At:
        """Where the answers of ``unit`` to the images stand on which the repairs are evaluated."""
        every = (unit.arrays for _, found in self._found for _, unit in found)
        part = next((arrays for arrays in every if f"places:{spec}" in arrays), None)
        if part is None:
            return _EVERY
        return _positions(spec, unit, part[f"places:{spec}"], int(part[f"listed:{spec}"]))


def _positions(spec: str, unit: Unit, places: np.ndarray, listed: int) -> At:
    """Where a unit's answers to the images at ``places`` stand; images that could not be read have no answer."""
    if f"places:{spec}" in unit.arrays:
        return _EVERY
    lost = unit.arrays.get(f"lost:{spec}", np.empty(0, dtype=int))
    if len(unit.arrays[f"correct:{spec}"]) + len(lost) != listed:
        raise RunDirectoryError(
            f"data set {shown(spec)}: some of its images could not be read when the path was evaluated, and an older "
            "sharpscope did not note which; the repairs cannot be compared with the path.\n"
            "Remedy: run the study again into another folder (--out)."
        )
    return places - np.searchsorted(lost, places)
