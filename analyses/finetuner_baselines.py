"""What finetuners.py measures of a pair besides its path: accuracy on another backbone and of output ensembles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from sharpscope.clip.accuracy import correct, logits
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.ensembles import FailureSet, calibrating_temperature, mixed_outputs
from sharpscope.clip.pair import LoadedPair

__all__ = ["ensembles", "upgraded"]


def upgraded(pair: LoadedPair, sets: Mapping[str, Dataset]) -> dict[str, float]:
    """Accuracy on each data set when what was learnt is carried to ``pair.upgraded``, and of that backbone alone.

    A prompt module works on the new text tower; of any other method the task vector theta_1 - theta_0 is added to the
    new backbone and its zero-shot head (Ilharco et al. 2023, arXiv 2212.04089).
    """
    assert pair.upgraded is not None
    start, adapted = ({n: float(correct(pair.classifier, t, d).mean()) for n, d in sets.items()} for t in pair.upgraded)
    return {f"{n}_upgraded": a for n, a in adapted.items()} | {f"{n}_upgraded_zeroshot": a for n, a in start.items()}


def ensembles(
    pair: LoadedPair, train: Dataset, validation: Dataset, sets: Mapping[str, Dataset]
) -> dict[str, dict[str, float]]:
    """{set: {ose, vrf}}: accuracy of the mixed outputs of both ends. Temperatures come from ``validation``, failures
    from ``train`` (both ID)."""
    ends = pair.theta_0, pair.theta_1

    def both(dataset: Dataset) -> list[Tensor]:
        return [logits(pair.classifier, theta, dataset)[0] for theta in ends]

    def features(dataset: Dataset) -> Tensor:
        with torch.no_grad():
            batches = [pair.model.encode_image(pair.theta_1, images) for images, _ in dataset.batches(256)]
        return torch.cat(batches)

    said, truth = both(validation), validation.labels
    temperatures = [calibrating_temperature(z, float((z.argmax(1) == truth).float().mean())) for z in said]
    right = [z.argmax(1) == train.labels for z in both(train)]
    failures = FailureSet.of(features(train), *right, *temperatures)
    # k as the paper's text has it (.1 % of the failures): the rule of the released code fits a million images
    failures = dataclasses.replace(failures, k=max(1, round(0.001 * len(failures.features))))
    result = {}
    for name, dataset in sets.items():
        said = both(dataset)
        mixes = {"ose": mixed_outputs(*said), "vrf": failures.mixed(*said, features(dataset))}
        result[name] = {k: float((z.argmax(1) == dataset.labels).float().mean()) for k, z in mixes.items()}
    return result
