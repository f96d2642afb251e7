"""One model of a result file, with sharpscope's names of data sets and metrics."""

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
    "imagenet-vid-robust": "ImageNetVidRobust",
    "ytbb-robust": "YTBBRobust",
}
"""Spec of a named data set -> its name in WiSE-FT, model-soups, FLYP, Dassl and MonoSoup."""

_ALIASES: Mapping[str, str] = {"imagenet1k": "imagenet", "imagenetvalclasses": "imagenet"}
ID_SETS = ("imagenet", "FMOWID", "IWildCamID", "IWildCamIDNonEmpty")
"""The data sets that count as in distribution unless the file or the user says otherwise."""
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
    "pm0": "pm0",
    "pm10": "pm10",
}
"""Name of a metric in other systems' files -> its name here. Numbers under other names are left out."""


@dataclass(frozen=True)
class Measured:
    """One model with its accuracies.

    ``names`` holds the model's own name first, then other names of its checkpoint. ``alpha`` is its position on the
    path, 1 for a model as it was fine-tuned. ``values`` maps (data set, metric) to a fraction. ``counts`` (data set ->
    number of examples) and ``trained_on`` (the set it was fine-tuned on) are filled in where the file has them.
    ``where`` is the line or file that these facts come from.
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
        """The role of ``dataset``: id, ood or val. ID sets are ``ids``, else the set trained on, else ``ID_SETS``."""
        known = [spec_of(i) for i in ids] or ([self.trained_on] if self.trained_on else []) or list(ID_SETS)
        if dataset in known:
            return "id"
        return "val" if dataset in _VALIDATION else "ood"


def spec_of(name: str) -> str:
    """sharpscope's name of the data set that other systems call ``name``; an unknown name is returned unchanged.

    >>> spec_of("ImageNetV2"), spec_of("wds/imagenet_sketch"), spec_of("EuroSAT")
    ('imagenet-v2', 'imagenet-sketch', 'EuroSAT')
    """
    plain = re.sub(r"[-_ ]", "", name.removeprefix("wds/")).casefold()
    known = {re.sub("-", "", spec): spec for spec in SETS} | dict(_ALIASES)
    return known.get(plain, name)


def own_name(spec: str) -> str:
    """Other systems' name of one of our data sets; where they have none, the last part of the spec's path."""
    return SETS.get(spec, PurePosixPath(spec.partition(":")[2] or spec).name)


def stem(path: str) -> str:
    """The file name of ``path`` without the suffix of a checkpoint; a plain name is returned unchanged.

    >>> stem("models/wiseft/finetuned.pt"), stem("openai"), stem("wise_ft_alpha=0.500.pt")
    ('finetuned', 'openai', 'wise_ft_alpha=0.500')
    """
    name = re.split(r"[/\\]", path)[-1]
    return re.sub(r"\.(pt|pth|bin|ckpt|safetensors)$", "", name)


def alpha_of(name: str) -> tuple[str, float]:
    """Split a name that contains ``alpha=0.500`` (as WiSE-FT's checkpoints do) into (name without it, alpha).

    Any other name gives (name, 1.0).

    >>> alpha_of("run1_alpha=0.500"), alpha_of("checkpoint_10")
    (('run1', 0.5), ('checkpoint_10', 1.0))
    """
    found = re.search(r"[_-]?alpha[=_-]?(\d+(?:\.\d+)?)", name)
    if not found:
        return name, 1.0
    return (name[: found.start()] + name[found.end() :]) or name, float(found.group(1))


def fraction(value: object, where: str, key: str) -> float:
    """``value`` as a number from 0 to 1.

    Raises:
        ResultsError: anything else; the message names the line and the key.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ResultsError(f"{where}, key '{shown(key, 60)}': needs a number, got {shown(repr(value), 40)}.")
    if not 0 <= value <= 1:
        raise ResultsError(
            f"{where}, key '{shown(key, 60)}': {value} is not a fraction between 0 and 1 (is it in percent?)."
        )
    return float(value)


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in order, empty ones left out."""
    return tuple(dict.fromkeys(n for n in names if n))
