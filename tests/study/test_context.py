"""The contexts of one study: what its pairs share, and what they do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.miniworld.shipped import checkpoint_path
from sharpscope.miniworld.world import CLASSES
from sharpscope.study.context import load_contexts
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint
from sharpscope.weights.heads import head_metadata

STUDY = StudyConfig(
    pairs=tuple(PairConfig(name, "mini:zeroshot", f"mini:{name}") for name in ("success", "failure")),
    model="mini", probe="mini:photo", id=("mini:photo",), ood=("mini:sketch",), alphas=(0.0, 1.0), probe_size=8,
    batch_size=8, limit=16, granularity="block", measures=("hessian_trace",), threads=1,
)  # fmt: skip


def test_pairs_share_the_data_sets_that_they_read_alike() -> None:
    """So every image is decoded once for all pairs of a study, and kept in memory once."""
    one, other = load_contexts(STUDY).values()
    assert one.datasets.keys() == other.datasets.keys() == {"mini:photo", "mini:sketch"}
    assert all(one.datasets[spec] is other.datasets[spec] for spec in one.datasets)
    assert one.probe.dataset is other.probe.dataset


def test_another_order_of_classes_is_another_data_set(tmp_path: Path) -> None:
    """Labels index a head's rows; two heads whose rows are in another order do not share labels."""
    told = read_checkpoint(checkpoint_path("success"))
    tensors = told.tensors | {"head.weight": told.tensors["head.weight"].flip(0)}
    file = tmp_path / "flipped.safetensors"
    write_checkpoint(file, tensors, head_metadata(scale_baked=False, classnames=CLASSES[::-1]))
    both = dataclasses.replace(STUDY, pairs=(*STUDY.pairs[:1], PairConfig("flipped", "mini:zeroshot", str(file))))
    plain, flipped = load_contexts(both).values()
    labels = [c.datasets["mini:sketch"].labels for c in (plain, flipped)]
    assert torch.equal(labels[1], len(CLASSES) - 1 - labels[0])
