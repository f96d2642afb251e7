"""Whether the data sets of a study show different pictures: a set that is used twice makes its numbers meaningless."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.images import REMEMBERED
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
    the same images in another container, is the same set. Files are compared byte by byte, too, which decodes nothing:
    fewer pictures of a large set then have to be decoded. Two OOD sets may overlap (the variants of ImageNet-V2 do)
    unless one lies in the other completely.

    Args:
        probe: spec of the probe set.
        examples: the probe's examples.
        tests: spec -> test set.
        roles: spec -> id | ood.
    """
    of_probe = _Pictures.of(examples)
    pictures = {spec: _Pictures.of(dataset) for spec, dataset in tests.items()}
    for spec, found in pictures.items():
        if shared := of_probe.overlap(found):
            raise DatasetError(
                f"probe, {roles[spec]}: the probe {shown(probe)} has pictures of the {roles[spec].upper()} test set "
                f"{shown(spec)} ({shared}): a test set's labels would enter loss and Hessian.\n"
                "Remedy: training images for --probe (another folder, or @train where the set has splits)."
            )
    for (a, first), (b, second) in combinations(pictures.items(), 2):
        if roles[a] != roles[b] and (shared := first.overlap(second)):
            raise DatasetError(
                f"id, ood: {shown(a)} and {shown(b)} show the same pictures ({shared}); a picture is in "
                "distribution or out of it.\nRemedy: another set for --id or --ood."
            )
        if roles[a] == roles[b] == "ood" and first.nests(second):
            raise DatasetError(
                f"ood: {shown(a)} and {shown(b)} show the same pictures, which the OOD mean would count twice.\n"
                "Remedy: leave one of them out."
            )


@dataclass(frozen=True)
class _Pictures:
    """The digests of a set's pictures: of their pixels, and of their files where they are files."""

    pixels: frozenset[bytes]
    files: frozenset[bytes]

    @classmethod
    def of(cls, dataset: Dataset) -> _Pictures:
        files = dataset.file_digests()
        # Of a set that is decoded anew in every pass, only the images that stay in memory: with files to compare, more
        # would find smaller overlaps of sets in different formats alone.
        few = bool(files) and dataset.facts.get("streamed", False)
        return cls(dataset.digests(REMEMBERED) if few else dataset.digests(), files)

    def _beside(self, other: _Pictures) -> Iterator[tuple[frozenset[bytes], frozenset[bytes]]]:
        """What of the two sets can be compared."""
        yield self.pixels, other.pixels
        if self.files and other.files:
            yield self.files, other.files

    def overlap(self, other: _Pictures) -> str:
        """How many pictures the sets share, in words; empty where it is none, or stray duplicates."""
        for a, b in self._beside(other):
            if len(a & b) >= max(_FEWEST, _SHARE * min(len(a), len(b))):
                return f"{len(a & b)} of the {min(len(a), len(b))} that were compared"
        return ""

    def nests(self, other: _Pictures) -> bool:
        """Whether one of the sets lies in the other completely."""
        return any(a <= b or b <= a for a, b in self._beside(other))
