"""Report sections on the outcome: answer, the pairs, accuracy along the path, failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pandas as pd

from sharpscope.errors import shown
from sharpscope.present.alphas import alpha_is, said, with_symbol
from sharpscope.present.style import short_set
from sharpscope.present.view import (
    Block,
    Cell,
    Grid,
    Line,
    Section,
    Source,
    absent,
    alpha_cell,
    cell,
    data_notes,
    flat,
    images_of,
    in_order,
    pairs_of,
)
from sharpscope.tables.formats import MISSING, interval, is_missing, number, percent, points
from sharpscope.tables.happened import what_happened
from sharpscope.tables.rows import flags_of, groups_in, measures_in, of_group, primary_rows, records, unique_in_order
from sharpscope.vocabulary import (
    ALL,
    CANNOT,
    CLAIMS,
    DENSE,
    DOES_NOT_HOLD,
    FLAGS,
    HOLDS,
    OOD_MEAN,
    OUTPUT_BASELINES,
    PAIRS,
    PATHS,
    PROBE,
    UPGRADED,
    EnsembleKind,
    ensemble_variant,
    path_variant,
)

__all__ = ["accuracy", "answer", "failure", "is_question", "measured", "pairs"]

_MEAN = (OOD_MEAN, PROBE)
_VERDICTS = {HOLDS: ("good", "✓"), DOES_NOT_HOLD: ("bad", "✗"), CANNOT: ("open", "?")}


# ---------------------------------------------------------------------------------------------------- answer
def is_question(claim: str) -> bool:
    """Whether a verdict answers the study's question itself; it is printed first."""
    return claim == CLAIMS["question"]


def measured(source: Source) -> str:
    """What was measured, in one sentence; empty where nothing was."""
    sharpness, dense = source.table("sharpness"), primary_rows(source.table("accuracy"))
    told = []
    if len(sharpness):
        layers, alphas = sharpness.loc[sharpness["layer"] != ALL, "layer"].nunique(), sharpness["alpha"].nunique()
        count = len(measures_in(sharpness))
        told.append(f"{count} measure{'s' * (count != 1)} of sharpness, of {layers} layers and of the whole model,")
        told.append(f"on {images_of(sharpness)} at {alphas} point{'s' * (alphas != 1)} of the path")
    groups = {g: of_group(dense[dense["role"] == "ood"], g)["dataset"].nunique() for g in groups_in(dense)}
    if groups:
        named = " and ".join(f"{count} OOD set{'s' * (count != 1)} ({shown(g, 40)})" for g, count in groups.items())
        count = dense.loc[dense["role"] == "id", "dataset"].nunique()
        told.append(f"{'and ' * bool(told)}accuracy on {count} ID set{'s' * (count != 1)}, {named}")
    return f"Measured: {' '.join(told)}." if told else ""


def answer(source: Source) -> Section:
    table = source.table("verdicts")
    if not len(table):
        return Section("Answer", "answer", (absent("verdicts"),))
    rows = []
    claims = sorted(unique_in_order(table["claim"]), key=lambda claim: not is_question(claim))
    for row in sorted(records(table), key=lambda r: claims.index(r["claim"])):
        kind, sign = _VERDICTS.get(str(row["verdict"]), ("open", "?"))
        about = "across pairs" if row["pair"] == PAIRS else f"pair {row['pair']}"
        shipped = " (Evidence from the table that ships with the embedded world.)" if row["source"] == "shipped" else ""
        claim = f"{row['claim']} ({about})"
        numbers = interval(float(row["estimate"]), float(row["ci_low"]), float(row["ci_high"]), lambda v: number(v, 2))
        count = "" if is_missing(row["n"]) else f"{int(row['n'])}"
        evidence = cell(f"{said(str(row['evidence']))}{shipped}")
        verdict = cell(f"{sign} {row['verdict']}", kind)
        rows.append((verdict, cell(claim), cell(row["group"]), evidence, cell(numbers), cell(count)))
    head = ("verdict", "claim", "OOD group", "evidence", "estimate [interval]", "n")
    happened = what_happened(source.table("accuracy"), source.table("failure"), source.order)
    grid = Grid.of(head, rows, numeric=(4, 5), source="tables/verdicts.csv")
    return Section("Answer", "answer", (*(Line(shown(said(x), 2000)) for x in happened), grid))


# ----------------------------------------------------------------------------------------------------------- the pairs
def pairs(source: Source) -> Section:
    path = source.table("path")
    configured = {str(p.get("name")): p for p in source.config.get("pairs") or () if isinstance(p, Mapping)}
    facts = source.manifest.get("pairs")
    if isinstance(facts, (list, tuple)):
        facts = {str(f.get("name")): f for f in facts if isinstance(f, Mapping)}
    found = facts if isinstance(facts, Mapping) else {}
    names = list(dict.fromkeys([*configured, *map(str, found), *pairs_of(path, [])]))
    if not names:
        return Section("The pairs", "pairs", (absent("pairs"),))
    columns: list[dict[str, str]] = []
    for name in names:
        lines = dict(flat({k: v for k, v in configured.get(name, {}).items() if k != "name"}))
        lines |= (
            dict(flat({k: v for k, v in found[name].items() if k != "name"}))
            if isinstance(found.get(name), Mapping)
            else {}
        )
        own = path[path["pair"] == name].sort_values("alpha")
        if len(own):
            last = own.iloc[-1]
            lines["‖θ₁ − θ₀‖ (head included)"] = number(float(last["distance_0"]) + float(last["distance_1"]))
            moving = last["num_moving"]
            lines["parameters that move (head included)"] = MISSING if is_missing(moving) else f"{int(moving):,}"
            ends = [
                f"{number(r['loss'])} ± {number(r['loss_stderr'], 2)} ({alpha_is(r['alpha'])})"
                for _, r in own.iloc[[0, -1]].iterrows()
            ]
            lines["probe loss at the ends"] = "; ".join(ends)
        columns.append(lines)
    keys = list(dict.fromkeys(k for lines in columns for k in lines))
    rows = [
        (cell(k, "head"), *(cell(lines.get(k, MISSING), "mono" if "sha256" in k else "") for lines in columns))
        for k in keys
    ]
    told = f"{len(names)} pair{'s' * (len(names) != 1)}: {', '.join(shown(n, 60) for n in names[:8])}"
    told += f" and {len(names) - 8} more." if len(names) > 8 else "."
    grid = Grid.of(("", *names), rows, "Checkpoints and what is known of them", most=80, source="manifest.json")
    return Section("The pairs", "pairs", (told,), folded=(grid,))


# ------------------------------------------------------------------------------------------------------- accuracy
def accuracy(source: Source) -> Section:
    table = source.table("accuracy")
    dense = primary_rows(table[table["variant"] == DENSE])
    if not len(dense):
        return Section("Accuracy along the path", "accuracy", (absent("accuracy of the plain path"),))
    rows = []
    for pair in pairs_of(dense, source.order):
        own = dense[dense["pair"] == pair]
        points = [("zero-shot", 0.0)]
        for group in groups_in(own):
            best = _best_between(_mean_of(own, group))
            points.append((f"{with_symbol('best α')} between them, by the OOD labels of {group}", best))
        for what, alpha in (*points, ("fine-tuned", 1.0)):
            here = own[own["alpha"] == alpha]
            if len(here):
                rows.append((cell(pair), cell(what), alpha_cell(alpha), *_spans(here, groups_in(dense))))
    means = dense[dense["role"] == OOD_MEAN]
    sets = {g: dict.fromkeys(of_group(means, g)["dataset"]) for g in groups_in(means)}
    named = [f"{g}: {', '.join(short_set(d) for d in s.split('+'))}" for g, found in sets.items() for s in found]
    head = ("pair", "where", with_symbol("α"), "ID accuracy", *_ood_heads(groups_in(dense)))
    caption = f"OOD mean over {'; '.join(named)}." if named else ""
    happened = " ".join(shown(said(x), 1000) for x in what_happened(table, source.table("failure"), source.order))
    figures = source.figure(
        "wiseft_curve",
        "OOD accuracy over ID accuracy along each path (Wortsman et al. 2022), with intervals. Rings: "
        + with_symbol("the advised α."),
        alt=happened,
    ) + source.figure(
        "accuracy_along_alpha",
        with_symbol("Accuracy along α")
        + ": each OOD set (thin), their mean (thick), ID (dashed). A bar: the point that flag F2 "
        "finds below both ends. Rings: what is advised. Below: probe loss, with the chord between its ends.",
    )
    figures += source.figure(
        "paths_along_alpha",
        with_symbol("The chosen paths from the same start (star): mean OOD accuracy along α (left)")
        + f", and over ID accuracy (right). Squares are {alpha_is(1)}: the fine-tuned model (black) or an edit of it.",
    )
    grids = (Grid.of(head, rows, caption, range(2, len(head)), "tables/accuracy.csv"), *_beside(table, source.order))
    return Section("Accuracy along the path", "accuracy", (*data_notes(source.manifest), *grids), tuple(figures))


_BESIDE: dict[str, str] = {
    **{str(name): text for name, text in OUTPUT_BASELINES.items()},
    UPGRADED: "the upgraded backbone plus the pair's change",
}


_ALONG: Mapping[str, str] = {
    **{path_variant(path): facts.title for path, facts in PATHS.items() if path != "linear"},
    **{ensemble_variant(kind): f"ensemble of the ends' {kind}" for kind in get_args(EnsembleKind)},
}
"""Variant -> its name, for everything but the linear path that is evaluated along alpha."""


def _best_between(mean: pd.DataFrame) -> float:
    """The alpha strictly between 0 and 1 with the largest mean OOD accuracy; NaN where there is none."""
    inner = mean[(mean["alpha"] > 0) & (mean["alpha"] < 1)]
    known = inner[inner["estimate"].notna()]
    return float(known["alpha"].iloc[int(known["estimate"].to_numpy().argmax())]) if len(known) else math.nan


def _further(table: pd.DataFrame, pair: str) -> list[tuple[Cell, ...]]:
    """The best interior point and the end of every further path, and of every ensemble along alpha, of one pair."""
    rows = []
    for variant, name in _ALONG.items():
        own = primary_rows(table[(table["variant"] == variant) & (table["pair"] == pair)])
        points = []
        for group in groups_in(own):
            best = _best_between(_mean_of(own, group))
            named = f"{name}: {with_symbol('best α')} between the ends, by the OOD labels of {group}"
            points.append((named, best))
        for what, alpha in (*points, (f"{name}: {alpha_is(1)}", 1.0)):
            here = own[own["alpha"] == alpha]
            if len(here):
                rows.append((cell(pair), cell(what), alpha_cell(alpha), *_spans(here, groups_in(table))))
    return rows


def _spans(rows: pd.DataFrame, groups: Sequence[str]) -> list[Cell]:
    """ID accuracy, and the mean OOD accuracy of every group, of one model."""
    ident, means = rows[rows["role"] == "id"], rows[rows["role"] == OOD_MEAN]
    return [_mean_cell(ident), *(_mean_cell(of_group(means, group)) for group in groups)]


def _mean_of(rows: pd.DataFrame, group: str) -> pd.DataFrame:
    own = of_group(rows, group)
    return own[own["role"] == OOD_MEAN]


def _ood_heads(groups: Sequence[str]) -> list[str]:
    """The column heads of ``_spans`` behind ID accuracy."""
    return ["mean OOD accuracy" if len(groups) == 1 else f"mean OOD accuracy, {group}" for group in groups]


def _beside(table: pd.DataFrame, order: Sequence[str]) -> tuple[Grid, ...]:
    """Further paths, output-space baselines, and the ends of the path on an upgraded backbone, where evaluated."""
    rows: list[tuple[Cell, ...]] = []
    found = primary_rows(table[table["variant"].isin(_BESIDE)])
    for pair in pairs_of(table, order):
        rows += _further(table, pair)
        own = found[found["pair"] == pair]
        for variant in (v for v in _BESIDE if v in set(own["variant"])):
            here = own[own["variant"] == variant]
            for alpha in (0.0, 1.0) if variant == UPGRADED else (math.nan,):
                at = here[here["alpha"].isna()] if math.isnan(alpha) else here[here["alpha"] == alpha]
                if len(at):
                    what = "the upgraded backbone, zero-shot" if alpha == 0 else _BESIDE[variant]
                    spans = _spans(at, groups_in(table))
                    why = next((n for n in at["note"] if not is_missing(n) and n), variant)
                    rows.append((cell(pair), cell(what, title=str(why)), alpha_cell(alpha), *spans))
    if not rows:
        return ()
    head = ("pair", "model", with_symbol("α"), "ID accuracy", *_ood_heads(groups_in(table)))
    caption = "Models that are not on the linear path."
    return (Grid.of(head, rows, caption, range(2, len(head)), "tables/accuracy.csv"),)


def _mean_cell(rows: pd.DataFrame) -> Cell:
    if not len(rows):
        return cell(None)
    row = rows.iloc[0]
    if len(rows) > 1:
        return cell(f"{percent(float(rows['estimate'].mean()))} (mean of {len(rows)} sets)")
    return cell(interval(row["estimate"], row["ci_low"], row["ci_high"], percent))


def failure(source: Source) -> Section:
    table = source.table("failure")
    if not len(table):
        return Section("Does interpolation fail?", "failure", (absent("failure flags"),))
    main = table["dataset"].isin(_MEAN)
    main = main if main.any() else pd.Series(True, index=table.index)
    lines: list[Block] = []
    groups = groups_in(table)
    measured_on = [(p, groups_in(table[table["pair"] == p]) or [""]) for p in pairs_of(table, source.order)]
    for pair, group in [(p, g) for p, own in measured_on for g in own]:
        flags, absent_ones, unknown = flags_of(of_group(table, group), pair)
        told = "; ".join(f"{f} ({FLAGS[f].text})" if f in FLAGS else f for f in flags)
        calm = "no failure flag is present beyond the noise" if absent_ones else ""
        how = f"fails by {shown(told, 600)}" if flags else calm
        left = f"{', '.join(unknown)} undefined or without interval" if unknown else ""
        how = "; ".join(part for part in (how, left) if part) + "."
        on = f" on the OOD sets of {shown(group, 40)}" if len(groups) > 1 else ""
        lines.append(Line(f"{shown(pair)}{on}: {how}"))
    head = (
        "pair", "flag", "OOD group", "data set", "what", with_symbol("α"), "estimate [interval]", "present", "note",
    )  # fmt: skip
    grid = Grid.of(
        head, [_flag_row(r, source) for r in in_order(table[main], source.order)], numeric=(5, 6),
        source="tables/failure.csv",
    )  # fmt: skip
    single = [_flag_row(r, source) for r in in_order(table[~main], source.order)]
    folded = (Grid.of(head, single, "Single data sets", (5, 6), "tables/failure.csv", 60),) if single else ()
    return Section("Does interpolation fail?", "failure", (*lines, grid), folded=folded)


def _flag_row(row: Mapping[str, Any], source: Source) -> tuple[Cell, ...]:
    style = number if row["flag"] == "F3" else points
    unit = " nats" if row["flag"] == "F3" else " points"
    value = interval(float(row["estimate"]), float(row["ci_low"]), float(row["ci_high"]), style)
    known = not is_missing(row["present"])
    present = (
        cell("yes", "bad")
        if known and bool(row["present"])
        else cell("no" if known else None, "good" if known else "open")
    )
    what = FLAGS[str(row["flag"])].estimate if row["flag"] in FLAGS else ""
    alpha = alpha_cell(row["alpha"])
    named = cell(row["dataset"] if row["dataset"] in _MEAN else short_set(str(row["dataset"])))
    return (
        cell(row["pair"]),
        cell(row["flag"]),
        cell(row["group"]),
        named,
        cell(what),
        alpha,
        cell(value + unit),
        present,
        cell(source.in_words(said(str(row["note"] or ""))), "note"),
    )
