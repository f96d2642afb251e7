"""What a result file says of one model, in sharpscope's names of data sets and metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from sharpscope.errors import ResultsError, shown

__all__ = ["ID_SETS", "METRIC_NAMES", "SETS", "Measured", "alpha_of", "fraction", "own_name", "spec_of", "stem"]

SETS: Mapping[str, str] = {
    "imagenet": "ImageNet",
    "imagenet-v2": "ImageNetV2",
    "imagenet-r": "ImageNetR",
    "imagenet-a": "ImageNetA",
    "imagenet-sketch": "ImageNetSketch",
    "objectnet": "ObjectNet",
}
"""For the spec of a named data set the name that WiSE-FT, model-soups, FLYP, Dassl and MonoSoup give it."""

_ALIASES: Mapping[str, str] = {"imagenet1k": "imagenet", "imagenetvalclasses": "imagenet"}
ID_SETS = ("imagenet", "FMOWID", "IWildCamID", "IWildCamIDNonEmpty")
"""The data sets that count as in distribution where neither the file nor the user says which ones do."""
_VALIDATION = ("ImageNet2p", "ImageNet98p", "IWildCamIDVal", "FMOWIDVal")

METRIC_NAMES: Mapping[str, str] = {
    "top1": "top1",
    "acc1": "top1",
    "accuracy": "top1",
    "acc": "top1",
    "acc5": "top5",
    "mean_per_class_recall": "mean_per_class",
    "macro_f1": "macro_f1",
    "F1-macro_all": "macro_f1",
    "acc_worst_region": "worst_group",
}
"""For each metric's name in other systems' files ours. Numbers under other names are left out."""


@dataclass(frozen=True)
class Measured:
    """One model with its accuracies.

    ``names``: its own name first, then others under which its checkpoint may be known; ``alpha``: its place on the
    path, 1 for a model as it was fine-tuned; ``values``: (data set, metric) -> fraction; ``counts``: data set ->
    examples, where the file tells; ``trained_on``: the set it was fine-tuned on, where the file tells; ``where``: the
    line (or file) that says all this.
    """

    names: tuple[str, ...]
    alpha: float
    values: Mapping[tuple[str, str], float]
    where: str
    variant: str = "dense"
    counts: Mapping[str, int] = field(default_factory=dict)
    trained_on: str | None = None
    note: str = ""

    def role(self, dataset: str, ids: Sequence[str] = ()) -> str:
        """id | ood | val of ``dataset``: ``ids`` are ID, else the set trained on, else ``ID_SETS``."""
        known = [spec_of(i) for i in ids] or ([self.trained_on] if self.trained_on else []) or list(ID_SETS)
        if dataset in known:
            return "id"
        return "val" if dataset in _VALIDATION else "ood"


def spec_of(name: str) -> str:
    """sharpscope's name of a data set that others call ``name``; a name that is not known stays as it is.

    >>> spec_of("ImageNetV2"), spec_of("wds/imagenet_sketch"), spec_of("EuroSAT")
    ('imagenet-v2', 'imagenet-sketch', 'EuroSAT')
    """
    plain = re.sub(r"[-_ ]", "", name.removeprefix("wds/")).casefold()
    known = {re.sub("-", "", spec): spec for spec in SETS} | dict(_ALIASES)
    return known.get(plain, name)


def own_name(spec: str) -> str:
    """What the others call a data set of ours (the last part of a spec's path where they have no name for it)."""
    return SETS.get(spec, PurePosixPath(spec.partition(":")[2] or spec).name)


def stem(path: str) -> str:
    """The file's name without its last suffix; the name itself where it is no path.

    >>> stem("models/wiseft/finetuned.pt"), stem("openai"), stem("wise_ft_alpha=0.500.pt")
    ('finetuned', 'openai', 'wise_ft_alpha=0.500')
    """
    name = re.split(r"[/\\]", path)[-1]
    return re.sub(r"\.(pt|pth|bin|ckpt|safetensors)$", "", name)


def alpha_of(name: str) -> tuple[str, float]:
    """(name without it, alpha) of a name that holds ``alpha=0.500`` (WiSE-FT's checkpoints); else (name, 1.0).

    >>> alpha_of("run1_alpha=0.500"), alpha_of("checkpoint_10")
    (('run1', 0.5), ('checkpoint_10', 1.0))
    """
    found = re.search(r"[_-]?alpha[=_-]?(\d+(?:\.\d+)?)", name)
    if not found:
        return name, 1.0
    return (name[: found.start()] + name[found.end() :]) or name, float(found.group(1))


def fraction(value: object, where: str, key: str) -> float:
    """``value`` as a number from 0 to 1; ResultsError naming the line and the key otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ResultsError(f"{where}, key '{shown(key, 60)}': needs a number, got {shown(repr(value), 40)}.")
    if not 0 <= value <= 1:
        raise ResultsError(f"{where}, key '{shown(key, 60)}': {value} is no fraction between 0 and 1 (percent?).")
    return float(value)


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in order, empty ones left out."""
    return tuple(dict.fromkeys(n for n in names if n))
