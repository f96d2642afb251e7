"""From a data set spec to deterministic batches of images and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from sharpscope.clip.datasets.augment import OPEN_CLIP, Augmentation
from sharpscope.clip.datasets.captions import Captions, captioned
from sharpscope.clip.datasets.corruptions import corruption
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.found import Found, Request, assemble, need_model
from sharpscope.clip.datasets.images import Edit
from sharpscope.clip.datasets.mini import load_mini
from sharpscope.clip.datasets.names import read_classnames, read_templates
from sharpscope.clip.model import ClipModel
from sharpscope.config.specs import LAYOUTS, Layout, Spec, check_classes, chosen_split, holds_captions, read_spec
from sharpscope.errors import ConfigError, shown

__all__ = ["check_spec", "load_captions", "load_dataset", "register_dataset"]

Split = Literal["train", "test", "val"]
Finder = Callable[[Request], Found]


def register_dataset(name: str, rest: str = "") -> Callable[[Finder], Finder]:
    """Decorator: register a function that finds images as a kind of data set, for every command that takes a spec.

    >>> @register_dataset("pets", "PATH")  # doctest: +SKIP
    ... def find_pets(request):
    ...     return Found(Files(folder, paths), labels, classes, str(folder))

    Args:
        name: the beginning of specs, which are ``name:REST[@SPLIT]``, or ``name[@SPLIT]`` where ``rest`` is empty.
        rest: a placeholder, in capitals, for the part after the colon; messages show it.

    The function gets a ``Request`` (the part after the colon, the split, the data root) and returns a ``Found`` (images
    that are not decoded yet, labels int64 [n], class names). Raises ConfigError for a name that is taken.
    """

    def register(find: Finder) -> Finder:
        LAYOUTS.add(Layout(name, rest, find))
        return find

    return register


def load_dataset(
    spec: str,
    *,
    model: ClipModel | None = None,
    split: Split = "test",
    data_root: str | Path | None = None,
    classnames: Sequence[str] | str | Path | None = None,
    templates: Sequence[str] | str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    augment: bool | Augmentation = False,
    by_name: bool = False,
    image_cache: float | None = None,
) -> Dataset:
    """The data set that ``spec`` names, with the image size, mean and std of ``model``.

    ``mini:DOMAIN``: the embedded world; train, val and test are disjoint draws. ``folder:PATH``: class folders;
    ``wds:PATH``: tar shards; ``npz:PATH``: arrays; ``torchvision:NAME``; ``hf:NAME``; ``domainnet:DOMAIN``;
    ``subset:FILE``; ``coop:NAME`` (CoOp's eleven sets with their split files); ``emoji:STYLES`` (drawings by one or
    several vendors, joined by commas; every thing is a class); ``emoji-group:STYLES`` (the same drawings; the group of
    a thing is its class); or the name of a set (``imagenet``, ``objectnet`` ...), which is searched under
    ``data_root``.
    Paths are relative to ``data_root`` unless they are absolute. ``@SPLIT`` after a spec overrides ``split``;
    ``+gaussian_noise@3`` corrupts the images (ImageNet-C's names, severity 1 ... 5). ``#base`` or ``#new`` behind
    everything else restricts the set to the first ceil(C / 2) of its C classes, in its own order, or to the others
    (CoOp's base-to-new protocol); a path that exists with this ending is meant itself.

    ``classnames``: the class names of the head's rows (a sequence, or a text file), which labels then index. Classes
    are matched by name (ignoring case and Unicode form, with ``_`` as space) where all of them are among the names,
    else in order where there are equally many. ``by_name``: never match in order; for names that come from a checkpoint
    or from another data set. ``templates``: replace the set's own. ``limit``: the largest number of images, chosen
    balanced over the classes by ``seed``. ``augment``: how ``Dataset.take`` augments images for training, True for
    open_clip's random crops; arrays and the embedded world are never augmented. ``image_cache``:
    GiB of decoded images that all sets of this process together may keep in memory (None: 4); a set that does not fit
    is decoded again in every pass. Raises ConfigError for a spec of an
    unknown kind or a split that the set does not have, DatasetError for any problem with the data.
    """
    check_classes((spec,), "data set")
    names = read_classnames(classnames, repeated=True) if isinstance(classnames, (str, Path)) else classnames
    prompts = read_templates(templates) if isinstance(templates, (str, Path)) else templates
    request = _request(
        spec,
        split,
        data_root,
        model=model,
        classnames=tuple(names) if names is not None else None,
        templates=tuple(prompts) if prompts is not None else None,
        limit=limit,
        seed=seed,
        augment=_augmentation(augment),
        by_name=by_name,
        keep=None if image_cache is None else int(image_cache * 2**30),
    )
    layout = LAYOUTS[request.kind]
    if layout.find is None:
        return load_mini(request)
    need_model(request)
    return assemble(_finder(layout)(request), request)


def load_captions(
    spec: str,
    *,
    model: ClipModel,
    split: Split = "test",
    data_root: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Captions:
    """The images and captions that ``spec`` names (``retrieval:FILE``), with the image size, mean and std of ``model``.

    Arguments as for ``load_dataset``; ``limit``: the largest number of images, chosen by ``seed``. Raises ConfigError
    for a set of classes, DatasetError for any problem with the data.
    """
    if not holds_captions(spec):
        raise ConfigError(f"data set {shown(spec)}: has classes and no captions; load_dataset reads it.")
    request = _request(spec, split, data_root, model=model, limit=limit, seed=seed)
    return captioned(_finder(LAYOUTS[request.kind])(request), request)


def _request(spec: str, split: Split, data_root: str | Path | None, *, limit: int | None, **options: Any) -> Request:
    """The request for ``spec``; ConfigError for a split that does not exist or a limit below 1."""
    asked = _at(data_root, read_spec(spec))
    if limit is not None and limit < 1:
        raise ConfigError(f"data set {shown(spec)}: limit must be at least 1, got {limit}.")
    return Request(
        spec,
        asked.kind,
        asked.rest,
        _split_to_read(asked, spec, split),
        root=str(data_root or "."),
        limit=limit,
        edits=_edits(asked),
        named=asked.split is not None,
        half=asked.half,
        **options,
    )


def _augmentation(augment: bool | Augmentation) -> Augmentation | None:
    if isinstance(augment, Augmentation):
        return augment if augment.changes else None
    return OPEN_CLIP if augment else None


def _at(data_root: str | Path | None, asked: Spec) -> Spec:
    """``asked``, whose path keeps the ending ``#base`` or ``#new`` where a file or folder has that name."""
    if asked.half is None or not LAYOUTS[asked.kind].is_path:
        return asked
    whole = f"{asked.rest}#{asked.half}"
    there = (Path(data_root or ".").expanduser() / Path(whole).expanduser()).exists()
    return replace(asked, rest=whole, half=None) if there else asked


def _split_to_read(asked: Spec, spec: str, split: str) -> str:
    """The split that the spec names, else the only split of the kind, else ``split``; ConfigError if there is none."""
    splits = LAYOUTS[asked.kind].splits
    if asked.split is not None or splits is None:  # a split that the spec names was checked in read_spec
        return asked.split or split
    return splits[0] if len(splits) == 1 else chosen_split(spec, split, splits, named=False) or split


def check_spec(spec: str) -> tuple[str, str]:
    """(kind, rest) of a data set spec, without reading data; ConfigError for an unknown kind, domain or split.

    Also for a corruption whose photographs are not installed.
    """
    asked = read_spec(spec)
    _edits(asked)
    return asked.kind, asked.rest


def _edits(asked: Spec) -> tuple[Edit, ...]:
    """The edits of each image that the spec asks for."""
    return () if asked.corruption is None else (corruption(*asked.corruption),)


def _finder(layout: Layout) -> Finder:
    """The function that finds the images of a kind of data set."""
    if callable(layout.find):
        return layout.find
    file, _, name = str(layout.find).partition(".")
    find: Finder = getattr(import_module(f"sharpscope.clip.datasets.{file}"), name)
    return find
