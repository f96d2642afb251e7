"""The sharpness table of one pair as arrays [layers, alphas], and fresh draws of it from its own uncertainty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sharpscope.findings.frames import ordered, unique_in_order
from sharpscope.schema import ALL, MEASURES

__all__ = ["FORMS", "SharpnessGrid", "sharpness_grids"]

FORMS = ("sharpness", "per_param", "share")
"""sharpness (the estimate itself), per_param (divided by the number of parameters), share (of the whole model)."""


@dataclass(frozen=True)
class SharpnessGrid:
    """One measure of one pair; every array is [L, A] with NaN where the table has no finite estimate."""

    measure: str
    layers: tuple[str, ...]
    alphas: tuple[float, ...]
    estimate: np.ndarray
    error: np.ndarray
    """stderr where known, else the residual (a bound, so on the safe side), else 0."""
    share: np.ndarray
    num_params: np.ndarray
    whole: np.ndarray
    """[A] the estimate of the whole model."""
    unconverged: np.ndarray
    frozen: frozenset[str]

    def values(self, form: str, log: bool) -> np.ndarray:
        """The form's values [L, A], their log on request (NaN where <= 0).

        The log of the share differs from that of the estimate by a constant at each alpha and would single out the
        same layers; shares are therefore judged on the linear scale, where values <= 0 count too.
        """
        return _logged(self._form(self.estimate, form), log)

    def draws(self, form: str, log: bool, replicates: int, rng: np.random.Generator) -> np.ndarray:
        """[R, L, A] draws of ``values`` with estimate ~ N(estimate, error^2), independent over layers and alphas."""
        noise = rng.standard_normal((replicates, *self.estimate.shape)) * self.error
        if form == "share":
            with np.errstate(divide="ignore", invalid="ignore"):
                noise = noise / np.abs(self.whole)
            return _logged(self.share + noise, log)
        return _logged(self._form(self.estimate + noise, form), log)

    def _form(self, estimate: np.ndarray, form: str) -> np.ndarray:
        if form == "share":
            return self.share
        return estimate / self.num_params[:, None] if form == "per_param" else estimate


def _logged(values: np.ndarray, log: bool) -> np.ndarray:
    finite = np.where(np.isfinite(values), values, np.nan)
    if not log:
        return finite
    positive = finite > 0
    return np.where(positive, np.log(np.where(positive, finite, 1.0)), np.nan)


def sharpness_grids(sharpness: pd.DataFrame, pair: str) -> Iterator[SharpnessGrid]:
    """One grid a measure, in the schema's order; the whole model is no layer and gives ``whole`` only."""
    rows = sharpness[sharpness["pair"] == pair]
    for measure in ordered(rows["measure"], tuple(MEASURES)):
        part = rows[rows["measure"] == measure]
        layers = [name for name in unique_in_order(part["layer"]) if name != ALL]
        alphas = sorted(unique_in_order(float(a) for a in part["alpha"]))
        shape = (len(layers) + 1, len(alphas))
        row_of = {name: i for i, name in enumerate([*layers, ALL])}
        i = part["layer"].map(row_of).to_numpy()
        j = np.searchsorted(alphas, part["alpha"].to_numpy(dtype=float))
        status = part["status"].to_numpy()
        usable = np.isfinite(part["estimate"].to_numpy(dtype=float)) & ~np.isin(status, ("failed", "undefined"))

        def grid(
            values: np.ndarray,
            fill: float = np.nan,
            at: tuple[np.ndarray, np.ndarray, np.ndarray] = (i, j, usable),
            shape: tuple[int, int] = shape,
        ) -> np.ndarray:
            out = np.full(shape, fill)
            out[at[0][at[2]], at[1][at[2]]] = values[at[2]]
            return out

        stderr = part["stderr"].to_numpy(dtype=float)
        residual = part["residual"].to_numpy(dtype=float)
        error = np.abs(np.where(np.isfinite(stderr), stderr, np.where(np.isfinite(residual), residual, 0.0)))
        sizes = part.groupby("layer")["num_params"].first()
        estimate = grid(part["estimate"].to_numpy(dtype=float))
        still = frozenset(part.loc[part["status"] == "frozen", "layer"]) - {ALL}
        if layers:
            yield SharpnessGrid(
                measure=measure,
                layers=tuple(layers),
                alphas=tuple(alphas),
                estimate=estimate[:-1],
                error=grid(error, 0.0)[:-1],
                share=grid(part["share"].to_numpy(dtype=float))[:-1],
                num_params=np.array([float(sizes[name]) for name in layers]),
                whole=estimate[-1],
                unconverged=grid((status == "not_converged").astype(float), 0.0)[:-1] > 0,
                frozen=still,
            )
