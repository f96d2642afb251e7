"""WiSE-FT's figures of paths: scatter with effective robustness, accuracy along alpha, paths against ensembles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sharpscope.present.paperplots.drawn import ENDS, Drawn, among, lacks, look, pair_lines, paper_figure
from sharpscope.present.paperplots.outcomes import bars, images_in_words, model_sets, paired, paths_of
from sharpscope.present.scales import Scale, percent_ticks, scaled
from sharpscope.present.style import COLOURS, INK, first_pairs, key, label, new_figure, short_set
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import unique_in_order
from sharpscope.vocabulary import DENSE, OOD_MEAN

__all__ = ["paper_wiseft_alpha", "paper_wiseft_ensembles", "paper_wiseft_scatter"]

_MOST_SETS: Final = 12
_MOST_PANELS: Final = 6
_COLUMNS: Final = 3
_FEWEST: Final = 3
"""The fewest baseline models whose line has a band."""


def _set_name(dataset: str) -> str:
    parts = dataset.split("+")
    return short_set(dataset) if len(parts) == 1 else f"mean of {len(parts)} OOD sets"


def _shade(alpha: float, pairs: int) -> float:
    """The opacity of one pair's intervals: those of many pairs lie on top of each other."""
    return alpha * min(1.0, 3 / pairs)


def mark_ends(ax: Axes, rows: pd.DataFrame, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Draw the star of theta_0 and the square of theta_1 at their places among ``x`` and ``y``."""
    for alpha, mark, size in ((0.0, "*", 70), (1.0, "s", 24)):
        at = np.isclose(rows["alpha"], alpha)
        ink = INK["black"] if alpha == 0 else colour
        ax.scatter(x[at], y[at], s=size, marker=mark, color=ink, edgecolor="white", lw=0.6, zorder=4)


# ------------------------------------------------------------------------------------------------------------- scatter
@paper_figure
def paper_wiseft_scatter(
    accuracy: pd.DataFrame,
    baseline: pd.DataFrame | None = None,
    scale: Scale = "logit",
    pair_order: Sequence[str] = (),
) -> Drawn:
    """OOD over ID accuracy along the path of every pair, one panel per OOD set, on logit, probit or linear axes.

    Args:
        accuracy: the accuracy table; only the straight path is drawn.
        baseline: models that define the line of effective robustness (``findings.robustness.read_baseline``): dataset,
            id_accuracy, ood_accuracy in [0, 1]; or dataset, intercept, slope of a line on the logit scale. Without it
            only the diagonal is drawn.
        scale: the stretching of both axes. The line is fitted on this scale.
        pair_order: the run's order of pairs (``run.order``), from which their colours follow; default: by name.

    >>> drawn = sharpscope.plot.paper_wiseft_scatter(run.accuracy, scale="probit")

    Raises:
        NoData: no pair has ID and OOD accuracy.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), figs. 1, 7, 8; the line: Taori et al. 2020 (arXiv 2007.00644).
    """
    panels = paired(accuracy, "wiseft_scatter")
    shown = dict(list(panels.items())[:_MOST_PANELS])
    mean_name = next(iter(accuracy.loc[accuracy["role"] == OOD_MEAN, "dataset"]), "mean")
    looks, lines_key = pair_lines(next(iter(panels.values()))["pair"], pair_order)
    columns = min(2, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(2.35 * lines + 0.7)
    axes = figure.subplots(lines, columns, squeeze=False)
    counts = []
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(shown))
    for (name, rows), ax in zip(shown.items(), axes.flat, strict=False):
        dataset = mean_name if name == "mean" else name
        models = None if baseline is None else baseline[baseline["dataset"] == dataset]
        counts.append(_scatter_panel(ax, rows, looks, models, scale))
        ax.set_title(_set_name(dataset) if name != "mean" else "mean over the OOD sets")
        ax.set_ylabel("OOD accuracy (%)" if columns == 1 or len(counts) % columns == 1 else "")
        ax.set_xlabel("ID accuracy (%)" if len(counts) + columns > len(shown) else "")
    keys = [*lines_key, *ENDS, Line2D([], [], color=INK["grey"], ls=":", lw=1.0, label="OOD = ID")]
    if any(counts):
        keys.append(Line2D([], [], color=INK["grey"], marker=".", ls="--", lw=1.0, label="baseline models, their line"))
    more = len(panels) - len(shown)
    key(figure, keys, f"{number_of(more, 'more set')} in the table" if more > 0 else "")
    band = " with its 95 % band" if max(counts) >= _FEWEST else ""
    line = f"""The dashed line{band} is fitted to {number_of(max(counts), "baseline model")} on this scale; the
        height above it is the effective robustness.""" if any(counts) else ""  # fmt: skip
    caption = f"""Accuracy out of distribution over accuracy in distribution along the straight path of
        {number_of(len(looks), "pair")}, {scale} axes; {images_in_words(accuracy)}. Bars are 95 % intervals over
        images. {line} After Wortsman et al. 2022 (arXiv 2109.01903), figs. 1 and 7."""
    return Drawn(figure, caption)


def _scatter_panel(
    ax: Axes, rows: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]], models: pd.DataFrame | None, scale: Scale
) -> int:
    for pair, style in looks.items():
        own = rows[rows["pair"] == pair]
        x, y = scaled(own["id"] / 100, scale), scaled(own["ood"] / 100, scale)
        colour = style["color"]
        for name, at, role in (("x", x, "id"), ("y", y, "ood")):
            if bars(own, role) is not None:
                low, high = (scaled(own[f"{role}_{end}"] / 100, scale) for end in ("low", "high"))
                length: dict[str, Any] = {f"{name}err": np.stack([at - low, high - at]).clip(0)}
                ax.errorbar(
                    x, y, **length, fmt="none", ecolor=colour, alpha=_shade(0.3, len(looks)), elinewidth=0.7, zorder=1
                )
        ax.plot(x, y, markersize=2.6, lw=1.1, zorder=2, **style)
        mark_ends(ax, own, x, y, colour)
    seen = 0
    ax.margins(0.08)
    limits = ax.get_xlim(), ax.get_ylim()
    if models is not None and len(models):
        seen, limits = _baseline(ax, models, scale, limits)
    ax.axline((limits[0][0],) * 2, slope=1, color=INK["grey"], ls=":", lw=1.0, zorder=0)
    ax.set(xlim=limits[0], ylim=limits[1])
    ax.grid(True)
    for axis in (ax.xaxis, ax.yaxis):
        percent_ticks(axis, scale)
    return seen


_Limits = tuple[tuple[float, float], tuple[float, float]]


def _baseline(ax: Axes, models: pd.DataFrame, scale: Scale, limits: _Limits) -> tuple[int, _Limits]:
    """Draw the baseline's models with the line through them, or its given line; returns their number and the limits."""
    if "slope" in models:
        line = models.iloc[0]
        share = np.linspace(0.001, 0.999, 200)
        expected = 1 / (1 + np.exp(-(line["intercept"] + line["slope"] * scaled(share, "logit"))))
        ax.plot(scaled(share, scale), scaled(expected, scale), color=INK["grey"], ls="--", lw=1.0, zorder=1)
        return 0, limits
    x, y = scaled(models["id_accuracy"], scale), scaled(models["ood_accuracy"], scale)
    band = 95 if len(models) >= _FEWEST else None  # two models leave no spread to resample
    sns.regplot(
        x=x, y=y, ax=ax, color=INK["grey"], ci=band, seed=0, fit_reg=len(np.unique(x)) > 1, truncate=False,
        scatter_kws={"s": 9, "alpha": 0.7, "zorder": 1, "linewidths": 0}, line_kws={"ls": "--", "lw": 1.0, "zorder": 1},
    )  # fmt: skip
    wide = [(min(low, v.min()), max(high, v.max())) for (low, high), v in zip(limits, (x, y), strict=True)]
    room = [0.04 * (high - low) for low, high in wide]
    (a, b), (c, d) = wide
    return len(models), ((a - room[0], b + room[0]), (c - room[1], d + room[1]))


# --------------------------------------------------------------------------------------------------------- along alpha
@paper_figure
def paper_wiseft_alpha(accuracy: pd.DataFrame, pair_order: Sequence[str] = ()) -> Drawn:
    """Accuracy on every data set along alpha, one panel per set, one line per pair with its interval and its chord.

    The dotted chord joins the two ends of a path: a path above it gains more than its ends' mean, and a path above both
    of its ends gains over either model (observations 1 and 2 of the paper).

    Args:
        accuracy: the accuracy table.
        pair_order: the run's order of pairs (``run.order``), from which their colours follow; default: by name.

    >>> drawn = sharpscope.plot.paper_wiseft_alpha(run.accuracy)

    Raises:
        NoData: the accuracy table has no rows of the path.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), fig. 6.
    """
    rows = model_sets(accuracy, "wiseft_alpha")
    roles = {role: unique_in_order(rows.loc[rows["role"] == role, "dataset"]) for role in ("id", OOD_MEAN, "ood")}
    every = [(role, name) for role, names in roles.items() for name in names]
    shown, (looks, lines_key) = every[:_MOST_SETS], pair_lines(rows["pair"], pair_order)
    columns = min(_COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(1.45 * lines + 0.75)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(shown))
    for i, ((role, name), ax) in enumerate(zip(shown, axes.flat, strict=False)):
        own = rows[(rows["role"] == role) & (rows["dataset"] == name)]
        for pair, style in looks.items():
            _set_line(ax, own[own["pair"] == pair], style, _shade(0.15, len(looks)))
        ax.grid(True, axis="y")
        ax.set_title(f"{_set_name(name)} (ID)" if role == "id" else _set_name(name), fontsize=7)
        if i + columns >= len(shown):
            ax.set_xlabel("α")
            ax.tick_params(labelbottom=True)
        if i % columns == 0:
            ax.set_ylabel("accuracy (%)")
    ends = [Line2D([], [], color=INK["grey"], ls=":", lw=1.0, label="chord between the ends")]
    more = len(every) - len(shown)
    key(figure, [*lines_key, *ends], f"{number_of(more, 'more set')} in the table" if more > 0 else "")
    caption = f"""Accuracy along the straight path from the zero-shot (α = 0) to the fine-tuned model (α = 1) of
        {number_of(len(looks), "pair")} on every data set; {images_in_words(accuracy)}. Bands are 95 % intervals
        over images, dotted lines the chords between the ends. The vertical axes differ. After Wortsman et al. 2022
        (arXiv 2109.01903), fig. 6."""
    return Drawn(figure, caption)


def _set_line(ax: Axes, rows: pd.DataFrame, style: Mapping[str, Any], shade: float) -> None:
    if not len(rows):
        return
    x, y = rows["alpha"].to_numpy(), 100 * rows["estimate"].to_numpy()
    ax.fill_between(x, 100 * rows["ci_low"], 100 * rows["ci_high"], color=style["color"], alpha=shade, lw=0)
    ax.plot(x, y, markersize=2.4, lw=1.1, **style)
    ends = rows[rows["alpha"].isin((0.0, 1.0))]
    ax.plot(ends["alpha"], 100 * ends["estimate"], color=style["color"], ls=":", lw=0.9, zorder=1)


# ----------------------------------------------------------------------------------------------------------- ensembles
@paper_figure
def paper_wiseft_ensembles(accuracy: pd.DataFrame, variants: Sequence[str] = ()) -> Drawn:
    """The straight path beside output ensembles and other paths: OOD over ID accuracy, and OOD accuracy along alpha.

    Args:
        accuracy: the accuracy table.
        variants: the variants to draw, ``dense`` is the straight path; default: every variant that has both ends.

    >>> drawn = sharpscope.plot.paper_wiseft_ensembles(run.accuracy)

    Raises:
        NoData: an unknown variant, or no variant beside the straight path that has both ends.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), figs. 10, 12, 13.
    """
    table = paths_of(accuracy, "wiseft_ensembles", None)
    whole = table.groupby("variant")["alpha"].agg(lambda a: {0.0, 1.0} <= set(a))
    names = [v for v in unique_in_order([DENSE, *table["variant"]]) if whole.get(v, False)]
    if variants:
        names = [among(v, table["variant"], "variants") for v in variants]
    elif len(names) < 2:
        raise lacks(
            "wiseft_ensembles", "ensembles", "accuracy has only the straight path; it needs ensembles or other paths"
        )
    pairs, more = first_pairs(table)
    figure = new_figure(1.9 * len(pairs) + 0.6)
    axes = figure.subplots(len(pairs), 2, squeeze=False)
    for (left, right), pair in zip(axes, pairs, strict=True):
        for i, variant in enumerate(names):
            own = table[(table["pair"] == pair) & (table["variant"] == variant)]
            style = look(i)
            left.plot(own["id"], own["ood"], markersize=2.6, lw=1.1, zorder=3 if variant == DENSE else 2, **style)
            right.plot(own["alpha"], own["ood"], markersize=2.6, lw=1.1, **style)
            if bars(own, "ood") is not None:
                right.fill_between(own["alpha"], own["ood_low"], own["ood_high"], color=style["color"], alpha=0.1, lw=0)
        plain = table[(table["pair"] == pair) & (table["variant"] == names[0])]
        mark_ends(left, plain, plain["id"].to_numpy(), plain["ood"].to_numpy(), COLOURS[0])
        for ax in (left, right):
            ax.grid(True)
        left.set(ylabel="mean OOD accuracy (%)")
        left.set_title(label(pair, 30))
    axes[-1, 0].set_xlabel("ID accuracy (%)")
    axes[-1, 1].set_xlabel("α (0 zero-shot, 1 fine-tuned)")
    handles = [
        Line2D([], [], markersize=4, label="straight path" if v == DENSE else label(v, 26), **look(i))
        for i, v in enumerate(names)
    ]
    key(figure, [*handles, *ENDS], more)
    caption = f"""The straight path of weights beside {number_of(len(names) - 1, "other mixture")} of the same two
        models ({", ".join(names[1:])}), {number_of(len(pairs), "pair")}, {images_in_words(accuracy)}. Left: mean
        accuracy out of distribution over accuracy in distribution; right: along α, the weight of the fine-tuned
        model, with 95 % intervals over images. After Wortsman et al. 2022 (arXiv 2109.01903), figs. 10, 12, 13."""
    return Drawn(figure, caption)
