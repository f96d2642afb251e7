"""Estimate of what a study would cost: its units of work, time, memory and disk."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Final

from sharpscope.clip.progress import duration
from sharpscope.config.study import StudyConfig
from sharpscope.curvature.fisher import FEW_CLASSES
from sharpscope.machine.ranks import ranks
from sharpscope.study.context import Context, check_inputs, load_contexts
from sharpscope.study.evaluating import points_at_once
from sharpscope.study.results import Results
from sharpscope.study.tasks import Family, looked_at, variants
from sharpscope.study.timing import TrialRun, costs
from sharpscope.study.workers import in_threads_of, with_jobs
from sharpscope.vocabulary import BASES, MEASURES, Cost, expand_measures

__all__ = ["plan"]

_WORDS: Final[dict[Cost, str]] = {"trace": "traces", "eigenvalues": "eigenvalues"}


def plan(config: StudyConfig) -> str:
    """What a study would cost: units of work and their estimated time, memory and disk, as text; writes nothing.

    The estimate comes from doing a small part of the work at the middle of the first pair's path, which takes a minute
    at most beside the loading (``study.timing``).

    Raises:
        ConfigError, DatasetError: everything that ``run`` would refuse, in the same words. Also everything that loading
            checkpoints and data sets raises.
    """
    check_inputs(config)
    config = with_jobs(config)
    contexts = load_contexts(config, rough_head=True)
    context = next(iter(contexts.values()))
    with in_threads_of(config):
        cost = costs(context)
    layers, alphas, measured = len(context.layers), len(config.alphas), len(config.measured_alphas)
    images = sum(len(d) for d in context.datasets.values())
    repairs = len(variants(config, context.layers, [context.layers[0].name])) * len(config.repaired_alphas)
    repaired = sum(min(len(d), config.repair_limit) for d in context.datasets.values())
    points = alphas * len(config.paths)
    counts: dict[Family, int] = {"path": points, "repair": repairs}
    passes = {family: -(-n // points_at_once(context, family)) for family, n in counts.items()}
    decoded = sum(len(d) for d in context.datasets.values() if d.facts["streamed"]) / images * cost.decode
    seconds = {
        "curvature": cost.curvature,
        "single layers": (_moves(config) * layers + len(BASES)) * cost.loss,
        "path": alphas * (cost.loss + cost.evaluate) + passes["path"] * decoded,
        "repair": (repairs * cost.evaluate + passes["repair"] * decoded) * repaired / images,
    }  # fmt: skip
    found = Counter(task.kind for task in Results(config, {context.pair.name: context.layers}).first_tasks())
    units = {
        "curvature": found["curvature"], "single layers": found["layers"] + found["noise"], "path": found["path"],
        "repair": repairs,
    }  # fmt: skip
    if further := alphas * (len(config.paths) - 1):
        seconds["further paths"] = further * cost.evaluate + _fisher_seconds(context, cost.loss)
        units["further paths"] = found["pathvariant"]
    if config.upgraded or config.output_baselines or config.ensembles:
        mixed = bool(config.output_baselines) + bool(config.ensembles)
        mixing = alphas * bool(config.upgraded) + 2.0 * mixed
        if "vrf" in config.output_baselines:  # both ends on the training images
            mixing += 2 * len(context.vrf_train) / sum(len(d) for d in context.datasets.values())
        seconds["other accuracy"] = mixing * cost.evaluate
        units["other accuracy"] = found["upgraded"] + found["outputs"] + found["ensembles"]
    if config.eigenvectors:
        points = len(looked_at(config.alphas, config.eigenvector_alphas))
        seconds["eigenvectors"] = points * cost.eigenvectors
        units["eigenvectors"] = found["eigenvectors"]
    sharing = config.processes * ranks().world  # a unit that the ranks split takes each of them its part of the time
    # Every process makes the head of every pair for itself.
    longest = max((s / units[kind] for kind, s in seconds.items() if units[kind]), default=0.0)  # one process has it
    total = max(sum(seconds.values()) * len(contexts) / sharing, longest) + cost.head * len(contexts)
    # What each image adds to an estimate is kept as float32.
    told_apart = sum(MEASURES[m].cost in ("trace", "outer") for m in expand_measures(config.measures))
    disk = units["path"] * images + units["repair"] * repaired
    disk += layers * context.probe.n * (8 * 20 + 4 * measured * told_apart)
    lines = [
        f"{len(contexts)} pair(s) of {context.pair.model.name}: {layers} layers ({config.granularity}), {alphas} "
        f"alphas, probe {context.probe.n} in {len(context.probe.batches)} batches, {images:,} test images, "
        f"{context.device}",
        *(f"  {kind:<14}{units[kind]:>5} units  {duration(s):>9} per pair" for kind, s in seconds.items()),
        f"estimated time: {duration(total)} with {sharing} process{'es' * (sharing > 1)}, without tables and report; "
        f"{_tried(cost.trial, context)}",
        f"one Hessian-vector product: {cost.product:.3g} s for the whole model, {cost.sweep:.3g} s for all layers one "
        "by one",
        *_head_line(context, cost.head),
        f"memory: {cost.layout}",
        _image_line(context, passes),
        f"disk: about {disk * len(contexts) / 2**20:,.0f} MiB for the units, plus the report",
    ]
    return "\n".join(lines)


def _moves(config: StudyConfig) -> int:
    """The number of losses that the units of single-layer paths and of noise evaluate for each layer."""
    apart = sum(alpha != base.alpha for base in BASES.values() for alpha in config.layer_alphas)
    return apart + sum(alpha > 0 for alpha in config.layer_alphas) * len(config.criticality_noise)


def _tried(trial: TrialRun | None, context: Context) -> str:
    """The trial on which the predicted time of the curvature rests, in words."""
    if trial is None:
        return "a GUESS for the curvature, because not even two images of three layers could be tried in the time"
    if not trial.images:
        return "nothing had to be tried"
    found = ", ".join(f"{n} for {_WORDS[kind]}" for kind, n in trial.products.items() if kind in _WORDS)
    products = f", with a median number of products per layer of {found}" if found else ""
    return (
        f"tried at {trial.alphas} of the {len(context.config.measured_alphas)} alphas, on {trial.images} of the "
        f"{context.probe.n} probe images and {trial.layers} of the {len(context.layers)} layers{products}"
    )


def _head_line(context: Context, seconds: float) -> list[str]:
    """How long the head takes that is made from text, if there is one."""
    head = context.pair.classifier
    if not context.pair.head_made:
        return []
    count = len(head.classnames) * len(head.templates)
    return [f"head: {count:,} prompts are encoded once for each pair, in every process: {duration(seconds)}"]


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
