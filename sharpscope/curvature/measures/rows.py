"""Settings and results of the measures, and the rows of the sharpness table that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sharpscope.curvature.eigen import End, ExtremeEigenvalues, RitzSpace
from sharpscope.curvature.trace import TraceEstimate
from sharpscope.layers import Layer
from sharpscope.vocabulary import ALL

__all__ = ["MeasureResult", "MeasureSettings"]
EIGENVALUES: dict[str, End] = {"lambda_max": "largest", "lambda_min": "smallest", "lambda_abs": "dominant"}
GRADIENT = ("gradient_curvature", "gradient_alignment")


@dataclass(frozen=True)
class MeasureSettings:
    """What the estimators may spend and how precise they must be; see ``config.StudyConfig`` for each field."""

    seed: int = 0
    rtol: float = 0.05
    max_matvecs: int = 100
    noise_samples: int = 8
    pgd_steps: int = 20
    rho_avg: float = 0.1
    rho_linf: float = 0.002
    rho_l2: float = 0.5
    memory: int | None = None
    trace_method: str = "per_example"
    precision: str = "full"
    density_steps: int = 20
    density_runs: int = 8


@dataclass(frozen=True)
class MeasureResult:
    """Rows for the sharpness table (without pair, alpha and granularity) and what the next alpha starts from."""

    rows: list[dict[str, Any]]
    warm: dict[str, RitzSpace] = field(default_factory=dict, repr=False)
    facts: dict[str, Any] = field(default_factory=dict)


class MeasureTable:
    """Collects rows; adds what every row has, and the layer's share of the whole once all are there."""

    def __init__(self, layers: Sequence[Layer], seed: Callable[..., int], settings: MeasureSettings) -> None:
        self.layers = {x.name: x for x in layers}
        self.order = {x.name: i for i, x in enumerate(layers)}
        self.seed, self.settings = seed, settings
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, layer: str, measure: str, estimate: float, *, seed: int, converged: bool, **more: Any) -> None:
        x = self.layers[layer]
        finite = math.isfinite(estimate)
        per_param = estimate / x.num_params if measure not in (*EIGENVALUES, *GRADIENT) and finite else math.nan
        row = {
            "layer": layer, "tower": x.tower, "depth": x.depth, "kind": x.kind, "num_params": x.num_params,
            "measure": measure, "estimate": estimate if finite else math.nan, "stderr": math.nan, "residual": math.nan,
            "converged": bool(converged and finite), "num_matvecs": 0, "seed": seed,
            "status": "failed" if not finite else "ok" if converged else "not_converged",
            "per_param": per_param, "share": math.nan, "rho": math.nan, "note": "" if finite else "not finite",
        }  # fmt: skip
        self._rows[layer, measure] = row | more

    def fail(self, measures: Iterable[str], reason: str, layers: Iterable[str] | None = None) -> None:
        for layer in self.layers if layers is None else layers:
            for measure in measures:
                self.add(layer, measure, math.nan, seed=0, converged=False, note=reason)

    def rows(self) -> list[dict[str, Any]]:
        for (_, measure), row in self._rows.items():
            whole = self._rows.get((ALL, measure))
            if measure not in GRADIENT and whole is not None and whole["estimate"] not in (0.0, None):
                row["share"] = row["estimate"] / whole["estimate"]
        return list(self._rows.values())


def trace_row(table: MeasureTable, layer: str, measure: str, result: TraceEstimate, seed: int, note: str = "") -> None:
    said = {"note": note} if note and math.isfinite(result.estimate) else {}
    table.add(
        layer, measure, result.estimate, seed=seed, converged=result.converged, stderr=result.stderr,
        num_matvecs=result.num_matvecs, **said,
    )  # fmt: skip


def trace_rows(table: MeasureTable, layer: str, result: TraceEstimate, seed: int, note: str) -> None:
    trace_row(table, layer, "hessian_trace", result, seed, note)
    if result.weighted is not None:
        value, stderr = result.weighted
        converged = stderr <= table.settings.rtol * abs(value)
        table.add(
            layer, "weighted_trace", value, seed=seed, converged=converged, stderr=stderr,
            num_matvecs=result.num_matvecs,
        )  # fmt: skip


def eigen_rows(table: MeasureTable, layer: str, result: ExtremeEigenvalues, seed: int) -> None:
    for measure, end in zip(EIGENVALUES, (result.largest, result.smallest, result.dominant), strict=True):
        table.add(
            layer, measure, end.value, seed=seed, converged=end.converged, residual=end.residual,
            num_matvecs=end.num_matvecs,
        )  # fmt: skip
