"""The step ``evaluate``: any checkpoints on any data sets, one table."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import pandas as pd

from sharpscope.clip.accuracy import accuracy_rows, dataset_note, mean_rows, reported
from sharpscope.clip.agreement import Seen
from sharpscope.clip.all_pairs import AllPairs, check_all_pairs
from sharpscope.clip.answering import FeatureCache, answers
from sharpscope.clip.checkpoint_heads import CheckpointHeads, SetsByNames
from sharpscope.clip.datasets.names import read_classnames, read_lines
from sharpscope.clip.evaluate_captions import BOTH_TOWERS, caption_rows, check_towers_alone
from sharpscope.clip.metrics import Answers
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import check_activation, pick_device, resolve_checkpoint
from sharpscope.clip.points import path_choices
from sharpscope.clip.progress import Shown, bars_for
from sharpscope.clip.settings import check_head_file, check_templates
from sharpscope.clip.subjects import File, check_needed, read_over, subjects
from sharpscope.config.collections import expand_specs, members_of
from sharpscope.config.specs import check_folders, holds_captions
from sharpscope.config.study import ALPHAS
from sharpscope.vocabulary import (
    METRICS,
    ClassPosition,
    PathName,
    check_metrics,
)
from sharpscope.weights import read_checkpoint

__all__ = [
    "COLUMNS",
    "Answered",
    "answered",
    "collection_means",
    "evaluate",
]

COLUMNS = (
    "checkpoint", "dataset", "role", "metric", "estimate", "ci_low", "ci_high", "n", "note", "variant", "alpha",
)  # fmt: skip
"""Columns of the table. ``role``: test (one data set) | mean (over the data sets that ``dataset`` names). ``variant``,
``alpha``: the path and its point as in accuracy.csv (dense, path:NAME); alpha is NaN for a file as it is."""


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
    progress: Shown = False,
    head_file: File | None = None,
    base: File | None = None,
    class_position: ClassPosition | None = None,
    paths: Sequence[PathName] = (),
    alphas: Sequence[float] | None = None,
    path_density: float | None = None,
    fisher_0: File | None = None,
    fisher_1: File | None = None,
    agreement_out: File | None = None,
) -> pd.DataFrame:
    """Every metric of every checkpoint on every data set, with intervals: one table.

    >>> table = evaluate("mini:zeroshot", "mini", ["mini:photo"], metrics=["top1"], limit=64)
    >>> list(table.columns)
    ['checkpoint', 'dataset', 'role', 'metric', 'estimate', 'ci_low', 'ci_high', 'n', 'note', 'variant', 'alpha']

    Args:
        checkpoints: one checkpoint, or several of one architecture.
        model: open_clip name, config JSON, or ``mini``.
        specs: data set specs, or names of collections. For each collection the average over its data sets is added.
            A set of captions (``retrieval:FILE``) has R@k in place of accuracies, from the image tower and the text
            tower of the checkpoint, or of the point of the path; a head plays no part in it. Its rows come last.
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
        progress: True shows a bar, a function of ``total`` and ``desc`` (such as ``tqdm``) makes one.
        head_file: a separate file with a head (task_vectors), for each checkpoint without a head.
        base: zero-shot checkpoint over which files that hold only tuned tensors (Dassl, LoRA) are laid, and the start
            of ``paths``.
        class_position: where the class name stands in a file's learnt prompts, in CoOp's words: end | middle | front;
            None: end is assumed.
        paths: paths from ``base`` to every checkpoint (``vocabulary.PATHS``), of which the points ``alphas`` are
            evaluated in place of the checkpoints themselves, each as the file that ``interpolate`` writes would be.
        alphas: the points; None: 0, .1 ... 1. ``path_density``, ``fisher_0``, ``fisher_1``: see ``interpolate``; the
            seed of the paths dare and random is ``seed``.
        agreement_out: file to write, with the columns of a run's agreement.csv: how far the checkpoints agree with one
            another, for every ordered pair ``A|B`` (``all_pairs.AllPairs.table``).

    Returns:
        One row per (checkpoint, data set, metric). ``role`` is test, or mean for the average over the data sets that
        ``dataset`` names. Shares are in [0, 1], nll is in nats. ``n``: number of images.

    Raises:
        ConfigError: an unknown metric, model, head or path, a checkpoint that is given twice, a setting of paths that
            none of them has, or a base, head_file, templates or class_position that would change nothing for any
            checkpoint, or a head or class names where all sets are sets of captions; agreement_out with fewer than
            two checkpoints or with paths.
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
    clip, where, every = ClipModel.load(model), pick_device(device), tuple(dict.fromkeys(expand_specs(specs)))
    check_folders(every, data_root)
    sets, captions = [s for s in every if not holds_captions(s)], [s for s in every if holds_captions(s)]
    if not sets:
        check_towers_alone(head, head_file, classnames, class_position)
    reading = {"data_root": data_root, "limit": limit, "seed": seed}
    data = SetsByNames(clip, reading)
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
    if agreement_out is not None:
        check_all_pairs(files, sets, paths)
    with contextlib.ExitStack() as stack:
        together = None if agreement_out is None else stack.enter_context(AllPairs(clip, seed, level))
        for label, variant, alpha, weights in subjects(files, read, base, choices, along, options) if sets else ():
            check_activation(clip, (weights,))
            heads = CheckpointHeads(
                clip, model, weights, head, tuple(names) if names else None, tuple(prompts or ()), where, class_position
            )
            own: list[dict[str, Any]] = []
            for spec in sets:
                classifier, theta, dataset, said = heads.for_set(spec, data)
                from_text |= classifier.mode == "zeroshot"
                collected = Seen()
                with contextlib.closing(bars_for(progress)(total=len(dataset), desc=f"{label} {spec}")) as bar:
                    given = answers(
                        classifier, theta, dataset, batch_size, where, cache=cache, progress=bar.update,
                        **({} if together is None else {"seen": collected}),
                    )  # fmt: skip
                if together is not None:
                    together.take(label, spec, dataset, theta, collected)
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
        if together is not None:
            together.write(str(agreement_out))
    if captions:
        stating = {"level": level, "bootstrap": bootstrap, "seed": seed}
        points = subjects(files, read, base, choices, along, {"model": clip, **BOTH_TOWERS})
        rows += caption_rows(points, captions, clip, where, batch_size, reading, stating, progress)
    table = pd.DataFrame(rows).rename(columns={"pair": "checkpoint"})[list(COLUMNS)]
    if templates is not None and not from_text:
        table.attrs["unused"] = "templates: no head was made from text, so that they changed nothing."
    return table


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
) -> dict[str, Answered]:
    """The answers of one checkpoint to every image of each data set, with the head that ``evaluate`` takes by itself.

    Arguments and errors are those of ``evaluate``.
    """
    clip, where = ClipModel.load(model), pick_device(device)
    data = SetsByNames(clip, {"data_root": data_root, "limit": limit, "seed": 0})
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


def collection_means(rows: Sequence[dict[str, Any]], specs: Sequence[str]) -> list[dict[str, Any]]:
    """The mean rows of every collection among ``specs``, over the collection's data sets."""
    out = []
    for name in dict.fromkeys(specs):
        members = members_of(name)
        own = [r | {"role": name} for r in rows if members is not None and r["dataset"] in members]
        for row in mean_rows(own, name, "mean"):
            out.append(row | {"note": "; ".join(x for x in (f"mean of {name}", row["note"]) if x)})
    return out
