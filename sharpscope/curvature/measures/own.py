"""Measures from outside the package: a user's function of one layer, applied to every layer and to the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.functional import engine_for
from sharpscope.curvature.hvp import HessianEngine, LayerHessian
from sharpscope.curvature.measures.rows import MeasureSettings, MeasureTable, Point
from sharpscope.curvature.measures.solving import facts_of
from sharpscope.errors import ConfigError, NumericalError, shown
from sharpscope.machine.team import team_of
from sharpscope.vocabulary import MEASURES, AddsUp, Measure

__all__ = ["LayerAt", "LayerValue", "register_measure", "take", "taken_by_layer"]


@dataclass(frozen=True)
class LayerValue:
    """What a user-defined measure found in one layer.

    ``estimate``: the value. ``stderr``: its standard error, in the same unit, or NaN. ``residual``: a guaranteed bound
    on its error, in the same unit, or NaN. ``converged``: whether the requested tolerance was reached.
    ``num_matvecs``: the number of products with the layer's Hessian that were spent. ``stderr_images``: the standard
    error over other draws of as many images, or NaN.
    """

    estimate: float
    stderr: float = math.nan
    residual: float = math.nan
    converged: bool = True
    num_matvecs: int = 0
    stderr_images: float = math.nan


@dataclass(frozen=True)
class LayerAt:
    """One layer (or the whole model, ``(all)``) with p parameters at one point of the path.

    >>> def squared_gradient_norm(layer):
    ...     return float(layer.gradient @ layer.gradient)
    """

    name: str
    operator: LayerHessian
    """The layer's Hessian block H_ll [p, p]: ``matvec(v)`` for v [p], ``matmat(vs)`` for vs [p, k]. Every estimator
    of ``sharpscope.curvature`` takes it."""
    gradient: Tensor
    """Gradient of the probe's loss with respect to the layer's parameters, [p]."""
    weights: Tensor
    """The layer's parameters at this point, [p], in the order of ``gradient``."""
    loss: Callable[[Tensor], float]
    """The probe's mean loss, in nats, as a function of a change [p] that is added to the layer's parameters."""
    seed: int
    """The seed for random numbers. It differs between layers and points of the path and is the same in every run."""
    settings: MeasureSettings
    """The tolerance and the budgets of the study."""


OwnMeasure = Callable[[LayerAt], float | LayerValue]
_FUNCTIONS: dict[str, OwnMeasure] = {}


def register_measure(
    name: str,
    text: str,
    *,
    adds_up: AddsUp,
    per_param: bool = True,
    share: bool = True,
) -> Callable[[OwnMeasure], OwnMeasure]:
    """Decorator: register a function of one layer as a measure that flags, tables, figures and the report know.

    >>> @register_measure("gradient_l1", "l1 norm of the layer's gradient", adds_up="sum")  # doctest: +SKIP
    ... def gradient_l1(layer):
    ...     return float(layer.gradient.abs().sum())

    Args:
        name: the measure's name in flags and tables; letters, digits and ``_``.
        text: a description of the measure, in one phrase.
        adds_up: how the value of several layers together follows from the values of each: sum, norm (the
            root of the sum of the squares), max, min, magnitude (the value of largest magnitude, with its sign) or
            none.
        per_param: whether the value divided by the number of parameters is meaningful.
        share: whether the layer's value divided by the whole model's value is meaningful.

    The function gets a ``LayerAt`` and returns a number or a ``LayerValue``. A value that is not finite, or a
    ``NumericalError`` that the function raises, becomes a row with status ``failed``.

    Raises:
        ConfigError: a name that is taken or contains other characters, or an unknown ``adds_up``.
    """
    if not name.isidentifier():
        raise ConfigError(f"measure '{shown(name, 60)}': a name is made of letters, digits and _.")

    def register(function: OwnMeasure) -> OwnMeasure:
        MEASURES.add(Measure(name, text, "own", adds_up, "product", per_param=per_param, share=share))
        _FUNCTIONS[name] = function
        return function

    return register


def take(point: Point, measures: Sequence[str], table: MeasureTable) -> None:
    """Add the rows of ``measures`` that were registered with ``register_measure``, layer by layer."""
    take_functions(point, {name: _FUNCTIONS[name] for name in measures}, table)


def taken_by_layer(**functions: OwnMeasure) -> Callable[[Point, Sequence[str], MeasureTable], None]:
    """A function ``take`` for a family whose measures are functions of one layer; ``functions``: by measure name."""

    def take(point: Point, measures: Sequence[str], table: MeasureTable) -> None:
        take_functions(point, {name: functions[name] for name in measures}, table)

    return take


def take_functions(point: Point, functions: Mapping[str, OwnMeasure], table: MeasureTable) -> None:
    """Add the rows of ``functions``, which all use the same gradient graphs."""
    with second_order(tf32=point.settings.precision == "tf32"):
        try:
            engine = engine_for(point.settings.products)(
                point.rough, point.theta, point.blocks, memory=point.settings.memory
            )
        except NumericalError as error:
            table.fail(functions, str(error))
            return
        table.facts = table.facts or facts_of(engine)
        for name, function in functions.items():
            for layer in point.layers:
                seed = point.seed(name, layer.name)
                try:
                    found = function(_view(point, engine, layer.name, seed))
                except NumericalError as error:
                    table.fail([name], str(error), [layer.name])
                    continue
                value = found if isinstance(found, LayerValue) else LayerValue(float(found))
                table.add(
                    layer.name, name, value.estimate, seed=seed, converged=value.converged, stderr=value.stderr,
                    residual=value.residual, num_matvecs=value.num_matvecs, stderr_images=value.stderr_images,
                    untold="the measure gives none",
                )  # fmt: skip
            point.progress(name)


def _view(point: Point, engine: HessianEngine, layer: str, seed: int) -> LayerAt:
    spec = engine.blocks[layer]

    @torch.no_grad()
    def loss(change: Tensor) -> float:
        moved = dict(point.theta)
        for name, part in zip(point.blocks[layer], spec.split(change), strict=True):
            moved[name] = moved[name] + part.to(moved[name])
        weights = point.objective.weights
        losses = team_of(point.objective).each(
            "a loss", len(weights), lambda i: float(point.objective.batch_loss(i, moved))
        )
        return sum(w * value for w, value in zip(weights, losses, strict=True))

    return LayerAt(
        layer, engine.operator(layer), engine.gradient(layer), engine.weights(layer), loss, seed, point.settings
    )
