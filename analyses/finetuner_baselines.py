"""What finetuners.py measures of a pair beside its path: on another backbone, and as ensembles of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sharpscope.clip.data import Dataset
from sharpscope.clip.ensembles import FailureSet, calibrating_temperature, mixed_outputs
from sharpscope.clip.evaluate import correct, logits
from sharpscope.clip.head import Classifier
from sharpscope.clip.miniworld import checkpoint_path
from sharpscope.finetune.prompts import CTX, PREFIX, Prompts
from sharpscope.pairs import LoadedPair
from sharpscope.weights import read_checkpoint

__all__ = ["ensembles", "upgraded"]

Theta = dict[str, Tensor]


def upgraded(pair: LoadedPair, path: Path, backbone: str, sets: Mapping[str, Dataset]) -> dict[str, float]:
    """Accuracy on each data set when what was learnt is carried to another backbone.

    A prompt module works on the new text tower; of any other method the task vector theta_1 - theta_0 is added to the
    new backbone and its zero-shot head (Ilharco et al. 2023, arXiv 2212.04089). ``zeroshot``: the backbone alone.
    """
    model, names = pair.model, pair.classifier.classnames
    base = {n: t.float() for n, t in read_checkpoint(checkpoint_path(backbone)).tensors.items()}
    plain = Classifier(model, "zeroshot", names, pair.classifier.templates)
    learnt = {n: t for n, t in read_checkpoint(path, partial=True).tensors.items() if n.startswith(PREFIX)}
    if learnt:
        prompts = Prompts.of(model, names, len(learnt[CTX]))
        with torch.no_grad():
            theta = {**base, "head.weight": prompts.class_vectors(model, {**base, **learnt})}
        classifier = plain
    else:
        classifier = pair.classifier
        start = classifier.attach(base)
        theta = {n: t + (pair.theta_1[n] - pair.theta_0[n]) if n in pair.moving else t for n, t in start.items()}
    found = {f"{name}_upgraded": float(correct(classifier, theta, d).mean()) for name, d in sets.items()}
    whole = plain.attach(base)
    return found | {f"{name}_upgraded_zeroshot": float(correct(plain, whole, d).mean()) for name, d in sets.items()}


def ensembles(
    pair: LoadedPair, train: Dataset, validation: Dataset, sets: Mapping[str, Dataset]
) -> dict[str, dict[str, float]]:
    """{set: {ose, vrf}}: accuracies of mixing what both ends say; temperatures from ``validation``, failures of
    ``train`` (both ID)."""
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
    result = {}
    for name, dataset in sets.items():
        said = both(dataset)
        mixes = {"ose": mixed_outputs(*said), "vrf": failures.mixed(*said, features(dataset))}
        result[name] = {k: float((z.argmax(1) == dataset.labels).float().mean()) for k, z in mixes.items()}
    return result
