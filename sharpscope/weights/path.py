"""The path between two checkpoints: theta(alpha), single-layer paths, distances; bent paths, and the LiNeS path.

alpha is always on the FINE-TUNED side, as in WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): 0 is zero-shot, 1
fine-tuned.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import torch

from sharpscope.card import card
from sharpscope.errors import ConfigError, PairMismatch, did_you_mean, listing, shown
from sharpscope.layers import TOWERS, Layer, is_buffer
from sharpscope.seeds import derive
from sharpscope.vocabulary import BASES, Base
from sharpscope.weights.checkpoint import Weights, as_theta
from sharpscope.weights.compare import check_finite, check_fit, common_ties, l2_distance
from sharpscope.weights.theta import Theta, cast

__all__ = ["FisherPath", "InterpolationPath", "RandomPath", "lines_path", "straight_to"]

FISHER_FLOOR: Final = 1e-8
"""Lower bound of the Fisher information, as in WiSE-FT's code, so that the two coefficients of a weight are never both
0. A larger bound brings the path closer to the straight one."""


class InterpolationPath:
    """theta(alpha) = (1 - alpha) theta_0 + alpha theta_1, computed when asked for: no copies are kept.

    theta(0) and theta(1) are the inputs (cast to ``dtype``) bit for bit. Floating buffers (normalisation statistics)
    are interpolated like parameters, as averaging state dicts does in WiSE-FT; integer and boolean buffers are never
    averaged: they are theta_0's, at alpha = 1 theta_1's. Tensors that do not move are shared by all thetas of the path:
    read, do not write. Outside of [0, 1] (``extrapolate``) interpolated variances can turn negative; the loss then
    reports it.

    ``theta_0``, ``theta_1``: checkpoint, live module (copied) or dictionary (detached). ``dtype``: float32 or float64.
    ``moving``: names that count as parameters; default: all that their name does not show to be buffers.
    Raises PairMismatch when keys or shapes differ, ConfigError for an alpha outside of [0, 1].
    Source: Wortsman et al. 2022, arXiv 2109.01903; Frankle et al. 2020, arXiv 1912.05671.
    """

    def __init__(
        self,
        theta_0: Weights,
        theta_1: Weights,
        dtype: torch.dtype = torch.float32,
        extrapolate: bool = False,
        *,
        moving: Collection[str] | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"dtype: {dtype} is neither torch.float32 nor torch.float64, the arithmetic of a path.")
        zero, one = as_theta(theta_0, "theta_0"), as_theta(theta_1, "theta_1")
        check_fit(zero, one)
        self.dtype = dtype
        self.extrapolate = extrapolate
        self._tied = common_ties(zero, one)
        self._zero = {n: cast(t, dtype) for n, t in zero.items()}
        self._one = {n: cast(one[n], dtype) for n in zero}
        floating = [n for n, t in self._zero.items() if t.is_floating_point()]
        self._differing = frozenset(n for n in floating if not torch.equal(self._zero[n], self._one[n]))
        for n in floating:
            if n not in self._differing and torch.equal(self._zero[n].signbit(), self._one[n].signbit()):
                self._one[n] = self._zero[n]  # the same bits: one copy in memory is enough
        parameters = (n for n in floating if n in self._differing and n not in self._tied)
        self.moving = tuple(n for n in parameters if (not is_buffer(n) if moving is None else n in moving))
        """Names of the floating parameters that differ, in theta_0's order."""

    @property
    def theta_0(self) -> Theta:
        """theta(0), as :meth:`at`."""
        return self.at(0.0)

    @property
    def theta_1(self) -> Theta:
        """theta(1), as :meth:`at`."""
        return self.at(1.0)

    def at(self, alpha: float) -> Theta:
        """theta(alpha), as two products and a sum; every key of the inputs, on their device.

        Raises ConfigError for an alpha that is not finite, or outside [0, 1] on a path that does not extrapolate.
        """
        alpha = self._checked(alpha)
        return self._tie({n: self._value(n, alpha) for n in self._zero if n not in self._tied})

    def at_layer(self, layer: Layer | Collection[str], alpha: float, base: Base = "finetuned") -> Theta:
        """Only ``layer`` stands at alpha; everything else stays at the base, see ``vocabulary.BASES``.

        The running statistics of a normalisation move with its weight. Vlaar & Frankle 2022 (arXiv 2106.16004), Adilova
        et al. 2024 (arXiv 2307.06966). Raises ConfigError for an unknown base or a name that is no tensor of the path.
        """
        alpha = self._checked(alpha)
        if base not in BASES:
            raise ConfigError(f"base: '{shown(base)}' is none of {', '.join(BASES)}.{did_you_mean(str(base), BASES)}")
        at = BASES[base].alpha
        rest = self.at(at) if at in (0.0, 1.0) else self._midpoint  # the ends cost nothing, the midpoint is kept
        names = (self._tied.get(n, n) for n in self._with_statistics(self._names(layer)))
        inside = {n: self._value(n, alpha) for n in names}
        return self._tie({n: inside[n] if n in inside else rest[n].detach() for n in self._zero if n not in self._tied})

    def at_layers(self, alphas: Mapping[str, float], rest: float) -> Theta:
        """Every tensor at an alpha of its own: ``alphas`` (tensor name -> alpha), all others at ``rest``.

        Running statistics stand where their normalisation's weight stands. With one alpha for all tensors this is
        :meth:`at`. Raises ConfigError for an alpha as :meth:`at` does, and for a name that is no tensor of the path.
        """
        own = {to: self._checked(a) for n, a in alphas.items() for to in self._with_statistics(self._names(n))}
        rest = self._checked(rest)
        return self._tie({n: self._value(n, own.get(n, rest)) for n in self._zero if n not in self._tied})

    def distance(self, alpha: float) -> tuple[float, float]:
        """``(||theta(alpha) - theta_0||_2, ||theta(alpha) - theta_1||_2)`` over the moving parameters, in float64.

        Raises ConfigError for an alpha as :meth:`at` does.
        """
        alpha = self._checked(alpha)
        return abs(alpha) * self._length, abs(1.0 - alpha) * self._length

    def layer_distance(self, layer: Layer | Collection[str]) -> float:
        """``||theta_1 - theta_0||_2`` over the moving parameters of ``layer``, in float64.

        Raises ConfigError for a name that is no tensor of the path.
        """
        inside = {self._tied.get(n, n) for n in self._names(layer)}
        return l2_distance(self._zero, self._one, [n for n in self.moving if n in inside])

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.moving)} of {len(self._zero)} tensors move, "
            f"{str(self.dtype).removeprefix('torch.')}, distance {self._length:.4g})"
        )

    def _repr_html_(self) -> str:
        facts = {
            "theta(alpha)": "alpha 0: zero-shot, 1: fine-tuned", "moving tensors": len(self.moving),
            "tensors": len(self._zero), "dtype": str(self.dtype).removeprefix("torch."), "distance": self._length,
        }  # fmt: skip
        return card(type(self).__name__, facts)

    @functools.cached_property
    def _length(self) -> float:
        return l2_distance(self._zero, self._one, self.moving)

    @functools.cached_property
    def _midpoint(self) -> Theta:
        return self.at(BASES["midpoint"].alpha)

    def _value(self, name: str, alpha: float) -> torch.Tensor:
        if alpha == 1.0:
            return self._one[name].detach()
        if alpha == 0.0 or name not in self._differing:
            return self._zero[name].detach()
        return self._blend(name, alpha)

    def _blend(self, name: str, alpha: float) -> torch.Tensor:
        return self._zero[name].mul(1.0 - alpha).add_(self._one[name].mul(alpha))

    def _tie(self, theta: Theta) -> Theta:
        return {n: theta[self._tied.get(n, n)] for n in self._zero}

    def _names(self, layer: Layer | Collection[str]) -> tuple[str, ...]:
        names = layer.params if isinstance(layer, Layer) else (layer,) if isinstance(layer, str) else tuple(layer)
        unknown = [n for n in names if n not in self._zero]
        if unknown:
            raise ConfigError(
                f"layer: no tensor of this path is called {listing(unknown)}.{did_you_mean(unknown[0], self._zero)}"
            )
        return names

    def _with_statistics(self, names: Sequence[str]) -> list[str]:
        modules = [n.removesuffix("weight") for n in names if n.endswith(".weight")]
        statistics = (f"{m}{s}" for m in modules for s in ("running_mean", "running_var", "num_batches_tracked"))
        return list(dict.fromkeys([*names, *(s for s in statistics if s in self._zero)]))

    def _checked(self, alpha: float) -> float:
        if not math.isfinite(alpha):
            raise ConfigError(f"alpha: {alpha} is not a finite number.")
        if not 0 <= alpha <= 1 and not self.extrapolate:
            raise ConfigError(
                f"alpha: {alpha} is outside [0, 1]; extrapolation has to be asked for (extrapolate=True)."
            )
        return float(alpha)


class _BentPath(InterpolationPath):
    """A path from theta_0 to theta_1 that is not straight; it has no points outside of [0, 1]."""

    def __init__(self, plain: InterpolationPath) -> None:
        super().__init__(plain.at(0.0), plain.at(1.0), plain.dtype, moving=plain.moving)

    def distance(self, alpha: float) -> tuple[float, float]:
        """``(||theta(alpha) - theta_0||_2, ||theta(alpha) - theta_1||_2)`` over the moving parameters, in float64.

        Not linear in alpha, unlike that of the straight path. Raises ConfigError for an alpha as :meth:`at` does.
        """
        theta = self.at(alpha)
        return l2_distance(self._zero, theta, self.moving), l2_distance(self._one, theta, self.moving)


class FisherPath(_BentPath):
    """The Fisher-weighted path: theta(alpha) = (c_0 theta_0 + c_1 theta_1) / (c_0 + c_1), elementwise.

    c_0 = (1 - alpha) max(F_0, 1e-8), c_1 = alpha max(F_1, 1e-8), where F_0 and F_1 are the diagonal Fisher information
    of the two ends: name -> tensor >= 0, of any scale. Buffers take the straight path.

    Raises:
        PairMismatch: a moving parameter without Fisher information, or of another shape.
        NonFiniteWeights: NaN or infinite Fisher information.

    Source: Matena and Raffel 2022, arXiv 2111.09832, as in WiSE-FT's code.
    """

    def __init__(
        self, plain: InterpolationPath, fisher_0: Mapping[str, torch.Tensor], fisher_1: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__(plain)
        self._fisher: list[Theta] = []
        for label, fisher in (("F0", fisher_0), ("F1", fisher_1)):
            missing = [n for n in self.moving if n not in fisher]
            if missing:
                raise PairMismatch(f"{label}: no Fisher information for {listing(missing)}.")
            reshaped = [n for n in self.moving if fisher[n].shape != self._zero[n].shape]
            if reshaped:
                raise PairMismatch(f"{label}: Fisher information and weights differ in shape for {listing(reshaped)}.")
            check_finite({n: fisher[n] for n in self.moving}, label)
            self._fisher.append({n: cast(fisher[n].detach(), plain.dtype).clamp(min=FISHER_FLOOR) for n in self.moving})

    def _blend(self, name: str, alpha: float) -> torch.Tensor:
        if name not in self._fisher[0]:
            return super()._blend(name, alpha)
        c_0, c_1 = self._fisher[0][name] * (1.0 - alpha), self._fisher[1][name] * alpha
        return (c_0 * self._zero[name] + c_1 * self._one[name]) / (c_0 + c_1)


class RandomPath(_BentPath):
    """The random path: each entry of theta(alpha) is theta_1's with probability alpha, else theta_0's.

    Every entry has one draw u, uniform in [0, 1), from ``seed`` and the tensor's name; it is theta_1's where u < alpha.
    A point therefore keeps all that an earlier one has taken, and both ends are exact. Running statistics of a
    normalisation are interpolated, because they belong to the whole model.

    Source: Wortsman et al. 2022, arXiv 2109.01903, fig. 13 (random interpolation).
    """

    def __init__(self, plain: InterpolationPath, seed: int = 0) -> None:
        super().__init__(plain)
        self._seed = seed

    def _blend(self, name: str, alpha: float) -> torch.Tensor:
        if name not in self.moving:
            return super()._blend(name, alpha)
        generator = torch.Generator().manual_seed(derive(self._seed, "random path", name))
        zero, one = self._zero[name], self._one[name]
        return torch.where(torch.rand(zero.shape, generator=generator).to(zero.device) < alpha, one, zero)


def lines_path(plain: InterpolationPath, layers: Iterable[Layer], alpha: float, beta: float) -> InterpolationPath:
    """The straight path from theta_0 to the LiNeS edit of theta_1, which keeps less of the change of shallow layers.

    The edit is ``theta_0 + lambda_l (theta_1 - theta_0)`` with ``lambda_l = alpha + beta * l / (L - 1)`` in every layer
    of depth l. L is the number of depths in the layer's tower: the stem has depth 0, the blocks follow, what comes
    after the last block is the deepest; the head and the logit scale count as deepest too. Running statistics of a
    normalisation go with its weight; a tensor in no layer takes ``alpha + beta``. ``alpha`` and ``beta`` are the
    paper's coefficients, not points of the path: the point t of the path is ``theta_0 + t lambda_l (theta_1 -
    theta_0)``.

    The start is theta_0 bit for bit. The end is the edit; where lambda_l is 0 or 1 it is theta_0 or theta_1 bit for
    bit. With alpha = 1 and beta = 0 the path is ``plain``.

    ``plain``: the straight path, which gives dtype, range of t and moving parameters. ``layers``: all layers whose
    parameters matter, of any granularity.
    Raises ConfigError where a layer holds a name that is no tensor of the path.
    Source: Wang et al. 2024 (LiNeS), arXiv 2410.17146, equation of lambda. The published code counts residual blocks
    alone as layers and scales everything else, stem and projection, by alpha.
    """
    every = tuple(layers)
    deepest = {t: max((la.depth for la in every if la.tower == t), default=0) for t in TOWERS}
    scale: dict[str, float] = {}
    for layer in every:
        share = layer.depth / deepest[layer.tower] if deepest[layer.tower] else float(layer.tower in ("head", "scale"))
        scale |= dict.fromkeys(plain._with_statistics(plain._names(layer)), alpha + beta * share)
    end = plain.at(1.0)
    edited = {n: plain._value(n, scale.get(n, alpha + beta)) if n in plain._differing else end[n] for n in end}
    return straight_to(edited, plain)


def straight_to(end: Theta, plain: InterpolationPath) -> InterpolationPath:
    """The straight path from the start of ``plain`` to ``end``, an edit of its own end with the same names.

    What is tied in ``plain`` stays tied; dtype, range and moving parameters are those of ``plain``.
    """
    return InterpolationPath(plain.at(0.0), plain._tie(end), plain.dtype, plain.extrapolate, moving=plain.moving)
