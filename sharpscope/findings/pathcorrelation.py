"""Correlation of sharpness with OOD accuracy along one path: descriptive."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sharpscope.findings.frames import accuracy_grid
from sharpscope.findings.marginal import FEWEST, Block, empty_block, masks, reasons
from sharpscope.findings.rank_correlation import correlate
from sharpscope.findings.sharpness import sharpness_cube
from sharpscope.tables.rows import dense_rows, groups_in, of_group, table, unique_in_order
from sharpscope.vocabulary import AGAINST, CORRELATIONS, EXPLORATORY, OOD_MEAN

__all__ = ["PATH_NOTE", "means_of", "path_correlations"]

PATH_NOTE = "descriptive: points along one path are not independent"


def path_correlations(sharpness: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Correlation along alpha inside each pair: descriptive only.

    The points of one path are not independent and both curves bend with alpha. n is therefore not a sample size, and
    neither an interval nor a p-value is given. (A circular-shift test of 11 points could not give a p below 1/11, and
    a path is not periodic.) OOD accuracy and OOD gain differ by a constant along one path, so both give the same
    correlation.

    Returns:
        Table ``correlations`` with scope "path" and alpha NaN. With fewer than 4 alphas or a constant column the status
        is "undefined", and the note says why.

    Raises:
        ConfigError: the sharpness table has an unknown measure, which has no rule by which layers add up.
    """
    accuracy = dense_rows(accuracy)
    rows: list[dict[str, object]] = []
    nan = float("nan")
    for pair in unique_in_order(sharpness["pair"]):
        alphas = sorted(unique_in_order(float(v) for v in sharpness.loc[sharpness["pair"] == pair, "alpha"]))
        cube = sharpness_cube(sharpness, [pair], alphas)
        keys = cube.columns()
        x = np.array([cube.values[m, layer, 0] for m, layer in keys])
        for dataset, group in means_of(accuracy[accuracy["pair"] == pair]):
            ood = accuracy_grid(accuracy, OOD_MEAN, dataset, [pair], alphas)[0]
            start = accuracy_grid(accuracy, OOD_MEAN, dataset, [pair], (0.0,))[0, 0]
            for against, y in zip(AGAINST, (ood, ood - start), strict=True):
                for method in CORRELATIONS:
                    block = _path_block(x, y, method, against)
                    for k, (m, layer) in enumerate(keys):
                        bad = not np.isfinite(block.estimate[k])
                        rows.append(
                            {
                                "pair": pair,
                                "layer": cube.layers[layer],
                                "measure": cube.measures[m],
                                "against": against,
                                "dataset": dataset,
                                "group": group,
                                "scope": "path",
                                "alpha": nan,
                                "method": method,
                                "given": "",
                                "estimate": float(block.estimate[k]),
                                "ci_low": nan,
                                "ci_high": nan,
                                "p_value": nan,
                                "q_value": nan,
                                "n": int(block.n[k]),
                                "family": EXPLORATORY,
                                "source": "run",
                                "status": "undefined" if bad else "ok",
                                "note": block.why[k] if bad else PATH_NOTE,
                            }
                        )
    return table("correlations", rows)


def _path_block(x: np.ndarray, y: np.ndarray, method: str, outcome: str) -> Block:
    out = empty_block(len(x))
    for columns, points in masks(x, y):
        out.n[columns] = int(points.sum())
        xs, ys = x[np.ix_(columns, points)], y[points]
        why = (
            reasons(xs, ys, FEWEST, "alpha", outcome)
            if points.any()
            else [f"only 0 alphas; at least {FEWEST} are needed"] * len(xs)
        )
        good = np.array([not w for w in why])
        if good.any():
            out.estimate[columns[good]] = correlate(xs[good], ys[None], method)[0]
        for column, reason in zip(columns, why, strict=True):
            out.why[column] = reason
    return out


def means_of(accuracy: pd.DataFrame) -> list[tuple[str, str]]:
    """The means over OOD sets that the table has: (the names of their sets, their group)."""
    means = accuracy[accuracy["role"] == OOD_MEAN]
    return [(d, g) for g in groups_in(means) for d in unique_in_order(of_group(means, g)["dataset"])]
