"""The data set class that the rest of sharpscope uses: images in a fixed order, with their labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sharpscope.card import card
from sharpscope.clip.datasets.frames import Frames
from sharpscope.clip.datasets.names import same_names
from sharpscope.errors import ConfigError, DatasetError, shown
from sharpscope.machine.devices import onto
from sharpscope.seeds import derive

__all__ = ["Dataset", "ImageSource", "Memory", "balanced", "stratified"]

NOT_A_TARGET = -1


class ImageSource(Protocol):
    """A source of pixels, by row. ``lost``: the rows found to be unreadable so far -> the names of their files."""

    lost: dict[int, str]

    def stream(self, batches: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """For each batch of rows: the rows that can be read, and their pixels, uint8 [B, 3, H, W].

        ``seed``: the seed of random crops, where the source supports them; None: the images as in evaluation.
        """
        ...

    def file_digests(self, rows: Sequence[int]) -> list[bytes]:
        """A digest (BLAKE2b, 16 bytes) of every row's file that can be read; none where the pictures are not files, or
        are changed after they are read."""
        ...


class Memory:
    """Pixels uint8 [n, 3, H, W] that are in memory already."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels, self.lost = pixels, dict[int, str]()

    def stream(self, batches: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[tuple[list[int], Tensor]]:
        for rows in batches:
            yield list(rows), self.pixels[torch.as_tensor(rows, dtype=torch.long)]

    def file_digests(self, rows: Sequence[int]) -> list[bytes]:
        return []


class Dataset:
    """Images with labels, always in the same order; images are normalised when a batch is taken.

    ``classnames``: the classes of the classifier that reads the images, one name for each column of its logits [B, C].
    ``labels`` int64 [n]: the targets. There are three cases, which :meth:`project` handles:

    - ``classes`` and ``projection`` are None: targets are the classifier's classes, and all C classes compete.
    - ``classes`` (indices into ``classnames``): the set contains only these of the classifier's classes (ImageNet-R and
      -A have 200 of 1000). Targets still index ``classnames``, and only ``classes`` compete.
    - ``projection`` (C integers): targets are coarser than the classifier's classes. ``projection[c]`` is the target to
      which class c belongs, -1 for none (one of ObjectNet's 113 classes may unite several ImageNet classes, and most
      ImageNet classes belong to none). ``labels`` then index ``target_names``. The score of target t is
      max {logits[:, c] : projection[c] = t}, as in WiSE-FT's ``ObjectNet.project_logits``.

    ``templates``: the set's own prompts, None where it has none. ``groups`` int64 [n]: indices into ``group_names``
    where the set has groups (the regions of FMoW), else None. ``frames``: which images are anchor frames of videos and
    which their neighbours, else None. ``bare_targets``: whether there may be targets to which no class belongs, which
    are never predicted. ``metrics``: the metrics usually reported for the set, the primary one first. ``facts``: spec,
    kind, split, n, skipped (number of unreadable images left out), skipped_names (the first five), without_images (the
    classes that have no readable image), matching (how labels were matched to names), numbered (whether the classes
    have fixed numbers), unnamed (whether the set knows its classes by number only), two_orders (both readings of the
    order of its classes, where there are two), said (what a reader of its accuracy needs to know), streamed.

    Images that cannot be read do not belong to the set: ``labels``, ``groups``, ``len`` and ``facts`` exclude them.
    Small sets are decoded when they are loaded. Large sets (``facts["streamed"]``) are decoded when images are first
    read, so that unreadable images are found, and ``len`` shrinks, during the first pass over ``batches``.

    Raises DatasetError for a set without images, labels or groups out of range, or a projection that does not fit.

    Source: Wortsman et al. 2022, arXiv 2109.01903 (projection).
    """

    def __init__(
        self,
        name: str,
        classnames: Sequence[str],
        labels: Tensor,
        source: ImageSource,
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
        frames: Frames | None = None,
        bare_targets: bool = False,
    ) -> None:
        self.name, self.classnames, self.metrics = name, tuple(classnames), tuple(metrics)
        self.classes = tuple(classes) if classes is not None else None
        self.projection = tuple(projection) if projection is not None else None
        self.target_names = tuple(target_names) if target_names is not None else self.classnames
        self.templates = tuple(templates) if templates is not None else None
        self.group_names = tuple(group_names)
        self._labels, self._groups = labels.long(), groups.long() if groups is not None else None
        self._frames, self._bare_targets = frames, bare_targets
        self._source, self._rows = source, list(range(len(labels))) if rows is None else list(rows)
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))
        self._scales: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._facts = dict(facts or {})
        if not len(labels):
            raise DatasetError(f"{shown(name)}: the data set has no images.")
        _check_range(name, "label", self._labels, len(self.target_names), "class names")
        if self._groups is not None:
            _check_range(name, "group", self._groups, len(self.group_names), "group names")
        if self.projection is not None:
            if len(self.projection) != len(self.classnames):
                raise DatasetError(
                    f"{shown(name)}: the projection has {len(self.projection)} entries for "
                    f"{len(self.classnames)} class names."
                )
            if not bare_targets and (missing := self.targets_without_class):
                raise DatasetError(
                    f"{shown(name)}: no class belongs to '{shown(self.target_names[missing[0]])}' "
                    f"(target {missing[0]})."
                )

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} images, {len(self.target_names)} classes)"

    def _repr_html_(self) -> str:
        known = self.facts
        facts = {
            "name": self.name, "split": known.get("split"), "images": len(self), "classes": len(self.target_names),
            "unreadable images": known["skipped"] or None, "groups": ", ".join(self.group_names[:8]) or None,
            "primary metric": self.metrics[0], "to know": " ".join(known.get("said") or ()) or None,
        }  # fmt: skip
        return card("Data set", facts)

    @property
    def listed(self) -> int:
        """The number of listed images, including those that cannot be read."""
        return len(self._rows)

    @property
    def rows(self) -> list[int]:
        """The row of each image, in order, in the whole set as it was found, before a limit or a half chose of it."""
        return [self._rows[i] for i in self._kept]

    @property
    def labels(self) -> Tensor:
        """Targets int64 [n], in order."""
        return self._labels if len(self._kept) == len(self._rows) else self._labels[self._kept]

    @property
    def groups(self) -> Tensor | None:
        """Group of each image, int64 [n], or None."""
        return self._groups if self._groups is None or len(self._kept) == len(self._rows) else self._groups[self._kept]

    @property
    def frames(self) -> Frames | None:
        """Which images are anchor frames and which their neighbours, or None."""
        if self._frames is None or len(self._kept) == len(self._rows):
            return self._frames
        return self._frames.at(torch.tensor(self._kept, dtype=torch.long))

    @property
    def targets_without_class(self) -> list[int]:
        """The targets to which no class of the classifier belongs; empty without a projection."""
        return sorted(set(range(len(self.target_names))) - set(self.projection)) if self.projection is not None else []

    @property
    def facts(self) -> dict[str, Any]:
        """What is known about the set so far, as plain data."""
        lost = [self._source.lost[r] for r in self._rows if r in self._source.lost]
        facts = {k: v for k, v in self._facts.items() if k != "empty"}
        bare = [*self._facts.get("empty", ()), *(self.target_names[t] for t in self._lost_targets())]
        return {**facts, "skipped": len(lost), "skipped_names": lost[:5], "without_images": bare, "n": len(self)}

    def _lost_targets(self) -> list[int]:
        """The targets that have images, none of which can be read."""
        if not self._source.lost:
            return []
        return sorted(set(self._labels.tolist()) - set(self.labels.tolist()))

    @property
    def _kept(self) -> Sequence[int]:
        """The positions in ``_rows`` of images that are not known to be unreadable."""
        lost = self._source.lost
        return [i for i, r in enumerate(self._rows) if r not in lost] if lost else range(len(self._rows))

    def batches(self, batch_size: int, device: torch.device | str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(images float32 [B, 3, H, W], labels int64 [B]) in order; the last batch may be smaller.

        The images are on ``device`` (None: the CPU), where they are normalised; the labels stay on the CPU. Unreadable
        images are left out of their batch and are not replaced, so that the batches of every pass are bit for bit the
        same. Raises DatasetError where no image is readable.
        """
        starts = range(0, len(self._rows), batch_size)
        found = 0
        for start, (rows, pixels) in zip(
            starts, self._source.stream([self._rows[s : s + batch_size] for s in starts]), strict=True
        ):
            if not rows:
                continue
            found += len(rows)
            yield self._batch(range(start, min(start + batch_size, len(self._rows))), rows, pixels, device)
        if not found:
            raise self._unreadable(len(self._rows))

    def take(self, places: Sequence[int] | Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """(images float32 [B, 3, H, W], labels int64 [B]) at ``places``, each 0 ... ``listed`` - 1, without repetition.

        Unreadable images are left out of the result but keep their places, so that the image at a place never changes.
        ``seed``: the seed of the augmentation of a set that was loaded with ``augment`` (other sets have none); a
        picture depends only on the seed and the image. Raises DatasetError where none of the images can be read.
        """
        wanted = [int(p) for p in places]
        (rows, pixels), *_ = self._source.stream([[self._rows[p] for p in wanted]], seed)
        if not rows:
            raise self._unreadable(len(wanted))
        return self._batch(wanted, rows, pixels)

    def digests(self, most: int = 1024) -> frozenset[bytes]:
        """One digest of every picture's pixels (BLAKE2b, 16 bytes), as the model sees them, whatever their labels.

        Of sets with more than ``most`` pictures, of so many, evenly spaced in the set's order: two large sets of the
        same pictures in the same order have the same digests. Pictures that cannot be read have none.
        """
        return frozenset(self._pixel_digests(_spaced(self._kept_rows, most)))

    def file_digests(self, most: int = 1024) -> frozenset[bytes]:
        """Like :meth:`digests`, of the pictures' files, none of which is decoded.

        Empty where pictures are not files, or are changed after they are read.
        """
        return frozenset(self._source.file_digests(_spaced(self._kept_rows, most)))

    def fingerprint(self, most: int) -> str:
        """A digest (BLAKE2b, 16 bytes, in hex) of the set as it was loaded: of every target and group, and of pictures.

        Of sets with more than ``most`` pictures, of so many, evenly spaced in the set's order: of their files, or of
        their pixels where they are no files or are changed after they are read. It is the same before and after
        unreadable images are found, and whether or not the images stay in memory.
        """
        found = hashlib.blake2b(digest_size=16)
        for numbers in (self._labels, self._groups):
            found.update(b"-" if numbers is None else numbers.numpy().tobytes())
        found.update(json.dumps([self.classes, self.projection, self.group_names]).encode())
        rows = _spaced(self._rows, most)
        for digest in self._source.file_digests(rows) or self._pixel_digests(rows):
            found.update(digest)
        return found.hexdigest()

    @property
    def _kept_rows(self) -> list[int]:
        """The rows of images that are not known to be unreadable."""
        return [self._rows[i] for i in self._kept]

    def _pixel_digests(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The digest of every picture's pixels that can be read, in the order of ``rows``."""
        for _, pixels in self._source.stream([rows[start : start + 64] for start in range(0, len(rows), 64)]):
            for image in pixels:
                yield hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()

    def _batch(
        self,
        places: Iterable[int],
        rows: Sequence[int],
        pixels: Tensor,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        place = {self._rows[p]: p for p in places}
        labels = self._labels[torch.tensor([place[r] for r in rows], dtype=torch.long)]
        # Bytes travel to the device, a quarter of what floats take. The float operations there are those of
        # torchvision's ToTensor and Normalize, so that PIL images give the same bits.
        white, mean, std = self._scale(torch.device(device or "cpu"))
        return onto(pixels, mean.device).float().div_(white).sub_(mean).div_(std), labels

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """White, the mean and the standard deviation of the normalisation; they stay on the device once there.

        White is a tensor on the device because CUDA multiplies by the reciprocal where a number of the host divides,
        which gives other bits.
        """
        if device not in self._scales:
            self._scales[device] = torch.tensor(255.0, device=device), self._mean.to(device), self._std.to(device)
        return self._scales[device]

    def _unreadable(self, count: int) -> DatasetError:
        some = next((self._source.lost[r] for r in self._rows if r in self._source.lost), "")
        return DatasetError(f"{shown(self.name)}: none of the {count} images can be read, e.g. {shown(some)}.")

    def project(self, logits: Tensor) -> Tensor:
        """Scores [B, T], whose columns ``labels`` index, from a classifier's logits [B, C].

        Without ``classes`` and ``projection``, the scores are the logits. With ``classes``, T = C and all other columns
        are -inf. With ``projection``, column t is the largest logit of the classes that belong to target t; logits of a
        head that has the targets themselves (T columns) are returned unchanged.

        Raises DatasetError for logits whose number of columns is neither C nor T.
        """
        if self.projection is not None and logits.shape[1] != len(self.projection):
            if logits.shape[1] == len(self.target_names):
                return logits
            raise DatasetError(
                f"{shown(self.name)}: the logits have {logits.shape[1]} columns, but need {len(self.projection)} "
                f"(one per class) or {len(self.target_names)} (one per target)."
            )
        if self.projection is not None:
            to = torch.tensor(self.projection, device=logits.device)
            inside = to != NOT_A_TARGET
            scores = logits.new_full((len(logits), len(self.target_names)), -torch.inf)
            return scores.scatter_reduce(1, to[inside].expand(len(logits), -1), logits[:, inside], "amax")
        if self.classes is not None:
            among = torch.tensor(self.classes, device=logits.device)
            return torch.full_like(logits, -torch.inf).index_copy(1, among, logits[:, among])
        return logits

    def check_classes(self, classnames: Sequence[str]) -> None:
        """Raise DatasetError unless a classifier with ``classnames`` numbers its classes as ``labels`` do.

        Otherwise every label would silently be read as a different class.
        """
        if same_names(self.classnames, classnames):
            return
        if self.projection is not None and same_names(self.target_names, classnames):
            return
        pairs = zip(self.classnames, classnames, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if not same_names([a], [b])), None)
        own, other = len(self.classnames), len(classnames)
        what = (
            f"it has {own} classes, and the classifier has {other}"
            if at is None
            else f"class {at} is '{shown(self.classnames[at], 60)}' here and '{shown(classnames[at], 60)}' there"
        )
        raise DatasetError(
            f"{shown(self.name)}: the data set and the classifier number their classes differently: {what}.\n"
            "Remedy: load_dataset(..., classnames=classifier.classnames)."
        )

    def subset(self, indices: Sequence[int] | Tensor) -> Dataset:
        """The images at ``indices`` (into ``labels``), in that order, as a data set of the same name.

        Raises DatasetError where ``indices`` is empty.
        """
        kept = self._kept
        return self.at([kept[int(i)] for i in indices])

    def choice(self, most: int, seed: int) -> list[int]:
        """Places, ascending, of at most ``most`` of the listed images, whether they can be read or not.

        The choice is ``balanced`` and the same in every process, however many images were found unreadable so far.

        Raises:
            ConfigError: ``most`` is below 1.
        """
        if self.listed <= most:
            return list(range(self.listed))
        return balanced(self._labels, self._frames, most, seed, self.name, "choice")

    @property
    def readable(self) -> list[int]:
        """The places of the images that are not known to be unreadable: those of ``labels``."""
        return list(self._kept)

    def at(self, places: Sequence[int]) -> Dataset:
        """The images at ``places``, each 0 ... ``listed`` - 1, in that order, as a data set of the same name.

        Raises:
            DatasetError: the data set cannot be made of these images, for instance of none.
        """
        at = torch.tensor(places, dtype=torch.long)
        return Dataset(
            self.name,
            self.classnames,
            self._labels[at],
            self._source,
            mean=self._mean.flatten().tolist(),
            std=self._std.flatten().tolist(),
            classes=self.classes,
            facts=self._facts,
            rows=[self._rows[i] for i in places],
            templates=self.templates,
            groups=self._groups[at] if self._groups is not None else None,
            group_names=self.group_names,
            metrics=self.metrics,
            projection=self.projection,
            target_names=self.target_names,
            frames=self._frames.at(at) if self._frames is not None else None,
            bare_targets=self._bare_targets,
        )


def _spaced(rows: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the rows, evenly spaced."""
    count = min(len(rows), most)
    return [rows[i * len(rows) // count] for i in range(count)]


def _check_range(name: str, what: str, values: Tensor, count: int, names: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        bad = high if low >= 0 else low
        raise DatasetError(f"{shown(name)}: {what} {bad} is out of range for {count} {names}.")


def stratified(labels: Tensor, size: int | None, seed: int, *purpose: object) -> list[int]:
    """``size`` indices, balanced over the classes as far as possible and determined by ``seed``; classes are mixed.

    The members of each class are shuffled, and one member of every class is taken in each round. The indices for a
    smaller ``size`` are the first ones for a larger ``size``.
    """
    generator = torch.Generator().manual_seed(derive(seed, "stratified", *purpose))
    shuffled = torch.randperm(len(labels), generator=generator)
    of_class = labels[shuffled]
    rank = torch.empty(len(labels), dtype=torch.long)
    for c in of_class.unique():
        at = of_class == c
        rank[at] = torch.arange(int(at.sum()))
    order = torch.argsort(rank, stable=True)  # within a round, the order is random
    return [int(i) for i in shuffled[order][: len(labels) if size is None else size]]


def balanced(labels: Tensor, frames: Frames | None, limit: int, seed: int, spec: str, *purpose: object) -> list[int]:
    """Positions, ascending, of at most ``limit`` images, ``stratified`` by class; anchor frames with all neighbours.

    Raises ConfigError, which names ``spec``, where ``limit`` is less than one anchor frame with its neighbours.
    """
    if frames is None:
        return sorted(stratified(labels, limit, seed, spec, *purpose))
    anchors = frames.anchors
    order = stratified(labels[anchors], None, seed, spec, *purpose)
    chosen = frames.whole_sets(anchors[order].tolist(), limit)
    if not len(chosen):
        raise ConfigError(
            f"data set {shown(spec)}: limit {limit} is less than one anchor frame with all its neighbours.\n"
            "Remedy: a limit of 21 images or more; an anchor frame has up to 20 neighbours."
        )
    return [int(i) for i in chosen]
