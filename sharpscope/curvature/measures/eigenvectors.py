"""The top eigenvectors of chosen layers at one point of the path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sharpscope.curvature.arithmetic import in_precision, second_order
from sharpscope.curvature.functional import engine_for
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.operator import Objective, solve_together
from sharpscope.curvature.pairs import EigenPairs, top_eigenpairs_steps
from sharpscope.layers import Layer
from sharpscope.seeds import derive
from sharpscope.vocabulary import ALL

__all__ = ["measure_eigenvectors"]


def measure_eigenvectors(
    objective: Objective,
    theta: Mapping[str, Tensor],
    layers: Sequence[Layer],
    names: Sequence[str],
    count: int,
    settings: MeasureSettings | None = None,
    *,
    key: Sequence[object] = (),
) -> dict[str, EigenPairs]:
    """The ``count`` largest eigenvalues of each layer of ``names``, ``(all)`` among them, with their eigenvectors.

    A layer with fewer parameters than ``count`` has one pair per parameter. Vectors are in the order of the layer's
    ``params``, flattened and concatenated.

    Raises:
        ConfigError: more pairs than ``max_matvecs``.
        NumericalError: the loss, its gradient or a product cannot be computed.
    """
    if not count:
        return {}
    settings = settings or MeasureSettings()
    blocks = {ALL: tuple(n for x in layers for n in x.params)} | {x.name: x.params for x in layers}
    with second_order(tf32=settings.precision == "tf32"):
        rough = in_precision(objective, settings.precision, theta)
        engine = engine_for(settings.products)(
            rough, theta, {n: blocks[n] for n in names}, memory=settings.memory, use="products"
        )
        work = {
            name: top_eigenpairs_steps(
                spec.size, min(count, spec.size), dtype=engine.dtype, device=engine.device,
                seed=derive(settings.seed, *key, "eigenvectors", name), rtol=settings.rtol,
                max_matvecs=settings.max_matvecs, start=engine.gradient(name),
            )
            for name, spec in engine.blocks.items()
        }  # fmt: skip
        return solve_together(work, lambda open_: engine.answer({n: (n, request) for n, request in open_.items()}))
