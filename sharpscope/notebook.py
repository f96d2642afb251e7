"""Curvature without a run directory: of a pair of checkpoints, or of any module with any loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from sharpscope.clip.pair import LoadedPair
from sharpscope.clip.prefix import Prefix
from sharpscope.clip.probe import Probe
from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError
from sharpscope.layers import split_layers
from sharpscope.tables.rows import stacked

__all__ = ["layer_curvature", "layer_sharpness"]


class _ModuleObjective:
    """A loss of a live module, as the engine wants it: a function of named tensors."""

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module, Any], Any], batches: Sequence[Any]) -> None:
        self._wrapped = _Called(module, loss)
        self._batches = batches
        self.batch_sizes = [_batch_size(b) for b in batches]
        self.weights = [n / sum(self.batch_sizes) for n in self.batch_sizes]

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return self._call(self._wrapped, i, theta)

    def _call(self, wrapped: nn.Module, i: int, theta: Mapping[str, Tensor]) -> Any:
        named = {f"module.{n}": t for n, t in theta.items()}
        return torch.func.functional_call(wrapped, named, (self._batches[i],))

    def suffix(self, theta: Mapping[str, Tensor], names: Sequence[str]) -> Objective:
        """For finite perturbations of some parameters: the modules before them run once a batch."""
        return _Suffix(self, Prefix(self._wrapped.module, names), [theta[n] for n in names], theta)


class _ModuleClassification(_ModuleObjective):
    """One whose logits and labels can be had beside it."""

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[nn.Module, Any], Any],
        batches: Sequence[Any],
        logits: Callable[[nn.Module, Any], tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(module, loss, batches)
        self._outputs = _Called(module, logits)

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = self._call(self._outputs, i, theta)[0]
        return out

    def batch_labels(self, i: int) -> Tensor:
        with torch.no_grad():
            out: Tensor = self._outputs(self._batches[i])[1]
        return out


class _Suffix:
    """The loss of a module for changes of some parameters only (see ``clip.prefix``)."""

    def __init__(
        self, objective: _ModuleObjective, prefix: Prefix, changed: Sequence[Tensor], theta: Mapping[str, Tensor]
    ) -> None:
        self.objective, self.weights = objective, objective.weights
        self._prefix, self._changed, self._theta = prefix, changed, theta
        self._batch: int | None = None

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        if self._batch != i:
            with self._prefix.recording(self._changed):
                self.objective.batch_loss(i, self._theta)
            self._batch = i
        with self._prefix.replaying():
            return self.objective.batch_loss(i, theta)


class _Called(nn.Module):
    """Makes ``function(module, batch)`` a forward pass, so that functional_call can put tensors into the module."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def forward(self, batch: Any) -> Any:
        return self._function(self.module, batch)


def _batch_size(batch: Any) -> int:
    first = batch
    while isinstance(first, (tuple, list, Mapping)):
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    if not isinstance(first, Tensor) or first.ndim == 0:
        raise ConfigError("batches: the first item of a batch must be a tensor with one row an example.")
    return len(first)


def layer_curvature(
    module: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    granularity: str = "module",
    measures: Sequence[str] = ("hessian_trace", "lambda_max", "lambda_min"),
    logits: Callable[[nn.Module, Any], tuple[Tensor, Tensor]] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Layer-wise curvature of any loss of any module: one row a layer and measure, with error bars.

    >>> net, batch = torch.nn.Linear(3, 2), (torch.eye(3), torch.tensor([0, 1, 1]))
    >>> loss = lambda net, batch: torch.nn.functional.cross_entropy(net(batch[0]), batch[1])
    >>> list(layer_curvature(net, loss, [batch], rtol=0.01)["measure"].unique())
    ['hessian_trace', 'lambda_max', 'lambda_min']

    Args:
        module: handed back as it came: weights, gradients, mode. Measured in eval mode.
        loss: ``loss(module, batch)`` -> mean loss of the batch, a scalar.
        batches: e.g. a DataLoader: tensors, or tuples or dictionaries of tensors whose first has one row an example,
            on the module's device; the Hessian is that of the mean over all EXAMPLES, also when the last batch is
            smaller.
        granularity: tensor | module | block.
        measures: names of ``schema.MEASURES``.
        logits: ``logits(module, batch)`` -> (logits [n, C], labels [n]) where the loss is their cross-entropy:
            ``ggn_trace``, ``fisher_trace`` and ``trace_method="controlled"`` need it.
        settings: fields of ``MeasureSettings``.

    Returns the columns of the sharpness table but pair and alpha.
    """
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        parts = list(batches)
        objective = (
            _ModuleObjective(module, loss, parts)
            if logits is None
            else _ModuleClassification(module, loss, parts, logits)
        )
        theta = {n: p.detach() for n, p in module.named_parameters()}
        moving = {n: t.shape for n, t in theta.items() if t.is_floating_point()}
        layers = split_layers(moving, granularity)
        result = measure_layers(objective, theta, layers, measures, MeasureSettings(**settings))
    finally:
        for m, training in modes.items():
            m.training = training
    frame = pd.DataFrame(result.rows)
    frame.insert(1, "granularity", granularity)
    return frame


# ---------------------------------------------------------------------- notebook
def layer_sharpness(
    pair: LoadedPair,
    probe: Probe,
    *,
    alphas: Sequence[float] = (0.0, 0.5, 1.0),
    granularity: str = "module",
    measures: Sequence[str] = ("hessian_trace", "lambda_max", "lambda_min"),
    progress: Callable[[str], None] = lambda what: None,
    **settings: Any,
) -> pd.DataFrame:
    """The sharpness table of one pair without a run directory: layers x alphas x measures, warm-started along alpha.

    ``settings`` are fields of ``curvature.measures.MeasureSettings`` (rtol, max_matvecs, seed ...).
    """
    path, layers = pair.path(probe.dtype), pair.layers(granularity)
    rows: list[dict[str, Any]] = []
    warm: dict[str, RitzSpace] = {}
    for alpha in alphas:
        theta = {k: v.to(probe.device) for k, v in path.at(alpha).items()}
        result = measure_layers(
            probe,
            theta,
            layers,
            measures,
            MeasureSettings(**settings),
            key=(pair.name, alpha),
            warm=warm,
            progress=progress,
        )
        warm = result.warm
        rows += [{"pair": pair.name, "alpha": alpha, "granularity": granularity} | row for row in result.rows]
    return stacked("sharpness", [pd.DataFrame(rows)])
