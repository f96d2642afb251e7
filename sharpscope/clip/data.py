"""From a data set spec to deterministic batches of images and labels."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # type: ignore[import-untyped]

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, DatasetError, did_you_mean, shown
from sharpscope.seeds import derive

__all__ = ["KINDS", "Dataset", "check_spec", "load_dataset", "read_classnames", "read_lines", "stratified"]

Split = Literal["train", "test", "val"]

KINDS: tuple[str, ...] = ("mini:DOMAIN", "folder:PATH")
"""The kinds of data set specs."""

_MINI_SIZES: Mapping[str, int] = {"train": 8192, "val": 400, "test": 1600}
_MINI_SEEDS: Mapping[str, str] = {"train": "train", "val": "select", "test": "test"}  # names in miniworld.SEEDS
_KEPT_BYTES = 4 * 2**30  # decoded folders up to this size stay in memory: each is read at every alpha


class _Source(Protocol):
    """Where pixels come from."""

    def prepare(self, rows: Sequence[int]) -> None:
        """All of ``rows`` are going to be read, in batches."""

    def read(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W] of the given rows."""
        ...


class _Memory:
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def prepare(self, rows: Sequence[int]) -> None:
        """Everything is here."""

    def read(self, rows: Sequence[int]) -> Tensor:
        return self.pixels[torch.as_tensor(rows, dtype=torch.long)]


class _Files:
    """Images decoded anew at every pass, where keeping them would take too much memory."""

    def __init__(self, paths: Sequence[str], model: ClipModel) -> None:
        self.paths, self.model = paths, model

    def prepare(self, rows: Sequence[int]) -> None:
        """Nothing is kept."""

    def read(self, rows: Sequence[int]) -> Tensor:
        pixels = _decode([self.paths[i] for i in rows], self.model)
        lost = [self.paths[i] for i, p in zip(rows, pixels, strict=True) if p is None]
        if lost:
            raise DatasetError(f"{shown(lost[0])}: this image could be read before and cannot be any more.")
        return torch.stack([p for p in pixels if p is not None])


class Dataset:
    """Images with labels, always in the same order, normalised when a batch is taken.

    ``labels`` int64 [n] index ``classnames``. ``classes``: the indices of the classes that the set can hold where these
    are only some of ``classnames`` (ImageNet-R and -A have 200 of 1000), else None; accuracy is then taken among them.
    ``projection`` (an integer for each of ``classnames``): targets are coarser, ``labels`` index ``target_names``, and
    class c belongs to target ``projection[c]``, -1 for none (ObjectNet), see :meth:`project`. ``templates``: the set's
    own prompts or None; ``groups`` int64 [n] index ``group_names`` where the set has groups (the regions of FMoW), else
    None; ``metrics``: what the set's field reports, the first being its headline.
    ``facts``: spec, kind, split, n, skipped (unreadable images left out), skipped_names, matching (labels to names).
    """

    def __init__(
        self,
        name: str,
        classnames: Sequence[str],
        labels: Tensor,
        source: _Source,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[int] | None = None,
        facts: Mapping[str, Any] | None = None,
        rows: Sequence[int] | None = None,
        templates: Sequence[str] | None = None,
        groups: Tensor | None = None,
        group_names: Sequence[str] = (),
        metrics: Sequence[str] = ("top1",),
        projection: Sequence[int] | None = None,
        target_names: Sequence[str] | None = None,
    ) -> None:
        self.name, self.classnames, self.labels = name, tuple(classnames), labels.long()
        self.metrics, self.templates = tuple(metrics), None if templates is None else tuple(templates)
        self.groups, self.group_names = None if groups is None else groups.long(), tuple(group_names)
        self.projection = None if projection is None else tuple(projection)
        self.target_names = self.classnames if target_names is None else tuple(target_names)
        self.classes = tuple(classes) if classes is not None else None
        self._source, self._rows = source, list(range(len(labels))) if rows is None else list(rows)
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))
        self.facts: dict[str, Any] = {**(facts or {}), "n": len(self._rows)}
        if not len(self.labels):
            raise DatasetError(f"{shown(name)}: the data set has no images.")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.target_names):
            bad = int(self.labels.max()) if int(self.labels.min()) >= 0 else int(self.labels.min())
            raise DatasetError(f"{shown(name)}: label {bad} is out of range for {len(self.target_names)} class names.")

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} images, {len(self.classnames)} classes)"

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images float32 [B, 3, H, W], labels int64 [B]) in order; the last batch may be smaller."""
        self._source.prepare(self._rows)
        for start in range(0, len(self), batch_size):
            pixels = self._source.read(self._rows[start : start + batch_size])
            # the same float operations as torchvision's ToTensor and Normalize, so PIL images give the same bits
            yield pixels.float().div_(255).sub_(self._mean).div_(self._std), self.labels[start : start + batch_size]

    def project(self, logits: Tensor) -> Tensor:
        """Scores [B, T] whose columns are what ``labels`` index, from a classifier's logits [B, C].

        Without ``classes`` and ``projection`` the logits themselves; with ``classes`` T = C and the other columns are
        -inf; with ``projection`` column t is the largest logit of the classes of target t, as in WiSE-FT's evaluation
        of ObjectNet (Wortsman et al. 2022, arXiv 2109.01903).
        """
        if self.projection is not None:
            to = torch.tensor(self.projection, device=logits.device)
            inside = to >= 0
            scores = logits.new_full((len(logits), len(self.target_names)), -torch.inf)
            return scores.scatter_reduce(1, to[inside].expand(len(logits), -1), logits[:, inside], "amax")
        if self.classes is not None:
            among = torch.tensor(self.classes, device=logits.device)
            return torch.full_like(logits, -torch.inf).index_copy(1, among, logits[:, among])
        return logits

    def subset(self, indices: Sequence[int] | Tensor) -> Dataset:
        """The images at ``indices``, in that order, as a data set of the same name."""
        index = [int(i) for i in indices]
        at = torch.tensor(index, dtype=torch.long)
        return Dataset(
            self.name,
            self.classnames,
            self.labels[at],
            self._source,
            mean=self._mean.flatten().tolist(),
            std=self._std.flatten().tolist(),
            classes=self.classes,
            facts=self.facts,
            rows=[self._rows[i] for i in index],
            templates=self.templates,
            groups=None if self.groups is None else self.groups[at],
            group_names=self.group_names,
            metrics=self.metrics,
            projection=self.projection,
            target_names=self.target_names,
        )


def load_dataset(
    spec: str,
    *,
    model: ClipModel | None = None,
    split: Split = "test",
    data_root: str | Path | None = None,
    classnames: Sequence[str] | str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The data set that ``spec`` names, with the image size, mean and std of ``model``.

    ``mini:DOMAIN`` (or ``mini:DOMAIN@SPLIT``): the embedded world; train, val and test are disjoint draws.
    ``folder:PATH``: a folder of class folders, in torchvision.ImageFolder's order (hidden folders left out), ``PATH``
    under ``data_root`` unless absolute; it has no splits. ``classnames``: the names that labels index (a sequence, or a
    text file): folders go by name (case aside, ``_`` as space) where all are among them, else in sorted order where
    there are as many. ``limit``: at most so many images, a fixed balanced choice by ``seed``.
    Raises ConfigError for a spec of no known kind, DatasetError for anything wrong with the data.
    """
    kind, rest = check_spec(spec)
    names = read_classnames(classnames) if isinstance(classnames, (str, Path)) else classnames
    if limit is not None and limit < 1:
        raise ConfigError(f"data set {shown(spec)}: limit must be at least 1, got {limit}.")
    if kind == "mini":
        return _load_mini(spec, rest, model, split, names, limit, seed)
    return _load_folder(spec, rest, model, data_root, names, limit, seed)


def check_spec(spec: str) -> tuple[str, str]:
    """(kind, rest) of a data set spec, without opening anything; ConfigError for an unknown kind, domain or split."""
    kind, _, rest = spec.partition(":")
    if kind not in ("mini", "folder") or not rest:
        near = did_you_mean(spec if ":" in spec else f"mini:{spec}", _known_specs()) or did_you_mean(kind, KINDS)
        raise ConfigError(f"data set: '{shown(spec)}' is of no known kind ({', '.join(KINDS)}).{near}")
    if kind == "mini":
        from sharpscope.clip import miniworld

        domain, at, split = rest.partition("@")
        if domain not in miniworld.DOMAINS:
            near = did_you_mean(domain, miniworld.DOMAINS)
            raise ConfigError(
                f"data set: '{shown(spec)}' is no domain of the embedded world.{near} "
                f"Known: {', '.join(miniworld.DOMAINS)}."
            )
        if at and split not in _MINI_SIZES:
            near = did_you_mean(split, _MINI_SIZES)
            raise ConfigError(f"data set {shown(spec)}: unknown split '{shown(split)}'.{near} Known: train, val, test.")
    return kind, rest


def stratified(labels: Tensor, size: int | None, seed: int, *purpose: object) -> list[int]:
    """``size`` indices, balanced over the classes as far as these go, fixed by ``seed``; their order mixes the classes.

    Every class's members are shuffled and dealt out one class after the other; a smaller ``size`` is a beginning of it.
    """
    generator = torch.Generator().manual_seed(derive(seed, "stratified", *purpose))
    shuffled = torch.randperm(len(labels), generator=generator)
    of_class = labels[shuffled]
    rank = torch.empty(len(labels), dtype=torch.long)
    for c in of_class.unique():
        at = of_class == c
        rank[at] = torch.arange(int(at.sum()))
    order = torch.argsort(rank, stable=True)  # within a rank: the random order, a new one for every rank
    return [int(i) for i in shuffled[order][: len(labels) if size is None else size]]


# ---------------------------------------------------------------------- class names
def read_lines(path: str | Path, what: str) -> tuple[str, ...]:
    """The lines of a UTF-8 text file (BOM or not), outer spaces removed; DatasetError for a blank line."""
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise DatasetError(f"{what}: {shown(path)}, line {line}: not UTF-8 text.") from e
    except (OSError, ValueError) as e:
        raise DatasetError(f"{what}: cannot read {shown(path)}: {getattr(e, 'strerror', None) or e}.") from e
    lines = [line.strip() for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n")]
    for number, content in enumerate(lines, 1):
        if not content:
            raise DatasetError(f"{what}: {shown(path)}, line {number}: blank.")
    return tuple(lines)


def read_classnames(path: str | Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of the head's rows; DatasetError for a blank or duplicate line."""
    names = read_lines(path, "class names")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        before = seen.setdefault(_folded(name), number)
        if before != number:
            raise DatasetError(
                f"class names: {shown(path)}, line {number}: '{shown(name)}' is on line {before} already; "
                "every class needs a name of its own."
            )
    return names


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _match(
    found: Sequence[str], classnames: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], list[int], str]:
    """(class names, index of each found class among them, how they were matched: own | name | order)."""
    if classnames is None:
        return tuple(" ".join(f.replace("_", " ").split()) or f for f in found), list(range(len(found))), "own"
    index: dict[str, list[int]] = {}
    for i, name in enumerate(classnames):
        index.setdefault(_folded(name), []).append(i)
    by_name = [index.get(_folded(f), []) for f in found]
    if all(len(b) == 1 for b in by_name) and len({b[0] for b in by_name}) == len(by_name):
        return tuple(classnames), [b[0] for b in by_name], "name"
    # some names fit, but at other places: sorted order would contradict them
    contradicted = [f for i, (f, b) in enumerate(zip(found, by_name, strict=True)) if b and i not in b]
    if len(found) == len(classnames) and not contradicted:
        return tuple(classnames), list(range(len(found))), "order"
    unknown = [shown(f, 40) for f, b in zip(found, by_name, strict=True) if not b]
    detail = f" Not among the names: {', '.join(unknown[:5])}{', ...' * (len(unknown) > 5)}." if unknown else ""
    raise DatasetError(
        f"{shown(where)}: {len(found)} class folders do not fit {len(classnames)} class names.{detail}\n"
        "Remedy: give class names that are the folders' names, or one line for each folder in sorted order."
    )


# ---------------------------------------------------------------------- kinds
def _known_specs() -> list[str]:
    from sharpscope.clip import miniworld

    return [f"mini:{domain}" for domain in miniworld.DOMAINS]


class _Rendered:
    """Images of the embedded world, drawn when somebody looks at them, and then kept."""

    def __init__(self, domain: str, split: str, model: ClipModel | None) -> None:
        from sharpscope.clip import miniworld

        what = (domain, _MINI_SIZES[split], miniworld.SEEDS[_MINI_SEEDS[split]])
        self._make = functools.partial(miniworld.make, *what)
        fits = model is None or model.image_size == (miniworld.IMAGE_SIZE, miniworld.IMAGE_SIZE)
        self.own_size = fits
        self._model = None if fits else model
        self.labels = torch.from_numpy(miniworld.labels(*what)).long()
        self._place: dict[int, int] = {}
        self._pixels = torch.empty(0, dtype=torch.uint8)

    def prepare(self, rows: Sequence[int]) -> None:
        missing = sorted(set(rows) - self._place.keys())
        if not missing:
            return
        pixels = torch.from_numpy(self._make(rows=missing).images)
        if self._model is None:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        else:
            pixels = torch.stack([_geometry(self._model, Image.fromarray(p.numpy())) for p in pixels])
        start = len(self._place)
        self._place |= {row: start + i for i, row in enumerate(missing)}
        self._pixels = torch.cat([self._pixels, pixels]) if start else pixels

    def read(self, rows: Sequence[int]) -> Tensor:
        self.prepare(rows)
        return self._pixels[torch.tensor([self._place[r] for r in rows], dtype=torch.long)]


# Several pairs of one study look at the same pictures. Only those of the world's own size are shared: another model's
# geometry is its own.
_RENDERED: dict[tuple[str, str], _Rendered] = {}


def _load_mini(
    spec: str, rest: str, model: ClipModel | None, split: str, names: Sequence[str] | None, limit: int | None, seed: int
) -> Dataset:
    from sharpscope.clip import miniworld

    domain, at, asked = rest.partition("@")
    split = asked if at else split
    source = _Rendered(domain, split, model)
    if source.own_size:
        source = _RENDERED.setdefault((domain, split), source)
    classnames, index, matching = _match(miniworld.CLASSES, names, spec)
    labels = torch.tensor(index)[source.labels]
    rows = sorted(stratified(labels, limit, seed, spec, split)) if limit is not None else range(len(labels))
    return Dataset(
        spec,
        classnames,
        labels[torch.tensor(list(rows), dtype=torch.long)],
        source,
        mean=model.mean if model is not None else (0.5,) * 3,
        std=model.std if model is not None else (0.5,) * 3,
        classes=index if len(index) < len(classnames) else None,
        facts={"spec": spec, "kind": "mini", "split": split, "skipped": 0, "skipped_names": [], "matching": matching},
        rows=rows,
    )


def _load_folder(
    spec: str,
    rest: str,
    model: ClipModel | None,
    data_root: str | Path | None,
    names: Sequence[str] | None,
    limit: int | None,
    seed: int,
) -> Dataset:
    if model is None:
        raise ConfigError(f"data set {shown(spec)}: image files need a model, whose size, mean and std they are given.")
    folder = Path(data_root or ".").expanduser() / Path(rest).expanduser()
    try:
        found = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError as e:
        raise DatasetError(f"data set {shown(spec)}: cannot read the folder {shown(folder)}: {e.strerror or e}.") from e
    if not found:
        raise DatasetError(f"data set {shown(spec)}: {shown(folder)} holds no class folders.")
    classnames, index, matching = _match(found, names, str(folder))
    samples = make_dataset(
        str(folder), dict(zip(found, index, strict=True)), extensions=IMG_EXTENSIONS, allow_empty=True
    )
    if not samples:
        known = ", ".join(IMG_EXTENSIONS)
        raise DatasetError(f"data set {shown(spec)}: no image files ({known}) under {shown(folder)}.")
    if limit is not None:
        labels = torch.tensor([label for _, label in samples])
        samples = [samples[i] for i in sorted(stratified(labels, limit, seed, spec))]
    good, bad, pixels = _survey(samples, model)
    if not good:
        raise DatasetError(f"data set {shown(spec)}: none of {len(samples)} images can be read, e.g. {shown(bad[0])}.")
    return Dataset(
        spec,
        classnames,
        torch.tensor([label for _, label in good]),
        _Files([path for path, _ in good], model) if pixels is None else _Memory(pixels),
        mean=model.mean,
        std=model.std,
        classes=sorted(index) if len(index) < len(classnames) else None,
        facts={
            "spec": spec,
            "kind": "folder",
            "split": None,
            "skipped": len(bad),
            "skipped_names": [str(Path(b).relative_to(folder)) for b in bad[:5]],
            "matching": matching,
        },
    )


# ---------------------------------------------------------------------- pixels
def _survey(
    samples: Sequence[tuple[str, int]], model: ClipModel
) -> tuple[list[tuple[str, int]], list[str], Tensor | None]:
    """Decode everything once: (readable samples, unreadable paths, their pixels unless these take too much memory)."""
    shape = (len(samples), 3, *model.image_size)
    kept = torch.empty(shape, dtype=torch.uint8) if math.prod(shape) <= _KEPT_BYTES else None
    good: list[tuple[str, int]] = []
    bad: list[str] = []
    for start in range(0, len(samples), 256):
        chunk = samples[start : start + 256]
        for sample, pixels in zip(chunk, _decode([path for path, _ in chunk], model), strict=True):
            if pixels is None:
                bad.append(sample[0])
                continue
            if kept is not None:
                kept[len(good)] = pixels
            good.append(sample)
    return good, bad, kept[: len(good)] if kept is not None else None


def _decode(paths: Sequence[str], model: ClipModel) -> list[Tensor | None]:
    """uint8 [3, H, W] of each path, None where it cannot be read; decompression bombs count as unreadable."""

    def one(path: str) -> Tensor | None:
        try:
            with open(path, "rb") as file, Image.open(file) as image:
                return _geometry(model, image.convert("RGB"))
        except MemoryError:
            raise
        except (
            Exception
        ):  # a broken file raises OSError, SyntaxError, ValueError, struct.error, ... as its format likes
            return None

    # one filter for all threads (filters are global): a bomb's warning is an error, other remarks of PIL are noise here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(one, paths))


def _geometry(model: ClipModel, image: Image.Image) -> Tensor:
    """Resize and crop as open_clip's image_transform(is_train=False) does, before it turns pixels into floats."""
    for transform in model.geometry:
        image = transform(image)
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
