"""The tables of protocols as papers print them: means over seeds, harmonic means, gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sharpscope.scores import draws, independent_mean, percentile_interval, share
from sharpscope.seeds import derive
from sharpscope.vocabulary import AVERAGE

__all__ = ["base_to_new", "cross_dataset", "few_shot", "harmonic_mean", "upgrade"]

Hits = Mapping[tuple[str, str, int, str], NDArray[np.bool_]]
"""(method, dataset, seed, role) -> whether each test image is recognised, bool [n]."""


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 b n / (b + n) of two accuracies in [0, 1]; 0 where both are 0.

    >>> round(harmonic_mean(0.6934, 0.7422), 4)
    0.717

    Source: Xian et al. 2017 (arXiv 1707.00600), for seen and unseen classes; Zhou et al. 2022 (CoCoOp, arXiv
    2203.05557), for base and new.
    """
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def base_to_new(rows: pd.DataFrame) -> pd.DataFrame:
    """The table ``base_to_new`` from the rows of the table ``protocol``.

    H belongs to the means of its row, and that of the average to the averages of base and new, as in CoCoOp's tables
    (its CLIP row: 69.34, 74.22, 71.70).
    """

    def one(group: pd.DataFrame) -> dict[str, Any]:
        base, new = (_by_seed(group, role) for role in ("base", "new"))
        each = [harmonic_mean(b, n) for b, n in zip(base, new, strict=True)]
        means = float(np.mean(base)), float(np.mean(new))
        return {
            "base_accuracy": means[0], "base_sd": _sd(base), "new_accuracy": means[1], "new_sd": _sd(new),
            "h": harmonic_mean(*means), "h_sd": _sd(each), "seeds": len(base),
        }  # fmt: skip

    return _each(rows, one)


def few_shot(rows: pd.DataFrame) -> pd.DataFrame:
    """The table ``few_shot``: accuracy by method, set and number of shots."""
    return _each(rows, lambda group: _accuracy(group, "test"))


def cross_dataset(rows: pd.DataFrame) -> pd.DataFrame:
    """The table ``cross_dataset``: accuracy on the set that was tuned on, and on the others with their average."""

    def part(role: str) -> pd.DataFrame:
        own = rows[rows["role"] == role]
        return _each(own.assign(dataset=own["evaluated"]), lambda group: _accuracy(group, role)).assign(role=role)

    return pd.concat([part("source"), part("target")], ignore_index=True)


def upgrade(rows: pd.DataFrame, hits: Hits, *, level: float, bootstrap: int) -> pd.DataFrame:
    """The table ``upgrade``: old and upgraded backbone, zero-shot and tuned, and the gain over upgraded zero-shot.

    The interval of the gain is a percentile bootstrap over the test images, which all models of a row share; the seeds
    stay as they are (``gain_sd`` is their spread). The interval of an average takes the sets as independent.
    """

    def one(group: pd.DataFrame) -> dict[str, Any]:
        old, new, before, zero = (_by_seed(group, r) for r in ("old", "upgraded", "old_zeroshot", "upgraded_zeroshot"))
        gains = [n - z for n, z in zip(new, zero, strict=True)]
        return {
            "old_zeroshot": float(np.mean(before)), **_spread("old", old), "upgraded_zeroshot": float(np.mean(zero)),
            **_spread("upgraded", new), **_spread("gain", gains), "seeds": len(new),
        }  # fmt: skip

    def interval(method: str, dataset: str) -> tuple[float, float, int]:
        """(low, high, images) of the gain on one set."""
        drawn = sorted({s for m, d, s, _ in hits if (m, d) == (method, dataset)})
        roles = ("upgraded", "upgraded_zeroshot")
        ends = [np.mean([hits[method, dataset, s, role] for s in drawn], axis=0) for role in roles]
        gain = share(ends[0] - ends[1])
        rng = np.random.default_rng(derive(0, "gain", method, dataset))
        n = len(ends[0])
        low, high = percentile_interval(np.concatenate([gain.resampled(w) for w in draws(n, bootstrap, rng)]), level)
        return float(low), float(high), n

    table = _each(rows, one)
    found = {(m, d): interval(m, d) for m, d, *_ in hits}
    for i, row in table.iterrows():
        own = table[(table["method"] == row["method"]) & (table["dataset"] != AVERAGE)]
        bounds = [found[row["method"], d] for d in own["dataset"]]
        if row["dataset"] == AVERAGE:
            _, low, high = independent_mean(list(own["gain"]), [b[0] for b in bounds], [b[1] for b in bounds])
            n = sum(b[2] for b in bounds)
        else:
            low, high, n = found[row["method"], row["dataset"]]
        table.loc[i, ["ci_low", "ci_high", "n"]] = low, high, n
    return table


def _each(rows: pd.DataFrame, one: Callable[[pd.DataFrame], dict[str, Any]]) -> pd.DataFrame:
    """``one`` of every method, shots and data set, in the order of ``rows``, and after several sets of their average.

    The average is taken over the sets for each seed, so that its spread is one over seeds too. A method that lacks a
    set or a seed of one has no average, because it could not be compared with those of others.
    """
    out: list[dict[str, Any]] = []
    sets = list(rows["dataset"].unique())
    for (method, shots), part in rows.groupby(["method", "shots"], sort=False):
        for dataset, group in part.groupby("dataset", sort=False):
            out.append({"method": method, "dataset": dataset, "shots": shots, **one(group)})
        by_seed = part.groupby(["seed", "role"], as_index=False)
        whole = by_seed.agg(estimate=("estimate", "mean"), sets=("dataset", "size"))
        if len(sets) > 1 and bool((whole["sets"] == len(sets)).all()):
            out.append({"method": method, "dataset": AVERAGE, "shots": shots, **one(whole)})
    return pd.DataFrame(out)


def _by_seed(group: pd.DataFrame, role: str) -> list[float]:
    """The accuracies of one role, in the order of the seeds."""
    return [float(x) for x in group[group["role"] == role].sort_values("seed")["estimate"]]


def _accuracy(group: pd.DataFrame, role: str) -> dict[str, Any]:
    found = _by_seed(group, role)
    return {**_spread("accuracy", found), "seeds": len(found)}


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: float(np.mean(values)), f"{name}_sd": _sd(values)}


def _sd(values: Sequence[float]) -> float:
    """Standard deviation over seeds, with n - 1; NaN for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
