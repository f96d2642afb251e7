"""Which pictures several data sets have in common: a set and its corruptions show the same pictures, changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.config.specs import Spec, read_spec

__all__ = ["common_pictures"]


def common_pictures(datasets: Mapping[str, Dataset]) -> dict[str, np.ndarray]:
    """The pictures of those data sets that have pictures in common with another one, as numbers.

    Two images are the same picture where they stand in the same row of the same source: the same kind, path (or name)
    and split, whatever the corruption, the limit or the half of the classes. Sets of different sources have no picture
    in common here, even if their files are alike (``study.overlap`` compares those).

    Args:
        datasets: spec -> data set.

    Returns:
        spec -> int64 [n], a number for each image of the set; equal numbers are the same picture. A set that shares no
        picture is not in it.
    """
    sources = {spec: _source(spec, dataset) for spec, dataset in datasets.items()}
    first = {source: i for i, source in enumerate(dict.fromkeys(sources.values()))}
    several = [spec for spec, source in sources.items() if list(sources.values()).count(source) > 1]
    numbers = {s: (first[sources[s]] << 40) + np.asarray(datasets[s].rows, dtype=np.int64) for s in several}
    others = {s: [other for o, other in numbers.items() if o != s] for s in numbers}
    return {s: own for s, own in numbers.items() if any(np.isin(own, other).any() for other in others[s])}


def _source(spec: str, dataset: Dataset) -> Spec:
    """Where the rows of the set count: its spec without corruption and half, with the split that was read."""
    asked, facts = read_spec(spec), dataset.facts
    # a path may end like a half of the classes; the facts of the set say whether it was one
    rest = asked.rest if asked.half is None or "half" in facts else f"{asked.rest}#{asked.half}"
    return replace(asked, rest=rest, split=facts.get("split"), corruption=None, half=None)
