"""What data set specs can say: the kinds of data sets, their splits and domains, the corruptions. No torch, no images.

``sharpscope.clip.datasets`` reads the data; what is wrong with a spec by itself is found here, before torch is
imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sharpscope.config.coopsets import COOP
from sharpscope.config.halves import split_half
from sharpscope.errors import ConfigError, DatasetError, did_you_mean, shown
from sharpscope.vocabulary import Words

__all__ = [
    "CORRUPTIONS",
    "FOLDERS",
    "LAYOUTS",
    "MINI_SHIFTS",
    "MINI_STYLES",
    "WORDS",
    "Layout",
    "Spec",
    "check_classes",
    "check_folders",
    "check_root",
    "chosen_split",
    "holds_captions",
    "read_spec",
    "split_of",
]

MINI_STYLES: Final = ("photo", "clipart", "painting", "sketch", "quickdraw", "neon")
"""The styles of the embedded world."""
MINI_SHIFTS: Final = ("photo-dark", "photo-noise", "photo-tilt", "photo-clutter")
"""The embedded world's natural shifts of photo, for evaluation only."""
_DOMAINNET: Final = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
CORRUPTIONS: Final[tuple[str, ...]] = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "defocus_blur", "glass_blur",
    "motion_blur", "zoom_blur", "snow", "frost", "fog", "spatter", "brightness", "contrast", "saturate",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The names of ImageNet-C's 19 corruptions, including the four that its authors reserve for validation (Hendrycks
and Dietterich 2019, arXiv 1903.12261)."""
FOLDERS: Final[dict[str, tuple[str, ...]]] = {
    "imagenet": ("imagenet",),
    "imagenet-v2": ("imagenetv2-matched-frequency-format-val", "imagenetv2"),
    "imagenet-a": ("imagenet-a",),
    "imagenet-r": ("imagenet-r",),
    "imagenet-sketch": ("sketch", "imagenet-sketch"),
    "objectnet": ("objectnet-1.0", "objectnet"),
    "imagenet-vid-robust": ("imagenet_vid_ytbb_robust/imagenet-vid-robust", "imagenet-vid-robust"),
    "ytbb-robust": ("imagenet_vid_ytbb_robust/ytbb-robust", "ytbb-robust"),
}
"""Each set -> the names that its folder under the data root may have; the first is WiSE-FT's (arXiv 2109.01903)."""

WORDS: Final[dict[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Split -> the names that folders and libraries give it."""


@dataclass(frozen=True)
class Layout:
    """One kind of data set: the form of its specs, and the function that finds its images."""

    name: str
    """The part of a spec before the colon, or the whole spec where ``rest`` is empty."""
    rest: str
    """A placeholder for the part after the colon (``PATH``, ``NAME`` ...); empty where the name is the whole spec."""
    find: str | Callable[[Any], Any] | None
    """FILE.FUNCTION of ``sharpscope.clip.datasets`` for the package's own, the function itself for one from outside,
    None for the embedded world, whose images are drawn."""
    splits: tuple[str, ...] | None = None
    """The splits of such a set; only one where its images were published for testing. None where the finder decides by
    what is on disk (:func:`chosen_split`)."""
    known: tuple[str, ...] = ()
    """All words that the part after the colon can be; empty where it can be anything."""
    title: str = ""
    """The name, in messages, of the collection to which the ``known`` words belong."""
    captions: bool = False
    """Whether its images have captions in place of classes."""

    @property
    def form(self) -> str:
        return f"{self.name}:{self.rest}" if self.rest else self.name

    @property
    def is_path(self) -> bool:
        """Whether the part after the colon is a path."""
        return self.rest in ("PATH", "FILE")


_TWO: Final = ("train", "test")
_THREE: Final = ("train", "val", "test")
_EMOJI: Final = (*_THREE, "ood")
_SHIFTED: Final = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")
LAYOUTS: Words[Layout] = Words("kind of data set", "sharpscope.datasets", (
    Layout("mini", "DOMAIN", None, _THREE, MINI_STYLES + MINI_SHIFTS, "the embedded world"),
    Layout("folder", "PATH", "folder.find_folder"),
    Layout("wds", "PATH", "shards.find_shards"),
    Layout("npz", "PATH", "arrays.find_npz"),
    Layout("torchvision", "NAME", "libraries.find_torchvision"),
    Layout("hf", "NAME", "libraries.find_hf"),
    Layout("domainnet", "DOMAIN", "domains.find_domainnet", _TWO, _DOMAINNET, "DomainNet"),
    Layout("subset", "FILE", "imagenet.find_subset", _THREE),
    Layout("retrieval", "FILE", "captions.find_captions", captions=True),
    Layout("coop", "SET", "coop.find_coop", None, tuple(COOP), "CoOp"),
    Layout("emoji", "STYLES", "emoji.find_emoji", _EMOJI),
    Layout("emoji-group", "STYLES", "emoji.find_emoji_group", _EMOJI),
    Layout("imagenet", "", "imagenet.find_imagenet", _THREE),
    *(Layout(name, "", "imagenet.find_imagenet", ("test",)) for name in _SHIFTED),
    Layout("objectnet", "", "imagenet.find_objectnet", ("test",)),
    Layout("imagenet-vid-robust", "", "videos.find_imagenet_vid_robust", ("test",)),
    Layout("ytbb-robust", "", "videos.find_ytbb_robust", ("test",)),
    *(Layout(name, "", "arrays.find_cifar", _TWO) for name in ("cifar10", "cifar10.2", "cifar100")),
    Layout("cifar10.1", "", "arrays.find_cifar", ("test",)),
    Layout("stl10", "", "arrays.find_stl10", _TWO),
    Layout("iwildcam", "", "domains.find_iwildcam"),
    Layout("fmow", "", "domains.find_fmow"),
    Layout("waterbirds", "", "domains.find_waterbirds", _THREE),
))  # fmt: skip
"""Every kind of data set spec."""


@dataclass(frozen=True)
class Spec:
    """The parts of a spec KIND[:REST][@SPLIT][+CORRUPTION@SEVERITY][#HALF].

    ``corruption``: its name and severity, 1 to 5, or None for the images as they are. ``half``: base | new, or None for
    all classes.
    """

    kind: str
    rest: str
    split: str | None
    corruption: tuple[str, int] | None
    half: str | None = None


_CORRUPTED = re.compile(r"(?P<spec>.*)\+(?P<name>[a-z_]+)@(?P<severity>\d+)\Z", re.DOTALL)


def read_spec(spec: str) -> Spec:
    """The parts of ``spec``; ConfigError for an unknown kind, domain, split or corruption. No data are looked at."""
    layout = LAYOUTS.get(spec.partition(":")[0])
    (whole, half), corruption = split_half(spec, path=layout is not None and layout.is_path), None
    if found := _CORRUPTED.match(whole):
        name, severity = found["name"], int(found["severity"])
        if name not in CORRUPTIONS or not 1 <= severity <= 5:
            near = did_you_mean(name, CORRUPTIONS) if name not in CORRUPTIONS else ""
            raise ConfigError(
                f"data set {shown(spec)}: no corruption '{shown(name)}@{severity}' (severities 1 ... 5).{near}\n"
                f"Known: {', '.join(CORRUPTIONS)}."
            )
        whole, corruption = found["spec"], (name, severity)
    kind, colon, rest = whole.partition(":")
    split = None
    if kind == "folder" and "@" in rest and split_of(rest.rpartition("@")[2]):  # a path may contain other @
        rest, _, split = rest.rpartition("@")
    elif kind not in ("folder", "npz"):
        if colon:
            rest, at, last = rest.rpartition("@") if "@" in rest else (rest, "", "")
        else:
            kind, at, last = kind.partition("@")
        split = last if at else None
    if kind not in LAYOUTS and kind in LAYOUTS.not_loaded():
        LAYOUTS.find(kind, f"data set {shown(spec)}")
    layout = LAYOUTS.get(kind)
    if layout is None or bool(layout.rest) != bool(colon and rest) or split == "":
        raise _unknown(spec, layout, bool(colon), kind, split)
    if layout.known and rest not in layout.known:
        near = did_you_mean(rest, layout.known)
        raise ConfigError(
            f"data set: '{shown(spec)}': {layout.title} has no {layout.rest.lower()} '{shown(rest)}'.{near} "
            f"Known: {', '.join(layout.known)}."
        )
    listed = kind == "imagenet" and split is not None and split.endswith(".txt")  # an index file
    if split is not None and layout.splits is not None and not listed:
        split = chosen_split(spec, split, layout.splits, named=True)
    return Spec(kind, rest, split, corruption, half)


def _unknown(spec: str, layout: Layout | None, colon: bool, kind: str, split: str | None) -> ConfigError:
    """The error for a spec of no known form, with the nearest that there is."""
    if split == "" and layout is not None and layout.rest:
        return ConfigError(f"data set {shown(spec)}: unknown split ''. Known: {', '.join(layout.splits or _THREE)}.")
    forms = [*(x.form for x in LAYOUTS.values()), *LAYOUTS.not_loaded()]
    named = [x.name for x in LAYOUTS.values() if not x.rest]
    specs = [f"mini:{d}" for d in LAYOUTS["mini"].known] + named
    near = f" Did you mean '{layout.form}'?" if layout is not None else ""
    near = near or (did_you_mean(spec, named) if not colon else "")
    near = near or did_you_mean(spec if colon else f"mini:{spec}", specs) or did_you_mean(kind, forms)
    return ConfigError(f"data set: '{shown(spec)}' is of no known kind ({', '.join(forms)}).{near}")


def holds_captions(spec: str) -> bool:
    """Whether the images of ``spec`` have captions in place of classes; ConfigError as ``read_spec``."""
    return LAYOUTS[read_spec(spec).kind].captions


def check_classes(specs: Iterable[str], key: str) -> None:
    """Raise ConfigError, beginning with ``key``, where the images of one of ``specs`` have captions and no classes."""
    for spec in specs:
        if holds_captions(spec):
            raise ConfigError(
                f"{key}: {shown(spec)} has captions and no classes, so that no accuracy is defined for it.\n"
                "Remedy: 'sharpscope evaluate FILE --datasets SPEC' gives its R@k, with --base ZEROSHOT --paths linear "
                "along alpha."
            )


def check_root(specs: Iterable[str], data_root: str | Path | None) -> None:
    """Raise ConfigError where ``data_root`` is given and none of ``specs`` is looked up under it.

    The embedded world's images are drawn, and an absolute path is the same under every root.
    """
    asked = [read_spec(spec) for spec in specs]
    under = (LAYOUTS[s.kind].find is not None and not Path(s.rest).expanduser().is_absolute() for s in asked)
    if data_root is not None and not any(under):
        raise ConfigError(
            "data_root: changes nothing here, because none of the data sets is looked up under it.\n"
            "Remedy: leave it out."
        )


def check_folders(specs: Iterable[str], data_root: str | Path | None) -> None:
    """Raise one DatasetError that names all ImageNet variants among ``specs`` whose folders ``data_root`` lacks."""
    root = Path(data_root or ".").expanduser()
    kinds = dict.fromkeys(read_spec(spec).kind for spec in specs)
    wanted = {k: FOLDERS[k] for k in kinds if k in FOLDERS}
    missing = [f"{k} ({tried[0]}/)" for k, tried in wanted.items() if not any((root / t).is_dir() for t in tried)]
    if missing:
        raise DatasetError(
            f"data root {shown(root)}: the folders of {', '.join(missing)} are missing.\n"
            "Remedy: --data-root is the folder that holds imagenet/, imagenet-r/, sketch/ ... side by side."
        )


def split_of(word: str) -> str | None:
    """The split that ``word`` names (val for ``valid``), or None where it does not name a split."""
    return next((split for split, words in WORDS.items() if word.casefold() in words), None)


def chosen_split(spec: str, wanted: str, there: Sequence[str], *, named: bool) -> str | None:
    """The one of the splits ``there`` that ``wanted`` means; None for a set without splits, which is read as a whole.

    ``named``: whether the spec itself names the split (``@train``), so that no other split may be read. Otherwise
    ``wanted`` is the split that a command reads by default, and for a set without test images ``test`` means its
    validation split; facts and notes then say so. ``val`` never means the test split, because weights would be chosen
    by the same images that evaluate them.

    Raises ConfigError for a split that does not exist, listing those that do.
    """
    if wanted in there:
        return wanted
    if not there:
        if named:
            raise ConfigError(
                f"data set {shown(spec)}: the set has no splits, so there is no split '{shown(wanted)}'.\n"
                f"Remedy: leave out @{shown(wanted)} to read all images."
            )
        return None
    same = [s for s in there if split_of(s) is not None and split_of(s) == split_of(wanted)]
    if not same and not named and wanted == "test":
        same = [s for s in there if split_of(s) == "val"]
    if len(same) == 1:
        return same[0]
    if named:
        near = did_you_mean(wanted, there)
        raise ConfigError(f"data set {shown(spec)}: unknown split '{shown(wanted)}'.{near} Known: {', '.join(there)}.")
    raise ConfigError(
        f"data set {shown(spec)}: the set has no {shown(wanted)} split; its splits are {', '.join(there)}.\n"
        f"Remedy: name the split to read: SPEC@{shown(there[-1])}, or folder:PATH/{shown(there[-1])} for class folders."
    )
