"""Whether the data sets of a study show different pictures: a set that is used twice makes its numbers meaningless."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Final

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.errors import DatasetError, shown

__all__ = ["check_apart"]

_SHARE: Final = 0.01
"""If two sets share less than this fraction of their pictures, these count as stray duplicates, which large collections
have. With a larger value a larger overlap is accepted."""
_FEWEST: Final = 2
"""One picture in common is a stray duplicate, however small the sets are."""


def check_apart(probe: str, examples: Dataset, tests: Mapping[str, Dataset], roles: Mapping[str, str]) -> None:
    """Raise DatasetError where the probe, or an OOD set, shows pictures of another set.

    Pictures are compared as the model sees them, pixel by pixel (``Dataset.digests``), so that a copy of a folder, or
    the same images in another container, is the same set. Two OOD sets may overlap (the variants of ImageNet-V2 do)
    unless one lies in the other completely.

    Args:
        probe: spec of the probe set.
        examples: the probe's examples.
        tests: spec -> test set.
        roles: spec -> id | ood.
    """
    of_probe = examples.digests()
    pictures = {spec: dataset.digests() for spec, dataset in tests.items()}
    for spec, found in pictures.items():
        if _overlap(of_probe, found):
            raise DatasetError(
                f"probe, {roles[spec]}: the probe {shown(probe)} has pictures of the {roles[spec].upper()} test set "
                f"{shown(spec)} ({_count(of_probe, found)}): a test set's labels would enter loss and Hessian.\n"
                "Remedy: training images for --probe (another folder, or @train where the set has splits)."
            )
    for (a, first), (b, second) in combinations(pictures.items(), 2):
        if roles[a] != roles[b] and _overlap(first, second):
            raise DatasetError(
                f"id, ood: {shown(a)} and {shown(b)} show the same pictures ({_count(first, second)}); a picture is in "
                "distribution or out of it.\nRemedy: another set for --id or --ood."
            )
        if roles[a] == roles[b] == "ood" and (first <= second or second <= first):
            raise DatasetError(
                f"ood: {shown(a)} and {shown(b)} show the same pictures, which the OOD mean would count twice.\n"
                "Remedy: leave one of them out."
            )


def _overlap(a: frozenset[bytes], b: frozenset[bytes]) -> bool:
    return len(a & b) >= max(_FEWEST, _SHARE * min(len(a), len(b)))


def _count(a: frozenset[bytes], b: frozenset[bytes]) -> str:
    return f"{len(a & b)} of the {min(len(a), len(b))} that were compared"
