"""WiSE-FT's figures over many fine-tuned models: hyperparameters, and the number of training images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from sharpscope.errors import NoData
from sharpscope.present.paperplots.drawn import ENDS, Drawn, among, look, paper_figure, range_of
from sharpscope.present.paperplots.outcomes import images_in_words, paths_of
from sharpscope.present.paperplots.wiseft_paths import mark_ends
from sharpscope.present.style import COLOURS, INK, key, label, new_figure, pair_looks
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import MIDDLE, nearest, unique_in_order

__all__ = ["levels", "paper_wiseft_hyper", "paper_wiseft_shots"]

_MOST_LEVELS: Final = 8
"""The most values of a setting that a legend names one by one."""


def levels(values: pd.Series) -> list[Any]:
    """The distinct values of a setting: numbers by size, names in order of appearance."""
    known = unique_in_order(values.dropna())
    return sorted(known) if pd.api.types.is_numeric_dtype(values) else known


def shades(values: Sequence[Any], numeric: bool) -> dict[Any, Any]:
    """A colour for every value: a sequence from light to dark for numbers, distinct colours for names."""
    if numeric:
        return dict(zip(values, sns.color_palette("flare", len(values)), strict=True))
    return {value: COLOURS[i % len(COLOURS)] for i, value in enumerate(values)}


# ------------------------------------------------------------------------------------------------------ hyperparameters
@paper_figure
def paper_wiseft_hyper(
    accuracy: pd.DataFrame, settings: pd.DataFrame, columns: Sequence[str] = (), pair_order: Sequence[str] = ()
) -> Drawn:
    """The path of every fine-tuned model, OOD over ID accuracy, coloured by one hyperparameter in each panel.

    Args:
        accuracy: the accuracy table of all models.
        settings: pair, and a column per hyperparameter (learning rate, epochs, ...).
        columns: the hyperparameters to draw; default: those with at least two values.
        pair_order: the run's order of pairs (``run.order``), from which their colours follow; default: by name.

    >>> drawn = sharpscope.plot.paper_wiseft_hyper(run.accuracy, settings)

    Raises:
        NoData: an unknown hyperparameter, or none that has two values.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), fig. 3.
    """
    rows = paths_of(accuracy, "wiseft_hyper").merge(settings, on="pair", suffixes=("", "_setting"))
    if "pair" in columns or set(settings.columns) == {"pair"}:
        known = ["pair", *(c for c in settings.columns if c != "pair")]
    else:
        known = [c for c in settings.columns if c != "pair"]
    chosen = [among(c, known, "columns") for c in columns] or [c for c in known if len(levels(rows[c])) > 1]
    if not chosen:
        raise NoData(
            "wiseft_hyper: no setting has two values. It takes the runs of 'sharpscope sweep', or the settings of "
            "every pair as the second table of sharpscope.plot.paper_wiseft_hyper."
        )
    across = min(2, len(chosen))
    lines = math.ceil(len(chosen) / across)
    figure = new_figure(2.5 * lines + 0.35)
    axes = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(chosen))
    for i, (setting, ax) in enumerate(zip(chosen, axes.flat, strict=False)):
        _setting_panel(ax, rows, setting, pair_order)
        ax.set_ylabel("mean OOD accuracy (%)" if i % across == 0 else "")
        ax.set_xlabel("ID accuracy (%)" if i + across >= len(chosen) else "")
        ax.xaxis.label.set_visible(True)  # seaborn hides it where the tick labels were hidden
        ax.tick_params(labelbottom=i + across >= len(chosen))
    key(figure, ENDS)
    caption = f"""The straight path of {number_of(rows["pair"].nunique(), "fine-tuned model")}, mean accuracy out of
        distribution over accuracy in distribution, {images_in_words(accuracy)}; coloured by
        {" and by ".join(map(str, chosen))}. After Wortsman et al. 2022 (arXiv 2109.01903), fig. 3."""
    return Drawn(figure, caption)


def _setting_panel(ax: Axes, rows: pd.DataFrame, setting: str, order: Sequence[str]) -> None:
    numeric = pd.api.types.is_numeric_dtype(rows[setting])
    looks = pair_looks(rows["pair"], order)[0] if setting == "pair" else {}
    values = list(looks) or levels(rows[setting])
    colours = {pair: look.colour for pair, look in looks.items()} or shades(values, numeric)
    sns.lineplot(
        data=rows, x="id", y="ood", hue=setting, hue_order=values, palette=colours, units="pair", estimator=None,
        sort=False, marker="o", markersize=2.8, markeredgewidth=0, lw=1.1, legend=False, ax=ax,
    )  # fmt: skip
    for _, own in rows.groupby("pair", sort=False):
        value = own[setting].iloc[0]
        if value in colours:
            mark_ends(ax, own, own["id"].to_numpy(), own["ood"].to_numpy(), colours[value])
    ax.grid(True)
    ax.set_title(label(setting, 30))
    named = (
        values if len(values) <= _MOST_LEVELS else [values[i] for i in np.linspace(0, len(values) - 1, 5).astype(int)]
    )
    text = [f"{v:g}" if numeric else label(v, 18) for v in named]
    handles = [Line2D([], [], color=colours[v], label=t, marker="o", ms=3) for v, t in zip(named, text, strict=True)]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.2, borderaxespad=0.2)


# --------------------------------------------------------------------------------------------------------------- shots
_POINTS: Final[Mapping[str, tuple[float, str]]] = {
    "zero-shot": (0.0, ":"), "fine-tuned": (1.0, "--"), "path": (MIDDLE, "-"),
}  # fmt: skip


@paper_figure
def paper_wiseft_shots(accuracy: pd.DataFrame, images: Mapping[str, int], alpha: float = MIDDLE) -> Drawn:
    """Accuracy against the number of training images per class: zero-shot, fine-tuned, and one point of the path.

    Args:
        accuracy: the accuracy table of the models of all numbers of images. Several models of one number are seeds:
            their mean is drawn, with bars of one standard deviation.
        images: pair -> training images per class.
        alpha: the point of the path to draw (the nearest one that the table has).

    >>> drawn = sharpscope.plot.paper_wiseft_shots(run.accuracy, {"success": 4, "failure": 16})

    Raises:
        NoData: no pair has both ID and OOD accuracy.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), figs. 17 to 19.
    """
    rows = paths_of(accuracy, "wiseft_shots")
    rows = rows[rows["pair"].isin(images)].assign(k=lambda t: t["pair"].map(images).astype(int))
    if not len(rows):
        raise NoData("wiseft_shots: no pair of the accuracy table has a number of training images.")
    at = nearest(rows["alpha"], alpha)
    titles = {"zero-shot": "zero-shot", "fine-tuned": "fine-tuned (α = 1)", "path": f"path at α = {at:g}"}
    parts = [
        rows[np.isclose(rows["alpha"], at if name == "path" else where)].assign(model=titles[name])
        for name, (where, _) in _POINTS.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    ks = sorted(set(table["k"]))
    figure = new_figure(2.5)
    axes = figure.subplots(1, 2)
    colours = dict(zip(titles.values(), (INK["grey"], COLOURS[1], COLOURS[0]), strict=True))
    for ax, role, name in zip(axes, ("id", "ood"), ("ID accuracy (%)", "mean OOD accuracy (%)"), strict=True):
        sns.lineplot(
            data=table, x="k", y=role, hue="model", style="model", hue_order=list(colours), palette=colours,
            markers={t: look(i)["marker"] for i, t in enumerate(colours)},
            dashes={titles[n]: {"-": "", "--": (4, 1.5), ":": (1, 1)}[d] for n, (_, d) in _POINTS.items()},
            errorbar="sd", err_style="bars", markersize=4, lw=1.2, legend=False, ax=ax,
        )  # fmt: skip
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(ks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FixedFormatter([str(k) for k in ks]))
        ax.set(xlabel="training images per class", ylabel=name)
        ax.grid(True, axis="y")
    dashes = {titles[n]: d for n, (_, d) in _POINTS.items()}
    key(
        figure,
        [
            Line2D([], [], color=c, ls=dashes[t], marker=look(i)["marker"], ms=4, label=t)
            for i, (t, c) in enumerate(colours.items())
        ],
    )
    seeds = table[table["model"] == titles["fine-tuned"]].groupby("k")["pair"].nunique()
    several = f"""Marks are means and bars one standard deviation over {range_of(seeds.min(), seeds.max())} models
        per number."""
    caption = f"""Accuracy against the number of training images per class, {number_of(len(seeds), "number")} of
        images, {number_of(table["pair"].nunique(), "fine-tuned model")}; {images_in_words(accuracy)}.
        {several if seeds.max() > 1 else "One model per number: no bars."} After Wortsman et al. 2022 (arXiv
        2109.01903), figs. 17 to 19."""
    return Drawn(figure, caption)
