"""What a layout finds on disk, and how that becomes a Dataset for a given head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sharpscope.clip.datasets.augment import Augmentation
from sharpscope.clip.datasets.dataset import Dataset, balanced
from sharpscope.clip.datasets.frames import Frames
from sharpscope.clip.datasets.images import Arrays, Decoded, Edit, Images, fits
from sharpscope.clip.datasets.names import folded, match, match_indexed, numbers_alone
from sharpscope.clip.model import ClipModel
from sharpscope.config.halves import half_of
from sharpscope.errors import ConfigError, DatasetError, shown

__all__ = ["Found", "Matched", "Request", "assemble", "match_labels", "need_model", "numbered"]


@dataclass(frozen=True)
class Request:
    """A request for a data set: its spec taken apart, and the model and head that will read it.

    ``split``: the split to read; ``named``: whether the spec itself names it (``@train``). ``by_name``: whether
    ``classnames`` come from a checkpoint or from another data set, so that they may be matched by name only. ``half``:
    base or new, the half of the set's classes to which the set is restricted; None: all classes. ``keep``: the bytes of
    decoded images that all sets together may keep; None: ``images.KEPT_BYTES``.
    """

    spec: str
    kind: str
    rest: str
    split: str
    model: ClipModel | None = None
    root: str = "."
    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    limit: int | None = None
    seed: int = 0
    edits: tuple[Edit, ...] = ()
    augment: Augmentation | None = None
    named: bool = False
    by_name: bool = False
    half: str | None = None
    keep: int | None = None


@dataclass(frozen=True)
class Found:
    """The images of a set, not decoded yet, with labels in the set's own numbering of classes.

    ``classes``: the names of all classes that a head for the set has. ``labels`` int64 [n]: indices into ``classes``,
    or into ``target_names`` where these are given (``projection`` then maps classes to targets, see ``Dataset``).
    ``indexed``: whether the classes have fixed numbers (ImageNet's 0 to 999), so that a head with other names for them
    is recognised by its number of classes. ``codes``: other names of the classes (WordNet ids). ``partial``: whether
    images of classes that a head lacks are left out. ``present``: the classes that the set can contain; None for all.
    ``frames``: which images are anchor frames
    of videos and which their neighbours. ``bare_targets``: whether there may be targets to which no class belongs.
    ``before``: edits of each image before it is resized. ``where``: the name of the set in messages. ``unnamed``:
    whether the set knows its classes by number only (see :func:`numbered`). ``empty``: the names of classes without
    image files. ``two_orders``: both readings of the order of the classes, where there are two. ``said``: what a reader
    of an accuracy on the set needs to know. ``captions``: the captions of each image, where the images have captions
    in place of classes; each image is then a class of its own.
    """

    images: Images
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    where: str
    split: str | None = None
    indexed: bool = False
    partial: bool = False
    present: tuple[int, ...] | None = None
    projection: tuple[int, ...] | None = None
    target_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    groups: NDArray[np.int64] | None = None
    group_names: tuple[str, ...] = ()
    frames: Frames | None = None
    bare_targets: bool = False
    metrics: tuple[str, ...] = ("top1",)
    before: tuple[Edit, ...] = field(default=())
    codes: tuple[str, ...] = ()
    unnamed: bool = False
    empty: tuple[str, ...] = ()
    two_orders: str = ""
    said: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Matched:
    """How the labels of a Found map to a head's class names: ``to[label]``, -1 for classes that the head lacks."""

    classnames: tuple[str, ...]
    to: Sequence[int]
    matching: str
    classes: tuple[int, ...] | None = None
    projection: tuple[int, ...] | None = None
    target_names: tuple[str, ...] | None = None


def need_model(request: Request) -> ClipModel:
    """The model; ConfigError without one."""
    if request.model is None:
        raise ConfigError(
            f"data set {shown(request.spec)}: image files need a model, which sets their size and normalisation."
        )
    return request.model


def numbered(request: Request, count: int) -> tuple[str, ...]:
    """Class names for a set that has none: the head's, whose rows the labels are assumed to number, or the numbers."""
    return request.classnames or tuple(str(i) for i in range(count))


def assemble(found: Found, request: Request) -> Dataset:
    """The Dataset of ``found`` for ``request``: labels in the head's numbering, at most ``limit`` images, balanced.

    Sets that fit into memory are decoded now and kept. Larger sets, and sets that will be augmented, are decoded when
    they are read.
    """
    model = need_model(request)
    if not len(found.labels):
        raise DatasetError(f"data set {shown(request.spec)}: no images under {shown(found.where)}.")
    _check_labels(found)
    matched = match_labels(found, request)
    to = torch.tensor(matched.to, dtype=torch.long)
    labels = to[torch.tensor(found.labels.tolist(), dtype=torch.long)]
    frames = None if found.frames is None else found.frames.renumbered(to)
    rows = torch.arange(len(labels))[labels >= 0]
    if not len(rows):
        why = f"no image of its {request.half} classes" if request.half else "none of its classes"
        raise DatasetError(f"data set {shown(request.spec)}: {why} is among the class names.")
    if request.limit is not None:
        of_rows = None if frames is None else frames.at(rows)
        rows = rows[balanced(labels[rows], of_rows, request.limit, request.seed, request.spec)]
    augment = None if isinstance(found.images, Arrays) else request.augment
    source = Decoded(found.images, model, found.before, request.edits, augment)
    chosen = rows.tolist()
    streamed = augment is not None or not fits(len(chosen), model, request.keep)
    if not streamed:
        source.keep(chosen)
        if len(source.lost) == len(chosen):
            raise DatasetError(
                f"data set {shown(request.spec)}: none of the {len(chosen)} images can be read, "
                f"e.g. {shown(next(iter(source.lost.values())))}."
            )
    return Dataset(
        request.spec,
        matched.classnames,
        labels[rows],
        source,
        mean=model.mean,
        std=model.std,
        classes=matched.classes,
        rows=chosen,
        templates=request.templates or found.templates,
        groups=torch.tensor(found.groups.tolist(), dtype=torch.long)[rows] if found.groups is not None else None,
        group_names=found.group_names,
        metrics=found.metrics,
        projection=matched.projection,
        target_names=matched.target_names,
        frames=None if frames is None else frames.at(rows),
        bare_targets=found.bare_targets,
        facts={
            "spec": request.spec,
            "kind": request.kind,
            "split": found.split,
            "matching": matched.matching,
            "streamed": streamed,
            "augmented": augment is not None,
            "numbered": found.indexed,
            "unnamed": found.unnamed,
            "two_orders": found.two_orders,
            "empty": [name for name in found.empty if request.half is None or name in _within(found, request)],
            **({} if request.half is None else {"half": request.half}),
            "said": [*found.said, *_said(found, request, matched)],
        },
    )


def _said(found: Found, request: Request, matched: Matched) -> list[str]:
    """What a reader of an accuracy needs to know about how labels were matched to names."""
    said = []
    if request.half is not None and found.two_orders:
        said.append(f"base and new follow the first of two orders of the class folders: {found.two_orders}")
    if found.unnamed:
        assumed = "the set has no class names, and its labels were assumed to number the head's classes"
        return [*said, assumed if request.classnames else "the set has no class names"]
    if matched.matching == "order" and not found.indexed:
        return [*said, "class names were matched to the class folders in sorted order"]
    return [*said, "the class names are numbers"] if numbers_alone(matched.classnames) else said


def _check_labels(found: Found) -> None:
    """Raise DatasetError for a label out of range, naming its file or row, before the labels are used."""
    count = len(found.target_names or found.classes)
    bad = np.flatnonzero((found.labels < 0) | (found.labels >= count))
    if len(bad):
        raise DatasetError(
            f"{shown(found.where)}: label {found.labels[bad[0]]} of {shown(found.images.name(int(bad[0])))} is out of "
            f"range for {count} class names."
        )


def match_labels(found: Found, request: Request) -> Matched:
    """How the labels of ``found`` map to the head's class names, ``request.classnames``, or to the set's own.

    With ``request.half``, the classes outside the half map to -1. As many names as the whole set has classes name all
    of its classes: where a person gave them (not ``by_name``), the names of the half are kept; where a head has them,
    only the half competes. Raises DatasetError for names that do not fit.
    """
    names, by_name = request.classnames, request.by_name
    if request.half is None:
        return _matched(found, names, by_name)
    chosen, total = _chosen(found, request), len(found.target_names or found.classes)
    if names is None or found.partial or found.target_names is not None or len(names) != len(found.classes):
        part = _matched(_cut(found, chosen), names, by_name)
        return replace(part, to=_placed(dict(zip(chosen, part.to, strict=True)), total))
    whole = _matched(replace(found, present=None), names, by_name)
    kept = names if by_name else tuple(names[whole.to[c]] for c in chosen)
    places = {c: whole.to[c] for c in chosen} if by_name else {c: i for i, c in enumerate(chosen)}
    there = [places[c] for c in chosen if found.present is None or c in found.present]
    return Matched(kept, _placed(places, total), whole.matching, _some(there, kept, None))


def _chosen(found: Found, request: Request) -> list[int]:
    """The numbers of the classes (or targets) in the half that ``request`` asks for.

    The classes of ImageNet-R are the 200 that it can contain, in ImageNet's order; a folder's are those of all splits.
    """
    every = list(range(len(found.target_names or found.classes)))
    if found.indexed and found.present is not None:
        every = sorted(found.present)
    return [every[i] for i in half_of(len(every), request.half or "", request.spec)]


def _within(found: Found, request: Request) -> set[str]:
    return {(found.target_names or found.classes)[c] for c in _chosen(found, request)}


def _placed(places: Mapping[int, int], total: int) -> list[int]:
    return [places.get(c, -1) for c in range(total)]


def _cut(found: Found, chosen: Sequence[int]) -> Found:
    """``found`` as a set that has only the classes (or targets) ``chosen``; its images and labels are not touched."""
    place = {c: i for i, c in enumerate(chosen)}
    if found.target_names is not None:
        names = tuple(found.target_names[c] for c in chosen)
        projection = tuple(place.get(t, -1) for t in found.projection or ())
        return replace(found, target_names=names, projection=projection)
    present = None if found.present is None else tuple(place[c] for c in found.present if c in place)
    return replace(
        found,
        classes=tuple(found.classes[c] for c in chosen),
        codes=tuple(found.codes[c] for c in chosen) if found.codes else (),
        present=present if present is not None and len(present) < len(chosen) else None,
    )


def _matched(found: Found, names: tuple[str, ...] | None, by_name: bool) -> Matched:
    every = range(len(found.target_names or found.classes))
    if names is None:
        return Matched(found.classes, every, "own", found.present, found.projection, found.target_names)
    if found.partial:
        index = {folded(n): i for i, n in enumerate(names)}
        places = [index.get(folded(c), -1) for c in found.classes]
        return Matched(names, places, "name", _some([p for p in places if p >= 0], names, None))
    if found.unnamed:
        return Matched(names, every, "order")
    if not found.indexed:
        return _of_present(found, names, by_name)
    to_all = match_indexed(found.classes, names, found.where, codes=found.codes, by_name=by_name)
    if to_all is not None and found.projection is not None:
        back = [-1] * len(names)
        for own, place in enumerate(to_all):
            back[place] = found.projection[own]
        return Matched(names, every, "order", None, tuple(back), found.target_names)
    if to_all is not None:
        return Matched(names, to_all, "order", _some(to_all, names, found.present))
    if found.target_names is not None:  # the head may have the coarser classes themselves
        classnames, to, matching = match(found.target_names, names, found.where, by_name=by_name)
        return Matched(classnames, to, matching, _some(to, names, None))
    return _of_present(found, names, by_name)  # a head of only the classes that are present


def _of_present(found: Found, names: tuple[str, ...], by_name: bool) -> Matched:
    """The labels of the classes that the set can contain, matched by the names of these classes."""
    present = found.present if found.present is not None else tuple(range(len(found.classes)))
    classnames, to, matching = match([found.classes[c] for c in present], names, found.where, by_name=by_name)
    at = dict(zip(present, to, strict=True))
    places = [at.get(c, -1) for c in range(len(found.classes))]
    return Matched(classnames, places, matching, _some(to, names, None))


def _some(to: Sequence[int], names: Sequence[str], present: Sequence[int] | None) -> tuple[int, ...] | None:
    """The head's classes that the set can contain; None for all of them."""
    held = sorted(to if present is None else (to[c] for c in present))
    return tuple(held) if len(held) < len(names) else None
