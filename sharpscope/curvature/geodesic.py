"""Geodesic sharpness: the worst rise of the loss along geodesics that run across the symmetries of attention.

Mixing the rows of an attention head's queries by an invertible matrix A, and those of its keys by A^-T, changes no
output; nor does A on its values and A^-1 on the output projection. Weights that differ by such a mixing are one point
of the quotient manifold. Distances there come from a metric that no mixing changes, and a shortest path leaves the
weights at a right angle (horizontally) to all mixings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharpscope.curvature.ascent import auto_pgd, random_point
from sharpscope.curvature.operator import Objective
from sharpscope.curvature.perturbation import Found, SharpnessEstimate, gathered, searched, without_prefix
from sharpscope.errors import ConfigError, NumericalError, shown

__all__ = ["Geometry", "sharpness_geodesic"]


@dataclass(frozen=True)
class _Pair:
    """Factors [heads, h, n] and [heads, h, m] of one attention, of which only F' G matters; both in float64.

    ``roots``: the Cholesky factors L of F F' and of G G', which turn coordinates u of unit metric into tangents L u.
    """

    factors: tuple[Tensor, Tensor]
    roots: tuple[Tensor, Tensor]
    basis: Tensor
    """T with F F' G G' = T diag(d) T^-1, for the equation that finds the part of a tangent along the mixings."""
    inverse: Tensor
    values: Tensor
    """d [heads, h]."""

    @classmethod
    def of(cls, f: Tensor, g: Tensor) -> _Pair:
        """Raises NumericalError for a factor without full rank, at which the metric is not defined."""
        grams = [x @ x.mT for x in (f, g)]
        roots, bad = zip(*(torch.linalg.cholesky_ex(m) for m in grams), strict=True)
        if any(b.any() for b in bad):
            raise NumericalError(
                "the weights of an attention head do not have full rank, so that no geodesic starts there"
            )
        root: Tensor = roots[0]
        values, vectors = torch.linalg.eigh(root.mT @ grams[1] @ root)
        inverse = vectors.mT @ torch.linalg.inv(root)
        return cls((f, g), (roots[0], roots[1]), root @ vectors, inverse, values)

    def horizontal(self, u: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Coordinates without their part along the mixings (X F, -X' G), by K X + X K = R with K = F F' G G'."""
        f, g = self.factors
        a, b = (root @ x for root, x in zip(self.roots, u, strict=True))
        right = a @ f.mT @ (g @ g.mT) - (f @ f.mT) @ g @ b.mT
        x = self.inverse @ right @ self.basis / (self.values[..., :, None] + self.values[..., None, :])
        x = self.basis @ x @ self.inverse
        solve = torch.linalg.solve_triangular
        return (
            u[0] - solve(self.roots[0], x @ f, upper=False),
            u[1] + solve(self.roots[1], x.mT @ g, upper=False),
        )

    def along(self, u: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The ends of the geodesics with the initial velocities L u, to second order."""
        ends = []
        for f, root, x in zip(self.factors, self.roots, u, strict=True):
            v = root @ x
            mixed = v @ f.mT
            # F'' = S M^-1 F' - F' F'^T M^-1 F with S = F' F^T + F F'^T, M = F F^T
            bend = (mixed + mixed.mT) @ torch.cholesky_solve(v, root) - (v @ v.mT) @ torch.cholesky_solve(f, root)
            ends.append(f + v + bend / 2)
        return ends[0], ends[1]


class Geometry:
    """The weights of one layer [p] as a point of the quotient manifold, with coordinates u [p] of its tangent space.

    The norm of u is that of the metric: tr((F F')^-1 dF dF') for each factor F of an attention head, queries and keys
    (rows [W | b]) and values and output, and (dw / w)^2 for every other parameter, whose symmetries are rescalings. A
    weight that is exactly 0 stays 0.

    Args:
        theta, names: the named tensors, and those of the layer.
        heads: {attention module: number of heads}, as ``clip.attention.attention_heads`` gives them.

    Attributes: ``covered``, the number of heads whose mixings are divided out; ``free`` [p], 1 where a coordinate moves
    a weight and 0 elsewhere.

    Raises:
        ConfigError: an attention of whose tensors only some belong to the layer: then its mixings are no symmetries of
            the layer.
        NumericalError: a head whose weights have not full rank.
    """

    def __init__(self, theta: Mapping[str, Tensor], names: Sequence[str], heads: Mapping[str, int]) -> None:
        self._names = tuple(names)
        self._weights = {n: theta[n].detach() for n in names}
        self._shapes = [theta[n].shape for n in names]
        self._sizes = [theta[n].numel() for n in names]
        self._attentions: dict[str, tuple[int, _Pair, _Pair]] = {}
        self._taken: set[str] = set()
        self.covered = 0
        for prefix, count in heads.items():
            tensors = [n for n in (f"{prefix}.{part}" for part in _PARTS) if n in theta]
            inside = [n for n in tensors if n in self._weights]
            if not inside:
                continue
            if len(inside) < len(tensors):
                raise ConfigError(
                    f"sharpness_geodesic: only a part of the tensors of the attention '{shown(prefix, 60)}' belongs to "
                    "this layer.\nRemedy: --granularity module or block."
                )
            first, second = (_Pair.of(*pair) for pair in _split(self._weights, prefix, count))
            self._attentions[prefix] = (count, first, second)
            self._taken |= set(tensors)
            self.covered += count
        self.free = torch.cat(
            [
                torch.ones_like(w).reshape(-1) if n in self._taken else (w != 0).to(w).reshape(-1)
                for n, w in self._weights.items()
            ]
        )

    def _parts(self, u: Tensor) -> dict[str, Tensor]:
        parts = u.split(self._sizes)
        return {n: p.view(s) for n, p, s in zip(self._names, parts, self._shapes, strict=True)}

    def horizontal(self, u: Tensor) -> Tensor:
        """The orthogonal projection of u [p] onto the directions across all mixings."""
        parts = self._parts(u)
        for prefix, (count, *pairs) in self._attentions.items():
            given = _split(parts, prefix, count)
            parts |= _joined(parts, prefix, [pair.horizontal(x) for pair, x in zip(pairs, given, strict=True)])
        return torch.cat([parts[n].reshape(-1) for n in self._names])

    def at(self, u: Tensor) -> dict[str, Tensor]:
        """The layer's tensors at the end of the geodesic with the initial velocity u [p], to second order."""
        parts = self._parts(u)
        moved = {
            n: w + w.abs() * parts[n] + w * parts[n].square() / 2
            for n, w in self._weights.items() if n not in self._taken
        }  # fmt: skip
        for prefix, (count, *pairs) in self._attentions.items():
            given = _split(parts, prefix, count)
            moved |= _joined(self._weights, prefix, [pair.along(x) for pair, x in zip(pairs, given, strict=True)])
        return moved


_PARTS = ("in_proj_weight", "in_proj_bias", "out_proj.weight")
"""The tensors of an ``nn.MultiheadAttention`` that the mixings change; the bias of its output projection is none."""


def _split(tensors: Mapping[str, Tensor], prefix: str, heads: int) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys, values and output of an attention: factors [heads, h, n] in float64, biases as last column."""
    weight, bias, out = (tensors.get(f"{prefix}.{part}") for part in _PARTS)
    assert weight is not None and out is not None
    rows = (weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)).double()
    q, k, v = rows.view(3, heads, -1, rows.shape[1])
    return [(q, k), (v, out.double().mT.reshape(heads, -1, out.shape[0]))]


def _joined(like: Mapping[str, Tensor], prefix: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The inverse of ``_split``, in the dtype of ``like``."""
    (q, k), (v, o) = pairs
    rows = torch.stack([q, k, v]).flatten(0, 2)
    names = [f"{prefix}.{part}" for part in _PARTS]
    width = like[names[0]].shape[1]
    found = {names[0]: rows[:, :width], names[2]: o.flatten(0, 1).mT}
    if names[1] in like:
        found[names[1]] = rows[:, width]
    return {n: t.to(like[n]) for n, t in found.items()}


def sharpness_geodesic(
    objective: Objective,
    theta: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    rho: float,
    heads: Mapping[str, int],
    steps: int = 20,
    seed: int = 0,
    random_start: bool = False,
) -> tuple[SharpnessEstimate, int]:
    """(E_batch [ max L(exp_w(u)) - L(w) ] over horizontal tangents u with ||u||_w <= rho, number of heads covered).

    The metric and what counts as horizontal are those of ``Geometry``; exp_w is the geodesic to second order. Without
    attention in the layer this is ``sharpness_max`` in the adaptive l2 ball up to terms of second order in rho. The
    result does not change under any mixing of a head's rows. The quotient by the symmetries of attention, the geodesic
    ball and its approximation to second order are the paper's. Ours are the metric (dw / w)^2 of all other parameters,
    the search by Auto-PGD with projected steps, and the default radius.

    Args:
        objective, theta, names, steps, seed, random_start: as for ``perturbation.sharpness_max``.
        rho: the length of the geodesics, > 0. A larger radius allows a larger rise and makes their second order a
            worse approximation; a relative change of all weights by x has the length x sqrt(p).
        heads: {attention module: number of heads}.

    Raises ConfigError and NumericalError as ``Geometry`` does.

    Source: da Silva, Dangel and Oore 2025, arXiv 2505.05409.
    """
    geometry = Geometry(theta, names, heads)
    target = without_prefix(objective, theta, names)

    def search(i: int, generator: torch.Generator) -> Found:
        def loss_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            u = u.detach().requires_grad_()
            loss = target.batch_loss(i, {**theta, **geometry.at(u)})
            if not loss.requires_grad:  # the loss does not depend on these parameters
                return loss, torch.zeros_like(u)
            (gradient,) = torch.autograd.grad(loss, u, allow_unused=True)
            return loss.detach(), torch.zeros_like(u) if gradient is None else gradient

        return auto_pgd(
            loss_and_gradient, geometry.free, rho=rho, norm="l2", steps=steps, generator=generator,
            random_start=random_start, onto=geometry.horizontal,
        )  # fmt: skip

    def skip(generator: torch.Generator) -> None:
        if random_start:
            random_point(geometry.free, rho, "l2", generator)

    found = searched(objective, search, skip, seed)
    estimate = gathered(target, theta, names, found, evaluations=steps + 1 + random_start, adaptive=True)
    return estimate, geometry.covered
