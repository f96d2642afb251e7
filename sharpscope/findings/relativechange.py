"""Layers whose sharpness rises along the path unlike that of the others, with a threshold calibrated by a null."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np

from sharpscope.findings.frames import alpha_index
from sharpscope.findings.selection import Selection, centre_scale, masked_median
from sharpscope.findings.sharpness import SharpnessGrid
from sharpscope.seeds import derive

__all__ = ["NULL_DRAWS", "TAIL", "Changes", "changes_of"]

TAIL: Final = 7
"""Degrees of freedom of the Student t that the layers' own changes have under the null (our choice). The standardised
changes of the ten shipped pairs have 95 and 99 % quantiles of 1.9 and 3.2, which 7 degrees of freedom give; a normal
gives 1.75 and 2.7, so that a threshold from it would name a layer too often. A larger value names more layers."""
NULL_DRAWS: Final = 1000
"""Simulations of the null for one threshold, and draws of the images for the errors; the noise of the threshold falls
with their square root."""
_QUARTILE: Final = {"normal": 0.6744897501960817, "tail": 0.7111417782}
"""The upper quartile of a standard normal, and of Student's t with ``TAIL`` degrees of freedom."""
_BELOW: Final = 2.0
"""An estimate that lies below 0 by more than this many of its standard errors counts as negative and has no
logarithm."""


def _log_scale(estimate: np.ndarray, error: np.ndarray) -> np.ndarray:
    """asinh(estimate / 2 error): the logarithm of estimate / error where it is well above its error, and finite at 0.

    Where the error is 0 it is the logarithm itself, and NaN for estimates <= 0.
    """
    known = error > 0
    soft = np.arcsinh(estimate / (2 * np.where(known, error, 1.0)))
    positive = estimate > 0
    hard = np.where(positive, np.log(np.where(positive, estimate, 1.0)), np.nan)
    return np.where(known, soft, hard)


def _area(values: np.ndarray, alphas: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """The mean over the path [..., L] of the ``values`` [..., L, A] minus those at theta_0, the first alpha.

    It is the area under the straight lines between neighbouring alphas, over the length of the path. ``usable`` [L, A]
    says where there is a value. A layer needs one at both ends; between them one that is missing is filled in by the
    line between its neighbours. NaN elsewhere.
    """
    out = np.full(values.shape[:-1], np.nan)
    for layer in np.flatnonzero(usable[:, 0] & usable[:, -1]):
        at = alphas[usable[layer]]
        own = values[..., layer, usable[layer]]
        rise = own - own[..., :1]
        out[..., layer] = ((rise[..., 1:] + rise[..., :-1]) / 2 * np.diff(at)).sum(axis=-1) / (at[-1] - at[0])
    return out


def _standardised(scores: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(score - median) / sqrt(MAD^2 + what the layer's own ``variance`` [L] has above the median layer's) [..., L].

    The MAD, in units of a standard deviation, holds the layers' own spread and the error of the median layer.
    """
    centre, scale = centre_scale(scores, "mad")
    more = np.maximum(variance - masked_median(variance), 0.0)
    total = np.sqrt(scale[..., None] ** 2 + np.where(np.isfinite(more), more, 0.0))
    z = (scores - centre[..., None]) / np.where(total > 0, total, 1.0)
    return np.where(scale[..., None] > 0, z, np.where(np.isfinite(scores), 0.0, np.nan))


def _tailed(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draws of Student's t with ``TAIL`` degrees of freedom, stretched so that their MAD is that of a normal."""
    return rng.standard_t(TAIL, shape) * (_QUARTILE["normal"] / _QUARTILE["tail"])


def _level(largest: np.ndarray, chance: float) -> float:
    """The value that at most the share ``chance`` of further draws exceeds; inf where there are too few draws."""
    place = int(np.ceil((1 - chance) * (len(largest) + 1) - 1e-9)) - 1
    return float(np.sort(largest)[place]) if place < len(largest) else float("inf")


@lru_cache(maxsize=64)
def _spread_alone(layers: int, chance: float) -> float:
    """The threshold for ``layers`` layers whose scores differ by their own spread alone; it depends on nothing else."""
    rng = np.random.default_rng(derive(0, "spread of changes", layers))
    drawn = _tailed((10 * NULL_DRAWS, layers), rng)
    return _level(_standardised(drawn, np.zeros(layers)).max(axis=1), chance)


@dataclass(frozen=True)
class Changes:
    """The relative changes of one measure's layers: ``scores`` [L] in units of log sharpness, NaN where unknown.

    ``drawn`` [R, L] are the scores on other draws of the images.
    """

    scores: np.ndarray
    drawn: np.ndarray

    @cached_property
    def all_relative(self) -> np.ndarray:
        """[R, L] ``relative`` on other draws of the images."""
        return self.drawn - masked_median(self.drawn)[:, None]

    @cached_property
    def relative(self) -> np.ndarray:
        """[L] the change minus the median over layers: a change that all layers share singles out none of them."""
        return self.scores - masked_median(self.scores)

    @cached_property
    def variance(self) -> np.ndarray:
        """[L] the variance of each layer's change relative to the median layer's, over draws of the images."""
        return np.where(np.isfinite(self.scores), self.errors.var(axis=0), np.nan)

    @cached_property
    def errors(self) -> np.ndarray:
        """[R, L] the deviations of the relative changes over draws of the images, of mean 0."""
        return self.all_relative - self.all_relative.mean(axis=0)

    def calibrated(self, chance: float, rng: np.random.Generator) -> tuple[np.ndarray, Selection, np.ndarray]:
        """Choose the layers whose change stands out more than any layer's would where nothing happens.

        The score z of a layer is (change - median) / sqrt(MAD^2 + v - median v), with the variance v of its change over
        draws of the images where that exceeds the median layer's. Under the null every layer changes like the others:
        its change is the common one, plus its own from a Student t (``TAIL``) of the layers' own spread, plus the error
        over draws of images. The threshold is the value that the largest z of all layers exceeds with probability
        ``chance`` at most: the larger one of two, for the spread alone, whatever its size, and for spread and error
        together as large as they are here. A chance below 1 / (NULL_DRAWS + 1) is one that the simulations cannot show:
        the threshold is then infinite, and no layer is chosen.

        Args:
            chance: the familywise error.
            rng: the stream of the null's draws.

        Returns:
            (z [L], the choice, probability [L] of being chosen on other draws of the images).

        Sources: Westfall and Young 1993, Resampling-Based Multiple Testing (the largest statistic as the null);
        Iglewicz and Hoaglin 1993 (MAD).
        """
        known = np.flatnonzero(np.isfinite(self.scores))
        z, probability = np.full(len(self.scores), np.nan), np.zeros(len(self.scores))
        mask = np.zeros(len(self.scores), bool)
        if not len(known):
            return z, Selection(np.array(np.nan), mask), probability
        variance, errors, drawn = self.variance[known], self.errors[:, known], self.drawn[:, known]
        z[known] = _standardised(self.scores[known], variance)
        _, scale = centre_scale(self.scores[known], "mad")
        own = np.sqrt(max(float(scale) ** 2 - float(masked_median(variance)), 0.0))
        null = errors[:NULL_DRAWS]
        null = null + own * _tailed((len(null), len(known)), rng)
        both = _level(_standardised(null, variance).max(axis=1), chance)
        threshold = float(np.maximum(both, _spread_alone(len(known), chance)))
        mask[known] = z[known] > threshold
        probability[known] = (_standardised(drawn, variance) > threshold).mean(axis=0)
        return z, Selection(np.array(threshold), mask), probability


def changes_of(grid: SharpnessGrid, moving: np.ndarray, replicates: int, rng: np.random.Generator) -> Changes | None:
    """The relative change of log sharpness of every layer of ``grid``; None where the path has no theta_0 or no more.

    The change at alpha is log h(alpha) - log h(0), and the score its mean over alpha in [0, 1], so that neither a
    finer grid of alphas nor a constant factor of a layer or of the model changes it. On the log scale the change of
    a layer's share differs from it by the same number for every layer; unlike the share it is also defined where the
    whole model's sharpness is <= 0, and one layer's rise does not lower the others. An estimate within its error of 0
    has no reliable logarithm; asinh(h / 2 e) with the layer's smallest error e over alphas takes its place, which
    equals log(h / e) well above e. A layer that is below 0 by more than twice that error at theta_0 has no change.

    Args:
        grid: one measure of one pair.
        moving: [L] the layers to be judged.
        replicates: draws of the images.
        rng: their stream.
    """
    inside = [i for i, a in enumerate(grid.alphas) if 0 <= a <= 1]
    alphas = np.asarray(grid.alphas)[inside]
    if alpha_index(list(alphas), 0.0) is None or len(inside) < 2:
        return None
    estimate = grid.estimate[:, inside]
    error = np.where(np.isfinite(estimate), grid.total_error[:, inside], np.inf).min(axis=1, keepdims=True)
    error = np.where(np.isfinite(error), error, 0.0)
    values = _log_scale(estimate, error)
    usable = np.isfinite(values) & moving[:, None] & (estimate[:, :1] >= -_BELOW * error)
    drawn = _log_scale(grid.draws("sharpness", False, max(replicates, NULL_DRAWS), rng)[..., inside], error)
    return Changes(_area(values, alphas, usable), _area(drawn, alphas, usable))
