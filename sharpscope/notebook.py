"""Curvature without a run directory: of a pair of checkpoints, or of any module with any loss."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

import pandas as pd
import torch
from torch import Tensor, nn

from sharpscope.clip.pair import LoadedPair
from sharpscope.clip.prefix import Prefix
from sharpscope.clip.probe import Probe
from sharpscope.config.fields import checked_fields
from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.layers import split_layers
from sharpscope.tables.rows import stacked
from sharpscope.vocabulary import Precision, TraceMethod

__all__ = ["MeasureOptions", "layer_curvature", "layer_sharpness"]

F = TypeVar("F", bound=Callable[..., Any])


class MeasureOptions(TypedDict, total=False):
    """What the estimators may spend and how precise they must be.

    seed: the seed from which each layer, measure and alpha derives its own seed for random directions and noise.
    rtol: relative tolerance, > 0. A trace stops when its standard error, an eigenvalue when its residual is at most
        rtol times the estimate's magnitude. Half the tolerance costs about four times the products of a trace.
    max_matvecs: the largest number of Hessian-vector products for one layer and kind of estimate; a row that needs more
        has the status ``not_converged``.
    noise_samples: the number of Gaussian draws for the average sharpness; each is used with both signs.
    pgd_steps: the number of Auto-PGD steps for the worst-case sharpness. More steps usually find a larger rise.
    rho_avg, rho_linf, rho_l2: radii of sharpness_avg, sharpness_max and sharpness_max_l2, in units of the weights'
        magnitudes (for the ``_absolute`` measures: absolute radii, in the unit of the weights).
    memory: bytes that gradient graphs may take; None: all graphs are kept. Less memory means more recomputation and the
        same numbers up to rounding.
    trace_method: per_example, controlled, hutchinson, xtrace or hutchpp.
    precision: arithmetic of the matrix products: full, tf32 (on a GPU) or bf16.
    density_steps, density_runs: for a spectral density, the number of Lanczos steps in each run, and of runs.
    """

    seed: int
    rtol: float
    max_matvecs: int
    noise_samples: int
    pgd_steps: int
    rho_avg: float
    rho_linf: float
    rho_l2: float
    memory: int | None
    trace_method: TraceMethod
    precision: Precision
    density_steps: int
    density_runs: int


def _takes_options(function: F) -> F:
    """Show the fields of MeasureSettings, with their defaults, in the signature and on the help page of ``function``.

    The fields and defaults come from MeasureSettings. MeasureOptions repeats the names for type checkers, and a test
    checks that the two agree.
    """
    own = inspect.signature(function)
    named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    taken = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in dataclasses.fields(MeasureSettings)
    ]
    function.__signature__ = own.replace(parameters=[*named, *taken])  # type: ignore[attr-defined]
    if function.__doc__ and MeasureOptions.__doc__:  # python -OO drops both
        options = textwrap.indent(inspect.cleandoc(MeasureOptions.__doc__).partition("\n\n")[2], "    ")
        function.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\nOptions, all by keyword:\n{options}\n"
    return function


def _settings(options: Mapping[str, Any]) -> MeasureSettings:
    known = {f.name: f.default for f in dataclasses.fields(MeasureSettings)}
    for name in options:
        if name not in known:
            near = did_you_mean(name, known) or f" Known: {', '.join(known)}."
            raise ConfigError(f"unknown option '{shown(name, 60)}'.{near}")
    return MeasureSettings(**checked_fields(MeasureSettings, {**known, **options}))


class _ModuleObjective:
    """A loss of a live module as an ``Objective``, that is, as a function of named tensors."""

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
        """The loss for perturbations of the parameters ``names``; the modules before them run only once per batch."""
        return _Suffix(self, Prefix(self._wrapped.module, names), [theta[n] for n in names], theta)


class _ModuleClassification(_ModuleObjective):
    """A module's loss that also provides logits and labels."""

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
    """The loss of a module of which only some parameters change (see ``clip.prefix``)."""

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
    """A module whose forward pass is ``function(module, batch)``, so that functional_call can replace its tensors."""

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
        raise ConfigError("batches: the first item of a batch must be a tensor with one row per example.")
    return len(first)


@_takes_options
def layer_curvature(
    module: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    granularity: str = "module",
    measures: Sequence[str] = ("hessian_trace", "lambda_max", "lambda_min"),
    logits: Callable[[nn.Module, Any], tuple[Tensor, Tensor]] | None = None,
    **options: Unpack[MeasureOptions],
) -> pd.DataFrame:
    """Layer-wise curvature of any loss of any module: one row per layer and measure, with error bars.

    The Hessian is that of L = 1/n sum_j loss_j, the mean over all n EXAMPLES, also when the last batch is smaller. A
    number that is not finite gives a row with status ``failed`` and the reason in its note; the other layers are
    measured all the same.

    >>> import torch
    >>> net, batch = torch.nn.Linear(3, 2), (torch.eye(3), torch.tensor([0, 1, 1]))
    >>> loss = lambda net, batch: torch.nn.functional.cross_entropy(net(batch[0]), batch[1])
    >>> table = layer_curvature(net, loss, [batch], rtol=0.01)
    >>> list(table["measure"].unique())
    ['hessian_trace', 'lambda_max', 'lambda_min']

    Args:
        module: the module, which is measured in eval mode; its weights, gradients and mode are left unchanged.
        loss: ``loss(module, batch)`` returns the mean loss of the batch, a scalar that can be differentiated twice.
        batches: e.g. a DataLoader. A batch is a tensor, or a tuple or dictionary of tensors, on the module's device;
            its first tensor has one row per example.
        granularity: whether a layer is a tensor, a module or a block.
        measures: names of ``sharpscope.vocabulary.MEASURES``.
        logits: ``logits(module, batch)`` returns (logits [n, C], labels [n]), for a loss that is their cross-entropy.
            ``ggn_trace``, ``fisher_trace`` and ``trace_method="controlled"`` need it.

    Returns:
        The columns of the sharpness table without pair and alpha: layer, measure, estimate, stderr (traces) or residual
        (eigenvalues), converged, num_matvecs, status ... The layer ``(all)`` is the whole module.

    Raises:
        ConfigError: an unknown measure, granularity or option, an option of the wrong type, a loss that is not a
            scalar, or a batch that does not start with a tensor.
    """
    settings = _settings(options)
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
        result = measure_layers(objective, theta, layers, measures, settings)
    finally:
        for m, training in modes.items():
            m.training = training
    frame = pd.DataFrame(result.rows)
    frame.insert(1, "granularity", granularity)
    return frame


@_takes_options
def layer_sharpness(
    pair: LoadedPair,
    probe: Probe,
    *,
    alphas: Sequence[float] = (0.0, 0.5, 1.0),
    granularity: str = "module",
    measures: Sequence[str] = ("hessian_trace", "lambda_max", "lambda_min"),
    progress: Callable[[str], None] = lambda what: None,
    **options: Unpack[MeasureOptions],
) -> pd.DataFrame:
    """The sharpness table of one pair without a run directory: layers x alphas x measures.

    At every alpha, the probe's loss is measured at theta(alpha) = (1 - alpha) theta_0 + alpha theta_1. Eigenvectors are
    followed from one alpha to the next, which saves products. A number that is not finite gives a row with status
    ``failed`` and the reason in its note; the other layers are measured all the same.

    >>> import sharpscope
    >>> pair = sharpscope.load_pair("mini:zeroshot", "mini:success", model="mini")
    >>> images = sharpscope.load_dataset("mini:photo", model=pair.model, split="train", limit=4)
    >>> probe = sharpscope.Probe(pair.classifier, images)
    >>> table = layer_sharpness(pair, probe, alphas=[0.5], measures=["gradient_curvature"], granularity="block")
    >>> len(table) == 1 + len(pair.layers("block"))  # the layer "(all)" is the whole model
    True

    Args:
        pair: a pair that ``load_pair`` returned.
        probe: the examples whose loss is measured; path and curvature are computed in its dtype, on its device.
        alphas: points of the path, 0 the zero-shot and 1 the fine-tuned model, in the order in which they are
            measured; an increasing order is cheapest.
        granularity: whether a layer is a tensor, a module or a block.
        measures: names of ``sharpscope.vocabulary.MEASURES``.
        progress: called with the name of each finished measure.

    Returns:
        The table ``sharpness``: pair, alpha, layer, measure, estimate, stderr (traces) or residual (eigenvalues),
        converged, num_matvecs, status ... The layer ``(all)`` is the whole model.

    Raises:
        ConfigError: an unknown measure, granularity or option, an option of the wrong type, an alpha outside [0, 1].
    """
    settings = _settings(options)
    path, layers = pair.path(probe.dtype), pair.layers(granularity)
    rows: list[dict[str, Any]] = []
    warm: dict[str, RitzSpace] = {}
    for alpha in alphas:
        theta = {k: v.to(probe.device) for k, v in path.at(alpha).items()}
        result = measure_layers(
            probe, theta, layers, measures, settings, key=(pair.name, alpha), warm=warm, progress=progress
        )
        warm = result.warm
        rows += [{"pair": pair.name, "alpha": alpha, "granularity": granularity} | row for row in result.rows]
    return stacked("sharpness", [pd.DataFrame(rows)])
