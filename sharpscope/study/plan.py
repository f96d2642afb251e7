"""Estimate of what a study would cost: its units of work, time, memory and disk."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from sharpscope.clip.answering import correct
from sharpscope.clip.devices import settle
from sharpscope.clip.probe import Probe
from sharpscope.clip.progress import duration
from sharpscope.config.study import StudyConfig
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.fisher import FEW_CLASSES
from sharpscope.curvature.functional import engine_for
from sharpscope.curvature.graphs import MemoryPlan, plan_memory
from sharpscope.study.context import Context, check_inputs, load_contexts
from sharpscope.study.evaluating import points_at_once
from sharpscope.study.tasks import Family, looked_at, plan_curvature, variants
from sharpscope.vocabulary import ALL, MEASURES, Cost

__all__ = ["plan"]

_PRODUCTS: Final[dict[Cost, int]] = {"trace": 40, "eigenvalues": 6, "product": 1}
"""The number of Hessian-vector products per layer that ``plan`` assumes for each kind of measure, capped at
``max_matvecs``. The numbers are typical for rtol 0.05; measures of one kind and family share their products."""
_PASSES: Final = 40
"""The number of backward passes of the logits that ``plan`` assumes for each Gauss-Newton or Fisher trace."""


# ---------------------------------------------------------------------- the estimate
def plan(config: StudyConfig) -> str:
    """What a study would cost: units of work and their estimated time, memory and disk, as text; writes nothing.

    The estimate comes from one timed gradient graph, one product for every layer and one evaluation at the middle of
    the first pair's path.

    Raises:
        ConfigError, DatasetError: everything that ``run`` would refuse, in the same words. Also everything that loading
            checkpoints and data sets raises.
    """
    check_inputs(config)
    contexts = load_contexts(config)
    context = next(iter(contexts.values()))
    costs, layout = _costs(context)
    layers, alphas, measured = len(context.layers), len(config.alphas), len(config.measured_alphas)
    images = sum(len(d) for d in context.datasets.values())
    repairs = len(variants(config, context.layers, [context.layers[0].name])) * len(config.repaired_alphas)
    repaired = sum(min(len(d), config.repair_limit) for d in context.datasets.values())
    points = alphas * len(config.paths)
    counts: dict[Family, int] = {"path": points, "repair": repairs}
    passes = {family: -(-n // points_at_once(context, family)) for family, n in counts.items()}
    decoded = sum(len(d) for d in context.datasets.values() if d.facts["streamed"]) / images * costs["decode"]
    seconds = {
        "curvature": measured * costs["curvature"],
        "single layers": (3 * len(config.layer_alphas) + len(config.layer_alphas) * len(config.criticality_noise))
        * layers * costs["loss"],
        "path": alphas * (costs["loss"] + costs["evaluate"]) + passes["path"] * decoded,
        "repair": (repairs * costs["evaluate"] + passes["repair"] * decoded) * repaired / images,
    }  # fmt: skip
    units = {
        "curvature": len(plan_curvature(config.measured_alphas)), "single layers": 4, "path": alphas, "repair": repairs,
    }  # fmt: skip
    if further := alphas * (len(config.paths) - 1):
        seconds["further paths"] = further * costs["evaluate"] + _fisher_seconds(context, costs["loss"])
        units["further paths"] = further
    if config.upgraded or config.output_baselines or config.ensembles:
        mixed = bool(config.output_baselines) + bool(config.ensembles)
        mixing = alphas * bool(config.upgraded) + 2.0 * mixed
        if "vrf" in config.output_baselines:  # both ends on the training images
            mixing += 2 * len(context.vrf_train) / sum(len(d) for d in context.datasets.values())
        seconds["other accuracy"] = mixing * costs["evaluate"]
        units["other accuracy"] = alphas * bool(config.upgraded) + mixed
    if config.eigenvectors:
        points = len(looked_at(config.alphas, config.eigenvector_alphas))
        seconds["eigenvectors"] = points * costs["eigenvectors"]
        units["eigenvectors"] = points
    total = sum(seconds.values()) * len(contexts) / config.jobs
    told_apart = sum(MEASURES[m].cost in ("trace", "outer") for m in config.measures)  # what each image adds, float32
    disk = units["path"] * images + units["repair"] * repaired
    disk += layers * context.probe.n * (8 * 20 + 4 * measured * told_apart)
    lines = [
        f"{len(contexts)} pair(s) of {context.pair.model.name}: {layers} layers ({config.granularity}), {alphas} "
        f"alphas, probe {context.probe.n} in {len(context.probe.batches)} batches, {images:,} test images, "
        f"{context.device}",
        *(f"  {kind:<14}{units[kind]:>5} units  {duration(s):>9} per pair" for kind, s in seconds.items()),
        f"estimated time: {duration(total)} with {config.jobs} job(s) (products per layer: {_PRODUCTS['trace']} for "
        f"traces, {_PRODUCTS['eigenvalues']} for eigenvalues, at most {config.max_matvecs})",
        f"one Hessian-vector product: {costs['hvp']:.3g} s for the whole model, {costs['sweep']:.3g} s for all layers "
        "one by one",
        f"memory: {layout}",
        _image_line(context, passes),
        f"disk: about {disk * len(contexts) / 2**20:,.0f} MiB for the units, plus the report",
    ]
    return "\n".join(lines)


def _image_line(context: Context, passes: Mapping[Family, int]) -> str:
    """How often the test images are decoded, and what they take in memory."""
    sets = context.datasets.values()
    size = 3 * math.prod(context.pair.model.image_size)
    streamed = sum(len(d) for d in sets if d.facts["streamed"])
    kept = f"{(sum(len(d) for d in sets) - streamed) * size / 2**30:.2g} GiB of decoded test images stay in memory"
    if not streamed:
        return f"images: {kept}"
    return (
        f"images: {kept}; {streamed:,} do not fit into --image-cache {context.config.image_cache:g} and are decoded "
        f"{passes['path']} time(s) for the path and {passes['repair']} for the repairs, which look at a part of them"
    )


def _fisher_seconds(context: Context, loss: float) -> float:
    """Seconds for the Fisher information of both ends, if the study has that path.

    ``loss``: the seconds of one pass over the probe set. A backward pass is taken to cost two forward passes.
    """
    classes = len(context.pair.classifier.classnames)
    passes = classes if classes <= FEW_CLASSES else 1
    return 2 * loss * (1 + 2 * passes) if "fisher" in context.config.paths else 0.0


def _costs(context: Context) -> tuple[dict[str, float], MemoryPlan]:
    """Seconds that each part of the work takes, timed once at the middle of the path, and the planned use of memory."""
    config, probe = context.config, context.probe
    theta = context.theta(0.5 if 0.5 in config.alphas else config.alphas[len(config.alphas) // 2])
    blocks = {ALL: [n for x in context.layers for n in x.params]} | {x.name: x.params for x in context.layers}
    with second_order():
        cut, layout = plan_memory(probe, theta, blocks[ALL], context.settings.memory)
        assert isinstance(cut, Probe)
        batches = len(cut.batches)
        first = cut.rebatched(cut.batch_size)
        first.batches, first.weights = cut.batches[:1], (1.0,)
        with _clock(context) as clock:
            engine = engine_for(config.products)(first, theta, blocks)
        build = clock.seconds * batches
        times: dict[str, float] = {}
        for layer, spec in engine.blocks.items():
            v = torch.ones(spec.size, 1, dtype=engine.dtype, device=engine.device)
            if not times and context.device.type != "cpu":  # a GPU loads its kernels in the first product
                engine.products({layer: v})
            with _clock(context) as clock:
                engine.products({layer: v})
            times[layer] = clock.seconds * batches
    with _clock(context) as clock:
        probe.sample_losses(theta)
    loss = clock.seconds
    dataset = next(iter(context.datasets.values()))
    few = dataset.subset(range(min(len(dataset), 2 * config.batch_size)))
    images = sum(len(d) for d in context.datasets.values())
    with _clock(context) as clock:
        deque(few.batches(config.batch_size, context.device), maxlen=0)
    decode = clock.seconds / len(few) * images
    with _clock(context) as clock:
        correct(context.pair.classifier, theta, few, config.batch_size, context.device)
    evaluate = max(clock.seconds / len(few) * images - decode, 0.0)
    sweep = sum(times.values())
    kinds = [MEASURES[m].cost for m in config.measures]
    top = config.eigenvectors * min(_PRODUCTS["eigenvalues"], config.max_matvecs)
    vectors = build + top * sum(times[n] for n in config.eigenvector_layers if n in times)
    shared = {(MEASURES[m].family, MEASURES[m].cost) for m in config.measures}
    products = sum(min(_PRODUCTS[cost], config.max_matvecs) for _, cost in shared if cost in _PRODUCTS)
    layers = len(context.layers) + 1
    averages = kinds.count("noise") * 2 * config.noise_samples * layers * loss
    perturbed = config.measured_alphas if config.perturbation_alphas is None else config.perturbation_alphas
    chosen = len(perturbed) / len(config.measured_alphas)
    worst = kinds.count("worst_case") * config.pgd_steps * layers * build / 2 * chosen
    outer = kinds.count("outer") * min(_PASSES, config.max_matvecs) * build / 2
    gradient = kinds.count("gradient") * (build / 2 + 2 * layers * loss)
    rebuilt = (layout.batches - layout.kept) / layout.batches * build
    curvature = (products > 0) * build + products * (sweep + rebuilt) + averages * chosen + worst + outer + gradient
    costs = {
        "curvature": curvature, "loss": loss, "evaluate": evaluate, "hvp": times[ALL], "sweep": sweep - times[ALL],
        "eigenvectors": vectors, "decode": decode,
    }  # fmt: skip
    return costs, layout


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
