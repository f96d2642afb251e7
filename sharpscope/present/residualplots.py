"""Sharpness and the OOD gain of many pairs: as they are, and with the covariates held fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData, shown
from sharpscope.present.alphas import alpha_is, said
from sharpscope.present.forestplots import SMALL, words
from sharpscope.present.gainscales import gain_axis, rate_bar, rates_of
from sharpscope.present.paperplots.drawn import Drawn, paper_figure
from sharpscope.present.style import COLOURS, INK, MARKERS, SOURCES, file_word, key, label, new_figure, plain_log
from sharpscope.tables.formats import interval, number_of, points
from sharpscope.tables.rows import groups_in, one_a_unit, primary_of_the_whole, unique_in_order

__all__ = ["gain_caption", "gain_file", "sharpness_and_gain"]

_FEWEST: Final = 2
_LONG: Final = 16
"""The most characters of a zero-shot model's name in a key; a hash or path is longer, and gets a number instead."""
_PLACELESS: Final = 0.1
"""The largest share of pairs that may be without a place on a logarithmic axis, for their sharpness is not above 0."""
_LIMIT: Final = 2.5
"""The ends of the line of a partial correlation, in standard deviations."""


# ------------------------------------------------------------------------------------------------------------ one group
@dataclass(frozen=True)
class _Group:
    """What the tables hold of one group of OOD sets."""

    name: str
    rows: pd.DataFrame
    """A row a pair that has both sharpness and gain."""
    source: str
    """The source of the correlation that is told: that with the most pairs. Its pairs are filled, others hollow."""
    told: pd.Series | None
    """The primary correlation of the whole model, where the tables have one."""

    @classmethod
    def of(cls, residuals: pd.DataFrame, correlations: pd.DataFrame, name: str) -> _Group:
        rows = residuals[(residuals["group"] == name) & np.isfinite(residuals["sharpness"].astype(float))]
        rows = rows[np.isfinite(rows["ood_gain"].astype(float))]
        if rows["pair"].nunique() < _FEWEST:
            raise NoData(
                f"sharpness_and_gain: {number_of(rows['pair'].nunique(), 'pair')} with a sharpness and an OOD gain, "
                f"and it takes {_FEWEST}."
            )
        source, _ = min(rows["source"].value_counts().items(), key=lambda found: (-found[1], str(found[0])))
        first = rows.sort_values("source", key=lambda s: s != source, kind="stable").drop_duplicates("pair")
        told = primary_of_the_whole(correlations)
        told = told[(told["group"] == name) & (told["source"] == source)]
        return cls(name, first.sort_index(), str(source), told.iloc[0] if len(told) else None)

    @property
    def units(self) -> pd.DataFrame:
        """A row a unit that has residuals."""
        left = self.rows[np.isfinite(self.rows["residual_sharpness"].astype(float))]
        return pd.concat([one_a_unit(own) for _, own in left.groupby("source", sort=False)]) if len(left) else left

    @property
    def held(self) -> bool:
        """Whether the pairs of the correlation have residuals."""
        return self.source in set(self.units["source"])

    @property
    def measure(self) -> str:
        return str(self.rows["measure"].iloc[0])

    @property
    def at(self) -> str:
        return alpha_is(float(self.rows["alpha"].iloc[0]))

    @property
    def placeless(self) -> int:
        """How many pairs have no place on the logarithmic axis of sharpness; 0 where the axis is linear."""
        return int((self.rows["sharpness"] <= 0).sum()) if self.wide else 0

    @property
    def wide(self) -> bool:
        """Whether the axis of sharpness is logarithmic."""
        positive = self.rows.loc[self.rows["sharpness"] > 0, "sharpness"]
        few = len(self.rows) - len(positive) <= _PLACELESS * len(self.rows)
        return bool(few and positive.max() > 5 * positive.min())


def _groups(residuals: pd.DataFrame, correlations: pd.DataFrame, group: str | None) -> list[_Group]:
    names = groups_in(residuals) if group is None else [group]
    if not names:
        raise NoData("sharpness_and_gain: the table residuals has no group of OOD sets.")
    return [_Group.of(residuals, correlations, name) for name in names]


def gain_file(group: str | None) -> str:
    """The name of the files of one group's figure."""
    return "sharpness_and_gain" + (f"_{file_word(group)}" if group else "")


# ----------------------------------------------------------------------------------------------------------- the figure
@paper_figure
def sharpness_and_gain(residuals: pd.DataFrame, correlations: pd.DataFrame, group: str | None = None) -> Drawn:
    """OOD gain by the whole model's sharpness: left as they are, right what is left of the ranks of both.

    One row of panels a group of OOD sets. Points are pairs on the left, and on the right units (pairs of one setting
    together), whose Pearson correlation is the partial correlation: the slope of the line. Colours are learning rates,
    marks zero-shot models. With too few units for a partial correlation the left panel stands alone, and the caption
    says why.

    Args:
        residuals: the table ``residuals``; where it has several sources, pairs of the one with the most pairs are
            filled, and its correlation is told.
        correlations: the table ``correlations``.
        group: the group of OOD sets; default: every one that the table has.

    >>> drawn = sharpscope.plot.sharpness_and_gain(run.residuals, run.correlations)

    Raises:
        NoData: fewer than two pairs of a group have a sharpness and a gain.
    """
    groups = _groups(residuals, correlations, group)
    both = any(one.held for one in groups)
    figure = new_figure(0.6 + 1.95 * len(groups))
    axes = figure.subplots(len(groups), 1 + both, squeeze=False)
    looks = _Looks(pd.concat([one.rows for one in groups]), groups[0].source)
    for line, one in zip(axes, groups, strict=True):
        _plain(line[0], one, looks)
        if both:
            line[1].set_visible(one.held)
        if one.held:
            _left_over(line[1], one, looks)
        for ax in line:
            ax.grid(True)
    looks.explain(figure, axes, sum(one.placeless for one in groups[:1]))
    return Drawn(figure, gain_caption(residuals, correlations, group))


def _plain(ax: Axes, one: _Group, looks: _Looks) -> None:
    rows = one.rows[one.rows["sharpness"] > 0] if one.wide else one.rows
    gains = 100 * rows["ood_gain"].to_numpy(dtype=float)
    looks.points(ax, rows, rows["sharpness"].to_numpy(dtype=float), gains)
    if one.wide:
        ax.set_xscale("log")
        plain_log(ax.xaxis, 5)
    gain_axis(ax, gains)
    ax.set_ylabel(f"gain at {one.at} (points)")
    ax.set_xlabel(f"{words(one.measure)} at {one.at}")
    ax.set_title(f"OOD sets: {label(one.name, 30)}")


def _left_over(ax: Axes, one: _Group, looks: _Looks) -> None:
    units = one.units
    looks.points(ax, units, *(units[f"residual_{name}"].to_numpy(dtype=float) for name in ("sharpness", "gain")))
    ax.set(xlabel="sharpness, residual rank", ylabel="gain, residual rank")
    if one.told is not None:
        line = np.array([-_LIMIT, _LIMIT])
        ax.plot(line, float(one.told["estimate"]) * line, color=INK["black"], lw=0.8, zorder=1)
        count = f"{number_of(one.told['n'], 'pair')}, {number_of(one.told['n_effective'], 'setting')}"
        count = f"{one.told['verdict']} ({count})" if one.told.get("verdict") else count
        ax.set_title(f"partial {_estimate(one.told)}\n{count}", **SMALL)


class _Looks:
    """Colours by learning rate, marks by zero-shot model, hollow where the source is not the one that is told."""

    def __init__(self, rows: pd.DataFrame, source: str) -> None:
        self.source = source
        self.bases = sorted(set(rows["base"]))
        self.kinds = rows[["base", "source"]].drop_duplicates().sort_values(["base", "source"])
        self.unknown = bool(rows["learning_rate"].isna().any())
        self.rates = rates_of(rows) if rows["learning_rate"].notna().any() else None

    def points(self, ax: Axes, rows: pd.DataFrame, x: np.ndarray, y: np.ndarray) -> None:
        rates = rows["learning_rate"].to_numpy(dtype=float)
        inks: Any = np.array([self._ink(rate) for rate in rates], dtype=object)
        for base, source in self.kinds.itertuples(index=False):
            at = ((rows["base"] == base) & (rows["source"] == source)).to_numpy()
            if at.any():
                face = list(inks[at]) if source == self.source else "none"
                ax.scatter(x[at], y[at], s=9 if len(rows) > 40 else 16, marker=self._mark(base), c=face,
                           edgecolors=list(inks[at]), linewidths=0.6)  # fmt: skip

    def explain(self, figure: Figure, axes: np.ndarray, placeless: int) -> None:
        """The bar of learning rates, and below the panels what marks and colours mean."""
        if self.rates is not None:
            rate_bar(figure, axes, *self.rates)
        several = len(self.bases) > 1
        handles = [self._entry(base, source) for base, source in self.kinds.itertuples(index=False)]
        handles = handles if several or len(self.kinds) > 1 else []
        if self.unknown:
            ink = COLOURS[0] if self.rates is None else INK["light"]
            handles.append(Line2D([], [], ls="none", marker="o", ms=3.5, color=ink, label="learning rate unknown"))
        lost = f"not shown on the left: {number_of(placeless, 'pair')} with sharpness ≤ 0" if placeless else ""
        key(figure, handles, lost)

    def _ink(self, rate: float) -> tuple[float, ...] | str:
        if self.rates is None:
            return COLOURS[0]
        colours, norm = self.rates
        return tuple(colours(norm(rate))) if np.isfinite(rate) else INK["light"]

    def _mark(self, base: str) -> str:
        return MARKERS[self.bases.index(base) % len(MARKERS)]

    def _entry(self, base: str, source: str) -> Line2D:
        known = 0 < len(base) <= _LONG
        name = base if known else f"zero-shot model {self.bases.index(base) + 1}"
        named = [name] if len(self.bases) > 1 else []
        sources = self.kinds["source"].nunique() > 1 and (source != self.source or not named)
        told = ", ".join([*named, *([SOURCES.get(source, source)] if sources else [])])
        face = INK["grey"] if source == self.source else "white"
        return Line2D([], [], ls="none", color=INK["grey"], marker=self._mark(base), ms=3.5, mew=0.8, mfc=face,
                      label=label(told))  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the caption
def gain_caption(residuals: pd.DataFrame, correlations: pd.DataFrame, group: str | None = None) -> str:
    """The caption of ``sharpness_and_gain``: what is drawn, and estimate, interval, n and n_effective of every group.

    Raises:
        NoData: as ``sharpness_and_gain``.
    """
    groups = _groups(residuals, correlations, group)
    first = groups[0]
    plain = f"OOD gain over zero-shot and {words(first.measure)} of the whole model on ID data at {first.at}"
    colours = "" if first.rows["learning_rate"].isna().all() else ", coloured by learning rate"
    right = (
        ", left as they are and right what is left of their ranks with covariates held fixed (one point for all pairs "
        "of a setting, in standard deviations); the slope of the line is the partial correlation"
    )
    told = f"{plain}{right if any(one.held for one in groups) else ''}. Points are pairs{colours}."
    return " ".join([told, *(_told(one) for one in groups)])


def _told(one: _Group) -> str:
    """The correlation of one group, or why there is none; and which pairs are in it."""
    lost = f"{number_of(one.placeless, 'pair')} with a value of 0 or less has no place on the left"
    others = unique_in_order(SOURCES.get(s, shown(s, 40)) for s in one.rows["source"] if s != one.source)
    remarks = [
        f"all pairs are those {SOURCES[one.source]}" if one.source == "shipped" else "",
        f"hollow are pairs of another source ({', '.join(others)})" if others else "",
        lost if one.placeless else "",
    ]
    return f"OOD sets of {shown(one.name, 60)}: {'; '.join([_correlation(one), *filter(None, remarks)])}."


def _correlation(one: _Group) -> str:
    row = one.told
    if row is None:
        return "no correlation was computed"
    count = f"n = {number_of(row['n'], 'pair')}, n_effective = {number_of(row['n_effective'], 'setting')}"
    why = next((n for n in one.rows.loc[one.rows["source"] == one.source, "note"] if n), "")
    if row["status"] != "ok":
        return f"there is no partial correlation ({count}; {said(shown(row['note'] or why, 300))})"
    if row["given"]:
        what = (
            f"partial Spearman correlation {_estimate(row)}, {shown(row['given'], 200).replace('+', ', ')} held fixed"
        )
    else:
        what = f"Spearman correlation {_estimate(row)}, nothing held fixed ({shown(why, 200)})"
    return f"{what} ({count})"


def _estimate(row: pd.Series) -> str:
    estimate, low, high = (float(row[c]) for c in ("estimate", "ci_low", "ci_high"))
    return interval(estimate, low, high, lambda v: points(v / 100, 2))
