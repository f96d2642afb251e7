"""Sharpness-aware fine-tuning: SAM (Foret et al. 2021, 2010.01412) and ASAM (Kwon et al. 2021, 2102.11600)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sharpscope.errors import ConfigError
from sharpscope.finetuning.method import Prepared, Task
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.weights.theta import Theta

__all__ = ["ASAM", "SAM", "uphill"]


@contextlib.contextmanager
def uphill(leaves: Theta, rho: float, scale: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
    """Move the leaves to the point of a ball of radius ``rho`` where the loss is largest to first order.

        w + rho T^2 g / ||T g||,  T = diag(scale(w)), the identity without ``scale``

    g is the gradient in the leaves' ``grad``, over all leaves together. Behind the context the leaves have their old
    values, bit for bit. Where the gradient is 0 or not finite (float16 with too large a loss scale) nothing moves.
    """
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    with torch.no_grad():
        steep = {n: leaf.grad.clone() for n, leaf in leaves.items() if leaf.grad is not None}
        scales = {} if scale is None else {n: scale(leaves[n]) for n in steep}
        for name, t in scales.items():
            steep[name] *= t
        norm = torch.stack([g.norm() for g in steep.values()]).norm() if steep else torch.zeros(())
        if bool(norm > 0) and bool(norm.isfinite()):
            for name, t in scales.items():
                steep[name] *= t
            for name, g in steep.items():
                leaves[name] += rho / norm * g
    try:
        yield
    finally:
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(before[name])


@dataclass(frozen=True, kw_only=True)
class SAM(WiseFT):
    """WiSE-FT's fine-tuning with every gradient taken at the sharpest point within rho of the weights (l2 ball).

    Each step computes two gradients of the same batch: the first one says in which direction the loss rises most, the
    second one is taken there and moves the weights. With ``rho`` 0 this is WiSE-FT's fine-tuning, bit for bit: the two
    differ in the sharpness of the minimum alone, which makes a pair of them the intervention test of a claim about
    sharpness. The weights are perturbed for a whole batch at once (m-sharpness with m = ``batch_size``). No
    configuration for CLIP is public: all but ``rho`` is WiSE-FT's, and ``rho`` is that of the authors' command for
    fine-tuning an ImageNet model (google-research/sam@dae9904, README.md).
    """

    name: ClassVar[str] = "sam"
    title: ClassVar[str] = "SAM"
    source: ClassVar[str] = "Foret et al. 2021, arXiv 2010.01412"

    rho: float = 0.1
    """Radius of the ball around the weights, >= 0; a larger value seeks flatter minima."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rho >= 0:
            raise ConfigError(f"{self.name}: rho needs a number of at least 0, got {self.rho}.")

    def prepare(self, task: Task) -> Prepared:
        prepared = super().prepare(task)
        stages = tuple(dataclasses.replace(stage, ascent=self.ascent) for stage in prepared.stages)
        return dataclasses.replace(prepared, stages=stages)

    def ascent(self, leaves: Theta) -> contextlib.AbstractContextManager[None]:
        """Where the gradient of a step is taken."""
        return uphill(leaves, self.rho)


@dataclass(frozen=True, kw_only=True)
class ASAM(SAM):
    """SAM in a ball that every weight stretches by its own size |w| + eta, so that rescaled layers change nothing.

    T = |w| + eta for every entry of every trained tensor, the scaling of sharpscope's adaptive measures; the authors'
    code leaves tensors unscaled that are not called weight. ``rho`` and ``eta`` are the defaults of the authors' class
    (SamsungLabs/ASAM@f156a68, asam.py), all else WiSE-FT's.
    """

    name: ClassVar[str] = "asam"
    title: ClassVar[str] = "ASAM"
    source: ClassVar[str] = "Kwon et al. 2021, arXiv 2102.11600"

    rho: float = 0.5
    """Radius of the ball in units of the weights, >= 0; a larger value seeks flatter minima."""
    eta: float = 0.01
    """Added to |w|, >= 0, so that weights near 0 are perturbed too; a larger value makes ASAM more like SAM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eta >= 0:
            raise ConfigError(f"{self.name}: eta needs a number of at least 0, got {self.eta}.")

    def ascent(self, leaves: Theta) -> contextlib.AbstractContextManager[None]:
        return uphill(leaves, self.rho, lambda w: w.detach().abs() + self.eta)
