"""CLIPFit's and ContCoOp's figures: what fine-tuning changes, accuracy by shots, and prompts on an upgraded model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from sharpscope.present.paperplots.drawn import Drawn, lacks, look, paper_figure, range_of
from sharpscope.present.paperplots.outcomes import model_sets
from sharpscope.present.style import COLOURS, INK, key, label, new_figure, plain_log, short_set
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import unique_in_order
from sharpscope.vocabulary import AVERAGE, DENSE, UPGRADED, ZERO_SHOT

__all__ = ["paper_clipfit_change", "paper_clipfit_shots", "paper_contcoop_upgrade", "upgrade_of"]

_MOST_PARTS: Final = 7
_MOST_PANELS: Final = 12


# -------------------------------------------------------------------------------------------------------------- change
@paper_figure
def paper_clipfit_change(changes: pd.DataFrame) -> Drawn:
    """Relative change ||theta_1 - theta_0|| / ||theta_0|| of every tensor that moves, by depth: one panel per tower.

    Tensors of the same place in every block share a line. At most seven lines per tower are shown: those with the
    largest change.

    Args:
        changes: the table ``changes``: layer (a tensor's name), tower, depth, distance, size, relative.

    >>> drawn = sharpscope.plot.paper_clipfit_change(changes)

    Raises:
        NoData: no tensor moves.

    Source: Li et al. 2024 (CLIPFit, arXiv 2409.16718), the figure of the change of parameters per layer.
    """
    rows = changes[(changes["distance"] > 0) & np.isfinite(changes["relative"])]
    rows = rows[rows["tower"].isin(("image", "text"))]
    if not len(rows):
        raise lacks("clipfit_change", "changes", "has no tensor of a tower that moves")
    rows = rows.assign(part=[_part(name) for name in rows["layer"]])
    towers = [t for t in ("text", "image") if t in set(rows["tower"])]
    figure = new_figure(2.45 * len(towers) + 0.15)
    axes = figure.subplots(len(towers), 1, squeeze=False)[:, 0]
    left = 0
    for ax, tower in zip(axes, towers, strict=True):
        left += _change_panel(ax, rows[rows["tower"] == tower])
        ax.set_title(f"{tower} tower")
        ax.set_ylabel("relative change")
    axes[-1].set_xlabel("depth (0: before the first block)")
    key(figure, [], f"{number_of(left, 'more group')} of tensors in the table" if left else "")
    moved, total = int(rows["num_params"].sum()), int(changes["num_params"].sum())
    caption = f"""Relative change of the {number_of(len(rows), "tensor")} that fine-tuning moves ({moved:,} of
        {total:,} parameters), by depth in the tower. The change is the norm of the difference divided by the norm
        before fine-tuning. There is no uncertainty: both files are known. After Li et al. 2024 (arXiv 2409.16718)."""
    return Drawn(figure, caption)


def _part(name: str) -> str:
    """The place of a tensor in its block: ``visual.transformer.resblocks.3.ln_1.weight`` -> ``ln_1.weight``."""
    inner = re.split(r"(?:resblocks|blocks|layers|layer\d+|stages)\.\d+\.", name)[-1]
    return inner.removeprefix("visual.").removeprefix("text.").removeprefix("trunk.")


def _change_panel(ax: Axes, rows: pd.DataFrame) -> int:
    """Draw the parts of one tower; returns the number of those left out."""
    largest = rows.groupby("part", sort=False)["relative"].max().sort_values(ascending=False, kind="stable")
    parts = [str(p) for p in largest.index[:_MOST_PARTS]]
    shown = rows[rows["part"].isin(parts)]
    colours, marks = ({p: look(i)[of] for i, p in enumerate(parts)} for of in ("color", "marker"))
    sns.lineplot(
        data=shown, x="depth", y="relative", hue="part", hue_order=parts, style="part", style_order=parts,
        palette=colours, markers=marks,
        dashes=False, estimator=None, markersize=4.5, markeredgewidth=0.4, lw=1.1, legend=False, ax=ax,
    )  # fmt: skip
    if shown["relative"].max() > 8 * shown["relative"].min():
        ax.set_yscale("log")
        plain_log(ax.yaxis, 5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    ax.set_xlabel("")
    ax.grid(True, axis="y")
    handles = [Line2D([], [], ms=4, label=label(p, 28), **look(i)) for i, p in enumerate(parts)]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    return len(largest) - len(parts)


# --------------------------------------------------------------------------------------------------------------- shots
@paper_figure
def paper_clipfit_shots(table: pd.DataFrame) -> Drawn:
    """Accuracy by the number of training images per class, one panel per data set, one line per method.

    Args:
        table: the table ``few_shot`` of a protocol run; the zero-shot model is a dotted line.

    >>> drawn = sharpscope.plot.paper_clipfit_shots(few_shot)

    Raises:
        NoData: the table has no method beside zero-shot.

    Source: Li et al. 2024 (CLIPFit, arXiv 2409.16718), the figure of few-shot results; Zhou et al. 2022 (CoOp, arXiv
        2109.01134), fig. 3.
    """
    tuned = table[table["method"] != ZERO_SHOT]
    if not len(tuned):
        raise lacks("clipfit_shots", "few_shot", "has no method beside zero-shot")
    methods = unique_in_order(tuned["method"])
    every = sorted(unique_in_order(tuned["dataset"]), key=lambda name: name != AVERAGE)
    sets = every[:_MOST_PANELS]
    columns = min(3, len(sets))
    lines = math.ceil(len(sets) / columns)
    figure = new_figure((1.6 if columns == 3 else 2.2) * lines + 0.7)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    ks = sorted(set(tuned["shots"]))
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(sets))
    for i, (name, ax) in enumerate(zip(sets, axes.flat, strict=False)):
        own = table[table["dataset"] == name]
        for m, method in enumerate(methods):
            line = own[own["method"] == method].sort_values("shots")
            error = 100 * line["accuracy_sd"].fillna(0.0)
            ax.errorbar(line["shots"], 100 * line["accuracy"], yerr=error, ms=3.4, lw=1.1, elinewidth=0.8, **look(m))
        for value in own.loc[own["method"] == ZERO_SHOT, "accuracy"]:
            ax.axhline(100 * value, color=INK["grey"], ls=":", lw=1.0, zorder=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(ks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FixedFormatter([str(k) for k in ks]))
        ax.margins(x=0.08)
        ax.grid(True, axis="y")
        ax.set_title("average" if name == AVERAGE else short_set(name), fontsize=7)
        ax.set_ylabel("accuracy (%)" if i % columns == 0 else "")
        if i + columns >= len(sets):
            ax.set_xlabel("training images per class")
            ax.tick_params(labelbottom=True)
    keys = [Line2D([], [], ms=4, label=label(m, 22), **look(i)) for i, m in enumerate(methods)]
    keys.append(Line2D([], [], color=INK["grey"], ls=":", lw=1.0, label="zero-shot"))
    more = len(every) - len(sets)
    key(figure, keys, f"{number_of(more, 'more set')} in the table" if more else "")
    seeds = tuned["seeds"]
    caption = f"""Accuracy of {number_of(len(methods), "method")} by the number of training images per class on
        {number_of(len([s for s in sets if s != AVERAGE]), "data set")}: means over
        {range_of(seeds.min(), seeds.max())} seeds, bars of one standard deviation over them. After Li et al. 2024
        (arXiv 2409.16718) and Zhou et al. 2022 (arXiv 2109.01134)."""
    return Drawn(figure, caption)


# ------------------------------------------------------------------------------------------------------------- upgrade
_STAGES: Final[Mapping[str, tuple[str, str]]] = {
    "old_zeroshot": ("old, zero-shot", INK["light"]),
    "old": ("old, tuned", COLOURS[5]),
    "upgraded_zeroshot": ("upgraded, zero-shot", INK["grey"]),
    "upgraded": ("upgraded, with the method", COLOURS[0]),
}
"""Column of the table ``upgrade`` -> its name in the legend and its colour."""


def upgrade_of(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The table ``upgrade`` from a run with ``--upgraded``: the ends of the path and of the variant upgraded.

    Columns as in the table ``upgrade`` (method is the pair's name); the interval of an accuracy is in the columns
    ``STAGE_low`` and ``STAGE_high``. The gain has no interval, because the table does not hold the answers themselves.
    """
    rows = model_sets(accuracy, "contcoop_upgrade", (DENSE, UPGRADED))
    places = {
        "old_zeroshot": (DENSE, 0.0),
        "old": (DENSE, 1.0),
        "upgraded_zeroshot": (UPGRADED, 0.0),
        "upgraded": (UPGRADED, 1.0),
    }
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for stage, (variant, alpha) in places.items():
        for row in rows[(rows["variant"] == variant) & np.isclose(rows["alpha"], alpha)].to_dict("records"):
            one = out.setdefault((row["pair"], row["dataset"]), {})
            one |= {
                stage: row["estimate"],
                f"{stage}_low": row["ci_low"],
                f"{stage}_high": row["ci_high"],
                "n": row["n"],
            }
    whole = [
        {"method": pair, "dataset": dataset, "gain": one["upgraded"] - one["upgraded_zeroshot"], "seeds": 1, **one}
        for (pair, dataset), one in out.items()
        if all(stage in one for stage in _STAGES)
    ]
    if not whole:
        raise lacks("contcoop_upgrade", "upgraded", "accuracy has no rows of an upgraded model")
    return pd.DataFrame(whole).assign(ci_low=math.nan, ci_high=math.nan)


@paper_figure
def paper_contcoop_upgrade(table: pd.DataFrame) -> Drawn:
    """Bars of accuracy before and after an upgrade of the backbone, and the gain over the upgraded zero-shot model.

    Args:
        table: the table ``upgrade`` of a protocol run, or ``upgrade_of`` a run's accuracy table.

    >>> drawn = sharpscope.plot.paper_contcoop_upgrade(upgrade)

    Raises:
        NoData: the table has no rows.

    Source: Wang et al. 2024 (ContCoOp, arXiv 2412.20895), the comparison of models before and after the upgrade.
    """
    if not len(table):
        raise lacks("contcoop_upgrade", "upgrade")
    methods = unique_in_order(table["method"])
    sets = sorted(unique_in_order(table["dataset"]), key=lambda d: (d != AVERAGE, "+" in d))[:_MOST_PANELS]
    figure = new_figure(1.55 * len(methods) + 0.26 * len(sets) + 1.1)
    axes = figure.subplots(len(methods) + 1, 1, height_ratios=[1.3] * len(methods) + [0.25 * len(sets) + 0.3])
    width = 0.8 / len(_STAGES)
    names = ["average" if d == AVERAGE else f"mean of {d.count('+') + 1}" if "+" in d else short_set(d) for d in sets]
    for ax, method in zip(axes, methods, strict=False):
        own = table[table["method"] == method].set_index("dataset").reindex(sets)
        for i, (stage, (_, colour)) in enumerate(_STAGES.items()):
            at = np.arange(len(sets)) + (i - 1.5) * width
            ax.bar(
                at, 100 * own[stage], width, color=colour, yerr=_stage_error(own, stage), error_kw={"elinewidth": 0.8}
            )
        ax.set_xticks(range(len(sets)), names)
        ax.set_ylabel("accuracy (%)")
        ax.grid(True, axis="y")
        ax.tick_params(axis="x", length=0)
        ax.set_title(label(method, 40))
    _gains(axes[-1], table, methods, sets, names)
    tuned = any(f"{stage}_sd" in table and table[f"{stage}_sd"].notna().any() for stage in _STAGES)
    spread = (
        "one standard deviation over seeds"
        if tuned
        else "95 % intervals over images"
        if "old_low" in table
        else "absent"
    )
    key(figure, [Patch(facecolor=c, label=t) for t, c in _STAGES.values()])
    n = table.loc[~table["dataset"].str.contains(r"\+|^average$"), "n"].astype(float)
    whole = table["ci_low"].notna().any()
    known = "with its 95 % interval over images" if whole else "whose interval a table of accuracies does not give"
    caption = f"""Accuracy on the old and on the upgraded model, zero-shot and with what was tuned on the old one,
        for {number_of(len(methods), "method")} on {number_of(len(n.index) // max(1, len(methods)), "data set")} of
        {range_of(n.min(), n.max())} images, {number_of(table["seeds"].max(), "seed")}; error bars: {spread}. Below,
        the gain over the upgraded zero-shot model, {known}. After Wang et al. 2024 (arXiv 2412.20895)."""
    return Drawn(figure, caption)


def _stage_error(rows: pd.DataFrame, stage: str) -> np.ndarray | None:
    if f"{stage}_low" in rows:
        return 100 * np.stack([rows[stage] - rows[f"{stage}_low"], rows[f"{stage}_high"] - rows[stage]]).clip(0)
    if f"{stage}_sd" in rows and rows[f"{stage}_sd"].notna().any():
        return 100 * rows[f"{stage}_sd"].fillna(0.0).to_numpy()
    return None


def _gains(ax: Axes, table: pd.DataFrame, methods: Sequence[str], sets: list[str], names: Sequence[str]) -> None:
    for i, method in enumerate(methods):
        own = table[table["method"] == method].set_index("dataset").reindex(sets)
        at = np.arange(len(sets)) + 0.5 * (i - (len(methods) - 1) / 2) / max(1, len(methods))
        error = np.nan_to_num(100 * np.stack([own["gain"] - own["ci_low"], own["ci_high"] - own["gain"]])).clip(0)
        style = look(i)
        ax.errorbar(100 * own["gain"], at, xerr=error, fmt=style["marker"], color=style["color"], ms=4, elinewidth=1.0)
    ax.axvline(0, color=INK["grey"], lw=0.8, zorder=0)
    ax.set_yticks(range(len(sets)), names)
    ax.set_ylim(len(sets) - 0.5, -0.5)
    ax.grid(True, axis="x")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("gain over the upgraded zero-shot model (points)")
    if len(methods) > 1:
        handles = [Line2D([], [], ls="none", ms=4, label=label(m, 22), **look(i)) for i, m in enumerate(methods)]
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
