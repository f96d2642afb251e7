"""How far several models agree with one another on the same data sets: every ordered pair of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sharpscope.atomic import write_atomic
from sharpscope.clip.agreement import Energies, Outputs, Seen, compare
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.model import ClipModel
from sharpscope.clip.text_energies import TextEnergies
from sharpscope.errors import ConfigError, PairMismatch, shown
from sharpscope.seeds import derive
from sharpscope.tables.files import csv_bytes
from sharpscope.weights.theta import Theta

__all__ = ["AllPairs", "check_all_pairs"]


def check_all_pairs(files: Sequence[object], sets: Sequence[str], paths: Sequence[str]) -> None:
    """Raise ConfigError where models cannot be compared: fewer than two, on no set of classes, or points of paths."""
    if len(files) < 2:
        raise ConfigError(f"agreement_out: compares models with one another and needs at least two, got {len(files)}.")
    if not sets:
        raise ConfigError("agreement_out: compares predicted classes, and all data sets have captions.")
    if paths:
        raise ConfigError(
            "agreement_out: compares files, not the points of paths.\n"
            "Remedy: 'sharpscope interpolate' writes a point as a file; 'sharpscope run --agreement' compares every "
            "point with both ends."
        )


@dataclass
class AllPairs:
    """The outputs of several models on data sets, kept in a temporary folder, and their comparison.

    Two models' outputs on one set are in memory at once, however many models and sets there are.
    """

    clip: ClipModel
    seed: int
    level: float = 0.95
    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="sharpscope-", ignore_cleanup_errors=True)
    )
    _labels: list[str] = field(default_factory=list)
    _sets: dict[str, Dataset] = field(default_factory=dict)
    _energies: dict[tuple[str, str], Energies | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._texts = TextEnergies(self.clip, self.seed)

    def __enter__(self) -> AllPairs:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def take(self, label: str, spec: str, dataset: Dataset, theta: Theta, seen: Seen) -> None:
        """Keep what the model ``label`` with the weights ``theta`` said of ``dataset``, which ``seen`` collected.

        Energies are those of the model's own text tower. Raises PairMismatch where its classes on this set are not
        those of the first model.
        """
        first = self._sets.setdefault(spec, dataset)
        alike = (first.classnames, first.target_names, first.classes) == (
            dataset.classnames, dataset.target_names, dataset.classes,
        )  # fmt: skip
        if not (alike and torch.equal(first.labels, dataset.labels)):
            raise PairMismatch(
                f"agreement_out: on {shown(spec)} the heads of {shown(self._labels[0])} and {shown(label)} have other "
                "classes or another order, so that they cannot be compared.\n"
                "Remedy: --head zeroshot --classnames FILE, the same names for all."
            )
        if label not in self._labels:
            self._labels.append(label)
        self._energies[label, spec] = self._texts.under(theta)
        outputs = seen.outputs()
        tensors: dict[str, Tensor] = {"features": outputs.features, "scores": outputs.scores}
        save_file({n: t.contiguous() for n, t in tensors.items()}, self._file(label, spec))

    def table(self) -> pd.DataFrame:
        """The agreement table: one row for each data set, ordered pair of models A, B, and measure.

        ``pair`` is ``A|B``, ``against`` is A, which takes the part of the end of the path, and B that of the point;
        alpha is missing. Symmetric measures are the same for ``B|A``. The choice of images for CKA follows from the
        seed and the set, and is the same for all pairs.
        """
        rows: list[dict[str, Any]] = []
        for spec, dataset in self._sets.items():
            labels, seed = dataset.labels.numpy(), derive(self.seed, "agreement", "cka", dataset.name)
            for end, point in permutations(self._labels, 2):
                found = compare(self._kept(end, spec), self._kept(point, spec), labels, level=self.level, seed=seed)
                rows += [one.row(f"{end}|{point}", math.nan, spec, name, end) for name, one in found.items()]
        return pd.DataFrame(rows)

    def write(self, file: str | Path) -> None:
        """Write the table to ``file``, whole or not at all."""
        write_atomic(Path(file).expanduser(), csv_bytes(self.table(), "agreement"))

    def _kept(self, label: str, spec: str) -> Outputs:
        return Outputs(**load_file(self._file(label, spec)), energies=self._energies[label, spec])

    def _file(self, label: str, spec: str) -> Path:
        return Path(self._folder.name) / f"{self._labels.index(label)}-{list(self._sets).index(spec)}.safetensors"
