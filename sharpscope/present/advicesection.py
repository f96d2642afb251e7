"""What the report says of advice: on the first screen what to do with every pair, in its section every rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sharpscope.errors import shown
from sharpscope.present.advice import advised, aim_of, how_sure, situations_of
from sharpscope.present.alphas import said, with_symbol
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
    layer_names,
    pairs_of,
    status_cell,
)
from sharpscope.tables.formats import interval, is_missing, percent, points
from sharpscope.vocabulary import ADVICE, SITUATIONS

__all__ = ["advice", "glance"]


def glance(source: Source) -> Grid | None:
    """What to do with every pair, for each group of OOD sets, with OOD AND ID accuracy and how sure that is."""
    table = source.table("advice")
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for pair in pairs_of(table, source.order):
        for row in advised(table, pair):
            alpha = None if is_missing(row["alpha"]) else float(row["alpha"])
            alike.setdefault((pair, row["group"], row["situation"], alpha), []).append(row)
    if not alike:
        return None
    basis = "; ".join(f"{x}: {SITUATIONS.get(x, 'nothing is known')}" for x in dict.fromkeys(k[2] for k in alike))
    head = (
        "pair", "OOD sets", f"take {with_symbol('α')}", "OOD accuracy there", "gain over zero-shot, points",
        "ID accuracy there", "for", "how sure",
    )  # fmt: skip
    caption = f"What the strongest known facts advise ({basis}). Every rule stands under Advice."
    return Grid.of(head, map(_glance_row, alike.values()), caption, (3, 4, 5), "tables/advice.csv")


def _glance_row(rows: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    """One row for the rules that advise the same alpha for one pair and group."""
    row = rows[0]
    about = (cell(row["pair"], "head"), cell(row["group"] or "any"))
    if is_missing(row["alpha"]):
        why = cell(said(str(row["note"])) or None, "note")
        return (*about, cell("no advice", "open"), *[cell(None)] * 3, cell(said(aim_of(row))), why)
    ends = {0.0: " (zero-shot)", 1.0: " (fine-tuned)"}
    alpha = float(row["alpha"])
    gain = interval(float(row["predicted_gain"]), float(row["ci_low"]), float(row["ci_high"]), points)
    return (
        *about,
        cell(f"{alpha_cell(alpha).text}{ends.get(alpha, '')}", "name"),
        cell(percent(row["ood_accuracy"])),
        cell("not predicted" if is_missing(row["predicted_gain"]) else gain),
        cell(percent(row["id_accuracy"])),
        cell(said("; ".join(aim_of(r) for r in rows))),
        cell(said(how_sure(row))),
    )


def advice(source: Source) -> Section:
    """The evidence for what the first screen advises, and every rule with its regret."""
    table = source.table("advice")
    if not len(table):
        return Section("Advice", "advice", (absent("advice"),))
    lines: list[Block] = []
    rows = []
    for pair in pairs_of(table, source.order):
        lines += _evidence(pair, advised(table, pair))
        rows += [_rule_row(row) for _, found in situations_of(table, pair) for row in found]
    head = (
        "pair", "what is known", "rule", "OOD group", with_symbol("α"), "make sparse", "OOD gain (points)",
        "ID accuracy", "OOD accuracy", "regret (points)", "expected regret", "best baseline's", "status",
    )  # fmt: skip
    caption = (
        "Every rule by what it knows, the strongest first; advised ones are marked ✓. Regret is the OOD accuracy lost "
        "against the alpha that OOD labels would pick. Expected regret is the rule's mean regret in its own test, "
        "without this pair's OOD labels; beside it is that of the best rule that knows nothing."
    )
    grid = Grid.of(head, rows, caption, (4, 6, 7, 8, 9, 10, 11), "tables/advice.csv", most=60)
    above = "What to do with every pair stands in the table at the top of this page. Here is what that rests on, and "
    return Section("Advice", "advice", (f"{above}what every other rule says.", *lines, grid))


def _evidence(pair: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """What the advice of one pair's ``rows`` rests on; rules that rest on the same are in one line."""
    rules: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"] and not is_missing(row["alpha"]):
            rules.setdefault((str(row["group"]), str(row["note"])), []).append(str(row["rule"]))
    for (group, note), names in rules.items():
        of = f"{shown(pair)}{f', {shown(group, 60)}' if group else ''}"
        yield Line(f"{of}, {', '.join(names)}:", shown(said(note), 3000))


def _sparse(row: Mapping[str, Any]) -> str:
    """The layers to make sparse, and how much of their change is kept."""
    kept = "" if is_missing(row["density"]) else f" (keep {percent(row['density'], 0)})"
    return f"{layer_names(str(row['layers']))}{kept}" if row["layers"] else "none"


def _rule_row(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    known = SITUATIONS.get(str(row["situation"]), "nothing")
    rule = ADVICE.get(str(row["situation"]), {}).get(str(row["rule"]), "")
    gain = interval(float(row["predicted_gain"]), float(row["ci_low"]), float(row["ci_high"]), points)
    regrets = [cell(points(row[c]).lstrip("+")) for c in ("regret", "expected_regret", "baseline_regret")]
    shares = [cell(percent(row[c])) for c in ("id_accuracy", "ood_accuracy")]
    return (
        cell(row["pair"]),
        cell(row["situation"], title=known),
        cell(f"{row['rule']}{' ✓' if row['advised'] else ''}", "good" if row["advised"] else "", title=said(rule)),
        cell(row["group"] or None),
        alpha_cell(row["alpha"]),
        cell(_sparse(row), title=str(row["layers"])),
        cell(gain),
        *shares,
        *regrets,
        status_cell(str(row["status"]), said(str(row["note"]))),
    )
