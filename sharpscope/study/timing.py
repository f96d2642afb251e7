"""What the parts of a study take, found by doing a small part of the real job."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from sharpscope.clip.answering import correct
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.head import zero_shot_head
from sharpscope.clip.probe import Probe
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.functional import engine_for
from sharpscope.curvature.graphs import MemoryPlan, plan_memory
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.layers import Layer
from sharpscope.machine.devices import settle
from sharpscope.study.context import Context
from sharpscope.study.tasks import density_alphas, measured_at
from sharpscope.vocabulary import ALL, MEASURES, Cost, expand_measures

__all__ = ["Costs", "TrialRun", "costs"]

_SECONDS: Final = 15.0
"""The time that a trial measurement at one alpha may take, in seconds. With more time more images and layers are tried
and the prediction is better."""
_KNOWN: Final = 0.3
"""A rate is accepted if its timing took at least this long, in seconds; otherwise it is timed again with twice the
images."""
_FEW_LAYERS: Final = 3
_TRIED: Final[tuple[Cost, ...]] = ("trace", "eigenvalues", "product", "outer")
"""The kinds of work whose amount is known only after trying, because the estimators stop by their error; that of all
others follows from the settings."""
_GUESS: Final = 10
"""The number of products of one layer for each kind that is assumed where nothing can be tried in the time."""


@dataclass(frozen=True)
class TrialRun:
    """Measuring at ``alphas`` of the alphas with ``layers`` of the layers and ``images`` of the probe's images.

    ``products``: kind -> median number of products, or backward passes, of a layer.
    """

    alphas: int
    images: int
    layers: int
    products: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a study, for one pair.

    ``curvature``: measuring at all alphas. ``loss``: one pass over the probe set. ``decode``, ``evaluate``: reading all
    test images, and answering them. ``head``: making the head from text; 0 where it is not made. ``product``,
    ``sweep``: one Hessian-vector product of the whole model, and one for each layer. ``trial``: what was tried, None
    where nothing could be in the time, so that ``curvature`` rests on a guess.
    """

    curvature: float
    loss: float
    decode: float
    evaluate: float
    head: float
    product: float
    sweep: float
    eigenvectors: float
    layout: MemoryPlan
    trial: TrialRun | None


def costs(context: Context) -> Costs:
    """Seconds that each part of the work takes, from a small part of it at the middle of the path."""
    config, probe = context.config, context.probe
    alpha = 0.5 if 0.5 in config.alphas else config.alphas[len(config.alphas) // 2]
    theta = context.theta(alpha)
    names = [n for x in context.layers for n in x.params]
    with second_order():
        _, layout = plan_memory(probe, theta, names, context.settings.memory)
    most = probe.batch_size  # a part is one batch, and no larger one is known to fit
    gradient = probe.n * _rate(context, most, lambda n: _gradient(probe.part(n), theta, names))
    loss = probe.n * _rate(context, most, lambda n: probe.part(n).sample_losses(theta))
    decode, evaluate = _test_images(context, theta)
    trial, measuring = _tried(context, gradient, layout)
    product, sweep = _products(context, theta, trial, gradient)
    if trial is None:
        kinds = {(MEASURES[m].family, MEASURES[m].cost) for m in _open(context)}
        steps = min(_GUESS, config.max_matvecs) * len(kinds)
        measuring = (2 * gradient if kinds else 0.0) + steps * sweep
    curvature = len(config.measured_alphas) * measuring + _counted(context, gradient, loss)
    layer = sweep / len(context.layers)
    s, densities = context.settings, sum(product if x == ALL else layer for x in config.density_layers)
    curvature += len(density_alphas(config)) * (2 * gradient + s.density_runs * s.density_steps * densities)
    steps = _GUESS if trial is None else trial.products.get("eigenvalues", _GUESS)
    vectors = sum(product if x == ALL else layer for x in config.eigenvector_layers)
    eigenvectors = 2 * gradient + config.eigenvectors * min(steps, config.max_matvecs) * vectors
    head = _head(context, theta)
    return Costs(curvature, loss, decode, evaluate, head, product, sweep, eigenvectors, layout, trial)


def _open(context: Context) -> list[str]:
    """The study's measures whose work depends on what is found."""
    return [m for m in expand_measures(context.config.measures) if MEASURES[m].cost in _TRIED]


def _counted(context: Context, gradient: float, loss: float) -> float:
    """Seconds of the measures whose gradients and losses follow from the settings, at all alphas.

    What is asked of one layer runs, on the average, through half of the network: that behind the layer.
    """
    config, layers, total = context.config, len(context.layers) / 2 + 1, 0.0
    part = context.perturbation_probe.n / context.probe.n
    each = {
        "noise": 2 * config.noise_samples * layers * loss,
        "worst_case": config.pgd_steps * layers * gradient,
        "gradient": gradient + 2 * layers * loss,
    }
    for m in expand_measures(config.measures):
        if (kind := MEASURES[m].cost) in each:
            share = 1.0 if MEASURES[m].radius is None else part
            total += share * each[kind] * sum(measured_at(config, m, a) for a in config.measured_alphas)
    return total


# ---------------------------------------------------------------------- the real job, in small
def _tried(context: Context, gradient: float, layout: MemoryPlan) -> tuple[TrialRun | None, float]:
    """(what was tried, seconds of measuring at one alpha, the mean over those that were tried).

    How much a trace takes differs from alpha to alpha by far. Therefore as many are tried as the time allows, spread
    over the path, each with the eigenvectors of the one before.
    """
    config, probe = context.config, context.probe
    wanted, alphas = _open(context), config.measured_alphas
    if not wanted or not alphas:
        return TrialRun(0, 0, 0), 0.0
    found = _affordable(context, gradient, layout)
    if found is None:
        return None, 0.0
    images, layers = found
    part, seconds, warm = probe.part(images), list[float](), dict[str, RitzSpace]()
    kinds: dict[str, list[int]] = {}
    visited = [alphas[0]]
    while visited:
        taken, rows, warm = _measured(context, part, layers, wanted, visited.pop(0), warm)
        if not seconds:
            count = min(max(int(_SECONDS / taken), 2), len(alphas))
            visited = [alphas[round(i * (len(alphas) - 1) / (count - 1))] for i in range(1, count)] if count > 1 else []
        seconds.append(taken)
        for row in rows:
            if row["layer"] != ALL:
                kinds.setdefault(MEASURES[row["measure"]].cost, []).append(int(row["num_matvecs"]))
    products = {kind: round(statistics.median(n)) for kind, n in kinds.items()}
    # Where graphs do not fit into memory, they are built anew in every round of products.
    rounds = max((max(n) for kind, n in kinds.items() if kind != "outer"), default=0)
    again = rounds * 2 * gradient * (layout.batches - layout.kept) / layout.batches
    factor = probe.n / images * len(context.layers) / len(layers)
    return TrialRun(len(seconds), images, len(layers), products), statistics.mean(seconds) * factor + again


def _affordable(context: Context, gradient: float, layout: MemoryPlan) -> tuple[int, Sequence[Layer]] | None:
    """(images, layers) with which a trial takes about ``_SECONDS``, as many as possible of both; None for none."""
    probe, layers = context.probe, context.layers
    few = [layers[round(i * (len(layers) - 1) / (_FEW_LAYERS - 1))] for i in range(_FEW_LAYERS)]
    kinds = len({MEASURES[m].cost for m in _open(context)})
    images = most = min(layout.batch_size or probe.batch_size, probe.n)
    while images >= min(2, most):
        for chosen in (layers, few) if len(layers) > _FEW_LAYERS else (layers,):
            if kinds * (4 + _GUESS / 2 * len(chosen)) * gradient * images / probe.n <= _SECONDS:
                return images, chosen
        images //= 2
    return None


def _measured(
    context: Context, part: Probe, layers: Sequence[Layer], wanted: Sequence[str], alpha: float,
    warm: Mapping[str, RitzSpace],
) -> tuple[float, list[dict[str, Any]], dict[str, RitzSpace]]:  # fmt: skip
    """(seconds, rows, what the next alpha starts from) of the ``wanted`` measures on a part of the probe.

    A trace that is sampled with a direction for each image needs the fewer products the more images there are; with a
    tolerance that is wider by the root of their number it takes as many on the part as on the whole. Eigenvalues take
    about as many on any images.
    """
    settings, theta, key = context.settings, context.theta(alpha), (context.pair.name, alpha)
    whole = context.probe.n
    wide = replace(settings, rtol=min(settings.rtol * math.sqrt(whole / part.n), 0.95))
    rows: list[dict[str, Any]] = []
    left: dict[str, RitzSpace] = {}
    with _clock(context) as clock:
        for kinds, how in ((("trace", "outer"), wide), (("eigenvalues", "product"), settings)):
            if own := [m for m in wanted if MEASURES[m].cost in kinds]:
                result = measure_layers(part, theta, layers, own, how, key=key, warm=warm)
                rows += result.rows
                left = result.warm or left
    return clock.seconds, rows, left


def _products(
    context: Context, theta: Mapping[str, Tensor], trial: TrialRun | None, gradient: float
) -> tuple[float, float]:
    """Seconds of one product with the whole Hessian, and of one with every layer's, over the whole probe set."""
    probe, layers = context.probe, context.layers
    part = probe.part(trial.images if trial is not None and trial.images else min(2, probe.n))
    step = max(1, round(len(layers) / _FEW_LAYERS)) if trial is None or trial.layers < len(layers) else 1
    chosen = layers[::step]
    blocks = {ALL: [n for x in layers for n in x.params]} | {x.name: x.params for x in chosen}
    with second_order():
        engine = engine_for(context.config.products)(part, theta, blocks, use="products")
        times: dict[str, float] = {}
        for name, spec in engine.blocks.items():
            v = torch.ones(spec.size, 1, dtype=engine.dtype, device=engine.device)
            if not times and context.device.type != "cpu":  # an accelerator loads its kernels in the first product
                engine.products({name: v})
            with _clock(context) as clock:
                engine.products({name: v})
            times[name] = clock.seconds * probe.n / part.n
    whole = times.pop(ALL)
    return whole, sum(times.values()) * len(layers) / len(chosen)


def _gradient(part: Probe, theta: Mapping[str, Tensor], names: Sequence[str]) -> None:
    params = {n: theta[n].detach().clone().requires_grad_() for n in names}
    with second_order():
        for i in range(len(part.weights)):
            torch.autograd.grad(part.batch_loss(i, {**theta, **params}), list(params.values()), allow_unused=True)


def _head(context: Context, theta: Mapping[str, Tensor]) -> float:
    """Seconds of encoding all prompts of a head that is made from text when a pair is loaded."""
    if not context.pair.head_made:
        return 0.0
    head = context.pair.classifier

    def encode(classes: int) -> None:
        with torch.no_grad():
            zero_shot_head(head.model, theta, head.classnames[:classes], head.templates)

    return len(head.classnames) * _rate(context, len(head.classnames), encode)


def _test_images(context: Context, theta: Mapping[str, Tensor]) -> tuple[float, float]:
    """Seconds of reading all test images, and of answering them."""
    config, sets = context.config, list(context.datasets.values())
    images, size = sum(len(d) for d in sets), config.batch_size

    def read(few: Dataset) -> None:
        for _ in few.batches(size, context.device):
            pass

    def answer(few: Dataset) -> None:
        correct(context.pair.classifier, theta, few, size, context.device)

    def of(work: Callable[[Dataset], None]) -> float:
        most = min(len(sets[0]), 2 * size)
        return images * _rate(context, most, lambda n: work(sets[0].subset(range(n))))

    decode = of(read)
    return decode, max(of(answer) - decode, 0.0)


# ---------------------------------------------------------------------- clocks
def _rate(context: Context, most: int, work: Callable[[int], object]) -> float:
    """Seconds an image of ``work``, which is given the number of images: 2, or more where these take no time."""
    n = min(2, most)
    work(n)  # once before, for what is made at the first call
    while True:
        with _clock(context) as clock:
            work(n)
        if clock.seconds >= _KNOWN or n == most:
            return clock.seconds / n
        n = min(2 * n if clock.seconds > _KNOWN / 8 else 8 * n, most)


@dataclass
class _Clock:
    seconds: float = 0.0


@contextlib.contextmanager
def _clock(context: Context) -> Iterator[_Clock]:
    """Seconds that the block takes until the device has done its work."""
    clock = _Clock()
    settle(context.device)
    start = time.perf_counter()
    yield clock
    settle(context.device)
    clock.seconds = time.perf_counter() - start
