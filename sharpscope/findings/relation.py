"""Verdicts on the relation of sharpness and OOD gain across pairs: of the whole model, and of straggler layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from sharpscope.findings.design import FEWEST_CLUSTERS
from sharpscope.findings.layercontrast import RANDOM_SETS
from sharpscope.findings.verdictrows import no_verdict, span, verdict_row
from sharpscope.tables.formats import p_text
from sharpscope.tables.rows import joint_rows, marginal_rows, nearest
from sharpscope.vocabulary import (
    ALL,
    CANNOT,
    CONTRASTS,
    DOES_NOT_HOLD,
    HOLDS,
    LEARNING_RATE,
    PAIRS,
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

    Everything else is "cannot be told", and so is a claim from fewer than 6 clusters of pairs, from a row with a doubt
    (too few images, or too few units of each zero-shot model: ``partial_correlation``), or one of pairs whose learning
    rates are unknown, because the learning rate alone may be what orders them.

    Args:
        correlations: the table; rows of other groups are ignored.
        group: the group of OOD sets.
        measure, alpha: the primary measure and point, which were named before any result was seen.
        unknown: source -> covariates that no pair of that source tells.
        level: coverage of the intervals.
        permutations: the number of permutations behind every p.

    Returns:
        Rows of the table ``verdicts``.
    """
    rows = correlations[
        (correlations["scope"] == "pairs")
        & (correlations["against"] == "ood_gain")
        & (correlations["group"] == group)
        & (correlations["measure"] == measure)
        & (correlations["method"] == "spearman")
    ]
    claims = ("whole", *CONTRASTS)
    if not len(rows):
        why = f"No correlation of {measure} with the OOD gain across pairs was computed."
        return [no_verdict(PAIRS, claim, group, "run", why) for claim in claims]
    biggest = rows.groupby("source", sort=True)["n"].max()
    source = max(sorted(biggest.index), key=lambda s: (int(biggest[s]), s == "run"))
    rows = rows[rows["source"] == source]
    at = nearest(rows["alpha"], alpha)
    judged = _Judged(
        rows[rows["alpha"].astype(float) == at],
        group,
        str(source),
        f"{measure} at alpha {at:g}",
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
            text = f"The whole model's {self.what} and the OOD gain have no Spearman correlation: {joint['note']}."
        verdict = relation_verdict(joint, self.level) if self._rates_known else CANNOT
        return self._row("whole", joint, verdict, text)

    def contrast(self, claim: str) -> dict[str, Any]:
        names = CONTRASTS[claim]
        joint, randomly = self._joint(names.others), self._joint(names.random)
        if joint is None or randomly is None:
            why = f"No contrast of {names.title} with other layers was computed for {self.what}."
            return no_verdict(PAIRS, claim, self.group, self.source, why)
        if joint["status"] != "ok":
            why = f"The {self.what} of {names.title} has no contrast with that of other layers: {joint['note']}."
            return no_verdict(PAIRS, claim, self.group, self.source, why)
        subject = (
            f"|correlation| of the {self.what} of {names.title} with the OOD gain is that of all other layers plus"
        )
        text = self._sentence(subject, joint, self._alone(names.others))
        if randomly["status"] == "ok":
            share = f"random sets of as many layers reach it with {p_text(float(randomly['p_value']), RANDOM_SETS)}"
            text = self._sentence(subject, joint, self._alone(names.others), share)
        verdict = CANNOT
        if self._rates_known and _can_tell(joint):
            more = _significant(joint, self.level) and float(joint["ci_low"]) > 0
            rare = randomly["status"] == "ok" and float(randomly["p_value"]) <= 1 - self.level + 1e-12
            none = float(joint["ci_high"]) < CONTRAST_MARGIN
            verdict = DOES_NOT_HOLD if none else HOLDS if more and rare else CANNOT
        return self._row(claim, joint, verdict, text)

    @property
    def _rates_known(self) -> bool:
        """Whether the pairs' learning rates are known; without them nothing is concluded whatever the numbers are."""
        return LEARNING_RATE not in self.unknown

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
        remarks = [text for text in (_doubt(joint), str(joint["note"])) if text]
        if self.unknown:
            remarks.append(f"not known of any pair: {', '.join(self.unknown)}")
        end = f" {REMARKS} {'; '.join(remarks)}." if remarks else ""
        return f"{pairs} {subject} {' and '.join(told)}.{end}"

    def _row(self, claim: str, joint: pd.Series, verdict: str, text: str) -> dict[str, Any]:
        numbers = (joint["estimate"], joint["ci_low"], joint["ci_high"])
        n, effective = int(joint["n"]), int(joint["n_effective"])
        return verdict_row(PAIRS, claim, self.group, self.source, verdict, numbers, n, text, effective)
