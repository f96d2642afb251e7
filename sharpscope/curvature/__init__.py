"""Second derivatives of a loss, block by block: products, traces, eigenvalues, spectra, and sharpness at a radius.

A loss is an ``Objective``: a mean over examples, cut into batches, as a function of named tensors. ``HessianEngine``
turns the Hessian blocks of a loss into ``SymmetricOperator`` objects. Every estimator takes such an operator and
returns a frozen result that states its own error. An example with two layers of a small network:

>>> import torch
>>> from sharpscope.curvature import HessianEngine, lanczos, per_example_trace
>>> class Loss:
...     weights, batch_sizes = (1.0,), (8,)  # one batch of eight examples
...     def __init__(self, x, y):
...         self.x, self.y = x, y
...     def batch_loss(self, i, theta):
...         hidden = torch.tanh(self.x @ theta["first"].T)
...         return torch.nn.functional.cross_entropy(hidden @ theta["last"].T, self.y)
>>> draw = torch.Generator().manual_seed(0)
>>> loss = Loss(torch.randn(8, 4, generator=draw), torch.arange(8) % 3)
>>> theta = {"first": torch.randn(5, 4, generator=draw), "last": torch.randn(3, 5, generator=draw)}
>>> engine = HessianEngine(loss, theta, {"first": ["first"], "last": ["last"]})
>>> trace = per_example_trace(engine.operator("last"), seed=0, rtol=0.01, max_matvecs=200)
>>> round(trace.estimate, 3), trace.stderr, trace.converged  # 15 parameters: the trace is exact
(0.854, 0.0, True)
>>> ends = lanczos(engine.operator("first"), seed=0, rtol=1e-4)
>>> ends.largest.converged, ends.largest.value > 0 > ends.smallest.value
(True, True)

Code that runs a CLIP goes inside ``second_order()``, because CLIP's default attention kernels have no second
derivative. ``measure_layers`` takes many measures of many layers at once, as a study does.
``sharpscope.layer_curvature`` does the same for any module and needs neither a CLIP nor an ``Objective``. Each name of
this package is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharpscope.curvature.arithmetic import in_precision, precision_error, second_order
    from sharpscope.curvature.density import SpectralDensity, spectral_density
    from sharpscope.curvature.eigen import EigenEstimate, ExtremeEigenvalues, RitzSpace, lanczos
    from sharpscope.curvature.fisher import FisherDiagonal, diagonal_fisher
    from sharpscope.curvature.functional import FunctionalEngine
    from sharpscope.curvature.ggn import (
        ClassificationObjective,
        Fisher,
        GaussNewton,
        Residual,
        fisher_trace,
        ggn_trace,
        is_cross_entropy,
    )
    from sharpscope.curvature.graphs import MemoryPlan, plan_memory
    from sharpscope.curvature.hessianoperator import HessianOperator
    from sharpscope.curvature.hvp import BlockSpec, HessianEngine, LayerHessian
    from sharpscope.curvature.measures.registry import measure_layers
    from sharpscope.curvature.measures.rows import MeasureResult, MeasureSettings
    from sharpscope.curvature.operator import (
        AnswersProbes,
        Cuttable,
        DenseOperator,
        Divisible,
        FunctionOperator,
        Objective,
        Probes,
        SymmetricOperator,
        check_symmetric,
        solve,
        solve_together,
    )
    from sharpscope.curvature.pairs import EigenPairs, top_eigenpairs
    from sharpscope.curvature.perturbation import SharpnessEstimate, sharpness_avg, sharpness_max
    from sharpscope.curvature.power import power_iteration
    from sharpscope.curvature.slices import random_direction
    from sharpscope.curvature.trace import TraceEstimate, hutchinson, hutchpp, per_example_trace, xtrace
    from sharpscope.curvature.tracking import tracked

__all__ = [
    "AnswersProbes",
    "BlockSpec",
    "ClassificationObjective",
    "Cuttable",
    "DenseOperator",
    "Divisible",
    "EigenEstimate",
    "EigenPairs",
    "ExtremeEigenvalues",
    "Fisher",
    "FisherDiagonal",
    "FunctionOperator",
    "FunctionalEngine",
    "GaussNewton",
    "HessianEngine",
    "HessianOperator",
    "LayerHessian",
    "MeasureResult",
    "MeasureSettings",
    "MemoryPlan",
    "Objective",
    "Probes",
    "Residual",
    "RitzSpace",
    "SharpnessEstimate",
    "SpectralDensity",
    "SymmetricOperator",
    "TraceEstimate",
    "check_symmetric",
    "diagonal_fisher",
    "fisher_trace",
    "ggn_trace",
    "hutchinson",
    "hutchpp",
    "in_precision",
    "is_cross_entropy",
    "lanczos",
    "measure_layers",
    "per_example_trace",
    "plan_memory",
    "power_iteration",
    "precision_error",
    "random_direction",
    "second_order",
    "sharpness_avg",
    "sharpness_max",
    "solve",
    "solve_together",
    "spectral_density",
    "top_eigenpairs",
    "tracked",
    "xtrace",
]

# Type checkers read the imports above, and Python reads this table. tests/test_public.py checks that both name the same
# objects as __all__.
_HOME = {
    name: f"sharpscope.curvature.{module}"
    for module, names in {
        "arithmetic": "in_precision precision_error second_order",
        "density": "SpectralDensity spectral_density",
        "eigen": "EigenEstimate ExtremeEigenvalues RitzSpace lanczos",
        "hessianoperator": "HessianOperator",
        "fisher": "FisherDiagonal diagonal_fisher",
        "functional": "FunctionalEngine",
        "ggn": "ClassificationObjective Fisher GaussNewton Residual fisher_trace ggn_trace is_cross_entropy",
        "graphs": "MemoryPlan plan_memory",
        "hvp": "BlockSpec HessianEngine LayerHessian",
        "measures.registry": "measure_layers",
        "measures.rows": "MeasureResult MeasureSettings",
        "operator": (
            "AnswersProbes Cuttable DenseOperator Divisible FunctionOperator Objective Probes SymmetricOperator "
            "check_symmetric solve solve_together"
        ),
        "pairs": "EigenPairs top_eigenpairs",
        "perturbation": "SharpnessEstimate sharpness_avg sharpness_max",
        "power": "power_iteration",
        "slices": "random_direction",
        "trace": "TraceEstimate hutchinson hutchpp per_example_trace xtrace",
        "tracking": "tracked",
    }.items()
    for name in names.split()
}


if not TYPE_CHECKING:  # otherwise a type checker would accept every misspelt name as Any

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'sharpscope.curvature' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
