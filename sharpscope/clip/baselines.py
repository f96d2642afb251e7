"""Baselines for the path that mix the outputs of its two ends, at one point or along alpha."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.agreement import Outputs, Seen
from sharpscope.clip.answering import answers, answers_each, answers_of
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.ensembles import (
    CENTRE,
    WIDTH,
    FailureSet,
    calibrating_temperature,
    ensemble,
    mixed_outputs,
    nearest_count,
)
from sharpscope.clip.failure_ratio import Nearness
from sharpscope.clip.metrics import Answers
from sharpscope.clip.pair import LoadedPair
from sharpscope.vocabulary import EnsembleKind, OutputBaseline
from sharpscope.weights.theta import Theta

__all__ = ["Mixed", "Vrf", "ensembles_along", "output_baselines"]


@dataclass(frozen=True)
class Vrf:
    """VRF's inputs: ``train``, in whose images failures are looked for, and its constants.

    ``k``: the number of the nearest failure; None: ``ensembles.nearest_count``.
    """

    train: Dataset
    k: int | None = None
    centre: float = CENTRE
    width: float = WIDTH


@dataclass(frozen=True)
class Mixed:
    """What the mixed outputs of two ends answer.

    ``answers``: baseline -> data set -> answers. ``notes``: baseline -> note. ``near``: data set -> the distances from
    which VRF's weights follow, with what each end gets right; empty without vrf.
    """

    answers: dict[str, dict[str, Answers]]
    notes: dict[str, str]
    near: dict[str, Nearness]


def output_baselines(
    pair: LoadedPair,
    ends: Sequence[Theta],
    datasets: Mapping[str, Dataset],
    which: Sequence[OutputBaseline],
    calibrate_on: str | None,
    batch_size: int = 128,
    vrf: Vrf | None = None,
) -> Mixed:
    """The mixed outputs of ``ends``, theta_0 and theta_1.

    ose is the mean of the two ends' probabilities. vrf is a weighted mean, whose weight for each image follows from the
    image's distance to the zero-shot model's failures among the training images (Zhu et al. 2024, arXiv 2411.06966).
    The two temperatures of vrf make the mean confidence on the ID set ``calibrate_on`` equal to the accuracy there, as
    in the published code (None: both are 1).
    """
    outputs = _outputs(pair, ends, datasets, batch_size)
    answered: dict[str, dict[str, Answers]] = {}
    notes: dict[str, str] = {}
    near: dict[str, Nearness] = {}
    if "ose" in which:
        answered["ose"] = {
            name: answers_of(mixed_outputs(*both.scores), both.labels, datasets[name]) for name, both in outputs.items()
        }
    if "vrf" in which:
        assert vrf is not None
        temperatures = [1.0, 1.0]
        if calibrate_on is not None:
            both = outputs[calibrate_on]
            temperatures = [
                calibrating_temperature(s, float((s.argmax(1) == both.labels).double().mean())) for s in both.scores
            ]
        failures = _failures(pair, vrf, ends, temperatures, batch_size)
        answered["vrf"] = {}
        for name, both in outputs.items():
            distance = failures.distance(F.normalize(both.one.features, dim=1))
            answered["vrf"][name] = answers_of(failures.mixed_at(distance, *both.scores), both.labels, datasets[name])
            right_0, right_1 = (answers_of(s, both.labels, datasets[name]).correct for s in both.scores)
            known = distance.numpy().astype(np.float64)
            near[name] = Nearness(known, right_0, right_1, len(failures.features), failures.k)
        where = f"calibrated on {calibrate_on}" if calibrate_on is not None else "not calibrated"
        notes["vrf"] = (
            f"{len(failures.features)} zero-shot failures among {len(vrf.train)} training images, distance to nearest "
            f"failure number {failures.k}; temperatures {temperatures[0]:.3g} (zero-shot) and {temperatures[1]:.3g} "
            f"(fine-tuned), {where}"
        )
    return Mixed(answered, notes, near)


def ensembles_along(
    pair: LoadedPair,
    ends: Sequence[Theta],
    datasets: Mapping[str, Dataset],
    kinds: Sequence[EnsembleKind],
    alphas: Sequence[float],
    batch_size: int = 128,
) -> Iterator[tuple[EnsembleKind, float, dict[str, Answers]]]:
    """(kind, alpha, {data set: answers}) of the mixed outputs of ``ends`` at every alpha, from one pass for each end.

    See ``ensembles.ensemble``; alpha is the weight of theta_1's outputs, in [0, 1].
    """
    outputs = _outputs(pair, ends, datasets, batch_size)
    for kind, alpha in product(kinds, alphas):
        mixed = {
            name: answers_of(ensemble(kind, *both.scores, alpha), both.labels, datasets[name])
            for name, both in outputs.items()
        }
        yield kind, alpha, mixed


@dataclass(frozen=True)
class _Both:
    """The outputs of both ends on one data set, with the images' labels [n]."""

    zero: Outputs
    one: Outputs
    labels: Tensor

    @property
    def scores(self) -> tuple[Tensor, Tensor]:
        return self.zero.scores, self.one.scores


def _outputs(
    pair: LoadedPair, ends: Sequence[Theta], datasets: Mapping[str, Dataset], batch_size: int
) -> dict[str, _Both]:
    """What theta_0 and theta_1 say of every data set, from one pass over its images."""
    found = {}
    for name, dataset in datasets.items():
        seen = Seen(), Seen()
        given = answers_each(pair.classifier, ends, dataset, batch_size, seen=seen)
        found[name] = _Both(seen[0].outputs(), seen[1].outputs(), torch.from_numpy(given[0].labels))
    return found


def _failures(
    pair: LoadedPair, vrf: Vrf, ends: Sequence[Theta], temperatures: Sequence[float], batch_size: int
) -> FailureSet:
    """The fine-tuned model's features of the training images that only the fine-tuned model gets right."""
    right_0 = answers(pair.classifier, ends[0], vrf.train, batch_size).correct
    wrong, kept, start = torch.from_numpy(~right_0), [], 0

    def keep(features: Tensor, _: Tensor) -> None:
        nonlocal start
        kept.append(F.normalize(features, dim=1).cpu()[wrong[start : start + len(features)]])
        start += len(features)

    right_1 = answers(pair.classifier, ends[1], vrf.train, batch_size, seen=keep).correct
    features = torch.cat(kept)[torch.from_numpy(right_1[~right_0])]
    k = nearest_count(len(features), len(vrf.train)) if vrf.k is None else vrf.k
    return FailureSet(features, temperatures[0], temperatures[1], k, vrf.centre, vrf.width)
