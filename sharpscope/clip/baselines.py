"""Baselines for the path that mix the outputs of its two ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.accuracy import FeatureCache, logits
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.ensembles import FailureSet, calibrating_temperature, mixed_outputs
from sharpscope.clip.metrics import Answers
from sharpscope.clip.pair import LoadedPair
from sharpscope.clip.probe import Probe
from sharpscope.vocabulary import OutputBaseline
from sharpscope.weights.theta import Theta, on_device

__all__ = ["output_baselines"]


def output_baselines(
    pair: LoadedPair,
    probe: Probe,
    datasets: Mapping[str, Dataset],
    which: Sequence[OutputBaseline],
    calibrate_on: str | None,
    batch_size: int = 128,
) -> tuple[dict[str, dict[str, Answers]], dict[str, str]]:
    """({baseline: {data set: answers}}, {baseline: note}) of the mixed outputs of theta_0 and theta_1.

    ose is the mean of the two ends' probabilities. vrf is a weighted mean, whose weight for each image follows from the
    image's distance to the zero-shot model's failures (Zhu et al. 2024, arXiv 2411.06966); the failures are searched
    among the probe's training examples. The two temperatures of vrf make the mean confidence on the ID set
    ``calibrate_on`` equal to the accuracy there, as in the published code (None: both are 1).
    """
    ends = [on_device(theta, probe.device, probe.dtype) for theta in (pair.theta_0, pair.theta_1)]
    caches = [FeatureCache(), FeatureCache()]
    scores: dict[str, tuple[tuple[Tensor, Tensor], Tensor]] = {}
    for name, dataset in datasets.items():
        (zero, labels), (one, _) = (
            logits(pair.classifier, theta, dataset, batch_size, cache=cache)
            for theta, cache in zip(ends, caches, strict=True)
        )
        scores[name] = (zero, one), labels
    answered: dict[str, dict[str, Answers]] = {}
    notes: dict[str, str] = {}
    if "ose" in which:
        answered["ose"] = {name: Answers.of(mixed_outputs(*both), labels) for name, (both, labels) in scores.items()}
    if "vrf" in which:
        temperatures = [1.0, 1.0]
        if calibrate_on is not None:
            both, labels = scores[calibrate_on]
            temperatures = [calibrating_temperature(s, float((s.argmax(1) == labels).double().mean())) for s in both]
        failures = _failures(pair, probe, ends, temperatures)
        answered["vrf"] = {}
        for name, (both, labels) in scores.items():
            seen = caches[1].batches(pair.classifier, ends[1], datasets[name], batch_size)
            features = torch.cat([F.normalize(f, dim=1).cpu() for f, _ in seen])
            answered["vrf"][name] = Answers.of(failures.mixed(*both, features), labels)
        where = f"calibrated on {calibrate_on}" if calibrate_on is not None else "not calibrated"
        notes["vrf"] = (
            f"{len(failures.features)} zero-shot failures among {probe.n} probe images, distance to nearest failure "
            f"number {failures.k}; temperatures {temperatures[0]:.3g} (zero-shot) and {temperatures[1]:.3g} "
            f"(fine-tuned), {where}"
        )
    return answered, notes


@torch.inference_mode()
def _failures(pair: LoadedPair, probe: Probe, ends: Sequence[Theta], temperatures: Sequence[float]) -> FailureSet:
    """The fine-tuned model's features of the probe's images that only the fine-tuned model gets right."""
    frozen = [pair.classifier.frozen(theta) for theta in ends]
    features, right = [], []
    for images, labels in probe.batches:
        of_ends = [pair.classifier.features(theta, images) for theta in frozen]
        said = [pair.classifier.logits_of(t, f).argmax(1) for t, f in zip(frozen, of_ends, strict=True)]
        features.append(F.normalize(of_ends[1], dim=1).cpu())
        right.append(torch.stack([s == labels for s in said]).cpu())
    right_0, right_1 = torch.cat(right, dim=1)
    return FailureSet.of(torch.cat(features), right_0, right_1, *temperatures)
