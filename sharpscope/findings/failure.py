"""Does interpolation fail? Four flags, each with an interval: a drop inside the noise is no failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError
from sharpscope.findings.criteria.instability import forced_part, instability
from sharpscope.findings.frames import Scored, alpha_index, check_correct, members_of
from sharpscope.findings.losses import chord
from sharpscope.findings.resampling import (
    max_min_interval,
    mean_over_sets,
    resampled_sets,
    scores_of,
    why_no_interval,
)
from sharpscope.seeds import derive
from sharpscope.tables.rows import table
from sharpscope.vocabulary import ACCURACY_FLAGS, DEFAULT_GROUP, OOD_MEAN, PROBE

__all__ = ["DROP", "RISE", "failure_table"]

DROP: Final = 0.01
"""The largest drop in accuracy (0-1) below the worse end that F2 tolerates (our choice). With a larger value fewer
paths raise F2."""
RISE: Final = 0.01
"""The largest rise of the probe loss in nats above the worse end that F3 tolerates (our choice). With a larger value
fewer paths raise F3."""

NEEDS_ENDS: Final = "the flag needs alpha = 0 and alpha = 1"
"""Why no flag is defined on a path without one of its ends: each compares the path with them."""


def failure_table(
    pair: str,
    alphas: Sequence[float],
    correct: Mapping[str, Scored],
    roles: Mapping[str, str],
    probe_losses: np.ndarray,
    *,
    groups: Mapping[str, str] | None = None,
    pictures: Mapping[str, np.ndarray] | None = None,
    eps: float = DROP,
    loss_eps: float = RISE,
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """The flags F1, F2 and F4 for every OOD set and for the mean of each group, and F3 for the probe loss.

    The estimates, all over alpha in [0, 1], are

        F1  max_{alpha > 0} OOD(alpha) - OOD(0)                 present if ci_high < 0
        F2  max_{0 < alpha < 1} min(OOD(0), OOD(1)) - OOD(alpha)  present if ci_low > eps
        F4  max_{0 < alpha < 1} chord(alpha) - OOD(alpha)       present if ci_low > 0
        F3  max_alpha L(alpha) - max(L(0), L(1))                present if ci_low > loss_eps

    A NEGATIVE F1 is a failure; the other flags are failures when positive. Without alpha = 0 and alpha = 1 no flag is
    defined. A maximum over noisy points is too large on average, so ``resampling.max_min_interval`` gives bounds that
    allow for the choice of alpha. They come from a bootstrap over examples that is paired across alphas and, for the
    mean, drawn within each data set, or together where sets show the same pictures (``resampling.resampled_sets``). The
    probability that a flag is present without cause is then at most (1 - level) / 2, to the accuracy of the bootstrap.
    A set of fewer than ``resampling.FEWEST_IMAGES`` examples, and a mean over such a set, has no interval.

    The paper's LII = max L - (L(0) + L(1)) / 2 is meant for ends of equal loss. A zero-shot and a fine-tuned model
    have different losses, so LII >= |L(0) - L(1)| / 2 > 0 on every path, however smooth. F3 is LII minus that part;
    the row's note gives both.

    Args:
        pair: name of the pair.
        alphas: [A] increasing.
        correct: data set -> bool [A, n], the same examples at every alpha; predictions and their metric, or numbers
            of right answers.
        roles: data set -> "id" | "ood".
        probe_losses: [A, n] loss of every probe example.
        groups: OOD set -> the name of its group; None: all sets are in ``DEFAULT_GROUP``.
        pictures: OOD set -> [n], a number for the picture of each example; equal numbers are the same picture. A set
            that is not in it shares no picture with another.
        eps: largest drop in accuracy (0-1) that F2 tolerates.
        loss_eps: largest rise of the loss in nats that F3 tolerates.
        level: coverage of the intervals.
        bootstrap: number of replicates.
        seed: the run's seed.

    Returns:
        Table ``failure``; ``alpha`` is the alpha of the maximum. Where a flag is undefined, its estimate is NaN, it
        counts as absent and ``note`` gives the reason.

    Raises:
        ConfigError: shapes or roles that do not fit.

    Sources: Abdollahpoorrostam 2024, arXiv 2410.16476 (failure of interpolation); Frankle et al. 2020, arXiv 1912.05671
    (LII).
    """
    ood = check_correct(alphas, correct, roles)["ood"]
    means = {name: scores_of(values) for name, values in ood.items()}
    reps = resampled_sets(
        ood, bootstrap, lambda name: np.random.default_rng(derive(seed, "failure", pair, name)), pictures
    )
    rows = []
    for group, members in members_of(ood, groups).items():
        for name in members:
            why = why_no_interval({name: ood[name]}, bootstrap, level)
            flags = _accuracy_flags(pair, name, alphas, means[name], reps[name], eps, level, why)
            rows += [row | {"group": group} for row in flags]
        mean, rep = np.mean([means[name] for name in members], axis=0), mean_over_sets([reps[n] for n in members])
        why = why_no_interval({name: ood[name] for name in members}, bootstrap, level)
        about = "; ".join(part for part in (f"mean of {'+'.join(members)}", why) if part)
        flags = _accuracy_flags(pair, OOD_MEAN, alphas, mean, rep, eps, level, about)
        rows += [row | {"group": group} for row in flags]
    if not ood:
        undefined = (_undefined(pair, flag, OOD_MEAN, "no OOD set was given") for flag in ACCURACY_FLAGS)
        rows += [row | {"group": DEFAULT_GROUP} for row in undefined]
    rows.append(_loss_flag(pair, alphas, probe_losses, loss_eps, level, bootstrap, seed) | {"group": ""})
    rows.sort(key=lambda row: str(row["flag"]))  # stable: data sets stay in the order given, the mean after them
    return table("failure", rows)


Row = dict[str, object]


def _undefined(pair: str, flag: str, dataset: str, why: str) -> Row:
    nan = float("nan")
    base = {"pair": pair, "flag": flag, "dataset": dataset, "alpha": nan, "estimate": nan}
    return {**base, "ci_low": nan, "ci_high": nan, "present": False, "note": f"undefined: {why}"}


def _judged(
    pair: str,
    flag: str,
    dataset: str,
    alphas: Sequence[float],
    at: Sequence[int],
    values: np.ndarray,
    reps: np.ndarray,
    level: float,
    limit: float,
    note: str,
) -> Row:
    """One row from cells [alphas in ``at``, E]; F1 is present below ``limit``, the others above it."""
    estimate, low, high, best = max_min_interval(values, reps, level)
    present = high < limit if flag == "F1" else low > limit
    base = {"pair": pair, "flag": flag, "dataset": dataset, "alpha": float(alphas[at[best]]), "estimate": estimate}
    return {**base, "ci_low": low, "ci_high": high, "present": bool(present), "note": note}


def _accuracy_flags(
    pair: str,
    dataset: str,
    alphas: Sequence[float],
    mean: np.ndarray,
    reps: np.ndarray,
    eps: float,
    level: float,
    note: str,
) -> list[Row]:
    start, end = alpha_index(alphas, 0.0), alpha_index(alphas, 1.0)
    inner = [i for i, a in enumerate(alphas) if 0 < a < 1 and i not in (start, end)]
    later = [i for i, a in enumerate(alphas) if 0 < a <= 1 and i != start]
    if start is None or end is None:
        return [_undefined(pair, flag, dataset, NEEDS_ENDS) for flag in ACCURACY_FLAGS]
    gain, gains = mean[later] - mean[start], reps[:, later] - reps[:, [start]]
    f1 = _judged(pair, "F1", dataset, alphas, later, gain[:, None], gains[:, :, None], level, 0.0, note)
    if not inner:
        why = "the flag needs alpha = 0, alpha = 1 and an alpha between them"
        return [f1, *(_undefined(pair, flag, dataset, why) for flag in ("F2", "F4"))]
    ends = [start, end]
    drop = mean[ends][None, :] - mean[inner][:, None]
    drops = reps[:, None, ends] - reps[:, inner, None]
    at = np.array([float(alphas[i]) for i in inner])
    sag = chord(mean[start], mean[end], at) - mean[inner]
    sags = chord(reps[:, start], reps[:, end], at) - reps[:, inner]
    return [
        f1,
        _judged(pair, "F2", dataset, alphas, inner, drop, drops, level, eps, note),
        _judged(pair, "F4", dataset, alphas, inner, sag[:, None], sags[:, :, None], level, 0.0, note),
    ]


def _loss_flag(
    pair: str,
    alphas: Sequence[float],
    losses: np.ndarray,
    loss_eps: float,
    level: float,
    bootstrap: int,
    seed: int,
) -> Row:
    losses = np.asarray(losses, dtype=float)
    if losses.ndim != 2 or losses.shape[0] != len(alphas) or losses.shape[1] == 0:
        raise ConfigError(f"probe_losses: need shape [{len(alphas)} alphas, n >= 1], got {losses.shape}.")
    start, end = alpha_index(alphas, 0.0), alpha_index(alphas, 1.0)
    if start is None or end is None:
        return _undefined(pair, "F3", PROBE, NEEDS_ENDS)
    if not np.isfinite(losses).all():
        return _undefined(pair, "F3", PROBE, "the probe loss is not finite somewhere on the path")
    mean = losses.mean(axis=1)
    rng = np.random.default_rng(derive(seed, "failure", pair, PROBE, "loss"))
    reps = resampled_sets({PROBE: losses}, bootstrap, lambda _: rng)[PROBE]
    path = [i for i, a in enumerate(alphas) if 0 <= a <= 1]
    ends = [start, end]
    cells, draws = mean[path][:, None] - mean[ends][None, :], reps[:, path, None] - reps[:, None, ends]
    lii, forced = instability(mean, alphas), forced_part(mean, alphas)
    note = f"LII {lii:.4g} nats, of which {forced:.4g} come from the different losses of the two ends alone"
    note = "; ".join(part for part in (note, why_no_interval({PROBE: losses}, bootstrap, level)) if part)
    return _judged(pair, "F3", PROBE, alphas, path, cells, draws, level, loss_eps, note)
