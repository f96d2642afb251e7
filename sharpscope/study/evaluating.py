"""Units of work that evaluate points of weight space: several points share one pass over the test images.

A unit's numbers are the same whichever other points share its pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sharpscope.clip.accuracy import accuracy_rows, dataset_note, mean_rows, reported
from sharpscope.clip.agreement import Energies
from sharpscope.clip.answering import FeatureCache, answers_each
from sharpscope.clip.datasets.common import common_pictures
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.head import Classifier
from sharpscope.clip.metrics import Answers
from sharpscope.clip.probe import Probe
from sharpscope.scores import sets_together
from sharpscope.study.agreeing import Comparison
from sharpscope.study.context import Context
from sharpscope.study.tasks import Family, Task, Variant, mask_seed, roles
from sharpscope.study.unitfile import Unit
from sharpscope.vocabulary import DENSE, PATHS, UPGRADED, path_variant
from sharpscope.weights.sparsify import sparsify
from sharpscope.weights.theta import Theta, on_device

__all__ = ["evaluated", "measured_accuracy", "points_at_once", "probe_losses"]

Row = dict[str, Any]
_SHARE = 0.25
"""The fraction of the free memory that points of the path may take which are evaluated together. With a larger value
more points share one pass over the images."""


@dataclass(frozen=True)
class _Point:
    """One point: the tensors that its logits read, what it is called in the tables, and what else its unit holds."""

    theta: Theta
    alpha: float
    variant: str
    rows: dict[str, list[Row]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    answered: bool = False
    """Whether the unit stores the answers of this point to every single image."""
    energies: Energies | None = None


@dataclass(frozen=True)
class _Pass:
    """How the points of one family are evaluated: by which classifier, on which sets, with which features at hand."""

    classifier: Classifier
    datasets: Mapping[str, Dataset]
    cache: FeatureCache | None


def evaluated(context: Context, tasks: Sequence[Task]) -> list[Unit]:
    """The unit of every task, from one pass over the images; the tasks are of one pair and one family."""
    family = tasks[0].family
    assert family is not None and all(t.family == family for t in tasks)
    how = _pass(context, family)
    points = [_point(context, family, task, how.classifier) for task in tasks]
    compared = Comparison(context) if family == "path" and context.config.agreement else None
    ends = [] if compared is None else compared.missing([p.alpha for p in points if p.variant == DENSE])
    given: list[dict[str, Answers]] = [{} for _ in points]
    agreement: list[list[Row]] = [[] for _ in points]
    for spec, dataset in how.datasets.items():
        seen = [] if compared is None else compared.start(len(points) + len(ends))
        every = answers_each(
            how.classifier, [*(p.theta for p in points), *(e.theta for e in ends)], dataset,
            context.config.batch_size, cache=how.cache, seen=seen,
        )  # fmt: skip
        for own, one in zip(given, every, strict=False):
            own[spec] = one
        if compared is not None:
            dense = [(p.alpha, p.energies, every[i]) if p.variant == DENSE else None for i, p in enumerate(points)]
            for rows, found in zip(agreement, compared.rows(spec, dataset, dense, ends, seen), strict=True):
                rows += found
    return [_unit(context, *parts) for parts in zip(points, given, agreement, strict=True)]


def points_at_once(context: Context, family: Family) -> int:
    """The number of points of ``family`` that fit into memory together, at least 1.

    It is 1 where all images are in memory anyway: nothing is read twice then, and a killed run loses least.
    """
    how = _pass(context, family)
    if not any(d.facts["streamed"] for d in how.datasets.values()):
        return 1
    theta = how.classifier.frozen(context.path.at(0.0) if family != "upgraded" else context.upgraded_path.at(0.0))
    bytes_each = sum(t.nbytes for t in theta.values())
    if family == "path" and context.config.agreement:
        width = context.pair.model.config["embed_dim"]
        bytes_each += max(4 * d.listed * (width + len(d.target_names)) for d in how.datasets.values())
    return max(1, int(_SHARE * context.free_memory / bytes_each))


def _pass(context: Context, family: Family) -> _Pass:
    pair = context.pair
    if family != "upgraded":
        sets = context.repair_datasets if family == "repair" else context.datasets
        return _Pass(pair.classifier, sets, context.features)
    assert pair.upgraded_classifier is not None
    cache = context.features if pair.upgraded_classifier.model is pair.model else None
    return _Pass(pair.upgraded_classifier, context.upgraded_datasets, cache)


# ---------------------------------------------------------------------- the points
def _point(context: Context, family: Family, task: Task, classifier: Classifier) -> _Point:
    kind, _, *rest = task.key.split("/")
    alpha = float(rest[-1])
    if kind == "path":
        return _path_point(context, alpha)
    if kind == "pathvariant":
        name = next(p for p in PATHS if p == rest[0])
        theta, variant = context.further_path(name).at(alpha), path_variant(name)
    elif family == "upgraded":
        theta, variant = context.upgraded_path.at(alpha), UPGRADED
    else:
        assert task.variant is not None
        return _repaired_point(context, task.variant, alpha)
    return _Point(classifier.frozen(on_device(theta, context.device)), alpha, variant)


def _path_point(context: Context, alpha: float) -> _Point:
    """theta(alpha) with the loss of every probe example and the distances to both ends."""
    pair, theta = context.pair, context.theta(alpha)
    losses = probe_losses(context.probe, theta)
    distance_0, distance_1 = context.path.distance(alpha)
    finite = bool(np.isfinite(losses).all())
    row: Row = {
        "pair": pair.name,
        "alpha": alpha,
        "loss": float(losses.mean()) if finite else math.nan,
        "loss_stderr": float(losses.std(ddof=1) / math.sqrt(len(losses))) if finite and len(losses) > 1 else math.nan,
        "distance_0": distance_0,
        "distance_1": distance_1,
        "num_moving": sum(pair.theta_0[n].numel() for n in pair.moving),
        "status": "ok" if finite else "failed",
    }
    energies = context.ends.energies(alpha, theta) if context.config.agreement else None
    frozen = pair.classifier.frozen(theta)
    return _Point(frozen, alpha, DENSE, {"path": [row]}, {"losses": losses}, answered=True, energies=energies)


def _repaired_point(context: Context, variant: Variant, alpha: float) -> _Point:
    """A repaired point of the path.

    Where the test examples are a part of the set (``repair_limit``), its unit holds ``places:SET``, the places of the
    answers' images among the ``listed:SET`` images of the set.
    """
    members = [x for x in context.layers if x.name in set(variant.layers)]
    theta = sparsify(
        context.path.at(alpha),
        context.path.at(0.0),
        members,
        variant.kept,
        target=variant.target,
        select=variant.select,
        seed=mask_seed(context.config.seed, context.pair.name, variant),
    )
    frozen = context.pair.classifier.frozen(on_device(theta, context.device))
    return _Point(frozen, alpha, variant.name, answered=True)


# ---------------------------------------------------------------------- the units
def _unit(context: Context, point: _Point, given: Mapping[str, Answers], agreement: list[Row]) -> Unit:
    rows = point.rows | {"accuracy": measured_accuracy(context, point.alpha, point.variant, given)}
    arrays = dict(point.arrays)
    if point.answered:
        arrays |= _answered(context, given) | _images(context, point.variant)
    return Unit(rows | ({"agreement": agreement} if agreement else {}), arrays)


def measured_accuracy(context: Context, alpha: float, variant: str, given: Mapping[str, Answers]) -> list[Row]:
    """Rows of the accuracy table: every metric of every test set, and the OOD means."""
    config, datasets = context.config, context.datasets
    rows = accuracy_rows(
        context.pair.name,
        alpha,
        variant,
        given,
        roles(config),
        {spec: reported(dataset, config.metrics) for spec, dataset in datasets.items()},
        groups=config.ood_groups,
        level=config.level,
        notes={spec: dataset_note(dataset) for spec, dataset in datasets.items()},
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
    together = sets_together(common_pictures(datasets))
    return rows + mean_rows(rows, clusters={spec: i for i, specs in enumerate(together) for spec in specs})


def _answered(context: Context, given: Mapping[str, Answers]) -> dict[str, np.ndarray]:
    """``correct:SET`` of every set; for a set with another primary metric than top1 also that metric's inputs."""
    arrays: dict[str, np.ndarray] = {}
    for spec, one in given.items():
        arrays[f"correct:{spec}"] = one.correct
        primary = context.datasets[spec].metrics[0]
        if primary != "top1":
            arrays |= {f"{primary}:predicted:{spec}": one.predicted.astype(np.int32)}
            arrays |= {f"{primary}:labels:{spec}": one.labels.astype(np.int32)}
            groups = one.groups if one.frames is None else one.frames
            if groups is not None:
                arrays |= {f"{primary}:groups:{spec}": groups.astype(np.int32)}
    return arrays


def _images(context: Context, variant: str) -> dict[str, np.ndarray]:
    """Which images the answers are about.

    ``pictures:SPEC`` holds their numbers (``common_pictures``) for sets that have pictures in common.
    """
    if variant != DENSE:
        return _places(context)
    pictures = {f"pictures:{spec}": own for spec, own in common_pictures(context.datasets).items()}
    return pictures | _lost(context)


def _lost(context: Context) -> dict[str, np.ndarray]:
    """``lost:SET``: the places of the images that could not be read, for sets that have any."""
    some = {spec: d for spec, d in context.datasets.items() if len(d) < d.listed}
    return {f"lost:{spec}": np.setdiff1d(np.arange(d.listed), d.readable) for spec, d in some.items()}


def _places(context: Context) -> dict[str, np.ndarray]:
    where = {}
    for spec, places in context.repair_places.items():
        where[f"places:{spec}"] = np.array(places)[context.repair_datasets[spec].readable]
        where[f"listed:{spec}"] = np.array(context.datasets[spec].listed)
    return where


def probe_losses(probe: Probe, theta: Theta) -> np.ndarray:
    """The loss of every probe example, float64 [n]."""
    return probe.sample_losses(theta).double().cpu().numpy()
