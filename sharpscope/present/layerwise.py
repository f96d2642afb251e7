"""Report sections on layers: sharpness, stragglers, repair, and the correlation of sharpness with OOD accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sharpscope.config.study import StudyConfig
from sharpscope.errors import shown
from sharpscope.layers import layer_key
from sharpscope.present.alphas import alpha_is, in_order_of_alpha, said, with_symbol
from sharpscope.present.criteria import both_definitions, who_is_named
from sharpscope.present.layermap import layer_map
from sharpscope.present.residualplots import gain_caption, gain_file
from sharpscope.present.style import short_layer
from sharpscope.present.view import (
    MOST_ROWS,
    Block,
    Cell,
    Grid,
    Line,
    Section,
    Source,
    absent,
    cell,
    estimate_cell,
    images_of,
    in_order,
    layer_cell,
    pairs_of,
    status_cell,
)
from sharpscope.tables.formats import interval, is_missing, number, number_of, p_text, percent, points
from sharpscope.tables.rows import (
    MIDDLE,
    groups_in,
    in_group_order,
    joint_rows,
    marginal_rows,
    measures_in,
    nearest,
    records,
    unique_in_order,
    widest_means,
    without_stragglers,
)
from sharpscope.vocabulary import ALL, CRITERIA, MEASURES, PAIRS

__all__ = ["correlations", "repair", "sharpness", "stragglers"]


# ------------------------------------------------------------------------------------------------------ sharpness
def sharpness(source: Source) -> Section:
    table = source.table("sharpness")
    title = "Layer-wise sharpness"
    if not len(table):
        return Section(title, "sharpness", (absent("sharpness"),))
    measures = measures_in(table)
    pairs = pairs_of(table, source.order)
    alphas = sorted(table["alpha"].dropna().unique())
    shown_alphas = in_order_of_alpha(nearest(alphas, a) for a in (0.0, 0.5, 1.0))
    whole = table[(table["layer"] == ALL) & table["alpha"].isin(shown_alphas)]
    found = {(r["pair"], r["measure"], r["alpha"]): r for r in records(whole)}
    rows = []
    for measure in measures:
        for pair in pairs:
            cells = [
                estimate_cell(found[pair, measure, a]) if (pair, measure, a) in found else cell(None)
                for a in shown_alphas
            ]
            rows.append((cell(measure, title=_meaning(measure)), cell(pair), *cells))
    head = ("measure", "pair", *map(alpha_is, shown_alphas))
    caption = (
        f"Whole model on {images_of(table)}: estimate ± error over draws of images, which is one standard error and "
        "says how far other draws of as many images would lead. ‡ marks a number whose error over draws of images is "
        "unknown; its ± is the error of the estimate on these images. ° marks an estimate that did not converge within "
        "the budget."
    )
    whole_grid = Grid.of(head, rows, caption, range(2, 2 + len(shown_alphas)), "tables/sharpness.csv", 60)
    lead = source.config.get("measures")
    main = next((m for m in (lead if isinstance(lead, (list, tuple)) else ()) if m in measures), measures[0])
    layered = _layer_grid(table[table["measure"] == main], main, pairs, nearest(alphas, MIDDLE))
    figures = source.figure(
        "sharpness_along_alpha",
        with_symbol("Whole-model sharpness along α")
        + f" on {images_of(table)}. Bars: one error over draws of images, where unknown the "
        "error of the estimate on these images; hollow marks: not converged.",
    )
    figures += [f for m in measures for f in source.figure(f"heatmap_{m}", f"{m}: {_meaning(m)}.", wide=False)]
    figures += source.figure(
        "spectral_density",
        "Spectral density of each layer's Hessian by stochastic Lanczos quadrature, smoothed by a Gaussian whose width "
        "is in tables/density.csv. Bands: one standard error over random starting vectors, widened for their small "
        "number; they contain neither the choice of images nor what the Lanczos steps do not resolve.",
    )
    drawn = layer_map(source)
    blocks: tuple[Block, ...] = (whole_grid, drawn) if drawn else (whole_grid,)
    return Section(title, "sharpness", blocks, tuple(figures), (layered,) if layered else ())


def _meaning(measure: str) -> str:
    known = MEASURES.get(measure) or CRITERIA.get(measure)
    return "a measure without a known description" if known is None else known.text


def _layer_grid(table: pd.DataFrame, measure: str, pairs: Sequence[str], alpha: float) -> Grid | None:
    rows = table[(table["alpha"] == alpha) & (table["layer"] != ALL)]
    if not len(rows):
        return None
    size = rows.assign(size=rows["estimate"].abs().fillna(-1.0)).groupby("layer")["size"].max()
    top = sorted(size.index, key=lambda n: (-size[n], layer_key(n)))[:MOST_ROWS]
    found = {(r["pair"], r["layer"]): r for r in records(rows[rows["layer"].isin(top)])}
    body = []
    for name in sorted(top, key=layer_key):
        line = [layer_cell(name)]
        for pair in pairs:
            row = found.get((pair, name))
            line += (
                [estimate_cell(row), cell(percent(row["share"], 0)), cell(number(row["per_param"], 2))]
                if row
                else [cell(None)] * 3
            )
        params = next((found[p, name]["num_params"] for p in pairs if (p, name) in found), None)
        body.append((line[0], cell(None if is_missing(params) else f"{int(params):,}"), *line[1:]))  # type: ignore[arg-type]
    head = ("layer", "parameters", *(what for p in pairs for what in (p, "share", "per parameter")))
    caption = f"{measure} of each layer at {alpha_is(alpha)}, in the order of the forward pass" + (
        "" if len(size) == len(body) else "; only the sharpest layers are shown"
    )
    if (rows["status"] == "frozen").any():
        caption += "; ▪ marks a layer that does not move, because both ends have the same weights"
    return Grid.of(head, body, caption, range(1, len(head)), "tables/sharpness.csv", total=len(size))


def stragglers(source: Source) -> Section:
    table = source.table("stragglers")
    if not len(table):
        return Section("Straggler layers", "stragglers", (absent("straggler scores"),))
    deciding = str(source.config.get("straggler_criterion", ""))
    lines: list[Block] = []
    rows = []
    for pair in pairs_of(table, source.order):
        own = table[table["pair"] == pair]
        for (criterion, base, rule), group in own.groupby(["criterion", "base", "rule"], sort=False):
            chosen = group[group["chosen"] == True].sort_values("probability", ascending=False, kind="stable")  # noqa: E712
            who = ", ".join(
                f"{short_layer(r['layer'])} ({percent(r['probability'], 0)})" for _, r in chosen.head(6).iterrows()
            )
            who += f" and {len(chosen) - 6} more" if len(chosen) > 6 else ""
            why = "" if len(chosen) else _said_of_all(group["note"])
            rows.append(
                (cell(pair), cell(criterion), cell(said(str(base))), cell(rule), cell(who or "none", title=why))
            )
            if criterion == deciding:
                how = f"by {shown(criterion)} ({shown(rule)}), the criterion that decides in this run,"
                told = f"the stragglers are: {shown(who, 600)}" if who else "no layer is a straggler"
                lines.append(Line(f"{shown(pair)}: {how} {told}.", shown(why, 300)))
                lines.append(Line(f"{shown(pair)}: {shown(who_is_named(table, pair, deciding), 900)}"))
    caption = (
        "The layers that each criterion chooses, with their bootstrap probabilities. No criterion uses OOD labels."
    )
    grid = Grid.of(
        ("pair", "criterion", "base or alphas", "rule", "stragglers"),
        rows,
        caption,
        source="tables/stragglers.csv",
        most=80,
    )
    figures = source.figure(
        "straggler_ranking",
        "Score of every layer by each criterion. Filled marks: chosen layers; dashed line: the rule's threshold; "
        "numbers: probability of being chosen, in %.",
    )
    compared, scores = both_definitions(table, pairs_of(table, source.order))
    return Section("Straggler layers", "stragglers", (*lines, *compared), tuple(figures), (grid, *scores))


def _said_of_all(notes: pd.Series) -> str:
    """The parts of the notes that every layer has: why none of them is chosen. The others are about one layer each."""
    first, *rest = ([part for part in str(note or "").split("; ") if part] for note in notes)
    return "; ".join(part for part in first if all(part in other for other in rest))


# ------------------------------------------------------------------------------------------------ repair, correlations
def repair(source: Source) -> Section:
    table = source.table("repair")
    title = "Repair: making layers sparse"
    if not len(table):
        asked = source.config.get("densities") != []
        why = absent("repairs (no layer could be repaired)") if asked else "No repair was asked for."
        return Section(title, "repair", (why,))
    alpha = nearest(table["alpha"].unique(), MIDDLE)
    here = in_order(table[table["alpha"] == alpha], source.order)
    rows = [
        (
            cell(r["pair"]),
            cell(r["group"]),
            cell(r["variant"], title=str(r["layers"])),
            cell(None if is_missing(r["n_masks"]) else int(r["n_masks"])),
            cell(percent(r["id_accuracy"])),
            cell(percent(r["ood_accuracy"])),
            cell(percent(r["plain_ood_accuracy"]), title=said(f"plain path at alpha {number(r['plain_alpha'])}")),
            cell(interval(float(r["gain"]), float(r["ci_low"]), float(r["ci_high"]), points)),
            status_cell(str(r["status"]), str(r["note"])),
        )
        for r in here
    ]
    head = (
        "pair", "OOD group", "variant", "masks", "ID", "OOD", "OOD of the plain path at this ID", "gain (points)",
        "status",
    )  # fmt: skip
    unmatched = int((table["status"] != "ok").sum())
    text = (
        "Pruning a layer's change moves the model back towards zero-shot, which changes OOD accuracy by itself. The "
        "gain is therefore measured against the plain path at the SAME ID accuracy, and it has to be compared with the "
        "gains of the controls: random other layers, and all layers. A random mask is drawn several times, each time "
        "with random layers of its own; a row is the mean over its masks, and its interval covers the choice of images "
        "and of masks. What was drawn once has no interval."
        + (f" This comparison was not possible for {unmatched} of {len(table)} repaired models." if unmatched else "")
    )
    figures = source.figure(
        "repair",
        "OOD gain over the plain path at equal ID accuracy, means over random masks with intervals over images and "
        "masks (none where one mask was drawn). Right of the line a repair helps.",
    )
    where = f"At {alpha_is(alpha)}" + ("; the other alphas are in the table file." * (table["alpha"].nunique() > 1))
    grid = Grid.of(head, rows, where, (3, 4, 5, 6, 7), "tables/repair.csv", 48)
    instead = (
        Line(
            f"{shown(pair)}: no layer is a straggler by the rule; 'straggler' is the layer with the highest score here."
        )
        for pair in pairs_of(table[table["pair"].isin(without_stragglers(table))], source.order)
    )
    return Section(title, "repair", (text, *instead), tuple(figures), (grid,))


def correlations(source: Source) -> Section:
    table = source.table("correlations")
    title = "Does sharpness predict OOD accuracy?"
    if not len(table):
        return Section(title, "correlations", (absent("correlations"),))
    shipped = bool((table["source"] == "shipped").any())
    blocks: list[Block] = []
    for scope, text in (
        (
            "pairs",
            "Across pairs, with one point per pair at a fixed α: this is the evidence. Intervals are from resampled "
            "pairs, p is from permuted pairs, and q corrects p for the number of layers.",
        ),
        (
            "path",
            "Along α inside one pair: descriptive only. The points are not independent, and both curves bend with α.",
        ),
    ):
        grids, text = _correlation_grids(table[table["scope"] == scope], source), with_symbol(text)
        blocks += [text if grids else f"{text} {_why_none(table[table['scope'] == scope])}", *grids]
    if shipped:
        blocks.append(
            "Rows marked “shipped” come from the table of pairs that ships with the embedded world, not from this run."
        )
    residuals = source.table("residuals")
    drawn = [g for g in groups_in(residuals) if gain_file(g) in source.figures]
    figures = [f for g in drawn for f in source.figure(gain_file(g), gain_caption(residuals, table, g))]
    figures += source.figure(
        "correlation_scatter", "Whole-model sharpness on ID data and OOD gain over zero-shot, one point per pair."
    )
    figures += source.figure(
        "correlation_held",
        "Across pairs, with as many covariates held fixed together as the number of pairs allows: Spearman correlation "
        "of each layer's sharpness with the OOD outcome. Dots: q < 0.05 within the map, which is exploratory.",
    )
    figures += source.figure(
        "correlation_pairs",
        "The same without covariates. These correlations may come from learning rate, distance or ID accuracy, and are "
        "no evidence by themselves.",
    )
    figures += source.figure(
        "correlation_path",
        with_symbol("Along α inside each pair: the same correlations over the points of one path (descriptive)."),
    )
    return Section(title, "correlations", tuple(blocks), tuple(figures), tables=("residuals",) if drawn else ())


def _why_none(rows: pd.DataFrame) -> str:
    """The reason why a scope has no table: it has no rows, or the most frequent note of its undefined rows."""
    why = rows["note"].value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    return (
        f"Undefined here: {shown(why.index[0] or 'no reason given', 300)}."
        if len(why)
        else "This run has no such rows."
    )


def _correlation_grids(table: pd.DataFrame, source: Source) -> list[Grid]:
    """Spearman correlations of the whole model and of groups of layers: one table per source, one row per measure.

    The columns are groups (across pairs) or pairs (along the path). The correlations are those with OOD gain where
    there is one, on the mean over the most data sets, at the alpha nearest 0.5. Those with all covariates held fixed
    come first, and the plain ones stand beside them.
    """
    table = table[
        (table["method"] == "spearman")
        & table["layer"].str.startswith("(")
        & table["measure"].isin([*MEASURES, *CRITERIA])
    ]
    if len(table):
        table = table[table["against"] == min(table["against"], key=lambda v: (v != "ood_gain", v))]
        table = widest_means(table)
    grids = []
    permutations = int(source.config.get("bootstrap", StudyConfig.bootstrap))
    parts = [part.assign(held=held) for held, part in (("all", joint_rows(table)), ("none", marginal_rows(table)))]
    both = in_group_order(pd.concat(parts).sort_values(["source", "held"], kind="stable"), groups_in(table))
    for (origin, group, held), rows in both.groupby(["source", "group", "held"], sort=False):
        if not np.isfinite(rows["estimate"]).any():
            continue
        alpha = nearest(rows["alpha"], MIDDLE)
        rows = rows[rows["alpha"] == alpha] if not math.isnan(alpha) else rows[rows["layer"] == ALL]
        columns: list[tuple[str, str]] = [
            (p, g) for p in pairs_of(rows, source.order) for g in sorted(rows["layer"].unique(), key=layer_key)
        ]
        found = {(r["measure"], r["pair"], r["layer"]): r for r in records(rows)}
        body = [
            (cell(m, "name", _meaning(m)), *(_correlation_cell(found.get((m, *c)), permutations) for c in columns))
            for m in measures_in(rows)
        ]
        head = (
            "measure",
            *(short_layer(g) if p == PAIRS else p if g == ALL else f"{p}: {short_layer(g)}" for p, g in columns),
        )
        count = int(rows["n"].max()) if rows["n"].notna().any() else 0
        where = f"over {count} alphas" if math.isnan(alpha) else f"over {number_of(count, 'pair')} at {alpha_is(alpha)}"
        against = str(rows["against"].iloc[0]).replace("_", " ").replace("ood", "OOD")
        costs = [m for m in CRITERIA if m in set(rows["measure"])]
        what = f"sharpness, and of the path's cost in loss ({', '.join(costs)})," if costs else "sharpness"
        sets = f" on the OOD sets of the group {group}" if table["group"].nunique() > 1 else ""
        fixed = unique_in_order(g.replace("+", ", ") for g in rows.loc[rows["status"] == "ok", "given"] if g)
        sets += f", {' or '.join(fixed)} held fixed" if held == "all" else ""
        caption = f"Spearman correlation of {what} with {against}{sets}, {where}; source: {origin}."
        grids.append(Grid.of(head, body, caption, range(1, len(head)), "tables/correlations.csv"))
    return grids


def _correlation_cell(row: Mapping[str, Any] | None, permutations: int) -> Cell:
    if row is None:
        return cell(None)
    if row["status"] != "ok":
        return status_cell(str(row["status"]), str(row["note"]))
    text = interval(float(row["estimate"]), float(row["ci_low"]), float(row["ci_high"]), lambda v: points(v / 100, 2))
    text = text.replace(" ", "\u00a0")  # no line break inside the interval, only before q
    text += "" if is_missing(row["q_value"]) else f" q\u00a0{number(row['q_value'], 2)}"
    return Cell(text, "wrap", shown(f"{p_text(float(row['p_value']), permutations)}, n {row['n']}. {row['note']}", 400))
