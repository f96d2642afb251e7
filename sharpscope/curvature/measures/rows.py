"""Settings and results of the measures, and the rows of the sharpness table that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sharpscope.config.ranges import check_products, check_ranges
from sharpscope.config.study import StudyConfig
from sharpscope.curvature.arithmetic import in_precision
from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.imageerrors import ImageLosses, batch_sizes, error_over_images, told_apart
from sharpscope.curvature.needed import needed
from sharpscope.curvature.operator import Objective
from sharpscope.curvature.trace import TraceEstimate
from sharpscope.errors import NumericalError, listing
from sharpscope.layers import Layer
from sharpscope.vocabulary import ALL, MEASURES, EigenMethod, Precision, Products, TraceMethod, budget_of

__all__ = ["ONE_UNIT", "MeasureResult", "MeasureSettings", "MeasureTable", "Point", "trace_row"]

UNTOLD = "the estimator does not tell images apart"
ONE_UNIT = "this layer's images cannot be told apart, and there is one batch only"
_COUNTS = ("max_matvecs", "noise_samples", "pgd_steps", "density_steps", "density_runs")


@dataclass(frozen=True)
class MeasureSettings:
    """What the estimators may spend and how precise they must be; see ``config.StudyConfig`` for each field.

    Raises ConfigError for a number outside its range, such as an rtol of 1 or more.
    """

    seed: int = StudyConfig.seed
    rtol: float = StudyConfig.rtol
    atol_share: float = StudyConfig.atol_share
    max_matvecs: int = StudyConfig.max_matvecs
    noise_samples: int = StudyConfig.noise_samples
    pgd_steps: int = StudyConfig.pgd_steps
    rho_avg: float = StudyConfig.rho_avg
    rho_linf: float = StudyConfig.rho_linf
    rho_l2: float = StudyConfig.rho_l2
    rho_geodesic: float = StudyConfig.rho_geodesic
    memory: int | None = None
    trace_method: TraceMethod = StudyConfig.trace_method
    precision: Precision = StudyConfig.precision
    density_steps: int = 20
    density_runs: int = 8
    normalize_logits: bool = StudyConfig.normalize_logits
    random_start: bool = StudyConfig.random_start
    eigen_method: EigenMethod = StudyConfig.eigen_method
    products: Products = StudyConfig.products

    def __post_init__(self) -> None:
        check_ranges(
            self,
            least=dict.fromkeys(_COUNTS, 1) | {"atol_share": 0},
            positive=("rtol", "rho_avg", "rho_linf", "rho_l2", "rho_geodesic", "memory"),
        )
        check_products(self)


@dataclass(frozen=True)
class MeasureResult:
    """Rows for the sharpness table (without pair, alpha and granularity), and Ritz pairs for the next alpha.

    ``warm``: Ritz pairs by layer, from which the next alpha starts. ``facts``: how the gradient graphs were laid out in
    memory. ``parts``: (measure, layer) -> what each image adds to the estimate [n], where images are told apart.
    """

    rows: list[dict[str, Any]]
    warm: dict[str, RitzSpace] = field(default_factory=dict, repr=False)
    facts: dict[str, Any] = field(default_factory=dict)
    parts: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Point:
    """One point of the path as the families of measures see it."""

    objective: Objective
    """The probe's loss, in full precision."""
    theta: Mapping[str, Tensor]
    layers: tuple[Layer, ...]
    """The whole model, ``(all)``, first, then the layers in forward order."""
    settings: MeasureSettings
    seed: Callable[..., int]
    """A function from the name of a purpose (and a layer) to a seed, which differs from those of other points."""
    warm: Mapping[str, RitzSpace]
    """Ritz pairs of the layers at a neighbouring point."""
    progress: Callable[[str], None]

    @cached_property
    def least(self) -> Objective:
        """The loss without the rows of its forward pass that it does not read (``curvature.needed``)."""
        return needed(self.objective, self.theta)

    @cached_property
    def rough(self) -> Objective:
        """The same in the arithmetic that ``settings.precision`` asks for in Hessian-vector products."""
        return in_precision(self.least, self.settings.precision, self.theta)

    @cached_property
    def image_losses(self) -> ImageLosses:
        """The losses of the images, or batches, around this point, in full precision."""
        return ImageLosses(self.least, self.theta)

    @cached_property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Layer -> names of its parameters."""
        return {x.name: x.params for x in self.layers}


class MeasureTable:
    """Collects rows and fills in the columns that all rows have, including each layer's share of the whole.

    ``objective``: the probe's loss, which says how many images a row is about and how they make up the batches.
    """

    def __init__(self, layers: Sequence[Layer], objective: Objective) -> None:
        self.layers = {x.name: x for x in layers}
        sizes = batch_sizes(objective)
        self.images = None if sizes is None else sum(sizes)
        self.order = {x.name: i for i, x in enumerate(layers)}
        self.spaces: dict[str, RitzSpace] = {}
        """Ritz pairs of the layers, for the next point."""
        self.facts: dict[str, Any] = {}
        """How the gradient graphs were laid out in memory."""
        self.parts: dict[tuple[str, str], Tensor] = {}
        """(measure, layer) -> what each image adds to the estimate [n], float32 on the CPU."""
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(
        self,
        layer: str,
        measure: str,
        estimate: float,
        *,
        seed: int,
        converged: bool,
        untold: str = UNTOLD,
        **more: Any,
    ) -> None:
        """Add one row; ``untold``: what its note says where there is a value and no error over draws of images."""
        x = self.layers[layer]
        finite = math.isfinite(estimate)
        per_param = estimate / x.num_params if MEASURES[measure].per_param and finite else math.nan
        row: dict[str, Any] = {
            "layer": layer, "tower": x.tower, "depth": x.depth, "kind": x.kind, "num_params": x.num_params,
            "measure": measure, "estimate": estimate if finite else math.nan, "stderr": math.nan,
            "stderr_images": math.nan, "n": self.images, "residual": math.nan, "converged": bool(converged and finite),
            "num_matvecs": 0, "seed": seed,
            "status": "failed" if not finite else "ok" if converged else "not_converged",
            "per_param": per_param, "share": math.nan, "rho": math.nan,
            "note": "" if finite else "the estimate is not finite",
        }  # fmt: skip
        row |= {key: value for key, value in more.items() if key != "note" or value}
        if finite and not math.isfinite(row["stderr_images"]):
            row["note"] = "; ".join(x for x in (row["note"], f"no stderr_images: {untold}") if x)
        if row["status"] == "not_converged" and (flag := budget_of(measure)):
            row["note"] = "; ".join(x for x in (row["note"], f"raise {flag} to go on") if x)
        self._rows[layer, measure] = row

    def fail(self, measures: Iterable[str], reason: str, layers: Iterable[str] | None = None) -> None:
        for layer in self.layers if layers is None else layers:
            for measure in measures:
                self.add(layer, measure, math.nan, seed=0, converged=False, note=reason)

    def check(self, measures: Iterable[str]) -> None:
        """Raise NumericalError unless there is a row for every layer and measure; no row may be missing silently."""
        for measure in measures:
            lost = [layer for layer in self.layers if (layer, measure) not in self._rows]
            if lost:
                family = MEASURES[measure].family
                raise NumericalError(
                    f"measures: the family '{family}' gave no row for {measure} of {listing(lost, 3)}."
                )

    def rows(self) -> list[dict[str, Any]]:
        for (_, measure), row in self._rows.items():
            whole = self._rows.get((ALL, measure))
            if MEASURES[measure].share and whole is not None and whole["estimate"] not in (0.0, None):
                row["share"] = row["estimate"] / whole["estimate"]
        return list(self._rows.values())


def trace_row(
    table: MeasureTable,
    layer: str,
    measure: str,
    result: TraceEstimate,
    seed: int,
    objective: Objective,
    note: str = "",
) -> None:
    """Add the row of a trace; ``note`` is used only where the estimate is finite.

    ``objective``: the loss in the batches to which the result's contributions belong.
    """
    error = math.nan
    if result.contributions is not None and math.isfinite(result.estimate):
        parts, sizes = result.contributions, batch_sizes(objective)
        # The error of the estimate is a part of it, and the stated one may be the larger of two guesses at that part.
        error = max(error_over_images(parts, objective.weights, sizes, blur=result.blur), result.stderr)
        if told_apart(parts, sizes):
            table.parts[measure, layer] = torch.cat(parts).detach().float().cpu()
    table.add(
        layer, measure, result.estimate, seed=seed, converged=result.converged, stderr=result.stderr,
        num_matvecs=result.num_matvecs, stderr_images=error, note=note if math.isfinite(result.estimate) else "",
        untold=ONE_UNIT if result.contributions is not None else UNTOLD,
    )  # fmt: skip
