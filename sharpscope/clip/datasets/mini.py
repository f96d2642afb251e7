"""The embedded world as data sets."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from sharpscope.clip.datasets.dataset import Dataset, stratified
from sharpscope.clip.datasets.found import Found, Request, match_labels
from sharpscope.clip.datasets.images import Edit, Files
from sharpscope.clip.model import ClipModel
from sharpscope.miniworld import world as miniworld

__all__ = ["MINI_SIZES", "load_mini"]

MINI_SIZES: Final[Mapping[str, int]] = {"train": 8192, "val": 400, "test": 1600}
_SEEDS: Final[Mapping[str, str]] = {"train": "train", "val": "select", "test": "test"}  # names in miniworld.SEEDS


class _Rendered:
    """Images of the embedded world, which are drawn when they are first read, and then kept."""

    def __init__(self, domain: str, split: str, model: ClipModel | None, edits: Sequence[Edit] = ()) -> None:
        what = (domain, MINI_SIZES[split], miniworld.SEEDS[_SEEDS[split]])
        self._make = functools.partial(miniworld.make, *what)
        fits = model is None or model.image_size == (miniworld.IMAGE_SIZE, miniworld.IMAGE_SIZE)
        self.shared = fits and not edits
        self._steps = () if fits or model is None else model.geometry
        self._edits, self._name = tuple(edits), f"{domain}@{split}"
        self.lost: dict[int, str] = {}
        self.labels = torch.from_numpy(miniworld.labels(*what)).long()
        self._place: dict[int, int] = {}
        self._pixels = torch.empty(0, dtype=torch.uint8)

    def stream(self, batches: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[tuple[list[int], Tensor]]:
        self._draw({row for rows in batches for row in rows})
        for rows in batches:
            yield list(rows), self._pixels[torch.tensor([self._place[r] for r in rows], dtype=torch.long)]

    def file_digests(self, rows: Sequence[int]) -> list[bytes]:
        return []

    def _draw(self, rows: set[int]) -> None:
        missing = sorted(rows - self._place.keys())
        if not missing:
            return
        pixels = torch.from_numpy(self._make(rows=missing).images)
        if self._steps or self._edits:
            pixels = torch.stack([self._changed(p, row) for p, row in zip(pixels, missing, strict=True)])
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
        start = len(self._place)
        self._place |= {row: start + i for i, row in enumerate(missing)}
        self._pixels = torch.cat([self._pixels, pixels]) if start else pixels

    def _changed(self, pixels: Tensor, row: int) -> Tensor:
        image = Image.fromarray(pixels.numpy())
        for step in self._steps:
            image = step(image)
        for edit in self._edits:
            image = edit(image, f"{self._name}[{row}]")
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


# Several pairs of one study read the same images. They are shared only at the world's own size, because the images at
# another size depend on the model's geometry.
_RENDERED: dict[tuple[str, str], _Rendered] = {}


def load_mini(request: Request) -> Dataset:
    """``mini:DOMAIN``: the embedded world."""
    domain, model, spec = request.rest, request.model, request.spec
    source = _Rendered(domain, request.split, model, request.edits)
    if source.shared:
        source = _RENDERED.setdefault((domain, request.split), source)
    # the images are drawn by row, so the world's Found has only labels and names
    found = Found(Files("", ()), source.labels.numpy(), miniworld.CLASSES, spec, request.split)
    matched = match_labels(found, request)
    labels = torch.tensor(matched.to)[source.labels]
    rows = torch.arange(len(labels))[labels >= 0].tolist()
    if request.limit is not None:
        chosen = sorted(stratified(labels[torch.tensor(rows)], request.limit, request.seed, spec, request.split))
        rows = [rows[i] for i in chosen]
    return Dataset(
        spec,
        matched.classnames,
        labels[torch.tensor(rows, dtype=torch.long)],
        source,
        mean=model.mean if model is not None else (0.5,) * 3,
        std=model.std if model is not None else (0.5,) * 3,
        classes=matched.classes,
        facts={
            "spec": spec,
            "kind": "mini",
            "split": request.split,
            "matching": matched.matching,
            "streamed": False,
            **({} if request.half is None else {"half": request.half}),
        },
        rows=rows,
        templates=request.templates,
    )
