"""The step ``evaluate``: any checkpoints on any data sets, one table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor

from sharpscope.clip.accuracy import FeatureCache, accuracy_rows, answers, dataset_note, mean_rows, reported
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.names import read_classnames, read_lines, same_names
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.head import Classifier
from sharpscope.clip.metrics import Answers
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import check_activation, check_head_names, load_pair, pick_device, resolve_checkpoint
from sharpscope.clip.points import PathChoice, as_checkpoint, path_choices
from sharpscope.clip.progress import MakeBar, silent
from sharpscope.clip.prompts import CTX, holds_prompts, prompted_vectors
from sharpscope.clip.settings import check_head_file, check_templates, check_used
from sharpscope.config.collections import expand_specs, members_of
from sharpscope.config.specs import check_folders
from sharpscope.config.study import ALPHAS, checkpoint_stem
from sharpscope.errors import ConfigError, DatasetError, PairMismatch, shown
from sharpscope.layers import HEAD_WEIGHT, Tower, tower_of
from sharpscope.vocabulary import (
    DENSE,
    METRICS,
    ClassPosition,
    PathName,
    check_metrics,
    path_variant,
)
from sharpscope.weights import Checkpoint, read_checkpoint
from sharpscope.weights.checkpoint import with_head
from sharpscope.weights.compare import check_model
from sharpscope.weights.prompts import read_prompts
from sharpscope.weights.theta import on_device

__all__ = [
    "COLUMNS",
    "Answered",
    "CheckpointHeads",
    "SetsByNames",
    "answered",
    "check_needed",
    "checkpoint_labels",
    "collection_means",
    "evaluate",
    "read_over",
]

COLUMNS = (
    "checkpoint", "dataset", "role", "metric", "estimate", "ci_low", "ci_high", "n", "note", "variant", "alpha",
)  # fmt: skip
"""Columns of the table. ``role``: test (one data set) | mean (over the data sets that ``dataset`` names). ``variant``,
``alpha``: the path and its point as in accuracy.csv (dense, path:NAME); alpha is NaN for a file as it is."""

_TOWERS: Final[tuple[Tower, ...]] = ("image", "text", "scale")
Names = tuple[str, ...]
File = str | FilePath


def evaluate(
    checkpoints: File | Sequence[File],
    model: str = "ViT-B-32",
    specs: Sequence[str] = (),
    *,
    metrics: Sequence[str] | None = None,
    head: str = "auto",
    classnames: File | Sequence[str] | None = None,
    templates: File | Sequence[str] | None = None,
    data_root: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
    limit: int | None = None,
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: MakeBar | None = None,
    head_file: File | None = None,
    base: File | None = None,
    class_position: ClassPosition | None = None,
    paths: Sequence[PathName] = (),
    alphas: Sequence[float] | None = None,
    path_density: float | None = None,
    fisher_0: File | None = None,
    fisher_1: File | None = None,
) -> pd.DataFrame:
    """Every metric of every checkpoint on every data set, with intervals: one table.

    >>> table = evaluate("mini:zeroshot", "mini", ["mini:photo"], metrics=["top1"], limit=64)
    >>> list(table.columns)
    ['checkpoint', 'dataset', 'role', 'metric', 'estimate', 'ci_low', 'ci_high', 'n', 'note', 'variant', 'alpha']

    Args:
        checkpoints: one checkpoint, or several of one architecture.
        model: open_clip name, config JSON, or ``mini``.
        specs: data set specs, or names of collections. For each collection the average over its data sets is added.
        metrics: names of ``sharpscope.vocabulary.METRICS``, which are added to top1 and the metrics usual for the data
            set; None: all metrics that are defined for the data set.
        head: stored | zeroshot | text | auto. auto takes the stored head where there is one and the data set's classes
            are among its own by name, otherwise a head from the text tower, as the note then states. A head from text
            is made for each data set, with that data set's class names and templates; for a file of learnt prompts, the
            prompts take the place of the templates.
        classnames, templates: replace the data set's own; a list, or a file with one per line.
        data_root: folder under which relative paths of data sets are looked up.
        batch_size: images per batch; a larger batch needs more memory and is faster.
        device: cpu, cuda, or auto.
        limit: the largest number of images per data set, chosen balanced over the classes by ``seed``.
        level: coverage of the intervals, in (0, 1). Shares have Wilson intervals, other metrics bootstrap intervals.
        bootstrap: number of bootstrap replicates.
        seed: the seed of the choice of images and of the bootstrap.
        progress: makes a bar from ``total`` and ``desc``, e.g. ``tqdm``; None: no bar is shown.
        head_file: a separate file with a head (task_vectors), for each checkpoint without a head.
        base: zero-shot checkpoint over which files that hold only tuned tensors (Dassl, LoRA) are laid, and the start
            of ``paths``.
        class_position: where the class name stands in a file's learnt prompts, in CoOp's words: end | middle | front;
            None: end is assumed.
        paths: paths from ``base`` to every checkpoint (``vocabulary.PATHS``), of which the points ``alphas`` are
            evaluated in place of the checkpoints themselves, each as the file that ``interpolate`` writes would be.
        alphas: the points; None: 0, .1 ... 1. ``path_density``, ``fisher_0``, ``fisher_1``: see ``interpolate``; the
            seed of the paths dare and random is ``seed``.

    Returns:
        One row per (checkpoint, data set, metric). ``role`` is test, or mean for the average over the data sets that
        ``dataset`` names. Shares are in [0, 1], nll is in nats. ``n``: number of images.

    Raises:
        ConfigError: an unknown metric, model, head or path, a checkpoint that is given twice, a setting of paths that
            none of them has, or a base, head_file, templates or class_position that would change nothing for any
            checkpoint.
        CheckpointError, CorruptCheckpoint, UnsafeCheckpoint: a file that cannot be used.
        PairMismatch: weights or a head that do not fit the model or the class names.
        DatasetError: a data set that is missing, empty or does not fit the class names.
    """
    files = [checkpoints] if isinstance(checkpoints, (str, FilePath)) else list(checkpoints)
    check_metrics(tuple(metrics or ()))
    wanted = METRICS if metrics is None else metrics
    if head_file is not None:
        check_head_file(head)
    if head == "stored":
        check_templates(templates)
    clip, where, sets = ClipModel.load(model), pick_device(device), dict.fromkeys(expand_specs(specs))
    check_folders(sets, data_root)
    data = SetsByNames(clip, {"data_root": data_root, "limit": limit, "seed": seed})
    choices = path_choices(paths, alphas, base, path_density, fisher_0, fisher_1, seed)
    names = read_classnames(classnames, repeated=True) if isinstance(classnames, (str, FilePath)) else classnames
    prompts = read_lines(templates, "templates") if isinstance(templates, (str, FilePath)) else templates
    under = None if base is None else read_checkpoint(resolve_checkpoint(base))
    cache = FeatureCache() if len(files) > 1 or choices else None
    rows: list[dict[str, Any]] = []
    from_text = False
    read = functools.partial(read_over, base=under, head_file=head_file)
    if not choices:
        check_needed(files, read, base, head_file, class_position)
    options = {
        "model": clip, "head": head, "head_file": head_file, "classnames": classnames, "templates": templates,
        "class_position": class_position,
    }  # fmt: skip
    along = ALPHAS if alphas is None else tuple(alphas)
    for label, variant, alpha, weights in _subjects(files, read, base, choices, along, options):
        check_activation(clip, (weights,))
        heads = CheckpointHeads(
            clip, model, weights, head, tuple(names) if names else None, tuple(prompts or ()), where, class_position
        )
        own: list[dict[str, Any]] = []
        for spec in sets:
            classifier, theta, dataset, said = heads.for_set(spec, data)
            from_text |= classifier.mode == "zeroshot"
            with contextlib.closing((progress or silent)(total=len(dataset), desc=f"{label} {spec}")) as bar:
                given = answers(classifier, theta, dataset, batch_size, where, cache=cache, progress=bar.update)
            own += accuracy_rows(
                label,
                alpha,
                variant,
                {spec: given},
                {spec: "test"},
                {spec: reported(dataset, wanted)},
                level=level,
                notes={spec: "; ".join(x for x in (dataset_note(dataset), said) if x)},
                bootstrap=bootstrap,
                seed=seed,
            )
        rows += own + collection_means(own, specs)
    table = pd.DataFrame(rows).rename(columns={"pair": "checkpoint"})[list(COLUMNS)]
    if templates is not None and not from_text:
        table.attrs["unused"] = "templates: no head was made from text, so that they changed nothing."
    return table


def read_over(file: File, base: Checkpoint | None, head_file: File | None) -> Checkpoint:
    """The checkpoint ``file``, laid over ``base`` and with the head in ``head_file`` where it needs them."""
    weights = read_checkpoint(resolve_checkpoint(file), base=base)
    return weights if head_file is None or weights.facts["head"] else with_head(weights, head_file)


def check_needed(
    files: Sequence[File],
    read: Callable[[File], Checkpoint],
    base: File | None,
    head_file: File | None,
    position: ClassPosition | None,
) -> None:
    """Raise ConfigError where a base, a head's file or a position of class names would change nothing for any file."""
    if base is None and head_file is None and position is None:
        return
    ends = ((end.facts, holds_prompts(end)) for end in map(read, files))  # the tensors of one file at a time
    laid, own, prompts = [], [], []
    for facts, learnt in ends:
        laid.append(bool(facts["overlay"] or facts["adapter"]))
        own.append("file_sha256" in (facts["head"] or {}))
        prompts.append(learnt)
    names = [str(f) for f in files]
    if base is not None:
        check_used("base", laid, names)
    if head_file is not None:
        check_used("head_file", own, names)
    if position is not None:
        check_used("class_position", prompts, names)


@dataclass(frozen=True)
class Answered:
    """What one checkpoint answered on one data set, image by image."""

    answers: Answers
    note: str
    """What a reader needs to know about the set and the head; empty where there is nothing."""


def answered(
    checkpoint: File,
    model: str = "ViT-B-32",
    specs: Sequence[str] = (),
    *,
    base: File | None = None,
    templates: Sequence[str] | None = None,
    data_root: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Answered]:
    """The answers of one checkpoint to every image of each data set, with the head that ``evaluate`` takes by itself.

    Arguments and errors are those of ``evaluate``.
    """
    clip, where = ClipModel.load(model), pick_device(device)
    data = SetsByNames(clip, {"data_root": data_root, "limit": limit, "seed": seed})
    under = None if base is None else read_checkpoint(resolve_checkpoint(base))
    weights = read_checkpoint(resolve_checkpoint(checkpoint), base=under)
    check_activation(clip, (weights,))
    heads = CheckpointHeads(clip, model, weights, "auto", None, tuple(templates or ()), where)
    cache, out = FeatureCache(), {}
    for spec in specs:
        classifier, theta, dataset, said = heads.for_set(spec, data)
        given = answers(classifier, theta, dataset, batch_size, where, cache=cache)
        out[spec] = Answered(given, "; ".join(x for x in (dataset_note(dataset), said) if x))
    return out


def _subjects(
    files: Sequence[File],
    read: Callable[[File], Checkpoint],
    base: File | None,
    choices: Sequence[PathChoice],
    alphas: Sequence[float],
    options: Mapping[str, Any],
) -> Iterator[tuple[str, str, float, Checkpoint]]:
    """(label, variant, alpha, weights) of everything that is evaluated: the files, or the points of paths to them."""
    for label, file in zip(checkpoint_labels(files, "evaluate"), files, strict=True):
        if not choices:
            yield label, DENSE, math.nan, read(file)
            continue
        assert base is not None
        pair = load_pair(base, file, **options)
        for choice in choices:
            path, _ = choice.path(pair)
            for alpha in alphas:
                yield label, path_variant(choice.kind), float(alpha), as_checkpoint(pair, path.at(alpha), str(file))


def collection_means(rows: Sequence[dict[str, Any]], specs: Sequence[str]) -> list[dict[str, Any]]:
    """The mean rows of every collection among ``specs``, over the collection's data sets."""
    out = []
    for name in dict.fromkeys(specs):
        members = members_of(name)
        own = [r | {"role": name} for r in rows if members is not None and r["dataset"] in members]
        for row in mean_rows(own, name, "mean"):
            out.append(row | {"note": "; ".join(x for x in (f"mean of {name}", row["note"]) if x)})
    return out


def checkpoint_labels(files: Sequence[File], command: str) -> list[str]:
    """The names of checkpoints in a table: the stems of their files where these differ, else their paths.

    Raises ConfigError, naming ``command``, for a file that is given twice.
    """
    stems = [checkpoint_stem(f) for f in files]
    labels = stems if len(set(stems)) == len(stems) else [str(f) for f in files]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"{command}: a checkpoint is given twice ({shown(', '.join(labels))}).")
    return labels


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
