"""Which head of a checkpoint reads which data set: the stored one, or one from the text tower, made only once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.names import same_names
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import check_head_names, resolve_checkpoint
from sharpscope.clip.prompts import CTX, holds_prompts, prompted_vectors
from sharpscope.errors import ConfigError, DatasetError, PairMismatch, shown
from sharpscope.layers import HEAD_WEIGHT, Tower, tower_of
from sharpscope.vocabulary import ClassPosition
from sharpscope.weights import Checkpoint, read_checkpoint
from sharpscope.weights.compare import check_model
from sharpscope.weights.prompts import read_prompts
from sharpscope.weights.theta import on_device

__all__ = ["CheckpointHeads", "SetsByNames"]

_TOWERS: Final[tuple[Tower, ...]] = ("image", "text", "scale")
Names = tuple[str, ...]


@dataclass
class SetsByNames:
    """The data sets by spec and class names; each is loaded only once."""

    clip: ClipModel
    options: Mapping[str, Any]
    _loaded: dict[tuple[str, Names | None, bool], Dataset] = field(default_factory=dict)

    def get(self, spec: str, names: Names | None, *, by_name: bool = False) -> Dataset:
        """The data set in ``names``; ``by_name``: they come from a checkpoint (see ``load_dataset``)."""
        key = (spec, names, by_name)
        if key not in self._loaded:
            self._loaded[key] = load_dataset(spec, model=self.clip, classnames=names, by_name=by_name, **self.options)
        return self._loaded[key]


@dataclass
class CheckpointHeads:
    """The heads of one checkpoint: the stored head, and heads from its text tower; each is made only once."""

    clip: ClipModel
    model: str
    weights: Checkpoint
    mode: str
    names: Names | None
    """Class names that the user gave."""
    templates: Names
    where: torch.device
    position: ClassPosition | None = None
    """Where the class name stands in learnt prompts; None: behind the context."""
    _made: dict[tuple[str, Names, Names], tuple[Classifier, dict[str, Tensor]]] = field(default_factory=dict)
    _theta: dict[str, Tensor] = field(default_factory=dict)

    def for_set(self, spec: str, data: SetsByNames) -> tuple[Classifier, dict[str, Tensor], Dataset, str]:
        """(classifier, theta, data set in the classifier's class names, note about the head)."""
        stored = self.weights.facts.get("head")
        if self.mode == "stored" and stored is None:
            raise ConfigError(f"head: {shown(self.weights.source)} has no stored head; use --head zeroshot.")
        own: Names | None = tuple((stored or {}).get("classnames") or ()) or None
        said = ""
        if stored is not None and self.mode in ("stored", "auto"):
            try:
                classifier, theta, dataset, said = self._stored(spec, data, own)
                return classifier, theta, dataset, self._remarks(said, head=True)
            except (DatasetError, PairMismatch):
                if self.mode == "stored" or (self.names and not self.prompts) or not self._has_text():
                    raise
            said = ", because the stored head has other classes"
        dataset = self._named(spec, data, own)
        if dataset.facts.get("unnamed") and not (self.names or own):
            raise DatasetError(
                f"data set {shown(spec)}: has no class names, and prompts with class numbers ('a photo of a 0.') are "
                "meaningless.\nRemedy: --classnames FILE with one name per line, or classnames.txt beside the images."
            )
        if self.prompts:
            place = "" if self.position else "; its class names are assumed to stand behind the context"
            said = f"the head was made from the learnt prompts{said}{place}"
            return (*self._prompted(dataset.classnames, own), dataset, self._remarks(said, head=False))
        templates = self.templates or dataset.templates or ()
        said = f"the head was made from the text tower{said}" if said else ""
        return (*self._make("zeroshot", dataset.classnames, templates), dataset, self._remarks(said, head=False))

    def _stored(
        self, spec: str, data: SetsByNames, own: Names | None
    ) -> tuple[Classifier, dict[str, Tensor], Dataset, str]:
        """As ``for_set``, with the stored head; DatasetError or PairMismatch where its classes are not the set's."""
        dataset = data.get(spec, self.names or own, by_name=self.names is None)
        if self.names:  # for SPEC#base, the names of the half
            check_head_names((self.weights,), dataset.classnames)
        said = ""
        if self.names is None and own is None and not dataset.facts.get("numbered", True):
            if two := dataset.facts["two_orders"]:
                raise DatasetError(
                    f"data set {shown(spec)}: the head of {shown(self.weights.source, 200)} has no class names, and "
                    f"the order of the class folders has two readings: {two}.\n"
                    "Remedy: --classnames FILE with the names of the folders in the order of the head's rows."
                )
            said = "the stored head has no class names, so its rows were matched to the class folders in sorted order"
        return (*self._make("stored", dataset.classnames if own is None else own, ()), dataset, said)

    def _named(self, spec: str, data: SetsByNames, own: Names | None) -> Dataset:
        """The data set in the user's class names, or in the checkpoint's where these fit, or in its own."""
        if self.names is None and own is not None:
            with contextlib.suppress(DatasetError):
                return data.get(spec, own, by_name=True)
        return data.get(spec, self.names)

    def _remarks(self, said: str, *, head: bool) -> str:
        """``said``, and what is assumed of the file because it does not say; ``head``: of its stored head too."""
        facts = self.weights.facts if head else {**self.weights.facts, "head": None}
        assumed = dataclasses.replace(self.weights, facts=facts).assumptions
        return "; ".join(filter(None, (said, *(x.rstrip(".") for x in assumed))))

    @functools.cached_property
    def prompts(self) -> dict[str, Tensor]:
        """The learnt prompts in the checkpoint's file; empty where it holds none."""
        if not holds_prompts(self.weights):
            return {}
        return on_device(read_prompts(resolve_checkpoint(self.weights.source)), self.where, torch.float32)

    def _prompted(self, names: Names, own: Names | None) -> tuple[Classifier, dict[str, Tensor]]:
        """(classifier, theta) with the learnt prompts before ``names``; ``own``: the classes they were trained on."""
        key = ("prompts", names, ())
        if key not in self._made:
            source = shown(self.weights.source, 300)
            if self.prompts[CTX].ndim == 3 and own is not None and not same_names(names, own):
                raise PairMismatch(
                    f"{source}: the prompts have a separate context for each class ({shown(own[0], 30)} ...), so they "
                    f"cannot be used for other classes ({shown(names[0], 30)} ...).\n"
                    "Remedy: a data set of the classes that the prompts were trained on, or prompts with one context."
                )
            self._theta = self._theta or self._loaded()
            check_model(self.weights.tensors, self.clip.shapes, self.clip.name, source=source, require=_TOWERS)
            body = {k: v for k, v in self._theta.items() if tower_of(k) != "head"}
            vectors = prompted_vectors(self.clip, body, self.prompts, names, self.weights.source, self.position)
            self._made[key] = Classifier(self.clip, "stored", names), {**body, HEAD_WEIGHT: vectors}
        return self._made[key]

    def _has_text(self) -> bool:
        return all(n in self.weights.tensors for n in (*self.clip.text_names, "logit_scale"))

    def _make(self, mode: str, names: Names, templates: Names) -> tuple[Classifier, dict[str, Tensor]]:
        key = (mode, names, templates)
        if key not in self._made:
            if not self._theta:
                self._theta = self._loaded()
            stored = self.weights.facts.get("head") if mode == "stored" else None
            require: tuple[Tower, ...] = ("image",) if stored else _TOWERS
            source = shown(self.weights.source, 300)
            check_model(self.weights.tensors, self.clip.shapes, self.clip.name, source=source, require=require)
            classifier = Classifier(
                self.clip,
                "stored" if stored else "zeroshot",
                names,
                templates or None,
                scale_baked=bool(stored and stored["scale_baked"]),
                normalize=not (stored and not stored["normalize"]),
            )
            self._made[key] = classifier, classifier.attach(self._theta)
        return self._made[key]

    def _loaded(self) -> dict[str, Tensor]:
        theta = on_device(self.weights.tensors, self.where, torch.float32)
        if "logit_scale" not in theta and self.model == "mini":
            # fine-tuned files of the embedded world lack logit_scale; like WiSE-FT's, they use the zero-shot model's
            zeroshot = read_checkpoint(resolve_checkpoint("mini:zeroshot")).tensors
            theta["logit_scale"] = zeroshot["logit_scale"].float().to(self.where)
        return theta
