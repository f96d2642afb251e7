"""The pairs of the emoji study as study.py kept them: tables, settings, and right answers by thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from sharpscope.errors import NoData, shown
from sharpscope.findings.design import Design
from sharpscope.tables.files import read_csv
from sharpscope.tables.rows import covariates, groups_in
from sharpscope.vocabulary import OOD_MEAN

__all__ = ["ALPHA", "MEASURE", "RELIABLE", "RESULTS", "Answers", "Population", "load", "never_gains"]

RESULTS: Final = Path(__file__).parent / "results"
MEASURE: Final = "hessian_trace"
"""The primary predictor: of the whole model, at ``ALPHA``."""
ALPHA: Final = 0.5
RELIABLE: Final = 0.8
"""The least reliability of the outcome at which anything is concluded from correlations."""
TABLES: Final = ("path", "sharpness", "accuracy", "stragglers", "failure")


@dataclass(frozen=True)
class Answers:
    """Right answers of one base's pairs.

    ``right`` [pairs, alphas, sets, things], ``shown`` [sets, things] the images of each thing, ``groups`` the group of
    each set, empty for ID sets.
    """

    pairs: tuple[str, ...]
    alphas: tuple[float, ...]
    sets: tuple[str, ...]
    groups: tuple[str, ...]
    right: np.ndarray
    shown: np.ndarray

    def accuracy(self, group: str, things: np.ndarray | None = None) -> np.ndarray:
        """[pairs, alphas] mean over the group's sets of the accuracy on ``things``, bool [things]; None: on all."""
        at = [j for j, g in enumerate(self.groups) if g == group]
        chosen = np.ones(self.shown.shape[1], bool) if things is None else things
        means = [self.right[:, :, j, chosen].sum(axis=2) / self.shown[j, chosen].sum() for j in at]
        return np.mean(means, axis=0)

    def gain(self, group: str, alpha: float, things: np.ndarray | None = None) -> np.ndarray:
        """[pairs] accuracy at ``alpha`` minus that of zero-shot."""
        found = self.accuracy(group, things)
        return found[:, self.alphas.index(alpha)] - found[:, self.alphas.index(0.0)]


@dataclass(frozen=True)
class Population:
    """The pairs of some bases. ``settings``: one row a fine-tuning, those that diverged too."""

    bases: tuple[int, ...]
    settings: pd.DataFrame
    tables: Mapping[str, pd.DataFrame]
    answers: Mapping[int, Answers]

    @property
    def pairs(self) -> pd.DataFrame:
        """The fine-tunings that did not diverge, in the order of the names."""
        return self.settings[self.settings["diverged"] == ""].sort_values("pair", ignore_index=True)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(groups_in(self.tables["accuracy"]))

    @property
    def design(self) -> Design:
        """Bases are blocks, seeds of a setting a cluster; covariates that do not depend on alpha. The protocol fixed
        before the study that covariates are additive."""
        p = self.pairs
        numbers = {name: p[name].to_numpy(dtype=float) for name in ("learning_rate", "steps", "augment")}
        return Design(tuple(p["pair"]), tuple(p["base"]), tuple(p["setting"]), numbers, additive=True)

    @property
    def covariates(self) -> pd.DataFrame:
        """Columns pair, alpha, distance, id_accuracy."""
        return covariates(self.tables["accuracy"], self.tables["path"])

    def gain(self, group: str) -> pd.Series:
        """Pair -> gain over zero-shot at ``ALPHA``."""
        found = {p: g for a in self.answers.values() for p, g in zip(a.pairs, a.gain(group, ALPHA), strict=True)}
        return pd.Series(found, dtype=float)

    def fails(self, group: str) -> list[bool]:
        """[pairs] whether no point of the pair's path beats zero-shot on ``group``."""
        flags = self.tables["failure"]
        own = set(flags[never_gains(flags) & (flags["group"] == group)]["pair"])
        return [pair in own for pair in self.pairs["pair"]]

    def of(self, bases: Sequence[int]) -> Population:
        """The part with these bases."""
        names = {f"base{b}" for b in bases}
        settings = self.settings[self.settings["base"].isin(names)]
        own = set(settings["pair"])
        tables = {name: t[t["pair"].isin(own)] for name, t in self.tables.items()}
        return Population(tuple(bases), settings, tables, {b: self.answers[b] for b in bases})


def never_gains(failure: pd.DataFrame) -> pd.Series:
    """Which rows say that no point of a pair's path beats zero-shot in the mean of a group (flag F1)."""
    return (failure["flag"] == "F1") & (failure["dataset"] == OOD_MEAN) & (failure["estimate"] <= 0)


def load(folder: Path = RESULTS) -> Population:
    """All bases whose results are in ``folder``.

    Raises:
        NoData: there is none.
    """
    found = sorted(folder.glob("base[0-9]"))
    if not found:
        raise NoData(f"{shown(str(folder))}: no base has results there; 'make study BASE=0' makes those of base 0.")
    bases = tuple(int(f.name.removeprefix("base")) for f in found)
    tables = {n: pd.concat([read_csv(f / f"{n}.csv.gz", n) for f in found], ignore_index=True) for n in TABLES}
    settings = [pd.read_csv(f / "pairs.csv", dtype={"diverged": "str"}).assign(base=f.name) for f in found]
    told = pd.concat(settings, ignore_index=True).fillna({"diverged": ""})
    groups = dict(zip(tables["accuracy"]["dataset"], tables["accuracy"]["group"], strict=True))
    return Population(bases, told, tables, {b: _answers(f, groups) for b, f in zip(bases, found, strict=True)})


def _answers(folder: Path, groups: Mapping[str, str]) -> Answers:
    with np.load(folder / "answers.npz", allow_pickle=False) as file:
        sets = tuple(str(s) for s in file["sets"])
        return Answers(
            tuple(str(p) for p in file["pairs"]), tuple(float(a) for a in file["alphas"]), sets,
            tuple(groups.get(s) or "" for s in sets), file["right"].astype(np.int64), file["shown"].astype(np.int64),
        )  # fmt: skip
