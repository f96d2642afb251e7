"""Lipsum-FT's figures: the trade-off over learning rates and steps, and what the energy gap has to do with accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.present.paperplots.drawn import Drawn, among, lacks, look, paper_figure, range_of
from sharpscope.present.paperplots.outcomes import images_in_words, model_sets, paths_of
from sharpscope.present.paperplots.wiseft_sweeps import levels
from sharpscope.present.style import INK, MARKERS, SET_COLOURS, key, label, new_figure, places_of, plain_log, short_set
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import nearest, unique_in_order
from sharpscope.vocabulary import AGREEMENT

__all__ = ["paper_lipsum_energy", "paper_lipsum_tradeoff"]

_MARKS: Final = (*MARKERS, "<", ">", "p", "h", "d", "*", "8")
_UNITS: Final = {"energy_gap": " (logits²)", "logit_gap": " (logits²)", "kl_divergence": " (nats)"}
_SIZES: Final = (12, 55)
"""Areas of the marks of the smallest and the largest value of a setting, in square points."""


# ----------------------------------------------------------------------------------------------------------- trade-off
@paper_figure
def paper_lipsum_tradeoff(
    accuracy: pd.DataFrame, settings: pd.DataFrame, method: str = "method", order: Sequence[str] = ()
) -> Drawn:
    """OOD over ID accuracy of fine-tuned models (alpha = 1), one line per method, along a setting in each panel.

    Args:
        accuracy: the accuracy table of all models.
        settings: pair, the column ``method``, and a numeric column per setting (lr, steps, ...).
        method: the column whose values are the methods.
        order: the settings that order the models of a method; default: every numeric column with two values. A panel
            holds the models that differ from the method's first model in this setting alone.

    >>> drawn = sharpscope.plot.paper_lipsum_tradeoff(run.accuracy, settings)

    Raises:
        NoData: a column that the settings lack, or no numeric setting.

    Source: Nam et al. 2024 (Lipsum-FT, arXiv 2404.00860), fig. 1.
    """
    among(method, settings.columns, "method")
    ends = paths_of(accuracy, "lipsum_tradeoff").merge(settings, on="pair", suffixes=("", "_setting"))
    start, ends = ends[np.isclose(ends["alpha"], 0.0)], ends[np.isclose(ends["alpha"], 1.0)]
    numeric = [c for c in settings.columns if c != method and pd.api.types.is_numeric_dtype(settings[c])]
    chosen = [among(c, numeric, "order") for c in order] or [c for c in numeric if len(levels(ends[c])) > 1]
    if not chosen:
        raise NoData("lipsum_tradeoff: the settings have no numeric column with two values, such as lr or steps.")
    methods = unique_in_order(ends[method])
    across = min(2, len(chosen))
    lines = math.ceil(len(chosen) / across)
    figure = new_figure(2.5 * lines + 0.55)
    axes = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(chosen))
    drawn: set[str] = set()
    for i, (order, ax) in enumerate(zip(chosen, axes.flat, strict=False)):
        rows = _only_differing(ends, method, [c for c in chosen if c != order])
        _tradeoff_panel(ax, rows, method, methods, order)
        drawn |= set(rows["pair"])
        for _, own in start.drop_duplicates(["id", "ood"]).iterrows():
            ax.scatter(
                [own["id"]], [own["ood"]], marker="*", s=80, color=INK["black"], edgecolor="white", lw=0.6, zorder=4
            )
        ax.set(ylabel="mean OOD accuracy (%)" if i % across == 0 else "", xlabel="ID accuracy (%)")
        ax.xaxis.label.set_visible(True)  # seaborn hides it where the tick labels were hidden
        ax.tick_params(labelbottom=True)
        ax.set_title(label(order, 30))
    handles = [Line2D([], [], ms=4, label=label(str(m), 22), **look(i)) for i, m in enumerate(methods)]
    handles.append(Line2D([], [], color=INK["black"], marker="*", ls="none", ms=8, label="zero-shot (α = 0)"))
    key(figure, handles, "larger marks: larger value")
    caption = f"""Mean accuracy out of distribution over accuracy in distribution of
        {number_of(len(drawn), "fine-tuned model")} by {number_of(len(methods), "method")}, joined in the order of
        {" and of ".join(chosen)}; each panel holds models that differ in its setting alone;
        {images_in_words(accuracy)}. After Nam et al. 2024 (arXiv 2404.00860), fig. 1."""
    return Drawn(figure, caption)


def _only_differing(ends: pd.DataFrame, method: str, others: Sequence[str]) -> pd.DataFrame:
    """The models of each method that share the most frequent values of the ``others`` settings."""
    kept = []
    for _, own in ends.groupby(method, sort=False):
        for other in others:
            counts = own[other].value_counts()
            own = own[own[other] == counts.index[counts == counts.max()].min()] if len(counts) else own
        kept.append(own)
    return pd.concat(kept)


def _tradeoff_panel(ax: Axes, rows: pd.DataFrame, method: str, methods: Sequence[str], order: str) -> None:
    rows = rows.sort_values(order, kind="stable")
    colours = {m: look(i)["color"] for i, m in enumerate(methods)}
    sns.lineplot(
        data=rows, x="id", y="ood", hue=method, hue_order=methods, palette=colours, estimator=None, sort=False, lw=1.0,
        legend=False, ax=ax,
    )  # fmt: skip
    sns.scatterplot(
        data=rows, x="id", y="ood", hue=method, hue_order=methods, palette=colours, style=method, style_order=methods,
        markers={m: look(i)["marker"] for i, m in enumerate(methods)}, size=order, sizes=_SIZES, edgecolor="white",
        linewidth=0.4, legend=False, ax=ax, zorder=3,
    )  # fmt: skip
    ax.grid(True)


# -------------------------------------------------------------------------------------------------------------- energy
@paper_figure
def paper_lipsum_energy(
    agreement: pd.DataFrame,
    accuracy: pd.DataFrame,
    measures: Sequence[str] = ("energy_gap", "feature_distortion"),
    alpha: float = 1.0,
    pair_order: Sequence[str] = (),
) -> Drawn:
    """Accuracy on every data set against how far the model is from zero-shot on it, one panel per measure.

    Args:
        agreement: the agreement table.
        accuracy: the accuracy table of the same runs.
        measures: measures of the agreement table that compare a point with an end.
        alpha: the point of the path (the nearest one that the table has).
        pair_order: the run's order of pairs (``run.order``), from which their marks follow; default: by name.

    >>> drawn = sharpscope.plot.paper_lipsum_energy(run.agreement, run.accuracy)

    Raises:
        NoData: an unknown measure, or no estimate above 0 with an accuracy.

    Source: Nam et al. 2024 (Lipsum-FT, arXiv 2404.00860): energy gap and feature distortion against accuracy.
    """
    against = agreement[(agreement["against"] == "zeroshot") & (agreement["estimate"] > 0)]
    chosen = [among(m, against["measure"], "measures") for m in measures]
    at = nearest(against["alpha"], alpha)
    known = model_sets(accuracy, "lipsum_energy")[["pair", "alpha", "dataset", "role", "estimate"]]
    point = against[np.isclose(against["alpha"], at)].merge(
        known.rename(columns={"estimate": "accuracy"}), on=["pair", "alpha", "dataset"]
    )
    if not len(point):
        raise lacks("lipsum_energy", "agreement", "has no point with an accuracy beside it")
    places, sets = places_of(point["pair"], pair_order), unique_in_order(point["dataset"])
    ids = set(point.loc[point["role"] == "id", "dataset"])
    point = point.assign(accuracy=100 * point["accuracy"])
    colours = {s: SET_COLOURS[i % len(SET_COLOURS)] for i, s in enumerate(sets)}
    marks = {p: _MARKS[place % len(_MARKS)] for p, place in places.items()}
    figure = new_figure(2.75)
    axes = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    for ax, measure in zip(axes, chosen, strict=True):
        own = point[point["measure"] == measure]
        error = np.stack([own["estimate"] - own["ci_low"], own["ci_high"] - own["estimate"]]).clip(0)
        ax.errorbar(
            own["estimate"], own["accuracy"], xerr=np.nan_to_num(error), fmt="none", ecolor=INK["light"],
            elinewidth=0.8, zorder=1,
        )  # fmt: skip
        sns.scatterplot(
            data=own, x="estimate", y="accuracy", hue="dataset", hue_order=sets, palette=colours, style="pair",
            style_order=list(marks), markers=marks, s=26, edgecolor="white", linewidth=0.4, legend=False, ax=ax,
            zorder=3,
        )  # fmt: skip
        values = own["estimate"]
        if len(values) and values.max() > 5 * values.min():
            ax.set_xscale("log")
            plain_log(ax.xaxis, 5)
        ax.grid(True)
        ax.set(
            xlabel=f"{measure.replace('_', ' ')} to zero-shot{_UNITS.get(measure, '')}",
            ylabel="accuracy (%)" if ax is axes[0] else "",
        )
    keys = [
        Line2D(
            [], [], color=colours[s], marker="o", ls="none", ms=4, label=short_set(s) + (" (ID)" if s in ids else "")
        )
        for s in sets
    ]
    keys += [Line2D([], [], color=INK["grey"], marker=marks[p], ls="none", ms=4, label=label(p, 22)) for p in marks]
    key(figure, keys)
    n = point["n"].astype(float)
    meant = "; ".join(f"{m.replace('_', ' ').capitalize()}: {AGREEMENT[m].text}" for m in chosen if m in AGREEMENT)
    caption = f"""Accuracy on {number_of(len(sets), "data set")} of {range_of(n.min(), n.max())} images against the
        distance of the model at α = {at:g} from the zero-shot model, {number_of(len(marks), "model")}. {meant}.
        Bars are 95 % intervals over images. After Nam et al. 2024 (arXiv 2404.00860)."""
    return Drawn(figure, caption)
