"""From a data set spec to deterministic batches of images and labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sharpscope.clip.datasets.arrays import find_cifar, find_npz, find_stl10
from sharpscope.clip.datasets.corruptions import CORRUPTIONS, corruption
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.domains import DOMAINS, find_domainnet, find_fmow, find_iwildcam, find_waterbirds
from sharpscope.clip.datasets.folder import find_folder
from sharpscope.clip.datasets.found import Found, Request, assemble, need_model
from sharpscope.clip.datasets.imagenet import FOLDERS, find_imagenet, find_objectnet, find_subset
from sharpscope.clip.datasets.images import Edit
from sharpscope.clip.datasets.libraries import find_hf, find_torchvision
from sharpscope.clip.datasets.mini import load_mini
from sharpscope.clip.datasets.names import read_classnames, read_templates
from sharpscope.clip.datasets.shards import find_shards
from sharpscope.clip.datasets.splits import chosen_split
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, DatasetError, did_you_mean, shown
from sharpscope.miniworld import world as miniworld
from sharpscope.vocabulary import Words

__all__ = ["LAYOUTS", "Layout", "check_folders", "check_spec", "load_dataset", "register_dataset"]

Split = Literal["train", "test", "val"]
Finder = Callable[[Request], Found]


@dataclass(frozen=True)
class Layout:
    """One kind of data set: the form of its specs, and the function that finds its images."""

    name: str
    """The part of a spec before the colon, or the whole spec where ``rest`` is empty."""
    rest: str
    """A placeholder for the part after the colon (``PATH``, ``NAME`` ...); empty where the name is the whole spec."""
    find: Finder | None
    """None for the embedded world, whose images are drawn."""
    splits: tuple[str, ...] | None = None
    """The splits of such a set; only one where its images were published for testing. None where the finder decides by
    what is on disk (``splits.chosen_split``)."""

    @property
    def form(self) -> str:
        return f"{self.name}:{self.rest}" if self.rest else self.name


_TWO: Final = ("train", "test")
_THREE: Final = ("train", "val", "test")
LAYOUTS: Words[Layout] = Words("kind of data set", "sharpscope.datasets", (
    Layout("mini", "DOMAIN", None, _THREE),
    Layout("folder", "PATH", find_folder),
    Layout("wds", "PATH", find_shards),
    Layout("npz", "PATH", find_npz),
    Layout("torchvision", "NAME", find_torchvision),
    Layout("hf", "NAME", find_hf),
    Layout("domainnet", "DOMAIN", find_domainnet, _TWO),
    Layout("subset", "FILE", find_subset, _THREE),
    Layout("imagenet", "", find_imagenet, _THREE),
    *(Layout(n, "", find_imagenet, ("test",)) for n in ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")),
    Layout("objectnet", "", find_objectnet, ("test",)),
    *(Layout(n, "", find_cifar, _TWO) for n in ("cifar10", "cifar10.2", "cifar100")),
    Layout("cifar10.1", "", find_cifar, ("test",)),
    Layout("stl10", "", find_stl10, _TWO),
    Layout("iwildcam", "", find_iwildcam),
    Layout("fmow", "", find_fmow),
    Layout("waterbirds", "", find_waterbirds, _THREE),
))  # fmt: skip
"""Every kind of data set spec."""


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


_CORRUPTED = re.compile(r"(?P<spec>.*)\+(?P<name>[a-z_]+)@(?P<severity>\d+)\Z", re.DOTALL)


@dataclass(frozen=True)
class _Spec:
    """The parts of a spec KIND[:REST][@SPLIT][+CORRUPTION@SEVERITY]."""

    kind: str
    rest: str
    split: str | None
    edits: tuple[Edit, ...]


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
    augment: bool = False,
    by_name: bool = False,
) -> Dataset:
    """The data set that ``spec`` names, with the image size, mean and std of ``model``.

    ``mini:DOMAIN``: the embedded world; train, val and test are disjoint draws. ``folder:PATH``: class folders;
    ``wds:PATH``: tar shards; ``npz:PATH``: arrays; ``torchvision:NAME``; ``hf:NAME``; ``domainnet:DOMAIN``;
    ``subset:FILE``; or the name of a set (``imagenet``, ``objectnet`` ...), which is searched under ``data_root``.
    Paths are relative to ``data_root`` unless they are absolute. ``@SPLIT`` after a spec overrides ``split``;
    ``+gaussian_noise@3`` corrupts the images (ImageNet-C's names, severity 1 ... 5).

    ``classnames``: the class names of the head's rows (a sequence, or a text file), which labels then index. Classes
    are matched by name (ignoring case and Unicode form, with ``_`` as space) where all of them are among the names,
    else in order where there are equally many. ``by_name``: never match in order; for names that come from a checkpoint
    or from another data set. ``templates``: replace the set's own. ``limit``: the largest number of images, chosen
    balanced over the classes by ``seed``. ``augment``: whether ``Dataset.take`` can return random crops, for training;
    arrays and the embedded world are never cropped. Raises ConfigError for a spec of an unknown kind or a split that
    the set does not have, DatasetError for any problem with the data.
    """
    asked = _parsed(spec)
    names = read_classnames(classnames, repeated=True) if isinstance(classnames, (str, Path)) else classnames
    prompts = read_templates(templates) if isinstance(templates, (str, Path)) else templates
    if limit is not None and limit < 1:
        raise ConfigError(f"data set {shown(spec)}: limit must be at least 1, got {limit}.")
    request = Request(
        spec,
        asked.kind,
        asked.rest,
        _split_to_read(asked, spec, split),
        model,
        str(data_root or "."),
        tuple(names) if names is not None else None,
        tuple(prompts) if prompts is not None else None,
        limit,
        seed,
        asked.edits,
        augment,
        asked.split is not None,
        by_name,
    )
    find = LAYOUTS[asked.kind].find
    if find is None:
        return load_mini(request)
    need_model(request)
    return assemble(find(request), request)


def _split_to_read(asked: _Spec, spec: str, split: str) -> str:
    """The split that the spec names, else the only split of the kind, else ``split``; ConfigError if there is none."""
    splits = LAYOUTS[asked.kind].splits
    if asked.split is not None or splits is None:  # a split that the spec names was checked in _parsed
        return asked.split or split
    return splits[0] if len(splits) == 1 else chosen_split(spec, split, splits, named=False) or split


def check_folders(specs: Iterable[str], data_root: str | Path | None) -> None:
    """Raise one DatasetError that names all ImageNet variants among ``specs`` whose folders ``data_root`` lacks."""
    root = Path(data_root or ".").expanduser()
    kinds = dict.fromkeys(_parsed(spec).kind for spec in specs)
    wanted = {k: FOLDERS[k] for k in kinds if k in FOLDERS}
    missing = [f"{k} ({tried[0]}/)" for k, tried in wanted.items() if not any((root / t).is_dir() for t in tried)]
    if missing:
        raise DatasetError(
            f"data root {shown(root)}: the folders of {', '.join(missing)} are missing.\n"
            "Remedy: --data-root is the folder that holds imagenet/, imagenet-r/, sketch/ ... side by side."
        )


def check_spec(spec: str) -> tuple[str, str]:
    """(kind, rest) of a data set spec, without reading data; ConfigError for an unknown kind, domain or split."""
    asked = _parsed(spec)
    return asked.kind, asked.rest


def _parsed(spec: str) -> _Spec:
    whole = spec
    edits: tuple[Edit, ...] = ()
    if found := _CORRUPTED.match(spec):
        name, severity = found["name"], int(found["severity"])
        if name not in CORRUPTIONS or not 1 <= severity <= 5:
            near = did_you_mean(name, CORRUPTIONS) if name not in CORRUPTIONS else ""
            raise ConfigError(
                f"data set {shown(spec)}: no corruption '{shown(name)}@{severity}' (severities 1 ... 5).{near}\n"
                f"Known: {', '.join(CORRUPTIONS)}."
            )
        whole, edits = found["spec"], (corruption(name, severity),)
    kind, colon, rest = whole.partition(":")
    split = None
    if kind not in ("folder", "npz"):  # their paths may contain @, and they have no other splits
        if colon:
            rest, at, last = rest.rpartition("@") if "@" in rest else (rest, "", "")
        else:
            kind, at, last = kind.partition("@")
        split = last if at else None
    if kind in LAYOUTS.not_loaded():
        LAYOUTS.find(kind, f"data set {shown(spec)}")
    layout = LAYOUTS.get(kind)
    if layout is None or bool(layout.rest) != bool(colon and rest) or split == "":
        if split == "" and layout is not None and layout.rest:
            raise ConfigError(f"data set {shown(spec)}: unknown split ''. Known: train, val, test.")
        forms = [*(x.form for x in LAYOUTS.values()), *LAYOUTS.not_loaded()]
        named = [x.name for x in LAYOUTS.values() if not x.rest]
        specs = [f"mini:{d}" for d in miniworld.DOMAINS] + named
        near = did_you_mean(spec, named) if not colon else ""
        near = near or did_you_mean(spec if colon else f"mini:{spec}", specs) or did_you_mean(kind, forms)
        raise ConfigError(f"data set: '{shown(spec)}' is of no known kind ({', '.join(forms)}).{near}")
    if kind == "mini" and rest not in miniworld.DOMAINS:
        near = did_you_mean(rest, miniworld.DOMAINS)
        raise ConfigError(
            f"data set: '{shown(spec)}' is not a domain of the embedded world.{near} "
            f"Known: {', '.join(miniworld.DOMAINS)}."
        )
    if kind == "domainnet" and rest not in DOMAINS:
        raise ConfigError(
            f"data set: DomainNet has no domain '{shown(rest)}'.{did_you_mean(rest, DOMAINS)} "
            f"Known: {', '.join(DOMAINS)}."
        )
    listed = kind == "imagenet" and split is not None and split.endswith(".txt")  # an index file
    if split is not None and layout.splits is not None and not listed:
        split = chosen_split(spec, split, layout.splits, named=True)
    return _Spec(kind, rest, split, edits)
