"""Which images the models of finetuners.py get right: along the path, on another backbone, and as ensembles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sharpscope.clip.answering import correct, logits
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.ensembles import FailureSet, calibrating_temperature, mixed_outputs
from sharpscope.clip.pair import LoadedPair

__all__ = ["ENDS", "ensembles", "path_right", "upgraded"]


ENDS = {"_zeroshot": 0.0, "_half": 0.5, "": 1.0}
"""What the table's columns id and ood end in -> the point of the path."""


def path_right(pair: LoadedPair, sets: Mapping[str, Dataset]) -> dict[str, dict[str, list[np.ndarray]]]:
    """End of the columns' names -> which images are right: ``id`` of the set ``id``, ``ood`` of each other set."""
    found = {}
    for end, alpha in ENDS.items():
        theta = pair.path().at(alpha)
        right = {name: correct(pair.classifier, theta, dataset) for name, dataset in sets.items()}
        found[end] = {"id": [right["id"]], "ood": [hits for name, hits in right.items() if name != "id"]}
    return found


def upgraded(pair: LoadedPair, dataset: Dataset) -> dict[str, np.ndarray]:
    """Which images are right when what was learnt is carried to ``pair.upgraded``, and by that backbone alone.

    A prompt module works on the new text tower; of any other method the task vector theta_1 - theta_0 is added to the
    new backbone and its zero-shot head (Ilharco et al. 2023, arXiv 2212.04089).
    """
    assert pair.upgraded is not None
    start, adapted = (correct(pair.classifier, theta, dataset) for theta in pair.upgraded)
    return {"id_upgraded": adapted, "id_upgraded_zeroshot": start}


def ensembles(
    pair: LoadedPair, train: Dataset, validation: Dataset, sets: Mapping[str, Dataset]
) -> dict[str, dict[str, np.ndarray]]:
    """Which images of each set are right by the mixed outputs of both ends, for each kind of mixture: ose, vrf.

    Temperatures come from ``validation``, failures from ``train`` (both ID).
    """
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
    result: dict[str, dict[str, np.ndarray]] = {"ose": {}, "vrf": {}}
    for name, dataset in sets.items():
        said = both(dataset)
        mixes = {"ose": mixed_outputs(*said), "vrf": failures.mixed(*said, features(dataset))}
        for kind, outputs in mixes.items():
            result[kind][name] = (outputs.argmax(1) == dataset.labels).numpy()
    return result
