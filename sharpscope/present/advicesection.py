"""What the report says of advice: on the first screen what to do with every pair, in its section every rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sharpscope.errors import shown
from sharpscope.present.advice import advised, aim_of, alike, how_sure, known_in, situations_of, title_of, unsigned
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
from sharpscope.vocabulary import ADVICE

__all__ = ["advice", "glance"]

_MOST_UNFOLDED: Final = 15
"""The most rules that stand open under Advice: those of one pair and one group of OOD sets."""


def glance(source: Source) -> Grid | None:
    """What to do with every pair, for each group of OOD sets, with OOD AND ID accuracy and how sure that is."""
    table = source.table("advice")
    found = [
        rows for pair in pairs_of(table, source.order) for own in _by_group(advised(table, pair)) for rows in alike(own)
    ]
    if not found:
        return None
    known = dict.fromkeys(rows[0]["situation"] for rows in found)
    basis = "; ".join(map(title_of, known))
    head = (
        "pair", "OOD sets", f"take {with_symbol('α')}", "OOD accuracy there", "gain over zero-shot, points",
        "ID accuracy there", "for", "how sure",
    )  # fmt: skip
    caption = f"What the strongest known facts advise ({basis}). Every rule stands under Advice."
    return Grid.of(head, map(_glance_row, found), caption, (3, 4, 5), "tables/advice.csv")


def _by_group(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [[row for row in rows if row["group"] == group] for group in dict.fromkeys(row["group"] for row in rows)]


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
    pairs = pairs_of(table, source.order)
    lines = [*_evidence([row for pair in pairs for row in advised(table, pair)], source)]
    rows = [_rule_row(row) for pair in pairs for _, found in situations_of(table, pair) for row in found]
    head = (
        "pair", "what is known", "rule", "OOD group", with_symbol("α"), "make sparse", "OOD gain (points)",
        "ID accuracy", "OOD accuracy", "regret (points)", "expected regret", "best baseline's", "status",
    )  # fmt: skip
    told = (
        "In the table of every rule, advised ones are marked ✓. Regret is the OOD accuracy lost against the alpha that "
        "OOD labels pick, judged on images that had no part in the choice; its interval bounds what is lost to the "
        "truly best alpha. Expected regret is the rule's mean regret in its own test, without this pair's OOD labels. "
        "The last column of the three is that of the best rule that knows nothing, in the same test."
    )
    caption = "Every rule by what it knows, the strongest first"
    grid = Grid.of(head, rows, caption, (4, 6, 7, 8, 9, 10, 11), "tables/advice.csv", most=60)
    above = "What to do with every pair stands in the table at the top of this page. Here is what that rests on, and "
    blocks: tuple[Block, ...] = (f"{above}what every other rule says.", *lines, told)
    if len(rows) > _MOST_UNFOLDED:
        return Section("Advice", "advice", blocks, folded=(grid,))
    return Section("Advice", "advice", (*blocks, grid))


def _evidence(rows: Sequence[Mapping[str, Any]], source: Source) -> Iterator[Line]:
    """What the advice of ``rows`` rests on; pairs and rules that rest on the same are in one line."""
    same: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        if row["note"] and not is_missing(row["alpha"]):
            of_pair = same.setdefault((str(row["group"]), str(row["note"])), {})
            of_pair.setdefault(str(row["pair"]), []).append(str(row["rule"]))
    for (group, note), of in same.items():
        rules = {pair: ", ".join(names) for pair, names in of.items()}
        for told in dict.fromkeys(rules.values()):
            who = " and ".join(shown(pair, 60) for pair in rules if rules[pair] == told)
            where = f", {shown(group, 60)}" if group else ""
            yield Line(f"{who}{where} ({told}):", shown(source.in_words(said(note)), 3000))


def _sparse(row: Mapping[str, Any]) -> str:
    """The layers to make sparse, and how much of their change is kept."""
    kept = "" if is_missing(row["density"]) else f" (keep {percent(row['density'], 0)})"
    return f"{layer_names(str(row['layers']))}{kept}" if row["layers"] else "none"


def _rule_row(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    known = known_in(str(row["situation"]))
    rule = ADVICE.get(str(row["situation"]), {}).get(str(row["rule"]), "")
    gain = interval(float(row["predicted_gain"]), float(row["ci_low"]), float(row["ci_high"]), points)
    bounded = interval(float(row["regret"]), float(row["regret_low"]), float(row["regret_high"]), unsigned)
    regrets = [cell(bounded), *(cell(unsigned(row[c])) for c in ("expected_regret", "baseline_regret"))]
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
