"""The units of work of a study: pure functions of the config and the unit's key, whose results the run directory keeps.

A unit's numbers depend on the config, the input files and its own key, never on the process that computes it, the time
or a restart. All units of a pair share a ``Context``, which a worker process makes once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from sharpscope.clip.baselines import Vrf, ensembles_along, output_baselines
from sharpscope.clip.failure_ratio import Nearness, ratio_bins
from sharpscope.clip.probe import Probe
from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.measures.density import measure_density
from sharpscope.curvature.measures.eigenvectors import measure_eigenvectors
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureResult
from sharpscope.layers import Layer
from sharpscope.machine.devices import release
from sharpscope.seeds import derive
from sharpscope.study.context import Context
from sharpscope.study.evaluating import evaluated, measured_accuracy, probe_losses
from sharpscope.study.tasks import Task, density_alphas, image_key, measured_at
from sharpscope.study.unitfile import Unit
from sharpscope.vocabulary import (
    ALL,
    BASES,
    MEASURES,
    STATUSES,
    Base,
    ensemble_variant,
    expand_measures,
)
from sharpscope.weights.theta import Theta, on_device

__all__ = ["compute_each"]

_RETRIES = 8
"""How often the memory budget is halved after the accelerator ran out of memory, before the unit fails."""
Progress = Callable[[str], None]
_T = TypeVar("_T")


def compute_each(context: Context, tasks: Sequence[Task], progress: Progress = lambda what: None) -> list[Unit]:
    """Compute the units of several tasks of one pair and one family, in one pass over the images; or of one task.

    The keys are path/P/ALPHA, pathvariant/P/PATH/ALPHA, curvature/P/FIRST..LAST, eigenvectors/P/ALPHA, layers/P/BASE,
    noise/P, outputs/P, ensembles/P, upgraded/P/ALPHA and repair/P/VARIANT/ALPHA; only the last has a ``variant``.
    """
    if tasks[0].family is not None:
        return evaluated(context, tasks)
    (task,) = tasks
    kind, _, *rest = task.key.split("/")
    if not task.splits:
        return [_unit(context, kind, rest, progress)]
    context.agree_on_memory()
    return [context.team.agreed(lambda: _unit(context, kind, rest, progress))]


def _unit(context: Context, kind: str, rest: Sequence[str], progress: Progress) -> Unit:
    if kind == "curvature":
        first, last = (float(a) for a in rest[0].split(".."))
        return _curvature_unit(context, [a for a in context.config.measured_alphas if first <= a <= last], progress)
    if kind == "eigenvectors":
        return _eigenvectors_unit(context, float(rest[0]))
    if kind == "layers":
        return _layers_unit(context, next(b for b in BASES if b == rest[0]), progress)
    if kind == "noise":
        return _noise_unit(context, progress)
    if kind == "outputs":
        return _outputs_unit(context)
    assert kind == "ensembles"
    return _ensembles_unit(context)


# ---------------------------------------------------------------------- mixed outputs
def _outputs_unit(context: Context) -> Unit:
    """Accuracy of the mixed outputs of the two ends. Alpha is NaN, because they are not a point of the path.

    With vrf also the ends' accuracies by distance to the zero-shot model's failures: the table vrf.
    """
    config = context.config
    calibrate_on = config.id[0] if config.id else None
    wants = "vrf" in config.output_baselines
    vrf = Vrf(context.vrf_train, config.vrf_k, config.vrf_centre, config.vrf_width) if wants else None
    found = output_baselines(
        context.pair, _ends(context), context.datasets, config.output_baselines, calibrate_on, config.batch_size, vrf
    )
    rows = []
    for name, given in found.answers.items():
        for row in measured_accuracy(context, math.nan, name, given):
            rows.append(row | {"note": "; ".join(x for x in (row["note"], found.notes.get(name)) if x)})
    ratios = [row for spec, near in found.near.items() for row in _ratios(context, spec, near)]
    return Unit({"accuracy": rows} | ({"vrf": ratios} if ratios else {}))


def _ratios(context: Context, spec: str, near: Nearness) -> list[dict[str, Any]]:
    """Rows of the table vrf for one data set, the bin nearest to the failures first."""
    return [
        {
            "pair": context.pair.name, "dataset": spec, "bin": i, "distance_low": x.distance_low,
            "distance_high": x.distance_high, "distance": x.distance, "zeroshot_accuracy": x.zeroshot,
            "finetuned_accuracy": x.finetuned, "ratio": x.ratio, "ci_low": x.low, "ci_high": x.high, "n": x.n,
            "k": near.k, "failures": near.failures, "status": x.status, "note": x.note,
        }
        for i, x in enumerate(ratio_bins(near, level=context.config.level), start=1)
    ]  # fmt: skip


def _ensembles_unit(context: Context) -> Unit:
    """Accuracy of the mixed outputs of the two ends at every alpha in [0, 1]."""
    config = context.config
    alphas = [a for a in config.alphas if 0 <= a <= 1]
    mixed = ensembles_along(context.pair, _ends(context), context.datasets, config.ensembles, alphas, config.batch_size)
    rows: list[dict[str, Any]] = []
    for kind, alpha, given in mixed:
        rows += measured_accuracy(context, alpha, ensemble_variant(kind), given)
    return Unit({"accuracy": rows})


def _ends(context: Context) -> list[Theta]:
    return [on_device(theta, context.device, context.dtype) for theta in (context.pair.theta_0, context.pair.theta_1)]


# ---------------------------------------------------------------------- sharpness
def _curvature_unit(context: Context, alphas: Sequence[float], progress: Progress) -> Unit:
    """Every measure of every layer at neighbouring alphas; each alpha hands its eigenvectors to the next.

    A layer that does not move keeps its estimate and gets the status ``frozen``, unless the row is failed or undefined.
    The whole model does not count as a layer and is never frozen. The rows ``engine`` describe how the gradient graphs
    were laid out in memory; they go into the run's log.
    """
    config = context.config
    measures = expand_measures(config.measures)
    rows: list[dict[str, Any]] = []
    engine: list[dict[str, Any]] = []
    density: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    warm: dict[str, RitzSpace] = {}
    frozen = _frozen(context)
    for alpha in alphas:
        wanted = [m for m in measures if measured_at(config, m, alpha)]
        result, shrunk = _measure(context, alpha, wanted, warm, progress)
        warm = result.warm
        arrays |= _image_parts(result, [x.name for x in context.layers], alpha)
        if result.facts:
            engine.append({"alpha": alpha} | result.facts)
        for row in result.rows:
            status = "frozen" if row["layer"] in frozen and STATUSES[row["status"]].has_value else row["status"]
            rows.append(
                {"pair": context.pair.name, "alpha": alpha, "granularity": config.granularity}
                | row
                | {"status": status, "note": "; ".join(x for x in (row["note"], shrunk) if x)}
            )
        if alpha in density_alphas(config):
            found = _with_less_memory(context, functools.partial(_density, context, alpha))
            density += [{"pair": context.pair.name, "alpha": alpha} | row for row in found]
            progress(f"alpha {alpha:g}: density")
    return Unit({"sharpness": rows, "engine": engine} | ({"density": density} if density else {}), arrays)


def _image_parts(result: MeasureResult, layers: Sequence[str], alpha: float) -> dict[str, np.ndarray]:
    """What each of n probe images adds to the estimates, [L, n] for each measure; NaN where images are not told apart.

    The images are the same at every alpha, so that the error of a change along the path can be told from these.
    """
    found: dict[str, np.ndarray] = {}
    for (measure, layer), part in result.parts.items():
        if layer != ALL:
            empty = np.full((len(layers), len(part)), np.nan, np.float32)
            found.setdefault(image_key(measure, alpha), empty)[layers.index(layer)] = part.numpy()
    return found


def _density(context: Context, alpha: float) -> list[dict[str, Any]]:
    return measure_density(
        context.team_probe, context.theta(alpha), context.layers, context.config.density_layers, context.settings,
        key=(context.pair.name, alpha),
    )  # fmt: skip


def _eigenvectors_unit(context: Context, alpha: float) -> Unit:
    """The top eigenvectors of the chosen layers at one alpha: arrays ``LAYER:PARAMETER`` [k, *shape]."""
    config, theta, layers = context.config, context.theta(alpha), context.layers
    found = measure_eigenvectors(
        context.team_probe, theta, layers, config.eigenvector_layers, config.eigenvectors, context.settings,
        key=(context.pair.name, alpha),
    )  # fmt: skip
    params = {ALL: [n for x in layers for n in x.params]} | {x.name: list(x.params) for x in layers}
    rows: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for layer, pairs in found.items():
        names, vectors = params[layer], pairs.vectors.cpu().numpy()
        ends = np.cumsum([theta[n].numel() for n in names])[:-1]
        for name, part in zip(names, np.split(vectors, ends, axis=1), strict=True):
            arrays[f"{layer}:{name}"] = part.reshape(len(part), *theta[name].shape)
        for rank, value in enumerate(pairs.values.tolist()):
            rows.append({
                "pair": context.pair.name, "alpha": alpha, "layer": layer, "rank": rank + 1, "eigenvalue": value,
                "residual": float(pairs.residuals[rank]), "converged": bool(pairs.converged[rank]),
                "num_params": vectors.shape[1], "num_matvecs": pairs.num_matvecs,
                "status": "ok" if pairs.converged[rank] else "not_converged" if math.isfinite(value) else "failed",
            })  # fmt: skip
    return Unit({"eigenpairs": rows}, arrays)


def _measure(
    context: Context, alpha: float, measures: Sequence[str], warm: Mapping[str, RitzSpace], progress: Progress
) -> tuple[MeasureResult, str]:
    """All measures at one alpha, those of finite radius on a part of the probe set.

    If a GPU runs out of memory, they are repeated with half the budget for graphs. The next alpha starts with the
    budget that was enough.
    """
    probe, finite = context.team_probe, [m for m in measures if MEASURES[m].radius is not None]

    def take(probe: Probe, names: Sequence[str]) -> MeasureResult:
        return measure_layers(
            probe,
            context.theta(alpha),
            context.layers,
            names,
            context.settings,
            key=(context.pair.name, alpha),
            warm=warm,
            progress=lambda what: progress(f"alpha {alpha:g}: {what}"),
        )

    def attempt() -> MeasureResult:
        if not finite or (part := context.perturbation_probe).n == probe.n:
            return take(probe, measures)
        others = take(probe, [m for m in measures if m not in finite])
        return replace(others, rows=[*others.rows, *take(part, finite).rows])

    result = _with_less_memory(context, attempt)
    used = result.facts.get("batch_size") or probe.batch_size
    return result, "" if used >= probe.batch_size else f"curvature used batches of {used} to fit in memory"


def _with_less_memory(context: Context, attempt: Callable[[], _T]) -> _T:
    """The result of ``attempt``, made again with half the budget for graphs whenever a GPU runs out of memory.

    Ranks that measure together all try again where one of them has run out.
    """
    for _ in range(_RETRIES):
        try:
            return context.team.agreed(attempt)
        except torch.OutOfMemoryError:
            pass  # the error holds the frames, and these what they allocated: only behind this block is it free
        context.budget.halve()
        release(context.device)
    return context.team.agreed(attempt)


def _frozen(context: Context) -> frozenset[str]:
    """The layers that do not move: none of their parameters differs between the two ends."""
    moving = set(context.pair.moving)
    return frozenset(x.name for x in context.layers if not moving & set(x.params))


# ---------------------------------------------------------------------- single layers
def _layers_unit(context: Context, base: Base, progress: Progress) -> Unit:
    """Probe losses [L, A, n] with one layer at alpha and all others at ``base``."""
    alphas = context.config.layer_alphas
    probe = context.team_probe
    losses = np.empty((len(context.layers), len(alphas), probe.n))
    # With the moved layer at the base as well, theta is the same for every layer: one evaluation serves all.
    at_base = BASES[base].alpha
    common = probe_losses(probe, context.theta(at_base))
    for i, layer in enumerate(context.layers):
        for j, alpha in enumerate(alphas):
            losses[i, j] = common if alpha == at_base else probe_losses(probe, context.on_layer(layer, alpha, base))
        progress(f"{base}: {layer.name}")
    return Unit({}, {"losses": losses, "alphas": np.array(alphas)})


def _noise_unit(context: Context, progress: Progress) -> Unit:
    """Probe losses [L, A, S, n] with one layer at alpha plus Gaussian noise and all others at theta_1."""
    config, pair = context.config, context.pair
    alphas, sigmas = [a for a in config.layer_alphas if a > 0], config.criticality_noise
    probe = context.team_probe
    losses = np.empty((len(context.layers), len(alphas), len(sigmas), probe.n))
    for i, layer in enumerate(context.layers):
        generator = torch.Generator().manual_seed(derive(config.seed, "noise", pair.name, layer.name))
        rms = _rms(context, layer)
        noise = {n: torch.randn(pair.theta_1[n].shape, generator=generator, dtype=torch.float64) for n in layer.params}
        for j, alpha in enumerate(alphas):
            theta = context.on_layer(layer, alpha, "finetuned")
            for k, sigma in enumerate(sigmas):
                moved = {n: theta[n] + (sigma * rms * noise[n]).to(theta[n]) for n in layer.params}
                losses[i, j, k] = probe_losses(probe, theta | moved)
        progress(f"noise: {layer.name}")
    return Unit(
        {},
        {
            "losses": losses,
            "alphas": np.array(alphas),
            "sigmas": np.array(sigmas),
            "distance_sq": np.array([context.path.layer_distance(x) ** 2 for x in context.layers]),
            "weight_rms": np.array([_rms(context, x) for x in context.layers]),
        },
    )


def _rms(context: Context, layer: Layer) -> float:
    """Root mean square of the layer's fine-tuned weights."""
    total = sum(float(context.pair.theta_1[n].double().square().sum()) for n in layer.params)
    return math.sqrt(total / layer.num_params)
