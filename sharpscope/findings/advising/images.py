"""The situation ``target_images``: accuracy on target images without labels, estimated with what ID labels say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from sharpscope.findings.advising.along import AlongPath, Row, few_replicates, new_row, noted
from sharpscope.findings.frames import alpha_index
from sharpscope.findings.resampling import simultaneous_band
from sharpscope.scores import PathAnswers
from sharpscope.seeds import derive
from sharpscope.vocabulary import TARGET

__all__ = [
    "ESTIMATORS",
    "HeldOut",
    "agreement_difference",
    "agreement_on_the_line",
    "confidence_difference",
    "held_out",
    "image_curves",
    "image_rows",
    "thresholded_confidence",
]


def thresholded_confidence(labelled: PathAnswers, target: PathAnswers) -> np.ndarray:
    """Average thresholded confidence (ATC): the share of target images whose confidence is above a threshold, [K].

    The threshold of each point is that above which as many ID images lie as the point gets right; ties at the threshold
    count in part, so that on the ID images themselves the estimate is the accuracy exactly. The confidence is the
    largest softmax.

    Source: Garg et al. 2022, arXiv 2201.04234.
    """
    out = []
    for own, other, right in zip(labelled.confidence, target.confidence, labelled.correct.mean(axis=1), strict=True):
        wrong = round((1 - float(right)) * len(own))
        if wrong == len(own):
            out.append(0.0)
            continue
        threshold = np.sort(own)[wrong]
        above, at = float((own > threshold).mean()), float((own == threshold).mean())
        part = (float(right) - above) / at
        out.append(float((other > threshold).mean()) + part * float((other == threshold).mean()))
    return np.array(out)


def confidence_difference(labelled: PathAnswers, target: PathAnswers) -> np.ndarray:
    """Difference of confidences (DoC): ID accuracy plus the mean confidence on the target minus that on ID, [K].

    Source: Guillory et al. 2021, arXiv 2107.03315 (without their regression, which needs labelled shifts).
    """
    change = target.confidence.mean(axis=1) - labelled.confidence.mean(axis=1)
    return np.asarray(np.clip(labelled.correct.mean(axis=1) + change, 0, 1))


def agreement_difference(labelled: PathAnswers, target: PathAnswers) -> np.ndarray:
    """ID accuracy plus a point's mean agreement with the other points on the target minus that on ID, [K]. Ours.

    Undefined (NaN) for a single point.
    """
    if len(labelled.predicted) < 2:
        return np.full(len(labelled.predicted), math.nan)
    change = _agreements(target).sum(axis=1) - _agreements(labelled).sum(axis=1)
    return np.asarray(np.clip(labelled.correct.mean(axis=1) + change / (len(change) - 1), 0, 1))


def agreement_on_the_line(labelled: PathAnswers, target: PathAnswers) -> np.ndarray:
    """Agreement on the line (ALine-D): accuracies whose probits lie on the line of the agreements' probits, [K].

    Over all pairs (i, j) of points, probit(agreement on target) = a probit(agreement on ID) + b is fitted. The target
    accuracies p then solve, by least squares, (probit p_i + probit p_j) / 2 = probit(target agreement_ij) + a
    ((probit ID accuracy_i + probit ID accuracy_j) / 2 - probit(ID agreement_ij)). Shares are kept 1/2n away from 0 and
    1. NaN with fewer than three points, or where all agreements on ID are equal. The method was made for models that
    were trained independently; the points of one path agree more than those do.

    Source: Baek et al. 2022, arXiv 2206.13089.
    """
    count = len(labelled.predicted)
    pairs = np.array(list(itertools.combinations(range(count), 2)))
    missing = np.full(count, math.nan)
    if count < 3:
        return missing
    x, y = (_probit(_agreements(s)[pairs[:, 0], pairs[:, 1]], s.predicted.shape[1]) for s in (labelled, target))
    if np.ptp(x) < 1e-12:
        return missing
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    known = _probit(labelled.correct.mean(axis=1), labelled.predicted.shape[1])
    halves = np.zeros((len(pairs), count))
    halves[np.arange(len(pairs))[:, None], pairs] = 0.5
    solved, *_ = np.linalg.lstsq(halves, y + slope * (halves @ known - x), rcond=None)
    return np.asarray(special.ndtr(solved))


def _agreements(answers: PathAnswers) -> np.ndarray:
    """The share of images on which each two of the points predict the same class, [K, K], 0 on the diagonal."""
    out = np.array([(answers.predicted == own).mean(axis=1) for own in answers.predicted])
    np.fill_diagonal(out, 0.0)
    return out


def _probit(shares: np.ndarray, n: int) -> np.ndarray:
    return np.asarray(special.ndtri(np.clip(shares, 0.5 / n, 1 - 0.5 / n)))


Estimator = Callable[[PathAnswers, PathAnswers], np.ndarray]
ESTIMATORS: Mapping[str, Estimator] = {
    "atc": thresholded_confidence,
    "doc": confidence_difference,
    "agl": agreement_on_the_line,
    "agreement": agreement_difference,
}
"""Rule of the situation ``target_images`` -> its estimate of the accuracies [K] on ``target`` from labelled ID data."""


@dataclass(frozen=True)
class HeldOut:
    """How well a rule would have chosen on shifts with labels that it did not see.

    ``regret``: mean accuracy lost to the best alpha. ``error``: root mean squared error of its estimated gains over
    zero-shot (NaN for a rule that estimates nothing). ``shifts``: number of shifts.
    """

    regret: float
    error: float
    shifts: int


def held_out(path: AlongPath, labelled: PathAnswers, shifts: Mapping[str, PathAnswers]) -> dict[str, HeldOut]:
    """Every estimator, and every fixed rule, judged on ``shifts``: labelled sets whose labels the rules do not see.

    On ID data itself the estimators are right by construction, so that nothing could be told from it.
    """
    if not shifts:
        return {}
    truth = {name: answers.correct.mean(axis=1) for name, answers in shifts.items()}
    start = alpha_index(path.alphas, 0.0)
    out = {}
    for rule, estimate in ESTIMATORS.items():
        guessed = {name: estimate(labelled, answers.without_labels()) for name, answers in shifts.items()}
        if all(np.isfinite(g).all() for g in guessed.values()):
            lost = [float(truth[n].max() - truth[n][int(np.argmax(g))]) for n, g in guessed.items()]
            off = [g - g[start] - (truth[n] - truth[n][start]) for n, g in guessed.items()] if start is not None else []
            error = math.sqrt(float(np.mean(np.square(off)))) if off else math.nan
            out[rule] = HeldOut(float(np.mean(lost)), error, len(shifts))
    for rule, alpha in path.fixed().items():
        if math.isfinite(alpha) and (i := alpha_index(path.alphas, alpha)) is not None:
            lost = [float(values.max() - values[i]) for values in truth.values()]
            out[rule] = HeldOut(float(np.mean(lost)), math.nan, len(shifts))
    return out


@dataclass(frozen=True)
class ImageCurve:
    """The estimated target accuracies [K] of one rule, and their bootstrap [R, K] over ID and target images."""

    values: np.ndarray
    replicates: np.ndarray


def image_curves(
    labelled: PathAnswers, target: PathAnswers, *, bootstrap: int = 200, seed: int = 0
) -> dict[str, ImageCurve]:
    """Every estimator on the target images, calibrated again in every one of ``bootstrap`` samples of the ID images."""
    rng = np.random.default_rng(derive(seed, "advice", "target_images"))
    sizes = labelled.predicted.shape[1], target.predicted.shape[1]
    replicates: dict[str, list[np.ndarray]] = {rule: [] for rule in ESTIMATORS}
    for _ in range(bootstrap):
        own, other = (a.take(rng.integers(0, n, n)) for a, n in zip((labelled, target), sizes, strict=True))
        for rule, estimate in ESTIMATORS.items():
            replicates[rule].append(estimate(own, other))
    points = labelled.predicted.shape[0]
    return {
        rule: ImageCurve(estimate(labelled, target), np.array(replicates[rule]).reshape(bootstrap, points))
        for rule, estimate in ESTIMATORS.items()
    }


def image_rows(path: AlongPath, curves: Mapping[str, ImageCurve], judged: Mapping[str, HeldOut]) -> list[Row]:
    """A row for the alpha of every estimator; advised is that of the estimator with the smallest held-out regret.

    Of equal regrets the smaller error of the estimated gains decides. The interval of a gain adds the held-out error to
    the sampling error: estimate -+ q sqrt(se^2 + error^2), with q >= the normal quantile from the band that holds for
    all points together.
    """
    usable = [r for r in ESTIMATORS if r in judged and np.isfinite(curves[r].values).all()]
    winner = min(usable, key=lambda r: (round(judged[r].regret, 9), judged[r].error)) if usable else ""
    fixed = {rule: judged[rule].regret for rule in path.fixed() if rule in judged}
    least = min(fixed, key=fixed.__getitem__) if fixed else ""
    baseline: Row = {"best_baseline": least, "baseline_regret": fixed[least]} if least else {}
    rows = []
    for rule, curve in curves.items():
        if not np.isfinite(curve.values).all():
            why = "the estimate is undefined on these points: it needs at least three that do not all agree"
            rows.append(new_row(path, "target_images", rule, TARGET, math.nan, why))
            continue
        best = int(np.argmax(curve.values))
        test = judged.get(rule)
        note = noted(
            f"estimated target accuracy {100 * curve.values[best]:.1f} %",
            "not tested: there is no shifted ID set with labels" if test is None else
            f"held out, on {test.shifts} shifts of ID data with labels: the estimated gains are off by "
            f"{100 * test.error:.1f} points (root mean square)",
            f"chosen because its held-out regret is the smallest of {len(usable)}; a target that is shifted in another "
            "way than the held-out shifts may answer differently" if rule == winner else "",
            f"the simple rule {least} has no larger held-out regret" if rule == winner and test is not None and least
            and fixed[least] <= test.regret else "",
        )  # fmt: skip
        told: Row = {"expected_regret": math.nan if test is None else test.regret, "advised": rule == winner}
        finite = curve.replicates[np.isfinite(curve.replicates).all(axis=1)]
        note = noted(note, few_replicates(len(finite), path.level))
        gain = _gain(path, curve.values, finite, best, 0.0 if test is None else test.error)
        rows.append(new_row(path, "target_images", rule, TARGET, path.alphas[best], note, **told, **gain, **baseline))
    return rows


def _gain(path: AlongPath, values: np.ndarray, replicates: np.ndarray, best: int, error: float) -> Row:
    start = alpha_index(path.alphas, 0.0)
    if start is None:
        return {}
    gains, draws = values - values[start], replicates - replicates[:, [start]]
    if best == start:
        return {"predicted_gain": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    low, high = simultaneous_band(gains, draws, path.level)
    se = float(draws[:, best].std(ddof=1)) if len(draws) > 1 else math.nan
    half = (float(high[best]) - float(low[best])) / 2
    wide = half * math.hypot(1.0, error / se) if se > 0 else half + 2 * error
    gain = float(gains[best])
    return {"predicted_gain": gain, "ci_low": gain - wide, "ci_high": gain + wide}


def estimates_table(pair: str, alphas: tuple[float, ...], curves: Mapping[str, ImageCurve]) -> pd.DataFrame:
    """Every rule's estimate of the target accuracy along the path: pair, alpha, and one column per rule."""
    columns = {rule: curve.values for rule, curve in curves.items()}
    return pd.DataFrame({"pair": pair, "alpha": alphas, **columns})
