"""Advice in words: a block a situation, the strongest first; accuracies, gains and regrets in points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from sharpscope.errors import shown
from sharpscope.present.alphas import said
from sharpscope.present.view import layer_names, pairs_of
from sharpscope.tables.formats import MISSING, interval, is_missing, percent, points
from sharpscope.tables.rows import records
from sharpscope.vocabulary import ADVICE, BASELINE, SITUATIONS

__all__ = [
    "advice_text",
    "advised",
    "advised_alphas",
    "aim_of",
    "alike",
    "how_sure",
    "in_brief",
    "in_words",
    "known_in",
    "situations_of",
    "title_of",
    "unsigned",
]


def situations_of(table: pd.DataFrame, pair: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(situation, its rows) of one pair, the strongest situation first and the baselines last."""
    own = table[table["pair"] == pair]
    for situation in (*SITUATIONS, BASELINE):
        rules = list(ADVICE[situation])
        rows = records(own[own["situation"] == situation])
        groups = list(dict.fromkeys(r["group"] for r in rows))
        if rows:
            place = {rule: i for i, rule in enumerate(rules)}
            yield situation, sorted(rows, key=lambda r: (groups.index(r["group"]), place.get(r["rule"], len(place))))


def title_of(situation: str) -> str:
    """A situation and what is known in it: ``references: other pairs have OOD labels``."""
    return f"{situation}: {known_in(situation)}"


def known_in(situation: str) -> str:
    """What is known in a situation, or that it is none but that of the baselines."""
    return SITUATIONS[situation].known if situation in SITUATIONS else "rules that know nothing of the OOD data"


def _accuracy_of(row: Mapping[str, Any]) -> str:
    """The word for the accuracy that the rule of ``row`` cares for."""
    return SITUATIONS[row["situation"]].accuracy if row["situation"] in SITUATIONS else "OOD"


def advised(table: pd.DataFrame, pair: str) -> list[dict[str, Any]]:
    """The rows that say what to do with ``pair`` from the strongest situation that advises an alpha; else one without.

    Each group of OOD sets has its own.
    """
    every = [row for _, rows in situations_of(table, pair) for row in rows if row["situation"] != BASELINE]
    chosen = [r for r in every if r["advised"]]
    return [r for r in chosen if r["situation"] == chosen[0]["situation"]] if chosen else every[-1:]


def alike(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows of one pair and group by the alpha that they advise; each row without an alpha has its own reason."""
    found: dict[object, list[Mapping[str, Any]]] = {}
    for row in rows:
        key = str(row["note"]) if is_missing(row["alpha"]) else float(row["alpha"])
        found.setdefault(key, []).append(row)
    return list(found.values())


def advised_alphas(table: pd.DataFrame | None, pair: str, group: str) -> list[float]:
    """The alphas that are advised for a pair on one group of OOD sets, ascending; those for every group among them."""
    if table is None or not len(table):
        return []
    rows = [row for row in advised(table, pair) if (row["group"] or group) == group and not is_missing(row["alpha"])]
    return sorted({float(row["alpha"]) for row in rows})


def in_words(row: Mapping[str, Any]) -> str:
    """One row as a sentence: what to do, ID accuracy beside OOD, the gain, and regret beside the best baseline's."""
    what = said(f"{_aim(row)}: {_action(row)}")
    if is_missing(row["alpha"]):
        return f"{what}."
    held = layer_names(str(row["layers"] or ""))
    kept = "" if is_missing(row["density"]) else f", keeping {100 * float(row['density']):.0f} % of their change"
    gain = interval(float(row["predicted_gain"]), float(row["ci_low"]), float(row["ci_high"]), points)
    where = _accuracy_of(row)
    told = [
        f"{what}{f'; make {held} sparse{kept}' if held else ''}",
        f"ID accuracy {_share(row['id_accuracy'])}, {where} accuracy {_share(row['ood_accuracy'])}",
        "" if is_missing(row["predicted_gain"]) else f"{where} gain over zero-shot {gain} points",
        _regrets(row),
    ]
    return "; ".join(part for part in told if part) + "."


def in_brief(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows that advise the same alpha as a phrase: what for, the alpha, and the accuracies there."""
    row, rule = rows[0], ", ".join(dict.fromkeys(map(aim_of, rows)))
    if is_missing(row["alpha"]):
        return said(f"{rule}: no alpha ({row['note']})" if row["note"] else f"{rule}: no alpha")
    gain = ""
    if not is_missing(row["predicted_gain"]):
        told = interval(float(row["predicted_gain"]), float(row["ci_low"]), float(row["ci_high"]), points)
        gain = f", {told} points over zero-shot"
    where = _accuracy_of(row)
    accuracies = f"{where} {_share(row['ood_accuracy'])}, ID {_share(row['id_accuracy'])}"
    return said(f"{rule}: alpha {float(row['alpha']):g} ({accuracies}{gain})")


def aim_of(row: Mapping[str, Any]) -> str:
    """What the rule of one row aims at; the rule's name where that is not known."""
    return ADVICE.get(str(row["situation"]), {}).get(str(row["rule"]), str(row["rule"]))


def _aim(row: Mapping[str, Any]) -> str:
    group = str(row["group"] or "")
    return f"{row['rule']}{f' ({shown(group, 60)})' if group else ''}, {aim_of(row)}"


def _action(row: Mapping[str, Any]) -> str:
    if is_missing(row["alpha"]):
        return "no alpha"
    alpha = float(row["alpha"])
    ends = {0.0: "do not interpolate, keep the zero-shot model (alpha 0)", 1.0: "take the fine-tuned model (alpha 1)"}
    return ends.get(alpha, f"alpha {alpha:g}")


def _share(value: Any) -> str:
    return MISSING if is_missing(value) else percent(float(value))


def _regrets(row: Mapping[str, Any]) -> str:
    """The rule's own regret with the most that it may be, and the best baseline's, in the same test."""
    own, what = row["expected_regret"], "expected regret"
    if is_missing(own):
        own, what = row["regret"], "regret"
    told = [] if is_missing(own) else [f"{what} {unsigned(own)}"]
    if not is_missing(row["regret_high"]):
        told.append(f"{'' if told else 'regret '}at most {unsigned(row['regret_high'])} by its interval")
    if not is_missing(row["baseline_regret"]):
        told.append(f"that of {row['best_baseline']}, the best baseline, {unsigned(row['baseline_regret'])}")
    return f"{', '.join(told)} points" if told else ""


def how_sure(row: Mapping[str, Any]) -> str:
    """What the advice of one row loses to the best alpha, and whether its gain over zero-shot may be none.

    Where the rule was tested without OOD labels it is the expected regret, beside that of the best baseline. Else it is
    the most that the regret on the OOD labels may be, and what the best baseline loses to a choice by labels.
    """
    told = []
    best, its = f"the best rule without data ({row['best_baseline']})", row["baseline_regret"]
    if not is_missing(row["expected_regret"]):
        told.append(f"expected to lose {unsigned(row['expected_regret'])} points to the best alpha")
        if not is_missing(its):
            told.append(f"{best} would lose {unsigned(its)}")
    else:
        if not is_missing(row["regret_high"]):
            told.append(f"may lose up to {unsigned(row['regret_high'])} points to the best alpha")
        if not is_missing(its):
            verb = "loses" if float(its) >= 0 else "gains"
            told.append(f"{best} {verb} {unsigned(abs(float(its)))} points against a choice by labels, on other images")
    if float(row["alpha"]) and not is_missing(row["ci_low"]) and float(row["ci_low"]) <= 0 <= float(row["ci_high"]):
        told.append("the gain may be none")
    return "; ".join(told) or "not known"


def unsigned(value: Any) -> str:
    """A loss in points, without the sign of a gain."""
    return points(float(value)).lstrip("+")


def advice_text(table: pd.DataFrame, fronts: Mapping[str, pd.DataFrame] | None = None) -> str:
    """The whole advice as text: one block per pair and situation, and in it one line per rule with its note.

    ``fronts``: situation -> the accuracies along the path that it rests on, printed in its block; rows of one pair are
    those whose column ``pair`` names it.
    """
    lines: list[str] = []
    pairs = pairs_of(table, ())
    for pair in pairs:
        for situation, rows in situations_of(table, pair):
            lines += ["", f"{shown(pair)} | {title_of(situation)}" if len(pairs) > 1 else title_of(situation)]
            front = (fronts or {}).get(situation)
            if front is not None:
                lines += [f"  {line}" for line in _front_lines(front[front["pair"] == pair].drop(columns="pair"))]
            lines += _regret_lines(rows) if situation == BASELINE else [x for row in rows for x in _row_lines(row)]
    return "\n".join(lines[1:])


def _row_lines(row: Mapping[str, Any]) -> list[str]:
    """A rule's sentence, marked by an arrow where it is advised, and its notes."""
    notes = shown(row["note"], 3000).split("; ") if row["note"] else []
    return [f"  {'->' if row['advised'] else '  '} {in_words(row)}", *(f"       {note}" for note in notes)]


def _regret_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a group of OOD sets: every baseline's alpha and its regret."""
    out = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group and not is_missing(row["alpha"])]
        told = [
            f"{r['rule']} (alpha {r['alpha']:g})" + ("" if is_missing(r["regret"]) else f" {unsigned(r['regret'])}")
            for r in own
        ]
        what = f"{shown(group, 60)}, regret in points: " if group else ""
        out.append(f"     {what}{', '.join(told)}")
    return out


def _front_lines(front: pd.DataFrame) -> list[str]:
    """The accuracies along the path as a table in percent (gains in points), bounds beside their estimate."""
    out = pd.DataFrame({"alpha": [f"{v:g}" for v in front["alpha"]]}, index=front.index)
    if "group" in front and front["group"].astype(bool).any():
        out.insert(0, "group", front["group"])
    bounded = {
        "id_accuracy": ("id_low", "id_high"),
        "ood_accuracy": ("ood_low", "ood_high"),
        "gain": ("ci_low", "ci_high"),
    }
    ends = {end for pair in bounded.values() for end in pair}
    for column in (c for c in front.columns if c not in {"alpha", "group", *ends}):
        if column in bounded:
            style, triples = points if column == "gain" else percent, front[[column, *bounded[column]]]
            out[column.replace("_", " ")] = [
                interval(value, low, high, style) for value, low, high in triples.to_numpy()
            ]
        else:
            out[column] = [_share(v) for v in front[column]]
    return out.to_string(index=False).split("\n")
