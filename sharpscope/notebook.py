"""Curvature without a run directory: of a pair of checkpoints, or of any module with any loss."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypedDict, TypeVar, Unpack

import pandas as pd
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from sharpscope.clip.attention import attention_heads
from sharpscope.clip.model import is_clip
from sharpscope.clip.pair import LoadedPair
from sharpscope.clip.prefix import Prefix
from sharpscope.clip.probe import Probe
from sharpscope.clip.progress import Shown, bars_for
from sharpscope.config.fields import checked_fields
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.checks import STEPS, check_derivatives
from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.measures.density import measure_density
from sharpscope.curvature.measures.eigenvectors import measure_eigenvectors
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureResult, MeasureSettings
from sharpscope.curvature.operator import Objective
from sharpscope.curvature.slices import Direction, Normalization, slice_rows
from sharpscope.errors import ConfigError, NonDeterministicProbe, SharpscopeError, did_you_mean, shown
from sharpscope.layers import Layer, module_layers, split_layers
from sharpscope.tables.rows import stacked, with_ordered_layers
from sharpscope.vocabulary import ALL, EigenMethod, Precision, Products, TraceMethod, expand_measures

__all__ = ["MeasureOptions", "ModuleLoss", "layer_curvature", "layer_sharpness", "loss_slice"]

F = TypeVar("F", bound=Callable[..., Any])


class MeasureOptions(TypedDict, total=False):
    """What the estimators may spend and how precise they must be.

    seed: the seed from which each layer, measure and alpha derives its own seed for random directions and noise.
    rtol: relative tolerance, above 0 and below 1. A trace stops when its standard error, an eigenvalue when its
        residual is at most rtol times the estimate's magnitude. Half the tolerance costs about four times the products
        of a trace.
    atol_share: a trace also stops when its standard error is at most rtol times this share of the whole model's trace,
        at least 0. With a larger share layers that hold little of it take fewer products and have wider errors; 0 asks
        every layer for its own rtol.
    max_matvecs: the largest number of Hessian-vector products for one layer and kind of estimate; a row that needs more
        has the status ``not_converged``.
    noise_samples: the number of Gaussian draws for the average sharpness; each is used with both signs.
    pgd_steps: the number of Auto-PGD steps for the worst-case sharpness. More steps usually find a larger rise.
    rho_avg, rho_linf, rho_l2: radii of sharpness_avg, of sharpness_max and sharpness_avg_linf, and of sharpness_max_l2,
        in units of the weights' magnitudes (for the ``_absolute`` measures: absolute radii, in the unit of the
        weights). A measure's name may state its radius itself: ``sharpness_max@0.001``.
    rho_geodesic: length of the geodesics of sharpness_geodesic.
    memory: bytes that gradient graphs may take; None: all graphs are kept. Less memory means more recomputation and the
        same numbers up to rounding.
    trace_method: per_example, controlled, hutchinson, xtrace or hutchpp.
    precision: arithmetic of the matrix products: full, tf32 (on a GPU) or bf16.
    density_steps, density_runs: for a spectral density, the number of Lanczos steps in each run, and of runs.
    normalize_logits: measures of finite radius are taken of the loss of normalised logits.
    random_start: worst-case searches start from a random point of the ball instead of its middle.
    eigen_method: lanczos, or power (power iteration, a slow reference).
    products: graph (double backward on a kept graph), or func (torch.func's jvp of grad, an independent second route).
    """

    seed: int
    rtol: float
    atol_share: float
    max_matvecs: int
    noise_samples: int
    pgd_steps: int
    rho_avg: float
    rho_linf: float
    rho_l2: float
    rho_geodesic: float
    memory: int | None
    trace_method: TraceMethod
    precision: Precision
    density_steps: int
    density_runs: int
    normalize_logits: bool
    random_start: bool
    eigen_method: EigenMethod
    products: Products


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
    """A loss of a live module as an ``Objective``, that is, as a function of named tensors.

    Every call gets buffers of its own, as they were at first: what a forward pass writes into them is forgotten.
    ``counts``: what each batch counts in the mean, by default its examples.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[nn.Module, Any], Any],
        batches: Sequence[Any],
        counts: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._given = (module, loss, batches, counts)
        self.counted = counts is not None
        self._dtype = dtype
        self._wrapped = _Called(module, loss)
        self._batches = batches if dtype is None else [_cast(b, dtype) for b in batches]
        prefix, inner = _unwrapped(module)
        self._prefix = f"module.{prefix}"
        self._buffers = {f"{self._prefix}{n}": _cast(b, dtype) for n, b in inner.named_buffers()}
        self.batch_sizes = [_batch_size(b) for b in batches]
        counts = self.batch_sizes if counts is None else counts
        self.weights = [n / sum(counts) for n in counts]

    def double(self) -> _ModuleObjective:
        """The same in float64: batches and buffers too."""
        return _ModuleObjective(*self._given, dtype=torch.float64)

    def attention_heads(self) -> dict[str, int]:
        return attention_heads(_unwrapped(self._given[0])[1])

    def batch(self, i: int) -> Any:
        return self._batches[i]

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return self.loss_of(self._batches[i], theta)

    def loss_of(self, batch: Any, theta: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch that need not be one of the objective's own."""
        if torch.is_grad_enabled():
            return self._scalar(self._call(self._wrapped, batch, theta))
        try:
            return self._scalar(self._call(self._wrapped, batch, theta))
        except RuntimeError:  # a loss with a gradient inside
            open_ = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in theta.items()}
            with torch.enable_grad():
                return self._scalar(self._call(self._wrapped, batch, open_)).detach()

    @staticmethod
    def _scalar(value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            hint = " float() and .item() cut it off from the weights." if isinstance(value, (float, int)) else ""
            raise ConfigError(
                f"loss: loss(module, batch) must return one tensor, the mean loss, and returned {type(value).__name__}."
                f"{hint or ' Return its item or attribute that is the loss.'}"
            )
        if value.ndim != 0:
            raise ConfigError(f"loss: must be a scalar, got shape {tuple(value.shape)}.")
        return value

    def _call(self, wrapped: nn.Module, batch: Any, theta: Mapping[str, Tensor]) -> Any:
        named = {f"{self._prefix}{n}": t for n, t in theta.items()}
        buffers = {n: b.clone() for n, b in self._buffers.items()}
        return torch.func.functional_call(wrapped, {**buffers, **named}, (batch,))

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
        counts: Sequence[float] | None = None,
    ) -> None:
        super().__init__(module, loss, batches, counts)
        self._outputs = _Called(module, logits)

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = self._call(self._outputs, self._batches[i], theta)[0]
        return out

    def batch_labels(self, i: int) -> Tensor:
        with torch.no_grad():
            out: Tensor = self._call(self._outputs, self._batches[i], {})[1]
        return out


class ModuleLoss:
    """The loss of any module as a function of named tensors: what ``HessianOperator`` and ``loss_slice`` take.

    The module is copied, in eval mode: what happens to the original afterwards changes nothing here. The arguments are
    those of ``layer_curvature``.

    >>> import torch
    >>> net, batch = torch.nn.Linear(3, 2), (torch.eye(3), torch.tensor([0, 1, 1]))
    >>> loss = ModuleLoss(net, lambda net, batch: torch.nn.functional.cross_entropy(net(batch[0]), batch[1]), [batch])
    >>> sorted(loss.theta), loss.weights
    (['bias', 'weight'], [1.0])

    Attributes: ``theta``, the module's parameters by name; ``names``, those that are measured; ``weights``, the
    batches' shares of the examples; ``batch_sizes``.

    Raises:
        ConfigError: a module that cannot be copied, and what ``layer_curvature`` refuses about module, loss and
            batches.
        NonDeterministicProbe: two losses of a batch differ.
        NumericalError: autograd's derivatives of the loss are not the loss's own.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        batches: Iterable[Any],
        *,
        examples: Callable[[Any], float] | None = None,
        trainable_only: bool = False,
    ) -> None:
        try:
            self._module = copy.deepcopy(module).eval()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise ConfigError(
                f"module: it cannot be copied ({shown(error, 200)}).\nRemedy: layer_curvature, which borrows it."
            ) from error
        self.theta, names = _parameters(self._module, trainable_only)
        self.names = tuple(names)
        with _borrowed(self._module):
            parts = _collected(batches)
            counts = None if examples is None else [float(examples(b)) for b in parts]
            self._objective = _ModuleObjective(self._module, loss, parts, counts)
            _check(self._objective, self._module, self.theta, names)
        self.weights, self.batch_sizes = self._objective.weights, self._objective.batch_sizes

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """Mean loss of batch ``i`` with the parameters ``theta``, a scalar; differentiable where gradients are on."""
        gradients = torch.is_grad_enabled()
        with _borrowed(self._module), torch.set_grad_enabled(gradients):
            return self._objective.batch_loss(i, theta)


class _Suffix:
    """The loss of a module of which only some parameters change (see ``clip.prefix``).

    The prefix is used for a batch only if the first changed weights have the same loss with it as without, bit for bit:
    a module that keeps something on itself (a recurrent state, a cache) is called from the start every time.
    """

    def __init__(
        self, objective: _ModuleObjective, prefix: Prefix, changed: Sequence[Tensor], theta: Mapping[str, Tensor]
    ) -> None:
        self.objective, self.weights = objective, objective.weights
        self._prefix, self._changed, self._theta = prefix, changed, theta
        self._batch: int | None = None
        self._pure: bool | None = None
        """Whether the loss is the same when the part of the network before the layer is computed only once; None before
        the first comparison."""

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        if self._batch != i:
            with self._prefix.recording(self._changed):
                self.objective.batch_loss(i, self._theta)
            self._batch, self._pure = i, None if len(self._prefix) else False
        if self._pure is None:
            try:
                with self._prefix.replaying():
                    again = self.objective.batch_loss(i, theta).detach()
            except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, ValueError):
                again = None  # something that a replaced call would have left behind is not there
            full = self.objective.batch_loss(i, theta)
            self._pure = again is not None and torch.equal(again, full.detach())
            return full
        with self._prefix.replaying() if self._pure else contextlib.nullcontext():
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
    if len(first) == 0:
        raise ConfigError("batches: a batch has no examples: its first tensor has no rows.")
    return len(first)


# ------------------------------------------------------------------ what people bring
def _unwrapped(module: nn.Module) -> tuple[str, nn.Module]:
    """(what the names of all parameters begin with, the module inside): DataParallel and the like are no layer."""
    prefix = ""
    while True:
        name = "_orig_mod" if type(module).__name__ == "OptimizedModule" else "module"
        wrapped = name == "_orig_mod" or isinstance(
            module, (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
        )
        if not wrapped:
            return prefix, module
        prefix, module = f"{prefix}{name}.", getattr(module, name)


@contextlib.contextmanager
def _borrowed(module: nn.Module) -> Iterator[None]:
    """Around measuring: eval mode, gradients, no compiled graphs, dense embeddings; all handed back as it came.

    Random states are the caller's own again afterwards, and a caller's no_grad or inference_mode does not reach inside.
    """
    modes = {m: m.training for m in module.modules()}
    sparse = [m for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse]
    spread = {m: m.device_ids for m in module.modules() if isinstance(m, nn.DataParallel)}
    buffers = {b: b.detach().clone() for b in module.buffers()}
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(_without_checkpointing())
            if "torch._dynamo" in sys.modules:  # something may be compiled, and a compiled backward has no second one
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for m in module.modules():
                if isinstance(m, nn.parallel.DistributedDataParallel):
                    stack.enter_context(m.no_sync())
            module.eval()
            for e in sparse:
                e.sparse = False
            for m, ids in spread.items():
                m.device_ids = ids[:1]
            yield
    finally:
        for m, training in modes.items():
            m.training = training
        for e in sparse:
            e.sparse = True
        for m, ids in spread.items():
            m.device_ids = ids
        with torch.no_grad():
            for b, value in buffers.items():
                if not torch.equal(b, value):
                    b.copy_(value)


@contextlib.contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Gradient checkpointing switched off: what it forgets is computed again with the module's own weights, not with
    those of the point that is looked at, and its reentrant kind has no gradient that could be differentiated.

    The names are torch's own and not public; where a version lacks them, the check of the derivatives notices.
    """
    plain = {
        "CheckpointFunction": SimpleNamespace(apply=lambda function, preserve, *args: function(*args)),
        "_checkpoint_hook": lambda frame: contextlib.nullcontext(),
    }
    room = torch.utils.checkpoint
    before = {name: getattr(room, name) for name in plain if hasattr(room, name)}
    try:
        for name in before:
            setattr(room, name, plain[name])
        yield
    finally:
        for name, value in before.items():
            setattr(room, name, value)


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """The same with its floating tensors in ``dtype``; a kind of container that is not known stays as it is."""
    return _mapped(value, lambda t: t.to(dtype) if dtype is not None and t.is_floating_point() else t)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(x, change) for x in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(x, change) for x in value)
    if isinstance(value, Mapping):
        return type(value)({k: _mapped(x, change) for k, x in value.items()})  # type: ignore[call-arg]
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _collected(batches: Iterable[Any]) -> list[Any]:
    """All batches; those of a loader that may fill the same memory again are copied as they come."""
    if isinstance(batches, (list, tuple)):
        parts = list(batches)
        seen: dict[tuple[int, ...], int] = {}
        for i, batch in enumerate(parts):
            where = tuple(t.data_ptr() for t in _tensors(batch) if t.layout is torch.strided and t.numel())
            if where and seen.setdefault(where, i) != i:
                raise ConfigError(
                    f"batches: {seen[where]} and {i} are the same tensors, as a loader leaves them that reuses its "
                    "memory.\nPass the loader itself, or a list of batches that were cloned one by one."
                )
    else:
        parts = [copy.deepcopy(b) for b in batches]
    if not parts:
        raise ConfigError("batches: there are none. A generator that has been used up gives no batches a second time.")
    return [_mapped(b, lambda t: t.clone() if t.is_inference() else t) for b in parts]


def _parameters(module: nn.Module, trainable_only: bool) -> tuple[dict[str, Tensor], list[str]]:
    """(all parameters by their names in the module inside, those whose curvature is taken)."""
    named = dict(_unwrapped(module)[1].named_parameters())
    for name, p in named.items():
        if torch.nn.parameter.is_lazy(p):
            raise ConfigError(
                f"module: parameter '{shown(name)}' has no shape yet (a lazy layer).\nCall the module once."
            )
    moving = [n for n, p in named.items() if p.numel() and (p.requires_grad or not trainable_only)]
    for name in moving:
        if named[name].is_complex():
            raise ConfigError(
                f"module: parameter '{shown(name)}' is complex ({named[name].dtype}), which has no Hessian of real "
                "numbers.\nUse a real parameter and torch.view_as_complex, or freeze it and pass trainable_only=True."
            )
    moving = [n for n in moving if named[n].is_floating_point()]
    if not moving:
        raise ConfigError(
            "module: it has no parameter to take the curvature of (trainable_only leaves frozen ones out)."
        )
    kinds = sorted({str(named[n].dtype).removeprefix("torch.") for n in moving})
    if kinds not in (["float32"], ["float64"]):
        raise ConfigError(
            f"module: its parameters are of dtype {', '.join(kinds)}; second derivatives need float32 or float64, one "
            "of them.\nMeasure module.float(); precision='bf16' then computes the products in bfloat16."
        )
    theta = {n: p.detach().clone() if p.is_inference() else p.detach() for n, p in named.items()}
    return theta, moving


def _kinds(module: nn.Module, names: Sequence[str]) -> dict[str, list[str]]:
    """Parameter names by the type of the module that owns them."""
    inner = _unwrapped(module)[1]
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(type(inner.get_submodule(name.rpartition(".")[0])).__name__, []).append(name)
    return kinds


def _check(objective: _ModuleObjective, module: nn.Module, theta: Mapping[str, Tensor], moving: Sequence[str]) -> None:
    """Before anything is measured: the loss can be called, is deterministic, a mean, and has its own derivatives.

    Raises ConfigError, NonDeterministicProbe or NumericalError.
    """
    open_ = {n: t.detach().requires_grad_(n in moving) for n, t in theta.items()}
    values = []
    for i in range(len(objective.weights)):
        try:
            first, second = (objective.batch_loss(i, open_) for _ in range(2))
        except (SharpscopeError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ConfigError(
                f"loss: loss(module, batch) raised {type(error).__name__} for batch {i}: {shown(error, 200)}\n"
                "It takes the module and one batch, e.g. lambda module, batch: "
                "torch.nn.functional.cross_entropy(module(batch[0]), batch[1])."
            ) from error
        if not first.requires_grad:
            raise ConfigError(
                "loss: it has no gradient: it depends on none of the parameters that are measured, or was computed "
                "without gradients (no_grad, detach)."
            )
        a, b = float(first.detach()), float(second.detach())
        if abs(a - b) > (1e-5 * abs(a) if first.is_cuda else 0.0):  # sums on a GPU come in any order
            raise NonDeterministicProbe(
                f"two losses of the same batch differ: {a:.9g} and {b:.9g}.\n"
                "Dropout, augmentation or another random operation is active: such a loss has no curvature."
            )
        values.append(a)
        del first, second
    if all(map(math.isfinite, values)):
        _check_mean(objective, theta, values)
        with second_order():
            _check_derivatives(objective, module, theta, moving)


def _check_derivatives(
    objective: _ModuleObjective, module: nn.Module, theta: Mapping[str, Tensor], moving: Sequence[str]
) -> None:
    """In float64 where the module can be run in it, else with steps that float32 shows."""
    kinds = _kinds(module, moving)
    try:
        double = {n: _cast(t, torch.float64) for n, t in theta.items()}
        check_derivatives(objective.double(), double, kinds, steps=STEPS)
    except (RuntimeError, TypeError, ValueError):  # a module that insists on its dtype
        check_derivatives(objective, theta, kinds, steps=STEPS[1:])


def _check_mean(objective: _ModuleObjective, theta: Mapping[str, Tensor], values: Sequence[float]) -> None:
    """Raise ConfigError for several batches whose losses are no means over their rows, but something that adds up.

    A batch is cut in two, L_1 and L_2: for a mean over rows n L = n_1 L_1 + n_2 L_2. For a sum (and what does not
    depend on the batch) L(abc) - L(ab) - L(bc) + L(b) = 0. A mean over something else, as tokens, has
    (L - L_2) / (L_1 - L_2) = the share of the first part, between 0 and 1 and the same for other weights. Where
    none of this holds the examples see each other, and the batch is the unit.
    """
    if len(values) == 1 or objective.counted:
        return
    generator = torch.Generator().manual_seed(0)
    other = {n: t + 0.5 * _noise(t, generator) if t.is_floating_point() else t for n, t in theta.items()}
    for i, (n, whole) in enumerate(zip(objective.batch_sizes, values, strict=True)):

        def part(start: int, stop: int, at: Mapping[str, Tensor] = theta, i: int = i, n: int = n) -> float:
            cut = _mapped(objective.batch(i), lambda t: t[start:stop] if t.ndim and len(t) == n else t)
            with torch.no_grad():
                return float(objective.loss_of(cut, at))

        if n < 2:
            continue
        half = n // 2
        try:
            one, two = part(0, half), part(half, n)
            size = max(abs(whole), abs(one), abs(two))
            if abs(n * whole - half * one - (n - half) * two) <= 1e-4 * n * size:
                continue
            a, b = (n + 2) // 3, n - (n + 2) // 3
            left, right, middle = part(0, b), part(a, n), part(a, b) if b > a else 0.0
            summed = abs(whole - left - right + middle) <= 1e-4 * size
            share = (whole - two) / (one - two) if one != two else math.nan
            one, two = part(0, half, other), part(half, n, other)
            again = (part(0, n, other) - two) / (one - two) if one != two else math.nan
        except (SharpscopeError, RuntimeError, TypeError, ValueError, IndexError):
            continue  # a batch that cannot be cut says nothing
        if summed:
            raise ConfigError(
                f"loss: of batch {i} it is the sum over the examples, not the mean: over several batches it has no "
                'weights.\nUse reduction="mean", or divide by the examples.'
            )
        if 0 < share < 1 and abs(share - again) < min(0.005, 0.05 * abs(share - half / n)):
            raise ConfigError(
                f"loss: of batch {i} it is no mean over the {n} examples (its first half counts {share:.1%}): a mean "
                "over tokens, or of weighted examples.\nPass examples=, a function of a batch that gives what it "
                'counts in the mean of all, e.g. examples=lambda batch: (batch["labels"] != -100).sum().'
            )


def _noise(t: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) * t.abs()


def loss_slice(
    objective: Objective,
    theta: Mapping[str, Tensor],
    directions: Direction | Sequence[Direction],
    *,
    reach: float | tuple[float, float] = 1.0,
    points: int = 21,
    normalize: Normalization = "none",
) -> pd.DataFrame:
    """The loss at theta + a d_1, or at theta + a d_1 + b d_2, for steps a and b on a regular grid.

    Along theta_1 - theta_0 from theta_0 the step is the alpha of the path. Along a unit eigenvector of the Hessian the
    loss is L + a g'v + a^2 lambda / 2 near 0.

    Args:
        objective: the loss, e.g. a ``Probe`` or a ``ModuleLoss``.
        theta: the named tensors through which the slice goes.
        directions: one direction {parameter: tensor of its shape}, or a list of one or two; parameters that it does not
            name do not move.
        reach: the largest |step|, > 0; a pair (from, to) for steps that are not symmetric about theta. A larger reach
            shows more of the loss and less of its curvature at theta.
        points: the number of steps along each direction, >= 2. An odd number includes the middle.
        normalize: none: the directions as they are; filter: each filter (row of a matrix, output channel of a
            convolution) gets the norm of theta's own, and vectors do not move, so that slices of networks whose weights
            are scaled differently can be compared (see ``filter_normalized``).

    Returns:
        A table with the columns step_1, step_2 (missing on a line), loss (nats for a cross-entropy) and loss_stderr
        (over draws of images; NaN where the loss does not tell them apart and has a single batch).

    Raises:
        ConfigError: a direction with an unknown name or another shape, no direction or more than two, a reach or a
            number of points out of range, an unknown ``normalize``.

    Source: Li, Xu, Taylor, Studer and Goldstein 2018, arXiv 1712.09913.
    """
    rows = slice_rows(objective, theta, directions, reach=reach, points=points, normalize=normalize)
    return pd.DataFrame(rows)


@_takes_options
def layer_curvature(
    module: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    granularity: str = "module",
    measures: Sequence[str] = ("hessian_trace", "lambda_max", "lambda_min"),
    logits: Callable[[nn.Module, Any], tuple[Tensor, Tensor]] | None = None,
    examples: Callable[[Any], float] | None = None,
    trainable_only: bool = False,
    density: Sequence[str] = (),
    eigenvectors: int = 0,
    details: dict[str, Any] | None = None,
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
        module: the module, which is measured in eval mode; its weights, buffers, gradients, modes and the random states
            are left unchanged. A wrapper (DataParallel, torch.compile) is not part of the layers' names, and compiled
            code runs uncompiled.
        loss: ``loss(module, batch)`` returns the mean loss of the batch, a scalar that can be differentiated twice.
        batches: e.g. a DataLoader. A batch is a tensor, or a tuple or dictionary of tensors, on the module's device;
            its first tensor has one row per example.
        granularity: whether a layer is a tensor, a module or a block (an item of a list of blocks). Layers have the
            module's own names, in its order, and no tower, depth and kind, except in a model of open_clip, which has
            those of ``layers.split_layers``.
        measures: names of ``sharpscope.vocabulary.MEASURES``.
        logits: ``logits(module, batch)`` returns (logits [n, C], labels [n]), for a loss that is their cross-entropy.
            ``ggn_trace``, ``fisher_trace`` and ``trace_method="controlled"`` need it.
        examples: ``examples(batch)`` gives what a batch counts in the mean of all; by default its rows. Needed where
            the loss of a batch is a mean over something else, as the tokens that are no padding.
        trainable_only: leave parameters with ``requires_grad=False`` out of the layers.
        density: names of layers, ``(all)`` among them, whose spectral density is taken too; it goes into ``details``.
        eigenvectors: the number of top eigenvectors of every layer that are computed too; they go into ``details``.
        details: a dictionary of the caller's that is filled: ``details["density"]`` is the density table, and
            ``details["eigenvectors"]`` {layer: {measure: {parameter: tensor}}} with the unit eigenvectors of the
            eigenvalues ``lambda_max`` and ``lambda_min`` that were measured. ``details["eigenpairs"]`` is
            {layer: EigenPairs} with the ``eigenvectors`` largest eigenvalues of every layer, fewer where it has fewer
            parameters.

    Before anything is measured two losses of every batch are compared, and the gradient and one product of every kind
    of layer with differences of evaluations of the first batch.

    Returns:
        The columns of the sharpness table without pair and alpha: layer, measure, estimate, stderr (traces) or residual
        (eigenvalues), converged, num_matvecs, status ... The layer ``(all)`` is the whole module.

    Raises:
        ConfigError: an unknown measure, granularity, layer or option, an option of the wrong type or range; a loss that
            is no scalar, cannot be called or has no gradient, or that is a sum over batches; no batches, batches that
            share their memory or do not start with a tensor; complex, lazy or half-precision parameters.
        NonDeterministicProbe: two losses of a batch differ.
        NumericalError: autograd's derivatives of the loss are not the loss's own.
    """
    settings = _settings(options)
    for key, given in (("density", density), ("eigenvectors", eigenvectors)):
        if given and details is None:
            raise ConfigError(f"{key}: pass details=, a dictionary that the result is put into.")
    if eigenvectors < 0:
        raise ConfigError(f"eigenvectors: needs a whole number of at least 0, got {eigenvectors}.")
    if settings.normalize_logits and logits is None:
        raise ConfigError("normalize_logits: pass logits=, a function that gives the logits and labels of a batch.")
    parameters, moving = _parameters(module, trainable_only)
    with _borrowed(module):
        theta = {n: t.clone() if t.is_inference() else t for n, t in parameters.items()}
        known = is_clip(_unwrapped(module)[1])
        layers = (split_layers if known else module_layers)({n: theta[n].shape for n in moving}, granularity)
        chosen = [x.name for x in layers if x.name in density]
        for name in density:
            if name not in (ALL, *chosen):
                raise ConfigError(
                    f"density: '{shown(name)}' is no layer.{did_you_mean(name, [x.name for x in layers])}"
                )
        parts = _collected(batches)
        counts = None if examples is None else [float(examples(b)) for b in parts]
        objective = (
            _ModuleObjective(module, loss, parts, counts)
            if logits is None
            else _ModuleClassification(module, loss, parts, logits, counts)
        )
        _check(objective, module, theta, moving)
        result = measure_layers(objective, theta, layers, measures, settings)
        spectra = measure_density(objective, theta, layers, list(dict.fromkeys(density)), settings) if density else []
        pairs = measure_eigenvectors(objective, theta, layers, [ALL, *(x.name for x in layers)], eigenvectors, settings)
    frame = pd.DataFrame(result.rows)
    frame.insert(1, "granularity", granularity)
    if not known:
        frame[["tower", "kind"]], frame["depth"] = "", None
    if details is not None:
        details["eigenvectors"] = _eigenvectors(result, layers, theta)
        if density:
            details["density"] = pd.DataFrame(spectra)
        if eigenvectors:
            details["eigenpairs"] = pairs
    return with_ordered_layers(frame, [ALL, *(x.name for x in layers)])


def _eigenvectors(
    result: MeasureResult, layers: Sequence[Layer], theta: Mapping[str, Tensor]
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """{layer: {measure: {parameter: its part of the unit eigenvector}}} of the ends of spectra that were measured."""
    names = {ALL: [n for x in layers for n in x.params]} | {x.name: list(x.params) for x in layers}
    ends = {"lambda_min": 0, "lambda_max": 1}
    out: dict[str, dict[str, dict[str, Tensor]]] = {}
    for row in result.rows:
        space, end = result.warm.get(row["layer"]), ends.get(row["measure"])
        if space is not None and end is not None and row["status"] != "failed":
            own = names[row["layer"]]
            parts = space.ends[end].cpu().split([theta[n].numel() for n in own])
            vector = {n: v.view(theta[n].shape) for n, v in zip(own, parts, strict=True)}
            out.setdefault(row["layer"], {})[row["measure"]] = vector
    return out


@_takes_options
def layer_sharpness(
    pair: LoadedPair,
    probe: Probe,
    *,
    alphas: Sequence[float] = (0.0, 0.5, 1.0),
    granularity: str = "module",
    measures: Sequence[str] = ("hessian_trace", "lambda_max", "lambda_min"),
    progress: Shown = False,
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
        progress: True shows a bar, a function of ``total`` and ``desc`` (such as ``tqdm``) makes one.

    Returns:
        The table ``sharpness``: pair, alpha, layer, measure, estimate, stderr (traces) or residual (eigenvalues),
        converged, num_matvecs, status ... The layer ``(all)`` is the whole model.

    Raises:
        ConfigError: an unknown measure, granularity or option, an option of the wrong type or range, an alpha outside
            [0, 1].
    """
    settings = _settings(options)
    path, layers = pair.path(probe.dtype), pair.layers(granularity)
    rows: list[dict[str, Any]] = []
    warm: dict[str, RitzSpace] = {}
    total = len(alphas) * len(expand_measures(measures))
    with contextlib.closing(bars_for(progress)(total=total, desc=pair.name)) as bar:

        def tell(what: str, alpha: float) -> None:
            bar.set_postfix_str(f"alpha {alpha:g}: {what}")
            bar.update()

        for alpha in alphas:
            theta = {k: v.to(probe.device) for k, v in path.at(alpha).items()}
            result = measure_layers(
                probe, theta, layers, measures, settings, key=(pair.name, alpha), warm=warm,
                progress=functools.partial(tell, alpha=alpha),
            )  # fmt: skip
            warm = result.warm
            rows += [{"pair": pair.name, "alpha": alpha, "granularity": granularity} | row for row in result.rows]
    return with_ordered_layers(stacked("sharpness", [pd.DataFrame(rows)]))
