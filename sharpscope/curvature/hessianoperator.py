"""The Hessian of a loss as one operator for notebooks, also in the form that SciPy's sparse solvers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.functional import engine_for
from sharpscope.curvature.hvp import BlockSpec
from sharpscope.curvature.operator import Objective, Probes
from sharpscope.errors import ConfigError
from sharpscope.vocabulary import ALL, Products

__all__ = ["HessianOperator"]


class HessianOperator:
    """The Hessian of a loss with respect to named tensors, [p, p], known through its products with vectors.

    Every estimator of ``sharpscope.curvature`` takes it (``lanczos(H, seed=0)``), and ``H.to_scipy()`` is what
    ``scipy.sparse.linalg.eigsh`` and its neighbours take.

    >>> import torch, sharpscope
    >>> from scipy.sparse.linalg import eigsh
    >>> net, batch = torch.nn.Linear(3, 2).double(), (torch.eye(3).double(), torch.tensor([0, 1, 1]))
    >>> loss = sharpscope.ModuleLoss(net, lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1]), [batch])
    >>> H = sharpscope.HessianOperator(loss, loss.theta)
    >>> H.shape, eigsh(H.to_scipy(), k=1, return_eigenvectors=False).shape
    ((8, 8), (1,))

    Args:
        objective: the loss, e.g. a ``Probe`` or a ``ModuleLoss``.
        theta: the named tensors at which the Hessian is taken, e.g. ``pair.path().at(0.5)``.
        names: the tensors that vary, in the order in which vectors are made of them, e.g. a layer's ``params``; None:
            all floating-point tensors of ``theta`` on which the loss depends.
        memory: bytes that gradient graphs may take; None: all are kept.
        products: graph (double backward on a kept graph) or func (``torch.func``; see ``curvature.functional``).

    Attributes: ``names``; ``shape``, ``dtype``, ``device``; ``loss``, the loss at ``theta``; ``gradient`` [p].

    Raises:
        ConfigError: a name that is no floating-point tensor of ``theta``, an unknown ``products``, or a loss that
            depends on no tensor.
        NumericalError: the loss or its gradient is not finite.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Mapping[str, Tensor],
        names: Sequence[str] | None = None,
        *,
        memory: int | None = None,
        products: Products = "graph",
    ) -> None:
        wanted = [n for n, t in theta.items() if t.is_floating_point()] if names is None else list(names)
        if not wanted:
            raise ConfigError("names: the Hessian of no tensor has no entries; name at least one.")
        with second_order():
            engine = engine_for(products)(objective, theta, {ALL: wanted}, memory=memory)
        if names is None:
            wanted = [n for n in wanted if n not in engine.unused]
            if not wanted:
                raise ConfigError("theta: the loss depends on none of its floating-point tensors.")
            engine.blocks[ALL] = BlockSpec(tuple(wanted), tuple(theta[n].shape for n in wanted))
        self._engine, self.names = engine, tuple(wanted)
        self.shape = (engine.blocks[ALL].size,) * 2
        self.dtype, self.device = engine.dtype, engine.device
        self.loss, self.gradient = engine.loss, engine.gradient(ALL)

    def matvec(self, v: Tensor) -> Tensor:
        """H v for v of shape [p]."""
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, vs: Tensor) -> Tensor:
        """H V for V of shape [p, k], in one pass over the batches."""
        return self.answer(vs)

    def answer(self, request: Tensor | Probes) -> Tensor:
        """H V for a matrix V [p, k], or [units, count] for ``Probes``."""
        with second_order():
            return self._engine.answer({ALL: (ALL, request)})[ALL]

    def split(self, v: Tensor) -> dict[str, Tensor]:
        """A vector [p] as {parameter: tensor of its shape}, which is what ``loss_slice`` takes as a direction."""
        return dict(zip(self.names, self._engine.blocks[ALL].split(v), strict=True))

    def to_scipy(self) -> LinearOperator:
        """The same operator on numpy arrays, in the dtype of the weights (float32 or float64)."""
        kind = np.dtype(str(self.dtype).removeprefix("torch."))

        def product(vs: np.ndarray) -> np.ndarray:
            columns = torch.as_tensor(np.ascontiguousarray(vs), dtype=self.dtype, device=self.device)
            out: np.ndarray = self.matmat(columns.reshape(self.shape[0], -1)).cpu().numpy()
            return out.reshape(vs.shape)

        given: dict[str, Any] = {"matvec": product, "rmatvec": product, "matmat": product, "rmatmat": product}
        return LinearOperator(self.shape, dtype=kind, **given)

    def __repr__(self) -> str:
        return f"HessianOperator(size={self.shape[0]}, tensors={len(self.names)}, dtype={self.dtype})"
