"""The claims of arXiv 2410.16476 on the user's own checkpoints: holds, does not hold, or cannot be told.

No sign of the correlation is assumed: sharper models may be better (as da Silva et al. 2025 find for 72 CLIP ViT-B/32
models) or worse. "Cannot be told" is the verdict whenever the interval leaves both answers open. A correlation counts
as absent only if its whole interval lies within a stated margin of 0, never because p is large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import special

from sharpscope.findings.correlation import FEWEST
from sharpscope.findings.doubts import Doubt
from sharpscope.findings.prediction import along
from sharpscope.findings.rank_correlation import correlate, is_constant
from sharpscope.findings.repair import Repairs
from sharpscope.findings.resampling import permutation_p
from sharpscope.seeds import derive
from sharpscope.tables.formats import is_missing
from sharpscope.tables.rows import (
    dense_rows,
    flags_of,
    has_value,
    image_error,
    mean_accuracy,
    nearest,
    table,
    unique_in_order,
)
from sharpscope.vocabulary import (
    ALL,
    BEST,
    CANNOT,
    CLAIMS,
    DEFAULT_GROUP,
    DOES_NOT_HOLD,
    HOLDS,
    OOD_MEAN,
    PAIRS,
    STRAGGLERS,
)

__all__ = ["verdicts_table"]


MEASURE: Final = "hessian_trace"
"""The measure from which verdicts are made; all other measures are in the correlations table only."""
ALPHA: Final = 0.5
"""The alpha at which pairs are compared; all other alphas are in the correlations table only."""
MARGIN: Final = 0.3
"""A correlation whose whole interval lies within +- this value counts as absent (our choice). With a larger value more
correlations count as absent."""
RATIO_MARGIN: Final = 0.3
"""Two sharpnesses count as the same if the whole interval of their log ratio lies within +- this value (our choice).
With a larger value more pairs count as equally sharp."""
GAIN_MARGIN: Final = 0.01
"""A repair does not help if the whole interval of its gain in accuracy (0-1) lies below this value (our choice). With a
larger value more repairs count as no help."""
ID_TOLERANCE: Final = 0.02
"""Two ID accuracies (0-1) that differ by no more than this count as equal (our choice)."""


def verdicts_table(
    correlations: pd.DataFrame,
    failure: pd.DataFrame,
    repairs: Sequence[Repairs],
    sharpness: pd.DataFrame,
    accuracy: pd.DataFrame,
    references: pd.DataFrame | None = None,
    *,
    group: str = DEFAULT_GROUP,
    doubts: Sequence[Doubt] = (),
    reference_source: str = "run",
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per claim; the claim about repairs has one row per pair.

    whole       Spearman correlation of the whole model's ``MEASURE`` with OOD gain across pairs at ``ALPHA``. The claim
                (no relation) does not hold if p <= 1 - level and the interval excludes 0. It holds if the interval lies
                within +-``MARGIN``.
    stragglers  The same correlation of the stragglers' sharpness, with the verdicts exchanged: the claim is that there
                is a relation. The row ``(stragglers)`` is used; where it is missing, the best layer with its p over
                the maximum of all layers.
    repair      Only where a failure flag is present. The estimate is the maximum over sparsities of min(gain at equal
                ID accuracy, difference to the random-layer control). The claim holds if the interval lies above 0, and
                does not hold if the interval lies below ``GAIN_MARGIN``.
    question    Only if the first two pairs of ``accuracy`` have ID accuracies at alpha = 1 that agree to
                ``ID_TOLERANCE`` and OOD gains at ``ALPHA`` whose difference has an interval without 0. The OTHER pairs
                of ``references`` give the sign of the relation (Spearman of sharpness and OOD gain, permutation p <=
                1 - level). The claim holds if this sign predicts the order of the two pairs. It does not hold if the
                sign predicts the wrong order, or if the interval of the log ratio of their sharpness over draws of
                images lies within +-``RATIO_MARGIN`` and contains 0. It cannot be told if this interval contains 0 and
                is wider, or is not known.

    In all other cases the verdict is "cannot be told". The measure and the alpha were fixed before any result was seen.

    Args:
        correlations, failure, sharpness, accuracy: tables of the schema.
        repairs: ``analyse_repairs`` of every pair.
        references: ``reference_table`` of as many pairs as there are.
        group: the group of OOD sets that the tables hold.
        doubts: what makes the numbers of the run or of a pair meaningless: claims that these enter get no verdict
            ("cannot be told", with the reason and without numbers).
        reference_source: run | shipped, the origin of ``references``.
        level: coverage of the intervals.
        bootstrap: number of permutations.
        seed: the run's seed.

    Returns:
        Table ``verdicts``; ``evidence`` is one sentence made of the numbers.

    Source: Abdollahpoorrostam 2024, arXiv 2410.16476 (the claims).
    """
    rows = _correlation_rows(correlations, level)
    rows += [_repair_row(r, failure) for r in repairs]
    pairs = tuple(unique_in_order(accuracy["pair"])[:2])
    question = _Question(pairs, level, bootstrap, seed, reference_source)
    rows.append(question.row(sharpness, dense_rows(accuracy), references))
    return table("verdicts", [_unless_doubted(row, doubts) | {"group": group} for row in rows])


def _unless_doubted(row: dict[str, Any], doubts: Sequence[Doubt]) -> dict[str, Any]:
    """The row; or, where a doubt is about it, one that gives no verdict. Claims across pairs rest on every pair."""
    about = [d for d in doubts if d.pair in (PAIRS, row["pair"]) or row["pair"] == PAIRS]
    if not about:
        return row
    of_pair = "" if row["pair"] == about[0].pair or about[0].pair == PAIRS else f"in pair {about[0].pair} "
    nothing = dict.fromkeys(("estimate", "ci_low", "ci_high"), math.nan)
    evidence = f"No verdict is given: {of_pair}{about[0].reason}."
    return {**row, **nothing, "verdict": CANNOT, "n": 0, "evidence": evidence}


def _row(
    pair: str, claim: str, source: str, verdict: str, numbers: Sequence[float], n: int, why: str
) -> dict[str, Any]:
    estimate, low, high = (float(v) for v in numbers)
    head = {"pair": pair, "claim": CLAIMS[claim], "source": source, "verdict": verdict, "estimate": estimate}
    return {**head, "ci_low": low, "ci_high": high, "n": n, "evidence": why}


def _span(low: float, high: float, digits: int = 2) -> str:
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]" if math.isfinite(low) and math.isfinite(high) else "(no interval)"


def _correlation_rows(correlations: pd.DataFrame, level: float) -> list[dict[str, Any]]:
    rows = correlations[(correlations["scope"] == "pairs") & (correlations["against"] == "ood_gain")]
    rows = rows[rows["measure"] == MEASURE]
    nan = (math.nan, math.nan, math.nan)
    if not len(rows):
        why = f"No across-pair correlation of {MEASURE} with OOD gain was computed."
        return [_row(PAIRS, claim, "run", CANNOT, nan, 0, why) for claim in ("whole", "stragglers")]
    biggest = rows.groupby("source", sort=True)["n"].max()
    source = max(sorted(biggest.index), key=lambda s: (int(biggest[s]), s == "run"))
    rows = rows[rows["source"] == source]
    dataset = rows["dataset"].iloc[0]
    near = nearest(rows["alpha"], ALPHA)
    rows = rows[(rows["dataset"] == dataset) & (rows["alpha"].astype(float) == near)]
    out = []
    for claim, layers in (("whole", (ALL,)), ("stragglers", (STRAGGLERS, BEST))):
        found = [rows[(rows["layer"] == layer) & (rows["method"] == "spearman")] for layer in layers]
        some = [f.iloc[0] for f in found if len(f)]
        if not some:
            why = f"No across-pair correlation of {MEASURE} for the layer {' or '.join(layers)} was computed."
            out.append(_row(PAIRS, claim, str(source), CANNOT, nan, 0, why))
            continue
        row = next((r for r in some if r["status"] == "ok"), some[0])
        numbers = (row["estimate"], row["ci_low"], row["ci_high"])
        partial = rows[(rows["layer"] == row["layer"]) & rows["method"].str.startswith("spearman|")]
        why = _correlation_sentence(row, partial, near)
        if claim == "stragglers" and row["layer"] == BEST:
            why = why[:-1] + f" ({row['note']})."
        verdict = _correlation_verdict(claim, row, level)
        out.append(_row(PAIRS, claim, str(source), verdict, numbers, int(row["n"]), why))
    return out


def _correlation_verdict(claim: str, row: pd.Series, level: float) -> str:
    low, high = float(row["ci_low"]), float(row["ci_high"])
    if row["status"] != "ok":
        return CANNOT
    # NaN bounds (a perfect correlation, a picked layer) neither exclude 0 nor lie within the margin: p decides alone.
    related = float(row["p_value"]) <= 1 - level + 1e-12 and not low <= 0 <= high
    absent = low > -MARGIN and high < MARGIN
    if related and not absent:
        return HOLDS if claim == "stragglers" else DOES_NOT_HOLD
    if absent:
        return DOES_NOT_HOLD if claim == "stragglers" else HOLDS
    return CANNOT


def _correlation_sentence(row: pd.Series, partial: pd.DataFrame, alpha: float) -> str:
    names = {ALL: "the whole model", STRAGGLERS: "the straggler layers", BEST: "the best single layer"}
    what = f"Spearman of the {MEASURE} of {names[row['layer']]} with OOD gain at alpha {alpha:g} over {row['n']} pairs"
    if row["status"] != "ok":
        return f"{what} is undefined: {row['note']}."
    text = (
        f"{what} is {row['estimate']:+.2f} {_span(row['ci_low'], row['ci_high'])}, permutation p = {row['p_value']:.3g}"
    )
    for _, other in partial.iterrows():
        if other["status"] == "ok":
            held = f"; with {other['method'].partition('|')[2]} held fixed"
            text += f"{held} it is {other['estimate']:+.2f} (p = {other['p_value']:.3g})"
    return text + "."


def _repair_row(repairs: Repairs, failure: pd.DataFrame) -> dict[str, Any]:
    flags, absent, unknown = flags_of(failure, repairs.pair)
    state = _flags(flags, absent, unknown)
    numbers = (repairs.estimate, repairs.ci_low, repairs.ci_high)
    n = int((repairs.contrasts["num_alphas"] > 0).sum()) if len(repairs.contrasts) else 0
    if not math.isfinite(repairs.estimate):
        what = "no sparse straggler variant with a random-layer control could be matched to the plain path"
        return _row(repairs.pair, "repair", "run", CANNOT, numbers, n, f"{state}; {what}.")
    text = (
        f"{state}; the best of {n} sparsities is {repairs.best}: the smaller of its two gains, over the plain "
        f"path at equal ID accuracy and over random layers, is {100 * repairs.estimate:+.1f} points "
        f"{_span(100 * repairs.ci_low, 100 * repairs.ci_high, 1)}."
    )
    verdict = CANNOT
    if flags and repairs.ci_low > 0:
        verdict = HOLDS
    elif flags and repairs.ci_high < GAIN_MARGIN:
        verdict = DOES_NOT_HOLD
    return _row(repairs.pair, "repair", "run", verdict, numbers, n, text)


def _flags(present: Sequence[str], absent: Sequence[str], unknown: Sequence[str]) -> str:
    if present:
        return f"Failure flags {', '.join(present)} are present"
    if not absent:
        return "The failure flags are undefined or have no interval: whether there is anything to repair is not known"
    if unknown:
        return f"Failure flags {', '.join(absent)} are absent, {', '.join(unknown)} undefined or without interval"
    return "No failure flag is present: nothing to repair"


@dataclass(frozen=True)
class _Question:
    """The demo's question about two pairs, and all numbers that its sentence of evidence contains."""

    pairs: tuple[str, ...]
    level: float
    bootstrap: int
    seed: int
    reference_source: str

    @property
    def z(self) -> float:
        return float(special.ndtri((1 + self.level) / 2))

    def row(self, sharpness: pd.DataFrame, accuracy: pd.DataFrame, references: pd.DataFrame | None) -> dict[str, Any]:
        nan = (math.nan, math.nan, math.nan)
        if len(self.pairs) < 2:
            return _row(PAIRS, "question", "run", CANNOT, nan, 0, "The question needs two pairs; this run has one.")
        a, b = self.pairs
        ids = [self._mean(accuracy, pair, 1.0, "id") for pair in self.pairs]
        gap, low, high = self._outcome(accuracy)
        (ratio, ratio_low, ratio_high), images = self._sharpness(sharpness)
        rho, p, n = self._sign(references)
        facts = (
            f"{a} and {b} have ID accuracy {ids[0]:.3f} and {ids[1]:.3f}, OOD gains at alpha {ALPHA:g} that "
            f"differ by {100 * gap:+.1f} points {_span(100 * low, 100 * high, 1)}, and a log ratio of whole-model "
            f"{MEASURE} of {ratio:+.2f} {_span(ratio_low, ratio_high)} over draws of {images} images"
        )
        signed = math.isfinite(p) and p <= 1 - self.level + 1e-12
        told = (
            f"sharpness and OOD gain have a Spearman correlation of {rho:+.2f} (p = {p:.3g})"
            if math.isfinite(p)
            else "no correlation is defined"
        )
        told = f"over {n} other pairs {told}"
        if math.isfinite(ratio) and not math.isfinite(ratio_low):
            verdict, end = CANNOT, "the error of the sharpness over draws of images is not known"
        elif not all(math.isfinite(v) for v in (*ids, low, high, ratio, ratio_low, ratio_high)):
            verdict, end = CANNOT, "one of these numbers is missing"
        elif abs(ids[0] - ids[1]) > ID_TOLERANCE:
            verdict, end = CANNOT, "their ID accuracies are not the same, so the question does not arise"
        elif low <= 0 <= high:
            verdict, end = CANNOT, "the difference of their OOD gains may be noise, since its interval contains 0"
        elif -RATIO_MARGIN <= ratio_low <= 0 <= ratio_high <= RATIO_MARGIN:
            verdict, end = DOES_NOT_HOLD, "their OOD gains differ, but their sharpness does not"
        elif ratio_low <= 0 <= ratio_high:
            verdict, end = CANNOT, "which of them is sharper may depend on the choice of images"
        elif not signed:
            verdict, end = CANNOT, f"{told}, so it is not known whether higher or lower sharpness means success"
        elif rho * ratio * gap > 0:
            verdict, end = HOLDS, f"{told}, which predicts the right order of the two"
        else:
            verdict, end = DOES_NOT_HOLD, f"{told}, which predicts the wrong order of the two"
        source = self.reference_source if n else "run"
        return _row(PAIRS, "question", source, verdict, (ratio, ratio_low, ratio_high), n, f"{facts}; {end}.")

    def _cell(self, accuracy: pd.DataFrame, pair: str, alpha: float, role: str) -> pd.DataFrame:
        rows = accuracy[(accuracy["pair"] == pair) & (accuracy["role"] == role)]
        return rows[np.isclose(rows["alpha"].to_numpy(dtype=float), alpha)]

    def _mean(self, accuracy: pd.DataFrame, pair: str, alpha: float, role: str) -> float:
        rows = mean_accuracy(self._cell(accuracy, pair, alpha, role))
        return float(rows["estimate"].iloc[0]) if len(rows) else math.nan

    def _outcome(self, accuracy: pd.DataFrame) -> tuple[float, float, float]:
        """Difference of the OOD gains; the tables do not pair examples, so the interval is rather too wide."""
        gains, variance = [], 0.0
        starts = [self._cell(accuracy, pair, 0.0, OOD_MEAN) for pair in self.pairs]
        for pair, start in zip(self.pairs, starts, strict=True):
            here = self._cell(accuracy, pair, ALPHA, OOD_MEAN)
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
            rows = rows[(rows["measure"] == MEASURE) & has_value(rows)]
            rows = rows[np.isclose(rows["alpha"].to_numpy(dtype=float), ALPHA)]
            if not len(rows) or not float(rows["estimate"].iloc[0]) > 0:
                return (math.nan, math.nan, math.nan), "an unknown number of"
            estimate = float(rows["estimate"].iloc[0])
            logs.append(math.log(estimate))
            variance += (float(image_error(rows).iloc[0]) / estimate) ** 2
            counts.append(rows["n"].iloc[0] if "n" in rows.columns else None)
        half = self.z * math.sqrt(variance)
        told = unique_in_order("an unknown number of" if is_missing(n) else f"{int(n)}" for n in counts)
        return (logs[0] - logs[1], logs[0] - logs[1] - half, logs[0] - logs[1] + half), " and ".join(told)

    def _sign(self, references: pd.DataFrame | None) -> tuple[float, float, int]:
        if references is None:
            return math.nan, math.nan, 0
        rows = references[(references["measure"] == MEASURE) & ~references["pair"].isin(self.pairs)]
        points = []
        for pair in sorted(unique_in_order(rows["pair"])):
            one = rows[rows["pair"] == pair]
            point = (along(one, "sharpness", ALPHA), along(one, "ood_gain", ALPHA))
            if all(math.isfinite(v) for v in point):
                points.append(point)
        if len(points) < FEWEST:
            return math.nan, math.nan, len(points)
        x, y = np.array(points).T
        if is_constant(x) or is_constant(y):
            return math.nan, math.nan, len(points)
        rng = np.random.default_rng(derive(self.seed, "verdict", MEASURE, ALPHA))
        order = rng.permuted(np.tile(np.arange(len(y)), (self.bootstrap, 1)), axis=1)
        rho = correlate(x[None], y[None], "spearman")[0]
        return float(rho[0]), float(permutation_p(rho, correlate(x[None], y[order], "spearman"))[0]), len(points)
