"""Verdicts on the relation of sharpness and OOD gain across pairs: of the whole model, and of straggler layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from sharpscope.findings.controls import FIRST_COVARIATES
from sharpscope.findings.design import FEWEST_CLUSTERS
from sharpscope.findings.families import named_rows
from sharpscope.findings.layercontrast import RANDOM_SETS
from sharpscope.findings.verdictrows import no_verdict, span, verdict_row
from sharpscope.tables.formats import p_text
from sharpscope.tables.rows import joint_rows, marginal_rows
from sharpscope.vocabulary import (
    ALL,
    CANNOT,
    CONTRASTS,
    DOES_NOT_HOLD,
    HOLDS,
    PAIRS,
    PRIMARY,
    REMARKS,
)

__all__ = ["CONTRAST_MARGIN", "MARGIN", "relation_rows", "relation_verdict"]

MARGIN: Final = 0.3
"""A correlation whose whole interval lies within +- this value counts as absent (our choice). With a larger value more
correlations count as absent."""
CONTRAST_MARGIN: Final = 0.1
"""Straggler layers tell no more than others if the whole interval of the difference of the two |correlations| lies
below this value (our choice). With a larger value more differences count as none."""


def relation_rows(
    correlations: pd.DataFrame,
    group: str,
    measure: str,
    alpha: float,
    *,
    unknown: Mapping[str, Sequence[str]] | None = None,
    level: float = 0.95,
    permutations: int = 1000,
) -> list[dict[str, Any]]:
    """The verdicts on the claims whole, stragglers and instability for one group of OOD sets.

    Evidence is the joint partial Spearman correlation, all covariates held fixed, of ``measure`` with the OOD gain at
    the alpha nearest ``alpha``; the marginal one stands beside it. With q the p-value after Holm over groups,

        whole        holds if q <= 1 - level and the interval excludes 0; does not hold if the interval lies within
                     +-``MARGIN``
        stragglers   the difference |correlation of the stragglers| - |correlation of all other layers|: holds if
                     q <= 1 - level, its interval lies above 0, and random sets of as many layers reach the stragglers'
                     |correlation| in at most a share 1 - level; does not hold if the interval lies below
                     ``CONTRAST_MARGIN``
        instability  the same for the layers that the criterion instability chooses

    Everything else is "cannot be told". So is, whatever its numbers, a claim from fewer than 6 clusters of pairs; one
    without learning rate, distance or ID accuracy held fixed, any of which may be what orders the pairs; one from a row
    with a doubt (too few images, or too few units of each zero-shot model: ``partial_correlation``); one on pairs of
    which something in ``unknown`` is not known; and one on rows that are not primary.

    Args:
        correlations: the table; rows of other groups are ignored, and ``families.named_rows`` says which rows of this
            group count.
        group: the group of OOD sets.
        measure, alpha: the primary measure and point, which were named before any result was seen.
        unknown: source -> what is not known of its pairs and forbids a conclusion, each in words.
        level: coverage of the intervals.
        permutations: the number of permutations behind every p.

    Returns:
        Rows of the table ``verdicts``.
    """
    of_group = correlations[correlations["group"] == group]
    rows = named_rows(of_group, measure, alpha)
    claims = ("whole", *CONTRASTS)
    if not len(rows):
        why = f"No correlation of {measure} with the OOD gain across pairs was computed."
        return [no_verdict(PAIRS, claim, group, "run", why) for claim in claims]
    biggest = rows.groupby("source", sort=True)["n"].max()
    source = max(sorted(biggest.index), key=lambda s: (int(biggest[s]), s == "run"))
    rows = rows[rows["source"] == source]
    means = set(of_group.loc[(of_group["scope"] == "pairs") & (of_group["source"] == source), "dataset"])
    judged = _Judged(
        rows,
        group,
        str(source),
        f"{measure} at alpha {float(rows['alpha'].iloc[0]):g}",
        tuple(sorted(means - set(rows["dataset"]))),
        tuple((unknown or {}).get(str(source), ())),
        level,
        permutations,
    )
    return [judged.whole(), *(judged.contrast(claim) for claim in CONTRASTS)]


def relation_verdict(row: pd.Series, level: float = 0.95) -> str:
    """Whether two quantities are related, by their row of the table ``correlations``.

    "does not hold" if the interval lies within +-``MARGIN``; "holds" if q_value <= 1 - level and the interval excludes
    0; "cannot be told" else, and where there is no correlation, a doubt about it or fewer than 6 clusters.
    """
    if not _can_tell(row):
        return CANNOT
    low, high = float(row["ci_low"]), float(row["ci_high"])
    if low > -MARGIN and high < MARGIN:
        return DOES_NOT_HOLD
    return HOLDS if _significant(row, level) and not low <= 0 <= high else CANNOT


def _can_tell(row: pd.Series) -> bool:
    return row["status"] == "ok" and int(row["n_effective"]) >= FEWEST_CLUSTERS and not _doubt(row)


def _doubt(row: pd.Series) -> str:
    """Why nothing may be concluded from the row; empty for rows from before it was told."""
    return str(row["doubt"]) if "doubt" in row and isinstance(row["doubt"], str) else ""


def _significant(row: pd.Series, level: float) -> bool:
    return float(row["q_value"]) <= 1 - level + 1e-12


@dataclass(frozen=True)
class _Judged:
    """The correlations of one measure at one alpha with the OOD gain on one group of sets."""

    rows: pd.DataFrame
    group: str
    source: str
    what: str
    other_means: tuple[str, ...]
    """Means over other sets of the group, whose rows do not count."""
    unknown: tuple[str, ...]
    level: float
    permutations: int

    def whole(self) -> dict[str, Any]:
        joint, alone = self._joint(ALL), self._alone(ALL)
        if joint is None:
            why = f"No partial correlation of the whole model's {self.what} was computed."
            return no_verdict(PAIRS, "whole", self.group, self.source, why)
        subject = f"the whole model's {self.what} and the OOD gain have a Spearman correlation of"
        text = self._sentence(subject, joint, alone)
        if joint["status"] != "ok" and alone is None:
            text = f"The whole model's {self.what} could not be correlated with the OOD gain: {joint['note']}."
            return self._row("whole", joint, CANNOT, text)
        verdict = CANNOT if self._forbidden(joint) else relation_verdict(joint, self.level)
        size = ""
        if verdict == DOES_NOT_HOLD:
            size = f"the whole interval lies between {-MARGIN:+g} and {MARGIN:+g}, which counts as no relation"
            related = not float(joint["ci_low"]) <= 0 <= float(joint["ci_high"])
            size = f"they are related, but only weakly: {size}" if related else size
        return self._row("whole", joint, verdict, f"{text}{self._end(joint, size)}")

    def contrast(self, claim: str) -> dict[str, Any]:
        names = CONTRASTS[claim]
        joint, randomly = self._joint(names.others), self._joint(names.random)
        if joint is None or randomly is None:
            why = f"No contrast of {names.title} with other layers was computed for {self.what}."
            return no_verdict(PAIRS, claim, self.group, self.source, why)
        if joint["status"] != "ok":
            why = f"The {self.what} of {names.title} could not be compared with that of other layers: {joint['note']}."
            return no_verdict(PAIRS, claim, self.group, self.source, why)
        subject = (
            f"|correlation| of the {self.what} of {names.title} with the OOD gain is that of all other layers plus"
        )
        text, size = self._sentence(subject, joint, self._alone(names.others)), ""
        if randomly["status"] == "ok":
            share = f"random sets of as many layers reach it with {p_text(float(randomly['p_value']), RANDOM_SETS)}"
            text = self._sentence(subject, joint, self._alone(names.others), share)
        verdict = CANNOT
        if not self._forbidden(joint) and _can_tell(joint):
            more = _significant(joint, self.level) and float(joint["ci_low"]) > 0
            rare = randomly["status"] == "ok" and float(randomly["p_value"]) <= 1 - self.level + 1e-12
            none = float(joint["ci_high"]) < CONTRAST_MARGIN
            verdict = DOES_NOT_HOLD if none else HOLDS if more and rare else CANNOT
            if none:
                size = f"the whole interval lies below {CONTRAST_MARGIN:+g}, which counts as no more"
                size = f"it is more, but only slightly: {size}" if float(joint["ci_low"]) > 0 else size
        return self._row(claim, joint, verdict, f"{text}{self._end(joint, size)}")

    def _forbidden(self, joint: pd.Series) -> str:
        """Why nothing is concluded whatever the numbers of ``joint`` are, in words; empty where something may be."""
        if joint["family"] != PRIMARY:
            return "this comparison was not named before looking"
        left_out = str(joint["left_out"]).split("+")  # missing in tables from before the column existed
        lost = ", ".join(name for name in FIRST_COVARIATES if name in left_out)
        held = f"{lost} could not be held fixed" if lost else ""
        return " and ".join([*filter(None, (held, _doubt(joint))), *self.unknown])

    def _joint(self, layer: str) -> pd.Series | None:
        """The row with the most covariates held fixed; None where there is none with a covariate."""
        own = joint_rows(self.rows[self.rows["layer"] == layer])
        return own.iloc[0] if len(own) else None

    def _alone(self, layer: str) -> pd.Series | None:
        own = marginal_rows(self.rows[(self.rows["layer"] == layer) & (self.rows["status"] == "ok")])
        return own.iloc[0] if len(own) else None

    def _sentence(self, subject: str, joint: pd.Series, alone: pd.Series | None, more: str = "") -> str:
        told = []
        pairs = f"Over {int(joint['n'])} pairs"
        if int(joint["n_effective"]) != int(joint["n"]):
            pairs += f" ({int(joint['n_effective'])} of them independent)"
        if alone is not None:
            told.append(f"{float(alone['estimate']):+.2f} {span(alone['ci_low'], alone['ci_high'])} by itself")
        given = str(joint["given"]).replace("+", ", ")
        if joint["status"] == "ok":
            numbers = f"{float(joint['estimate']):+.2f} {span(joint['ci_low'], joint['ci_high'])}"
            p = p_text(float(joint["p_value"]), self.permutations)
            q = float(joint["q_value"])
            corrected = f", {q:.2g} after Holm over groups" if q > float(joint["p_value"]) else ""
            told.append(f"{numbers} with {given} held fixed ({p}{corrected})")
        else:
            told.append(f"an undefined one with {given} held fixed")
        if more:
            told[-1] += f"; {more}"
        return f"{pairs} {subject} {' and '.join(told)}"

    def _end(self, joint: pd.Series, size: str) -> str:
        """The end of the evidence: what ``size`` counts, why nothing is concluded whatever the numbers, and remarks."""
        why = self._forbidden(joint)
        remarks = [str(joint["note"])] if joint["note"] else []
        if self.other_means:
            said = ", ".join(self.other_means)
            remarks.append(f"pairs that lack the mean over {joint['dataset']} and have {said} do not count")
        end = f" {REMARKS} {'; '.join(remarks)}." if remarks else ""
        return f"{f'; {size}' if size else ''}.{f' Nothing is concluded, because {why}.' if why else ''}{end}"

    def _row(self, claim: str, joint: pd.Series, verdict: str, text: str) -> dict[str, Any]:
        numbers = (joint["estimate"], joint["ci_low"], joint["ci_high"])
        n, effective = int(joint["n"]), int(joint["n_effective"])
        return verdict_row(PAIRS, claim, self.group, self.source, verdict, numbers, n, text, effective)
