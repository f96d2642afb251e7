"""Pearson, Spearman and Kendall for many columns, many permutations and many bootstrap weights at once."""

from __future__ import annotations

import numpy as np
from scipy import stats

__all__ = ["correlate", "is_constant", "partial_spearman", "weighted_correlate"]

_TINY = 1e-10
_CELLS_AT_ONCE = 4_000_000


def is_constant(x: np.ndarray) -> np.ndarray:
    """Whether all entries along the last axis are equal to rounding (spread at most 1e-12 of the largest)."""
    return np.ptp(x, axis=-1) <= 1e-12 * np.abs(x).max(axis=-1)


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows centred and of length one; NaN for a constant row."""
    centred = x - x.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    flat = is_constant(x)[..., None] | (norm == 0)
    return np.where(flat, np.nan, centred / np.where(flat, 1.0, norm))


def _signs(x: np.ndarray) -> np.ndarray:
    """sign(x_i - x_j) over all i < j along the last axis: [..., m (m - 1) / 2]."""
    i, j = np.triu_indices(x.shape[-1], k=1)
    return np.sign(x[..., i] - x[..., j])


def correlate(x: np.ndarray, y: np.ndarray, method: str) -> np.ndarray:
    """Correlation of every row of ``y`` with every row of ``x``.

    Args:
        x: [K, m].
        y: [B, m], for instance the permutations of one vector.
        method: pearson | spearman (Pearson of midranks) | kendall (tau-b).

    Returns:
        [B, K] in [-1, 1]; NaN where either row is constant.
    """
    if method == "kendall":
        sx, sy = _signs(x), _signs(y)
        nx, ny = np.abs(sx).sum(axis=1), np.abs(sy).sum(axis=1)
        scale = np.sqrt(ny[:, None] * nx[None, :])
        return np.where(scale > 0, (sy @ sx.T) / np.where(scale > 0, scale, 1.0), np.nan)
    if method == "spearman":
        x, y = stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1)
    return np.clip(_unit(y) @ _unit(x).T, -1.0, 1.0)


def weighted_correlate(x: np.ndarray, y: np.ndarray, weights: np.ndarray, method: str) -> np.ndarray:
    """Correlation of ``y`` with every row of ``x`` in every resample; each resample is a row of counts.

    A point drawn w times counts as w equal points: ranks become weighted midranks, and a pair (i, j) of Kendall's tau
    has weight w_i w_j. Counts of ones with a single zero give the jackknife.

    Args:
        x: [K, m].
        y: [m].
        weights: [B, m] counts.
        method: pearson | spearman | kendall.

    Returns:
        [B, K]; NaN where x or y is constant in the resample.
    """
    w = weights.astype(float)
    if method == "kendall":
        return _weighted_kendall(x, y, w)
    out = np.empty((len(w), len(x)))
    step = max(1, _CELLS_AT_ONCE // (len(w) * x.shape[1]))
    spread = x.std(axis=1, keepdims=True)
    standard = (x - x.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    ry = _centred(_weighted_ranks(y[None], w)[:, 0] if method == "spearman" else _broadcast(y, w), w)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        if method == "spearman":
            rx = _weighted_ranks(x[part], w)
        else:
            rx = np.broadcast_to(standard[part], (len(w), *standard[part].shape))
        rx = rx - (rx * w[:, None]).sum(axis=2, keepdims=True) / w.sum(axis=1)[:, None, None]
        sxx = np.einsum("bkm,bkm,bm->bk", rx, rx, w)
        r_xy = _ratio(np.einsum("bkm,bm->bk", rx, w * ry), sxx, (w * ry * ry).sum(axis=1)[:, None])
        out[:, part] = r_xy
    return np.clip(out, -1.0, 1.0)


def _broadcast(y: np.ndarray, w: np.ndarray) -> np.ndarray:
    spread = y.std()
    return np.broadcast_to((y - y.mean()) / (spread if spread > 0 else 1.0), w.shape)


def _centred(values: np.ndarray, w: np.ndarray) -> np.ndarray:
    return values - (values * w).sum(axis=1, keepdims=True) / w.sum(axis=1, keepdims=True)


def _weighted_ranks(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Midranks of each row of x [K, m] in each resample w [B, m]: [B, K, m]."""
    before = (x[:, None, :] < x[:, :, None]) + 0.5 * (x[:, None, :] == x[:, :, None])
    ranks = w @ before.reshape(-1, x.shape[1]).T
    return ranks.reshape(len(w), *x.shape) + 0.5


def _ratio(top: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    usable = (left > _TINY) & (right > _TINY)
    return np.where(usable, top / np.sqrt(np.where(usable, left * right, 1.0)), np.nan)


def _weighted_kendall(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(x.shape[1], k=1)
    both = w[:, i] * w[:, j]
    sx, sy = _signs(x), _signs(y)
    top = both @ (sx * sy).T
    return _ratio(top, both @ np.abs(sx).T, (both @ np.abs(sy))[:, None])


def _residuals(values: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Rows of ``values`` minus their mean and their projection on the centred unit vector ``z``, scaled to length one.

    A row that is constant or parallel to ``z`` has no such remainder and gives NaN.
    """
    centred = values - values.mean(axis=-1, keepdims=True)
    rest = centred - (centred @ z)[..., None] * z
    norm = np.linalg.norm(rest, axis=-1, keepdims=True)
    gone = norm <= 1e-7 * np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-300)
    return np.where(gone, np.nan, rest / np.where(gone, 1.0, norm))


def partial_spearman(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Partial Spearman correlation of every row of ``x`` [K, m] with ``y`` [m], the ranks of ``z`` [m] held fixed.

    r_xy.z = (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)) of the ranks. The result [K] is in [-1, 1], and NaN
    where the ranks of z determine those of x or y.

    Source: Yule 1907, Proceedings of the Royal Society A 79 (partial correlation; here of midranks).
    """
    unit = _unit(stats.rankdata(z))
    ex = _residuals(stats.rankdata(x, axis=-1), unit)
    ey = _residuals(stats.rankdata(y)[None], unit)
    return np.clip((ey @ ex.T)[0], -1.0, 1.0)
