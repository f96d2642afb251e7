"""What is left of the ranks of sharpness and of the gain with the covariates held fixed: the points behind an estimate.

``residuals`` is the only formula: ``partial_correlation`` takes its estimate from it, and figures take their points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sharpscope.findings.controls import LEAST_LEFT, Controls, controls
from sharpscope.findings.design import FEWEST_PAIRS, Design, independent
from sharpscope.findings.frames import accuracy_grid
from sharpscope.findings.rank_correlation import is_constant
from sharpscope.findings.sharpness import sharpness_cube
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import dense_rows, primary_of_the_whole, records, table
from sharpscope.vocabulary import ALL, LEARNING_RATE, OOD_MEAN

__all__ = ["Residuals", "known_of", "residual_rows", "residual_table", "residuals"]


@dataclass(frozen=True)
class Residuals:
    """Residuals of ranks, of length one; without any where ``why`` gives a reason."""

    x: np.ndarray
    """[K, units] of every column; NaN where nothing is left of it."""
    y: np.ndarray
    """[units] of the outcome."""
    held: Controls
    why: str = ""


def residuals(
    x: np.ndarray, y: np.ndarray, design: Design, covariates: Mapping[str, np.ndarray], outcome: str = "the outcome"
) -> Residuals:
    """What is left of the ranks of ``x`` [K, n] and ``y`` [n] of the pairs of ``design``, ``covariates`` held fixed.

    e = r - B B' r, divided by its length: r the units' centred ranks (``Design.centred_ranks``), B the orthonormal
    columns of the mean, the zero-shot models and splines of the covariates' ranks (``controls``). The partial Spearman
    correlation is e_x . e_y, which is Pearson's coefficient of the two, since both have mean 0. All values are finite;
    ``outcome`` is the name of y in the reason.
    """
    nothing = np.full(design.n_effective, math.nan)
    none = np.tile(nothing, (len(x), 1))
    if len(y) < FEWEST_PAIRS:
        few = f"only {number_of(len(y), 'pair')}; at least {FEWEST_PAIRS} are needed"
        return Residuals(none, nothing, Controls(np.empty((design.n_effective, 0)), (), 0), few)
    held = controls(design, covariates)
    left = held.remove(design.centred_ranks(y))
    if why := _problem(y, left, design, bool(covariates), held, outcome):
        return Residuals(none, nothing, held, why)
    return Residuals(held.remove(design.centred_ranks(x)), left, held)


def _problem(y: np.ndarray, left: np.ndarray, design: Design, known: bool, held: Controls, outcome: str) -> str:
    if is_constant(y):
        return f"{outcome} is constant"
    if not held.given:
        if not known:
            return "no covariate is known of any pair"
        if held.left_out:
            few = f"{design.n_effective} clusters are too few to hold any covariate fixed"
            return f"{few}: n - k would be below {LEAST_LEFT}"
        return "every covariate is constant" if not held.collinear else "the zero-shot model determines the covariates"
    return "" if np.isfinite(left).all() else f"{'+'.join(held.given)} determines {outcome}"


def known_of(covariates: Mapping[str, np.ndarray], n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(the covariates that some pair has, [n] the pairs that have all of these)."""
    known = {name: z for name, z in covariates.items() if np.isfinite(z).any()}
    return known, np.all([np.isfinite(z) for z in known.values()], axis=0) if known else np.ones(n, bool)


# ------------------------------------------------------------------------------------------------------------ the table
def residual_rows(
    x: np.ndarray, y: np.ndarray, design: Design, covariates: Mapping[str, np.ndarray], head: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of the table ``residuals`` for one predictor ``x`` [n] and the gain ``y`` [n], NaN where unknown.

    Pairs of one unit have the residuals of the unit, in units of their standard deviation over units. ``head`` is what
    all rows have in common. A pair without x, y or a covariate has no residual, and its note says what it lacks.
    """
    known, complete = known_of(covariates, len(y))
    here = np.isfinite(x) & np.isfinite(y) & complete
    own = design.subset(here)
    found = residuals(x[here][None], y[here], own, {name: z[here] for name, z in known.items()}, "the gain")
    left = np.full((2, len(y)), math.nan)
    left[:, here] = math.sqrt(own.n_effective) * own.of_pairs(np.stack([found.x[0], found.y]))
    rates = design.covariates.get(LEARNING_RATE, np.full(len(y), math.nan))
    lacking = _lacking({"sharpness": x, "gain": y, **known})
    flat = "the measure is constant" if here.any() and is_constant(x[here]) else "the covariates determine the measure"
    rows = []
    for i, pair in enumerate(design.pairs):
        why = lacking[i] or found.why or ("" if np.isfinite(left[:, i]).all() else flat)
        rows.append({
            **head, "pair": pair, "base": design.base[i], "setting": design.unit_name[i], "learning_rate": rates[i],
            "sharpness": x[i], "ood_gain": y[i], "given": "+".join(found.held.given),
            "residual_sharpness": math.nan if why else left[0, i], "residual_gain": math.nan if why else left[1, i],
            "status": "undefined" if why else "ok", "note": why,
        })  # fmt: skip
    return rows


def _lacking(values: Mapping[str, np.ndarray]) -> list[str]:
    """[n] what every pair lacks, in words; empty where it has all."""
    each = zip(*([bool(v) for v in np.isfinite(z)] for z in values.values()), strict=True)
    lost = (", ".join(n for n, there in zip(values, has, strict=True) if not there) for has in each)
    return [f"without {names}" if names else "" for names in lost]


def residual_table(
    correlations: pd.DataFrame,
    sharpness: pd.DataFrame,
    accuracy: pd.DataFrame,
    covariates: pd.DataFrame | None = None,
    *,
    source: str,
    design: Design | None = None,
) -> pd.DataFrame:
    """The points behind the primary correlations of ``pair_correlations``: a row for each pair and group of OOD sets.

    Args:
        correlations: the table that ``pair_correlations`` made of the other arguments; its primary rows of the whole
            model say which measure, alpha and data set are compared.
        sharpness, accuracy, covariates, source, design: as for ``pair_correlations``.

    Returns:
        Table ``residuals``. Over the units (``tables.rows.one_a_unit``) Pearson's correlation of residual_sharpness and
        residual_gain is the estimate of the primary row that has the same ``given``. Where that row is undefined there
        are no residuals, and every note gives the reason.
    """
    accuracy = dense_rows(accuracy)
    named = primary_of_the_whole(correlations)
    pairs = sorted(set(sharpness["pair"]) & set(accuracy["pair"]))
    design = (independent(pairs) if design is None else design).reindexed(pairs)
    rows: list[dict[str, Any]] = []
    for told in records(named[named["source"] == source]):
        alpha = float(told["alpha"])
        cube = sharpness_cube(sharpness[sharpness["measure"] == told["measure"]], pairs, (alpha,))
        x = cube.values[0, cube.layers.index(ALL), :, 0]
        ood = accuracy_grid(accuracy, OOD_MEAN, told["dataset"], pairs, (0.0, alpha))
        head = {name: told[name] for name in ("group", "measure", "alpha", "source")}
        rows += residual_rows(x, ood[:, 1] - ood[:, 0], design, design.covariates_at(covariates, alpha), head)
    return table("residuals", rows)
