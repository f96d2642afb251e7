"""Settings that would change nothing: each is refused, with the setting or the measure that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sharpscope.errors import ConfigError
from sharpscope.vocabulary import MEASURES, EigenMethod, Products, TraceMethod

__all__ = ["PRODUCT_COSTS", "check_uses"]

PRODUCT_COSTS = ("trace", "eigenvalues", "product")
"""The kinds of work of a measure that take Hessian-vector products."""


class _Settings(Protocol):
    @property
    def normalize_logits(self) -> bool: ...
    @property
    def random_start(self) -> bool: ...
    @property
    def eigen_method(self) -> EigenMethod: ...
    @property
    def products(self) -> Products: ...
    @property
    def trace_method(self) -> TraceMethod: ...


def check_uses(settings: _Settings, measures: Sequence[str], *, products_elsewhere: bool = False) -> None:
    """Check that every setting that is not at its default is used by one of the ``measures``.

    ``products_elsewhere``: whether spectral densities or eigenvectors are computed too, which take products as well.

    Raises:
        ConfigError: a setting that would change nothing, naming it and what it needs.
    """
    kinds = [MEASURES.find(m, "measures") for m in measures]
    costs = {m.cost for m in kinds}
    radii = ", ".join(m.name for m in MEASURES.values() if m.radius)
    if settings.normalize_logits and not any(m.radius for m in kinds):
        raise ConfigError(f"normalize_logits: only measures of finite radius use it, and none is taken ({radii}).")
    if settings.random_start and "worst_case" not in costs:
        worst = ", ".join(m.name for m in MEASURES.values() if m.cost == "worst_case")
        raise ConfigError(f"random_start: only worst-case measures search from a start, and none is taken ({worst}).")
    if settings.eigen_method != "lanczos" and "eigenvalues" not in costs:
        ends = ", ".join(m.name for m in MEASURES.values() if m.cost == "eigenvalues")
        raise ConfigError(f"eigen_method: says how eigenvalues are computed, and none is taken ({ends}).")
    if settings.products == "func":
        if not (costs.intersection(PRODUCT_COSTS) or products_elsewhere):
            raise ConfigError(
                "products: says how Hessian-vector products are computed, and no measure that is taken uses any."
            )
        if settings.trace_method == "controlled":
            raise ConfigError(
                "trace_method: controlled takes the Gauss-Newton part off a kept graph, which products func does not "
                "have.\nRemedy: --trace-method per_example or hutchinson, or --products graph."
            )
