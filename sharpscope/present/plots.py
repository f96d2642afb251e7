"""Every figure of a study as one function from tidy tables to Axes (one panel) or a Figure (several).

The tables have the columns of ``sharpscope.schema``. No function touches matplotlib's global state or pyplot; the reader's own style
(``matplotlib.style.context``) is respected, what it leaves at the defaults is filled in from ``style.STYLE``.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sharpscope.present.layerplots import correlation, heatmap, sharpness_along_alpha, straggler_ranking
from sharpscope.present.style import (
    COLOURS,
    INK,
    MARKERS,
    SET_COLOURS,
    NoData,
    figure_bytes,
    label,
    new_figure,
    place_labels,
    plain_log,
    plain_style,
    save,
    short_layer,
    short_set,
    styled,
)
from sharpscope.schema import ALL, DENSE, MEASURES

__all__ = [
    "NoData",
    "accuracy_along_alpha",
    "all_figures",
    "correlation",
    "correlation_scatter",
    "figure_bytes",
    "heatmap",
    "points_of",
    "repair",
    "save",
    "sharpness_along_alpha",
    "short_layer",
    "straggler_ranking",
    "wiseft_curve",
]


# ------------------------------------------------------------------------------------------------- what tables hold
def _dense(accuracy: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Rows of the plain path and one metric: top1, or the first there is."""
    rows = accuracy[(accuracy["variant"] == DENSE) & accuracy["estimate"].notna()]
    if not len(rows):
        raise NoData(f"{figure}: the accuracy table has no rows of the plain path.")
    metric = "top1" if (rows["metric"] == "top1").any() else rows["metric"].iloc[0]
    return rows[rows["metric"] == metric].sort_values("alpha", kind="stable")


def _average(rows: pd.DataFrame, role: str) -> pd.DataFrame:
    """alpha, estimate, ci_low, ci_high of one pair's ID or OOD accuracy, in percent.

    OOD: the ``ood_mean`` rows over the most sets; without any, and for ID, the mean of the sets (its interval only when it is one set).
    """
    mean = rows[rows["role"] == f"{role}_mean"]
    if len(mean):
        names = sorted(mean["dataset"].unique(), key=lambda d: (-d.count("+"), d))
        chosen = mean[mean["dataset"] == names[0]]
    else:
        chosen = rows[rows["role"] == role]
    columns = ["estimate", "ci_low", "ci_high"]
    if chosen["dataset"].nunique() > 1:
        out = chosen.groupby("alpha")[columns].mean().reset_index()
        out[columns[1:]] = math.nan
    else:
        out = chosen[["alpha", *columns]].reset_index(drop=True)
    out[columns] *= 100
    return out


def _names(df: pd.DataFrame, column: str = "pair") -> list[str]:
    return list(dict.fromkeys(df[column]))


def _bars(rows: pd.DataFrame) -> np.ndarray | None:
    if rows["ci_low"].isna().any():
        return None
    estimate = rows["estimate"].to_numpy()
    return np.abs(np.stack([estimate - rows["ci_low"], rows["ci_high"] - estimate]))


# ----------------------------------------------------------------------------------------------------------- WiSE-FT
@styled
def wiseft_curve(accuracy: pd.DataFrame, ax: Axes | None = None, alphas: Sequence[float] = (0.2, 0.5, 0.8)) -> Axes:
    """OOD against ID accuracy along each pair's path, ends marked, ``alphas`` written beside their points.

    x: mean ID accuracy; y: mean OOD accuracy (percent), light bars their intervals. Source: Wortsman et al. 2022 (arXiv 2109.01903), fig. 1.
    Raises NoData without ID and OOD rows.
    """
    dense = _dense(accuracy, "wiseft_curve")
    curves = {}
    for pair in _names(dense):
        rows = dense[dense["pair"] == pair]
        both = _average(rows, "id").merge(_average(rows, "ood"), on="alpha", suffixes=("_id", "_ood"))
        if len(both):
            curves[pair] = both
    if not curves:
        raise NoData("wiseft_curve: no pair has ID and OOD accuracy at the same alphas.")
    ax = new_figure(3.3).add_subplot() if ax is None else ax
    at: list[tuple[float, float]] = []
    texts: list[str] = []
    inks: list[str] = []
    every: list[tuple[float, float]] = []
    for i, (pair, rows) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        x, y = rows["estimate_id"].to_numpy(), rows["estimate_ood"].to_numpy()
        bars = {
            axis: _bars(rows.rename(columns={f"{c}_{role}": c for c in ("estimate", "ci_low", "ci_high")}))
            for axis, role in (("xerr", "id"), ("yerr", "ood"))
        }
        ax.errorbar(x, y, **bars, fmt="none", ecolor=colour, alpha=0.28, elinewidth=0.8, zorder=1)
        ax.plot(x, y, color=colour, marker=MARKERS[i % len(MARKERS)], label=label(pair), zorder=2, markersize=2.8)
        ends = rows[["alpha", "estimate_id", "estimate_ood"]].to_numpy()
        for alpha, ex, ey in ends[np.isin(ends[:, 0], (0.0, 1.0))]:
            mark, size = ("*", 90) if alpha == 0 else ("s", 34)
            ax.scatter([ex], [ey], s=size, marker=mark, color=INK["black"] if alpha == 0 else colour, edgecolor="white", lw=0.6, zorder=4)
        along = np.linspace(0, len(x) - 1, 8 * len(x))  # points on the line between its marks: no number shall lie on it
        every += list(zip(np.interp(along, range(len(x)), x), np.interp(along, range(len(x)), y), strict=True))
        inner = rows[(rows["alpha"] > 0) & (rows["alpha"] < 1)]
        for wanted in alphas:
            if len(inner) and (inner["alpha"] - wanted).abs().min() < 0.05:
                row = inner.loc[(inner["alpha"] - wanted).abs().idxmin()]
                at.append((row["estimate_id"], row["estimate_ood"]))
                texts.append(f"{row['alpha']:g}")
                inks.append(colour)
    ax.grid(True)
    ax.set(xlabel="ID accuracy (%)", ylabel="Mean OOD accuracy (%)")
    ends_key = [
        Line2D([], [], color=INK["black"], marker="*", ls="none", markersize=8, label="zero-shot (α = 0)"),
        Line2D([], [], color=INK["grey"], marker="s", ls="none", markersize=5, label="fine-tuned (α = 1); numbers: α"),
    ]
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.legend(handles=[*lines, *ends_key], loc="outside lower center", ncols=min(4, len(lines) + 2))
    place_labels(ax, at, texts, inks, avoid=every)
    return ax


# ------------------------------------------------------------------------------------------------- along the path
@styled
def accuracy_along_alpha(accuracy: pd.DataFrame, path: pd.DataFrame | None = None, failure: pd.DataFrame | None = None) -> Figure:
    """Accuracy and loss along each pair's path; shaded where the OOD mean lies below BOTH ends by more than its interval.

    Thin: each OOD set; thick with a band: their mean; dashed: ID. Below, when ``path`` is given, the probe loss and the chord between its ends.
    ``failure`` adds the names of the flags that were raised. Raises NoData without rows.
    """
    dense = _dense(accuracy, "accuracy_along_alpha")
    pairs = _names(dense)
    loss = path is not None and bool(path["loss"].notna().any())
    columns = min(2, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    sets = sorted(_names(dense[dense["role"] == "ood"], "dataset"))
    colours = dict(zip(sets, SET_COLOURS, strict=False)) if len(sets) <= len(SET_COLOURS) else dict.fromkeys(sets, "#aaaaaa")
    figure = new_figure(lines * (3.0 if loss else 2.2) + 0.55)
    grid = figure.add_gridspec(lines * (1 + loss), columns, height_ratios=([2.3, 1.0] if loss else [1.0]) * lines)
    shaded, first = False, None
    for i, pair in enumerate(pairs):
        row, column = divmod(i, columns)
        ax = figure.add_subplot(grid[row * (1 + loss), column], sharey=first)
        first = first or ax
        shaded |= _accuracy_panel(ax, dense[dense["pair"] == pair], colours)
        ax.set_title(_with_flags(pair, failure))
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        if column == 0:
            ax.set_ylabel("Accuracy (%)")
        if loss and path is not None:
            below = figure.add_subplot(grid[row * 2 + 1, column], sharex=ax)
            _loss_panel(below, path[path["pair"] == pair])
            ax.tick_params(labelbottom=False)
            below.set_ylabel("Probe loss" if column == 0 else "")
        (below if loss else ax).set_xlabel("α (0 zero-shot, 1 fine-tuned)")
    handles = [
        Line2D([], [], color=INK["black"], lw=2.0, label="OOD mean"),
        Line2D([], [], color=INK["grey"], lw=1.2, ls="--", label="ID"),
    ]
    if shaded:
        handles.append(Patch(facecolor=INK["bad"], alpha=0.16, label="below both ends"))  # type: ignore[arg-type]
    if len(sets) <= len(SET_COLOURS):
        handles += [Line2D([], [], color=colours[s], lw=1.0, label=short_set(s)) for s in sets]
    else:
        handles.append(Line2D([], [], color="#aaaaaa", lw=0.8, label=f"each of {len(sets)} OOD sets"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), columnspacing=1.2, handlelength=1.6)
    return figure


def _accuracy_panel(ax: Axes, rows: pd.DataFrame, colours: Mapping[str, str]) -> bool:
    for dataset, one in rows[rows["role"] == "ood"].groupby("dataset", sort=True):
        ax.plot(one["alpha"], 100 * one["estimate"], color=colours[str(dataset)], lw=0.8, alpha=0.9)
    ident, mean = _average(rows, "id"), _average(rows, "ood")
    ax.plot(ident["alpha"], ident["estimate"], color=INK["grey"], ls="--", lw=1.2)
    ax.plot(mean["alpha"], mean["estimate"], color=INK["black"], lw=2.0)
    ax.fill_between(mean["alpha"], mean["ci_low"], mean["ci_high"], color=INK["black"], alpha=0.18, lw=0)
    ax.grid(True, axis="y")
    spans = _failing(mean)
    for low, high in spans:
        ax.axvspan(low, high, color=INK["bad"], alpha=0.16, lw=0, zorder=0)
    return bool(spans)


def _failing(mean: pd.DataFrame) -> list[tuple[float, float]]:
    """Stretches of alpha, to half way to the neighbours, where the interval's top is below the lower end of the path."""
    alphas = mean["alpha"].to_numpy()
    if len(alphas) < 3:
        return []
    ends = mean["estimate"].to_numpy()[[0, -1]].min()
    top = mean["ci_high"].fillna(mean["estimate"]).to_numpy()
    return [((alphas[i - 1] + alphas[i]) / 2, (alphas[i] + alphas[i + 1]) / 2) for i in range(1, len(alphas) - 1) if top[i] < ends]


def _with_flags(pair: str, failure: pd.DataFrame | None) -> str:
    if failure is None or not (failure["pair"] == pair).any():
        return label(pair)
    own = failure[failure["pair"] == pair]
    raised = sorted(set(own.loc[own["present"].fillna(False).astype(bool), "flag"]))
    return label(pair, 30) + (f" (flags {', '.join(map(label, raised))})" if raised else " (no failure flag)")


def _loss_panel(ax: Axes, rows: pd.DataFrame) -> None:
    rows = rows[rows["loss"].notna()].sort_values("alpha")
    ax.grid(True, axis="y")
    if not len(rows):
        return
    ax.plot(rows["alpha"], rows["loss"], color=COLOURS[0], lw=1.2)
    error = rows["loss_stderr"].fillna(0.0)
    ax.fill_between(rows["alpha"], rows["loss"] - error, rows["loss"] + error, color=COLOURS[0], alpha=0.2, lw=0)
    ends = rows.iloc[[0, -1]]
    ax.plot(ends["alpha"], ends["loss"], color=INK["grey"], lw=0.8, ls=":")


# -------------------------------------------------------------------------------------------------------------- repair
_GROUPS = {"straggler": "stragglers", "random_layers": "random other layers", "all_layers": "all layers"}


@styled
def repair(table: pd.DataFrame, alpha: float | None = None) -> Figure:
    """Gain in OOD accuracy over the plain path at the same ID accuracy, by repair: stragglers beside their controls.

    Large marks with intervals: the repaired path at ``alpha`` (default: the one nearest 0.5); small ones: its other alphas. Panels: target x pair.
    Raises NoData without a finite gain.
    """
    rows = table[table["gain"].notna()].copy()
    if not len(rows):
        raise NoData("repair: the table has no gain to show.")
    rows["group"] = [_group(v, c) for v, c in zip(rows["variant"], rows["control"], strict=True)]
    rows["how"] = [f"{label(s)}, keep {d:g}" for s, d in zip(rows["select"], rows["density"], strict=True)]
    pairs, targets = _names(rows), sorted(set(rows["target"]))
    hows, groups = sorted(set(rows["how"])), [g for g in _GROUPS if g in set(rows["group"])]
    groups += sorted(set(rows["group"]) - set(groups))
    figure = new_figure(0.62 + len(targets) * (0.45 + 0.36 * len(hows)) * math.ceil(len(pairs) / 3))
    columns = min(3, len(pairs))
    axes = figure.subplots(len(targets) * math.ceil(len(pairs) / columns), columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for p, pair in enumerate(pairs):
        for t, target in enumerate(targets):
            ax = axes[(p // columns) * len(targets) + t, p % columns]
            ax.set_visible(True)
            own = rows[(rows["pair"] == pair) & (rows["target"] == target)]
            at = _repair_panel(ax, own, hows, groups, alpha)
            ax.set_title(f"{label(pair)}: sparse {label(target)}" + (f", α = {at:g}" if at is not None else ""))
            if t == len(targets) - 1:
                ax.set_xlabel("OOD gain at equal ID accuracy (points)")
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], ls="none", label=_GROUPS.get(g, label(g)))
        for i, g in enumerate(groups)
    ]
    handles.append(Line2D([], [], color=INK["grey"], marker=".", markersize=3, ls="none", label="the other alphas"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _group(variant: str, control: str) -> str:
    if control and control not in ("none", "nan", "False"):
        return str(control)
    return variant.split(":")[1] if variant.startswith("control:") else "straggler"


def _repair_panel(ax: Axes, rows: pd.DataFrame, hows: list[str], groups: list[str], alpha: float | None) -> float | None:
    ax.axvline(0, color=INK["grey"], lw=0.8, zorder=0)
    ax.set(yticks=range(len(hows)), yticklabels=hows, ylim=(len(hows) - 0.45, -0.55))
    ax.grid(True, axis="x")
    ax.tick_params(axis="y", length=0)
    if not len(rows):
        return None
    alphas = np.sort(rows["alpha"].unique())
    at = float(alphas[np.abs(alphas - (0.5 if alpha is None else alpha)).argmin()])
    for g, group in enumerate(groups):
        colour, marker = COLOURS[g % len(COLOURS)], MARKERS[g % len(MARKERS)]
        for h, how in enumerate(hows):
            own = rows[(rows["group"] == group) & (rows["how"] == how)]
            y = h + 0.24 * (g - (len(groups) - 1) / 2)
            others, one = own[own["alpha"] != at], own[own["alpha"] == at]
            ax.scatter(100 * others["gain"], np.full(len(others), y), s=4, color=colour, alpha=0.3, lw=0)
            bars = 100 * np.abs(np.stack([one["gain"] - one["ci_low"], one["ci_high"] - one["gain"]]))
            ax.errorbar(100 * one["gain"], np.full(len(one), y), xerr=bars, fmt=marker, color=colour, ms=3.6, elinewidth=1.0)
    return at


# --------------------------------------------------------------------------------------------------- across the pairs
def points_of(sharpness: pd.DataFrame, accuracy: pd.DataFrame, alpha: float = 0.5) -> pd.DataFrame:
    """One point a pair and measure for ``correlation_scatter``: whole-model sharpness at the alpha nearest ``alpha``, and the OOD gain there.

    Columns pair, sharpness, ood_gain (OOD accuracy minus that of zero-shot), measure, alpha.
    """
    dense = _dense(accuracy, "points_of")
    rows = []
    whole = sharpness[(sharpness["layer"] == ALL) & sharpness["estimate"].notna()]
    for pair in _names(whole):
        mean = _average(dense[dense["pair"] == pair], "ood").set_index("alpha")["estimate"] / 100
        if 0.0 not in mean.index:
            continue
        for measure, own in whole[whole["pair"] == pair].groupby("measure", sort=False):
            own = own[own["alpha"].isin(mean.index)]
            if len(own):
                best = own.loc[(own["alpha"] - alpha).abs().idxmin()]
                gain = mean[best["alpha"]] - mean[0.0]
                rows.append((pair, best["estimate"], gain, measure, best["alpha"]))
    return pd.DataFrame(rows, columns=["pair", "sharpness", "ood_gain", "measure", "alpha"])


@styled
def correlation_scatter(points: pd.DataFrame) -> Figure:
    """Whole-model sharpness against OOD gain over zero-shot, one labelled point a pair, one panel a measure.

    ``points``: pair, sharpness, ood_gain (share), measure, alpha, and perhaps source (``shipped`` points are hollow). Raises NoData without a finite point.
    """
    rows = points[np.isfinite(points["sharpness"].astype(float)) & np.isfinite(points["ood_gain"].astype(float))]
    if not len(rows):
        raise NoData("correlation_scatter: no pair has both a sharpness and an OOD gain.")
    measures = [m for m in MEASURES if m in set(rows["measure"])] + sorted(set(rows["measure"]) - set(MEASURES))
    columns = min(2, len(measures))
    figure = new_figure((3.1 if columns == 1 else 2.2) * math.ceil(len(measures) / columns))
    axes = figure.subplots(math.ceil(len(measures) / columns), columns, sharey=True, squeeze=False)
    colours = {pair: COLOURS[i % len(COLOURS)] for i, pair in enumerate(_names(points))}
    for k, ax in enumerate(axes.flat):
        ax.set_visible(k < len(measures))
    for measure, ax in zip(measures, axes.flat, strict=False):
        own = rows[rows["measure"] == measure]
        x, y = own["sharpness"].to_numpy(float), 100 * own["ood_gain"].to_numpy(float)
        hollow = own["source"].eq("shipped").to_numpy() if "source" in own else np.zeros(len(own), bool)
        inks = [colours[p] for p in own["pair"]]
        ax.scatter(x, y, s=18, c=["white" if h else c for h, c in zip(hollow, inks, strict=True)], edgecolor=inks, lw=1.0, zorder=3)
        if (x > 0).all() and x.max() > 5 * x.min():
            ax.set_xscale("log")
            plain_log(ax.xaxis)
        ax.axhline(0, color=INK["grey"], lw=0.8, zorder=0)
        ax.grid(True)
        ax.margins(0.14)
        alphas = sorted(set(own["alpha"]))
        ax.set_title(label(measure) + (f" at α = {alphas[0]:g}" if len(alphas) == 1 else ""))
        ax.set_xlabel("whole-model sharpness on ID data")
    for ax in axes[:, 0]:
        ax.set_ylabel("OOD gain over\nzero-shot (points)")
    for measure, ax in zip(measures, axes.flat, strict=False):
        own = rows[rows["measure"] == measure]
        at = list(zip(own["sharpness"].astype(float), 100 * own["ood_gain"].astype(float), strict=True))
        place_labels(ax, at, [label(p, 18) for p in own["pair"]], [INK["black"]] * len(own))
    return figure


# ---------------------------------------------------------------------------------------------------------- all of them
def all_figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Every figure for which the tables hold data, by file name, drawn under matplotlib's defaults whatever the machine's.

    ``tables``: by the names of the schema; also ``points`` (see ``correlation_scatter``), without which the pairs of the run are plotted
    when they are at least three. A figure without data is left out.
    """
    empty: pd.DataFrame = pd.DataFrame()
    get = {name: tables.get(name, empty) for name in ("accuracy", "path", "failure", "sharpness", "stragglers", "repair", "correlations", "points")}
    have = {name: len(df) > 0 for name, df in get.items()}
    figures: dict[str, Figure] = {}

    def add(name: str, needed: bool, draw: Callable[[], Axes | Figure]) -> None:
        if needed:
            with contextlib.suppress(NoData):
                drawn = draw()
                figures[name] = drawn if isinstance(drawn, Figure) else drawn.figure  # type: ignore[assignment]

    with plain_style():
        add("wiseft_curve", have["accuracy"], lambda: wiseft_curve(get["accuracy"]))
        path = get["path"] if have["path"] else None
        failure = get["failure"] if have["failure"] else None
        add("accuracy_along_alpha", have["accuracy"], lambda: accuracy_along_alpha(get["accuracy"], path, failure))
        add("sharpness_along_alpha", have["sharpness"], lambda: sharpness_along_alpha(get["sharpness"]))
        present = set(get["sharpness"]["measure"]) if have["sharpness"] else set()
        for measure in [m for m in MEASURES if m in present] + sorted(present - set(MEASURES)):
            add(f"heatmap_{measure}", True, functools.partial(heatmap, get["sharpness"], measure))
        add("straggler_ranking", have["stragglers"], lambda: straggler_ranking(get["stragglers"]))
        add("repair", have["repair"], lambda: repair(get["repair"]))
        for scope in ("path", "pairs"):
            add(f"correlation_{scope}", have["correlations"], functools.partial(correlation, get["correlations"], scope=scope))
        points = get["points"]
        if not have["points"] and have["sharpness"] and have["accuracy"]:
            points = points_of(get["sharpness"], get["accuracy"])
            points = points if points["pair"].nunique() >= 3 else points.iloc[:0]
        add("correlation_scatter", len(points) > 0, lambda: correlation_scatter(points))
    return figures
