"""The demo's question about two pairs: can sharpness on ID data tell which of them may be interpolated?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import special

from sharpscope.findings.design import FEWEST_CLUSTERS, Design, independent
from sharpscope.findings.marginal import marginal_block
from sharpscope.findings.partial import Partial, partial_correlation
from sharpscope.findings.prediction import along
from sharpscope.findings.verdictrows import no_verdict, span, verdict_row
from sharpscope.scores import independent_mean
from sharpscope.seeds import derive
from sharpscope.tables.formats import is_missing, p_text
from sharpscope.tables.rows import has_value, image_error, unique_in_order
from sharpscope.vocabulary import ALL, CANNOT, LEARNING_RATE, OOD_MEAN, PAIRS

__all__ = ["ID_TOLERANCE", "RATIO_MARGIN", "Question"]

RATIO_MARGIN: Final = 0.3
"""Two sharpnesses count as the same if the whole interval of their log ratio lies within +- this value (our choice).
With a larger value more pairs count as equally sharp."""
ID_TOLERANCE: Final = 0.02
"""Two ID accuracies (0-1) count as equal if the whole interval of their difference lies within +- this value (our
choice). With a larger value more models count as equally accurate."""
_ONE: Final = "one pair of models can agree with a rule by chance, so that it decides nothing about the claim"


@dataclass(frozen=True)
class Question:
    """The question about the first two pairs of a run, on one group of OOD sets.

    It arises if the interval of the difference of their ID accuracies at alpha = 1 lies within +-``ID_TOLERANCE`` and
    their OOD gains at ``alpha`` have a difference whose interval excludes 0. The OTHER pairs, whose OOD labels are
    known, tell whether sharper or flatter models gain more: by the joint partial correlation of sharpness and OOD gain,
    with learning rate, distance and ID accuracy held fixed. Without a sign of its own (p > 1 - level) sharpness cannot
    tell anything that these do not. The evidence then says whether the sign predicts the right order of the two; or
    that it predicts none, where the interval of the log ratio of their sharpness over draws of images lies within
    +-``RATIO_MARGIN`` and contains 0.

    The verdict is "cannot be told" even so: at a true partial correlation of .35 the order of one pair of models is
    right about three times in five, so that one order neither shows a rule nor refutes it. The claim about all pairs,
    ``whole``, is what many models can decide.
    """

    pairs: tuple[str, ...]
    group: str
    measure: str
    alpha: float
    level: float
    bootstrap: int
    seed: int
    source: str
    """run | shipped, the origin of the other pairs."""

    @property
    def z(self) -> float:
        return float(special.ndtri((1 + self.level) / 2))

    def row(
        self,
        sharpness: pd.DataFrame,
        accuracy: pd.DataFrame,
        references: pd.DataFrame | None,
        design: Design | None,
    ) -> dict[str, Any]:
        """The row of the table ``verdicts``.

        Args:
            sharpness, accuracy: tables of the schema, of one group of OOD sets.
            references: ``reference_table`` of as many pairs as there are; the two pairs are left out.
            design: bases, settings and learning rates of these pairs, the two included; None where nothing is known.
        """
        if len(self.pairs) < 2:
            return no_verdict(PAIRS, "question", self.group, "run", "The question needs two pairs; this run has one.")
        a, b = self.pairs
        ids, apart, id_low, id_high = self._id_accuracies(accuracy)
        gap, low, high = self._outcome(accuracy)
        (ratio, ratio_low, ratio_high), images = self._sharpness(sharpness)
        others = _Others.of(self, references, design)
        facts = (
            f"{a} and {b} have ID accuracies of {100 * ids[0]:.1f} and {100 * ids[1]:.1f} % that differ by "
            f"{100 * apart:+.1f} points {span(100 * id_low, 100 * id_high, 1)}, OOD gains at alpha {self.alpha:g} that "
            f"differ by {100 * gap:+.1f} points {span(100 * low, 100 * high, 1)}, and a log ratio of whole-model "
            f"{self.measure} of {ratio:+.2f} {span(ratio_low, ratio_high)} over draws of {images} images"
        )
        margin = f"{100 * ID_TOLERANCE:g} points"
        if math.isfinite(ratio) and not math.isfinite(ratio_low):
            end = "the error of the sharpness over draws of images is not known"
        elif not all(math.isfinite(v) for v in (*ids, id_low, id_high, low, high, ratio, ratio_low, ratio_high)):
            end = "one of these numbers is missing"
        elif id_low > ID_TOLERANCE or id_high < -ID_TOLERANCE:
            end = f"their ID accuracies are more than {margin} apart, so the question does not arise"
        elif not -ID_TOLERANCE <= id_low <= id_high <= ID_TOLERANCE:
            end = f"whether their ID accuracies are the same to {margin} is not known from so few images"
        elif low <= 0 <= high:
            end = "the difference of their OOD gains may be noise, since its interval contains 0"
        elif -RATIO_MARGIN <= ratio_low <= 0 <= ratio_high <= RATIO_MARGIN:
            end = f"their OOD gains differ, but their sharpness does not, which predicts no order (0 of 1); {_ONE}"
        elif ratio_low <= 0 <= ratio_high:
            end = "which of them is sharper may depend on the choice of images"
        elif not others.signed:
            why = "so it is not known whether sharper or flatter models gain more at the same learning rate"
            end = f"{others.told}, {why}"
        else:
            right = others.rho * ratio * gap > 0
            order = f"the {'right' if right else 'wrong'} order of the two ({int(right)} of 1)"
            end = f"{others.told}, which predicts {order}; {_ONE}"
        rate = "" if low <= 0 <= high else others.by_rate(gap)
        text = f"{facts}; {end}{f'. {rate}' if rate else ''}."
        source = self.source if others.n else "run"
        numbers = (ratio, ratio_low, ratio_high)
        return verdict_row(PAIRS, "question", self.group, source, CANNOT, numbers, others.n, text, others.n_effective)

    # ------------------------------------------------------------------------------------------------- the two pairs
    def _cell(self, accuracy: pd.DataFrame, pair: str, alpha: float, role: str) -> pd.DataFrame:
        rows = accuracy[(accuracy["pair"] == pair) & (accuracy["role"] == role)]
        return rows[np.isclose(rows["alpha"].to_numpy(dtype=float), alpha)]

    def _id_accuracies(self, accuracy: pd.DataFrame) -> tuple[tuple[float, float], float, float, float]:
        """((mean over the ID sets at alpha = 1 of each pair), their difference, its bounds).

        The tables do not pair examples, and the interval is too wide rather than too narrow where both models were
        tested on the same images.
        """
        means, variance = [], 0.0
        for pair in self.pairs:
            rows = self._cell(accuracy, pair, 1.0, "id")
            columns = (rows[c].astype(float).tolist() for c in ("estimate", "ci_low", "ci_high"))
            mean, low, high = independent_mean(*columns) if len(rows) else (math.nan,) * 3
            means.append(mean)
            variance += ((high - low) / (2 * self.z)) ** 2
        gap, half = means[0] - means[1], self.z * math.sqrt(variance)
        return (means[0], means[1]), gap, gap - half, gap + half

    def _outcome(self, accuracy: pd.DataFrame) -> tuple[float, float, float]:
        """Difference of the OOD gains; the tables do not pair examples, so the interval is rather too wide."""
        gains, variance = [], 0.0
        starts = [self._cell(accuracy, pair, 0.0, OOD_MEAN) for pair in self.pairs]
        for pair, start in zip(self.pairs, starts, strict=True):
            here = self._cell(accuracy, pair, self.alpha, OOD_MEAN)
            if not len(here) or not len(start):
                return math.nan, math.nan, math.nan
            gains.append(float(here["estimate"].iloc[0]) - float(start["estimate"].iloc[0]))
            variance += self._variance(here)
        if float(starts[0]["estimate"].iloc[0]) != float(starts[1]["estimate"].iloc[0]):
            variance += self._variance(starts[0]) + self._variance(starts[1])  # else one zero-shot model: cancels
        half = self.z * math.sqrt(variance)
        return gains[0] - gains[1], gains[0] - gains[1] - half, gains[0] - gains[1] + half

    def _variance(self, cell: pd.DataFrame) -> float:
        return float(((cell["ci_high"].iloc[0] - cell["ci_low"].iloc[0]) / (2 * self.z)) ** 2)

    def _sharpness(self, sharpness: pd.DataFrame) -> tuple[tuple[float, float, float], str]:
        """log S_a - log S_b with its interval over draws of images (delta method), and the number of images as text.

        If both pairs are measured on the same images, their choice moves both sharpnesses alike; the tables do not hold
        this dependence, so the interval is then too wide rather than too narrow. Where the error over draws of images
        is not known, there is no interval.
        """
        logs, variance = [], 0.0
        counts: list[Any] = []
        for pair in self.pairs:
            rows = sharpness[(sharpness["pair"] == pair) & (sharpness["layer"] == ALL)]
            rows = rows[(rows["measure"] == self.measure) & has_value(rows)]
            rows = rows[np.isclose(rows["alpha"].to_numpy(dtype=float), self.alpha)]
            if not len(rows) or not float(rows["estimate"].iloc[0]) > 0:
                return (math.nan, math.nan, math.nan), "an unknown number of"
            estimate = float(rows["estimate"].iloc[0])
            logs.append(math.log(estimate))
            variance += (float(image_error(rows).iloc[0]) / estimate) ** 2
            counts.append(rows["n"].iloc[0] if "n" in rows.columns else None)
        half = self.z * math.sqrt(variance)
        told = unique_in_order("an unknown number of" if is_missing(n) else f"{int(n)}" for n in counts)
        return (logs[0] - logs[1], logs[0] - logs[1] - half, logs[0] - logs[1] + half), " and ".join(told)


@dataclass(frozen=True)
class _Others:
    """What the other pairs say about the sign of the relation, at the same learning rate, distance and ID accuracy."""

    rho: float
    p: float
    n: int
    n_effective: int
    signed: bool
    told: str
    by_rate_alone: float
    """Spearman correlation of the other pairs' learning rates with their OOD gains; NaN where unknown."""
    rate_told: str
    """The same correlation in words, with its interval and p-value over independent units."""
    rates: tuple[float, float]
    """The learning rates of the two judged pairs."""

    @classmethod
    def of(cls, asked: Question, references: pd.DataFrame | None, design: Design | None) -> _Others:
        nan = math.nan
        names, x, y, columns = _points(asked, references)
        whole = independent(names) if design is None else design
        rates = dict(zip(whole.pairs, whole.covariates.get(LEARNING_RATE, np.full(len(whole.pairs), nan)), strict=True))
        two = (float(rates.get(asked.pairs[0], nan)), float(rates.get(asked.pairs[1], nan)))
        if not len(names):
            return cls(nan, nan, 0, 0, False, "there are no other pairs", nan, "", two)
        own = whole.reindexed(names)
        of_others = own.covariates.get(LEARNING_RATE, np.full(len(names), nan))
        given = {LEARNING_RATE: of_others, **own.covariates, **columns}
        rng = np.random.default_rng(derive(asked.seed, "verdict", asked.measure, asked.alpha, asked.group))
        keys = own.keys(asked.bootstrap, rng)
        found = partial_correlation(
            x[None], y, own, given, keys=keys, rng=rng, level=asked.level, outcome="the OOD gain"
        )
        rho, p = float(found.estimate[0]), float(found.p[0])
        few = int(found.n_effective[0]) < FEWEST_CLUSTERS
        rated = bool(np.isfinite(of_others).all()) and math.isfinite(rho)
        signed = rated and not few and p <= 1 - asked.level + 1e-12
        alone = marginal_block(of_others[None], y, "spearman", "the OOD gain", own, keys, rng, asked.level)
        by_rate = float(alone.estimate[0])
        bounds = span(float(alone.low[0]), float(alone.high[0]))
        rate_told = f"{by_rate:+.2f} {bounds} ({p_text(float(alone.p[0]), asked.bootstrap)})"
        told = _told(found, len(names), asked.bootstrap, "" if rated or not math.isfinite(rho) else "unknown rates")
        return cls(rho, p, len(names), int(found.n_effective[0]), signed, told, by_rate, rate_told, two)

    def by_rate(self, gap: float) -> str:
        """How the learning rate alone orders the two pairs; empty where it is unknown or the same."""
        first, second = self.rates
        known = all(math.isfinite(v) for v in (first, second, self.by_rate_alone, gap))
        if not known or first == second or gap == 0:
            return ""
        right = self.by_rate_alone * (first - second) * gap > 0
        return (
            f"The learning rate alone has a Spearman correlation of {self.rate_told} with the OOD gain over these "
            f"pairs and predicts the {'right' if right else 'wrong'} order"
        )


def _told(found: Partial, pairs: int, bootstrap: int, doubt: str) -> str:
    over = f"over {pairs} other pairs"
    if int(found.n_effective[0]) != pairs:
        over += f" ({int(found.n_effective[0])} of them independent)"
    if found.why[0] or not math.isfinite(float(found.estimate[0])):
        return f"{over} no partial correlation of sharpness and OOD gain is defined ({found.why[0] or 'no value'})"
    if doubt:
        return f"{over} the learning rates are not known"
    held = found.given[0].replace("+", ", ")
    rho, p = float(found.estimate[0]), p_text(float(found.p[0]), bootstrap)
    return f"{over} sharpness and OOD gain have a Spearman correlation of {rho:+.2f} ({p}) with {held} held fixed"


def _points(
    asked: Question, references: pd.DataFrame | None
) -> tuple[list[str], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(names, sharpness, OOD gain, {distance, id_accuracy}) of the other pairs at the question's alpha."""
    names: list[str] = []
    points: list[tuple[float, ...]] = []
    if references is not None:
        rows = references[(references["measure"] == asked.measure) & ~references["pair"].isin(asked.pairs)]
        for pair in sorted(unique_in_order(rows["pair"])):
            one = rows[rows["pair"] == pair]
            columns = ("sharpness", "ood_gain", "id_accuracy")
            point = (*(along(one, c, asked.alpha) for c in columns), float(one["distance"].iloc[0]))
            if all(math.isfinite(v) for v in point[:2]):
                names.append(str(pair))
                points.append(point)
    x, y, ids, distance = np.array(points).reshape(-1, 4).T
    return names, x, y, {"distance": distance, "id_accuracy": ids}
