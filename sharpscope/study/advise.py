"""Advice on alpha for one pair, from what is known: OOD labels, a few labels, images alone, other pairs, nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from sharpscope.atomic import write_atomic, writing
from sharpscope.clip.datasets.common import common_pictures
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.targets import labelled_files, unlabelled_images
from sharpscope.clip.metrics import Answers
from sharpscope.clip.pathanswers import answers_along, judged_by, seen_along
from sharpscope.clip.progress import MakeBar, Shown, bars_for
from sharpscope.config.study import ALPHAS, PairConfig, StudyConfig, checkpoint_stem
from sharpscope.errors import ConfigError, shown
from sharpscope.findings.advice import Known, advice_table
from sharpscope.findings.advising.along import AlongPath, along_path
from sharpscope.findings.advising.images import estimates_table, held_out, image_curves
from sharpscope.findings.advising.labels import FEWEST_LABELS, label_curve
from sharpscope.findings.advising.measured import front
from sharpscope.findings.advising.references import Reference
from sharpscope.findings.design import Design
from sharpscope.findings.doubts import Doubt, swap_doubt
from sharpscope.present.advice import advice_text
from sharpscope.scores import PathAnswers
from sharpscope.study.across import references_of
from sharpscope.study.context import Context, check_test_sets
from sharpscope.study.designs import design_of, with_covariates
from sharpscope.study.finished import finished_results
from sharpscope.study.known import shipped_references, tuning_of
from sharpscope.study.results import Resampling, unless_doubted
from sharpscope.study.tasks import roles
from sharpscope.tables.files import csv_bytes
from sharpscope.vocabulary import LEARNING_RATE, ClassPosition

__all__ = ["HELD_OUT", "Advice", "advise"]

HELD_OUT: Final = ("speckle_noise@3", "gaussian_blur@3", "spatter@3", "saturate@3")
"""The corruptions of the ID test sets on which the rules for target images are judged: those that ImageNet-C's authors
reserve for validation (Hendrycks and Dietterich 2019, arXiv 1903.12261), one of each kind."""
_TARGET: Final = "target"


@dataclass(frozen=True)
class Advice:
    """Advice on alpha: what ``advise`` returns; ``print`` shows it.

    ``table``: the table advice (``findings.advice_table``), of one or several pairs. ``along``: situation -> the
    accuracies along the path that its advice rests on (measured, labelled or estimated), in [0, 1].
    """

    table: pd.DataFrame
    along: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @property
    def advised(self) -> pd.DataFrame:
        """The rows that advise an alpha, those of the strongest situation first."""
        return self.table[self.table["advised"]]

    def __str__(self) -> str:
        return advice_text(self.table, self.along)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def advise(
    run: str | os.PathLike[str] | None = None,
    *,
    zeroshot: str | None = None,
    finetuned: str | None = None,
    model: str | None = None,
    name: str | None = None,
    id: Sequence[str] = (),
    ood: Sequence[str] | Mapping[str, Sequence[str]] = (),
    target_labels: str | os.PathLike[str] | None = None,
    target_images: Sequence[str] = (),
    held_out_shifts: Sequence[str] = (),
    references: Sequence[str | os.PathLike[str]] = (),
    shipped_pairs: bool = False,
    learning_rate: float | None = None,
    keep_id: float = 0.99,
    alphas: Sequence[float] | None = None,
    head: str | None = None,
    head_file: str | None = None,
    classnames: str | None = None,
    templates: str | None = None,
    class_position: ClassPosition | None = None,
    data_root: str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    device: str | None = None,
    seed: int | None = None,
    bootstrap: int | None = None,
    level: float | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Shown = False,
) -> Advice:
    """The alphas that can be advised for a pair, one block per situation, the strongest first; no curvature is needed.

    >>> advice = advise(zeroshot="mini:zeroshot", finetuned="mini:success", model="mini")
    >>> advice.table["situation"].iloc[0], len(advice.advised)
    ('none', 0)

    The situations: ``measured`` (OOD labels), ``target_labels`` (at least 20 labelled target images), ``target_images``
    (without labels), ``references`` (other pairs with OOD labels), ``none``. No alpha is advised in the last one, and
    none for a pair that lies outside its references. A setting that would change nothing is refused.

    Args:
        run: a run directory, whose pairs, ID and OOD sets, settings and finished evaluations are used.
        zeroshot, finetuned, model, name, id, ood, alphas, head, head_file, classnames, templates, class_position,
            limit: without ``run`` only, the pair and what it is evaluated on, as in ``StudyConfig``; alphas defaults
            to 0, .1 ... 1.
        target_labels: CSV file with the columns filepath (relative to the file) and label (a class name).
        target_images: data set specs or folders of images, whose labels are not looked at.
        held_out_shifts: labelled shifts on which the rules for target images are judged; default: four corruptions of
            the ID sets (``HELD_OUT``).
        references: run directories of other pairs.
        shipped_pairs: whether the embedded world's pairs are references too.
        learning_rate: that of the fine-tuning, where the file does not say it. Of a run, it is that of the pairs of
            which neither file nor study says it.
        keep_id: the share of the path's best ID accuracy that the rule keep_id keeps, in (0, 1].
        data_root: folder under which named data sets and relative paths are looked up.
        batch_size: images per batch, default 128, of a run those of its manifest.
        device: cpu, cuda or auto (the default).
        seed: seed of the bootstrap, default 0; without ``run`` of the choice of images too.
        bootstrap: number of replicates, default 1000. More replicates make the ends of intervals steadier.
        level: coverage of the intervals, default 0.95. A larger one makes them wider. Of a run, these three default to
            those of its manifest.
        out: CSV file for the table.
        progress: True shows a bar, a function of ``total`` and ``desc`` (such as ``tqdm``) makes one.

    Raises:
        ConfigError: neither run nor pair, or both; a setting out of range, or one that would change nothing; target
            images without an ID set.
        DatasetError: a set, a target file or one of its rows that cannot be used.
        CheckpointError, PairMismatch, RunDirectoryError: as ``load_pair`` and ``report``.
    """
    if not 0 < keep_id <= 1:
        raise ConfigError(f"keep_id: needs a share above 0 and at most 1, e.g. 0.99; got {keep_id:g}.")
    told: dict[str, Any] = {
        "model": model, "head": head, "head_file": head_file, "classnames": classnames, "templates": templates,
        "class_position": class_position, "limit": limit,
    }  # fmt: skip
    seen: dict[str, Any] = {"data_root": data_root, "batch_size": batch_size, "device": device}
    how: dict[str, Any] = {"seed": seed, "bootstrap": bootstrap, "level": level}
    pairs = {"zeroshot": zeroshot, "finetuned": finetuned, "name": name, "id": id, "ood": ood, "alphas": alphas}
    told, seen, how = ({k: v for k, v in part.items() if v is not None} for part in (told, seen, how))
    if held_out_shifts and not target_images:
        raise ConfigError("held_out_shifts: changes nothing without target_images, whose rules are judged on it.")
    if run is not None:
        _check_beside(run, [*(key for key, value in pairs.items() if value), *told], seen, target_labels, target_images)
        subjects = _of_run(Path(run), seen, how, learning_rate, references, shipped_pairs)
    elif zeroshot is None or finetuned is None:
        raise ConfigError("advise: give a run directory, or a pair with --zeroshot and --finetuned.")
    else:
        covariates = {} if learning_rate is None else {"learning_rate": float(learning_rate)}
        pair = PairConfig(name or checkpoint_stem(finetuned), zeroshot, finetuned, covariates)
        config = StudyConfig(
            pairs=(pair,), id=tuple(id), ood=ood, alphas=tuple(alphas or ALPHAS), **told, **seen, **how,  # type: ignore[arg-type]
        )  # fmt: skip
        config = dataclasses.replace(config, probe=next(iter(roles(config)), config.probe))
        check_test_sets(config)
        subjects = [_of_pair(config, pair, references, shipped_pairs, bars_for(progress))]
    targets = _Targets(target_labels, tuple(target_images), tuple(held_out_shifts))
    parts = [_advised(subject, targets, keep_id, bars_for(progress)) for subject in subjects]
    table = pd.concat([part.table for part in parts], ignore_index=True)
    fronts = {
        s: pd.concat([p.along[s] for p in parts if s in p.along])
        for s in dict.fromkeys(s for p in parts for s in p.along)
    }
    if out is not None:
        with writing(Path(out)):
            write_atomic(Path(out), csv_bytes(table, "advice"))
    return Advice(table, fronts)


def _check_beside(
    run: str | os.PathLike[str],
    taken: Sequence[str],
    seen: Iterable[str],
    target_labels: str | os.PathLike[str] | None,
    target_images: Sequence[str],
) -> None:
    """Raise ConfigError for what changes nothing beside ``run``: settings that are ``taken`` from it, and those of how
    images are ``seen`` where none are."""
    for key in taken:
        raise ConfigError(f"{key}: is taken from the manifest of {shown(run)}; give either a run or a pair.")
    if target_labels is None and not target_images:
        for key in seen:
            raise ConfigError(
                f"{key}: changes nothing, because nothing is evaluated again.\n"
                "Remedy: leave it out, or give target_labels or target_images."
            )


@dataclass(frozen=True)
class _Targets:
    labels: str | os.PathLike[str] | None
    images: tuple[str, ...]
    shifts: tuple[str, ...]


@dataclass(frozen=True)
class _Subject:
    """One pair to advise on: its curves, what is known of it, and its data once images have to be seen."""

    path: AlongPath
    known: Known
    config: StudyConfig
    pair: PairConfig
    resampling: Resampling
    context: Context | None = None
    answers: Mapping[str, list[Answers]] = field(default_factory=dict)
    """The answers on the ID sets, where they have been evaluated already."""
    doubts: Sequence[Doubt] = ()


# ------------------------------------------------------------------------------------------------ where pairs come from
def _of_run(
    root: Path,
    seen: Mapping[str, Any],
    how: Mapping[str, Any],
    learning_rate: float | None,
    runs: Sequence[str | os.PathLike[str]],
    shipped: bool,
) -> list[_Subject]:
    """The pairs of a finished run; neither checkpoints nor images are opened.

    ``seen``: how target images are evaluated, ``how``: how intervals are computed, both over the run's own settings.
    """
    _, results = finished_results(root)
    dataclasses.replace(results.config, **how)  # checks the ranges
    config = dataclasses.replace(results.config, **{"device": StudyConfig.device, **seen})
    resampling = Resampling(**{**results.resampling, **how})  # type: ignore[typeddict-item]
    if learning_rate is not None:
        results.design = _with_rate(results.design, learning_rate, root)
    own = results.references()
    known_pairs = [r.pair for r in own]
    more = references_of(runs, config.ood_groups)
    if shipped and not results.config.shipped_pairs:
        more += shipped_references(config.ood_groups, known_pairs)
    every = own + [r for r in more if r.pair not in known_pairs]
    subjects = [
        _Subject(
            results.along(pair.name, resampling), results.known(pair.name, every), config, pair, resampling,
            doubts=results.doubts(),
        )
        for pair in config.pairs
        if results.arrays(pair.name)[0]
    ]  # fmt: skip
    if not subjects:
        raise ConfigError(f"{shown(root)}: no point of any path is finished; finish it with 'sharpscope run' first.")
    return subjects


def _with_rate(design: Design, rate: float, root: Path) -> Design:
    """``design`` with a learning rate for the pairs of which none is known."""
    known = design.covariates.get(LEARNING_RATE, np.full(len(design.pairs), math.nan))
    if np.isfinite(known).all():
        raise ConfigError(f"learning_rate: changes nothing, because {shown(root)} has one for each of its pairs.")
    values = np.where(np.isfinite(known), known, float(rate))
    return with_covariates(design, {p: {LEARNING_RATE: float(v)} for p, v in zip(design.pairs, values, strict=True)})


def _of_pair(
    config: StudyConfig, pair: PairConfig, runs: Sequence[str | os.PathLike[str]], shipped: bool, bars: MakeBar
) -> _Subject:
    """A pair that is evaluated now, on its ID and OOD sets."""
    context = Context.load(config, pair)
    answers = _evaluated(context, context.datasets, bars)
    facts = context.pair.facts
    design = design_of((pair,), {pair.name: facts})
    hits = {spec: judged_by(answers[spec], d.metrics[0]) for spec, d in context.datasets.items()}
    resampling = Resampling(bootstrap=config.bootstrap, level=config.level, seed=config.seed)
    pictures = common_pictures(context.datasets)
    groups = config.ood_groups
    path = along_path(pair.name, config.alphas, hits, roles(config), groups, pictures=pictures, **resampling)
    references = references_of(runs, config.ood_groups)
    if shipped:
        names = [r.pair for r in references]
        references += [r for r in shipped_references(config.ood_groups) if r.pair not in names]
    judged = Reference.of(pair.name, config.alphas, float(context.path.distance(1.0)[0]), design)
    known = Known(tuning_of(design, pair.name, facts), judged, [r for r in references if r.pair != pair.name])
    doubt = swap_doubt(pair.name, config.alphas, hits, roles(config), config.level)
    ids = {spec: answers[spec] for spec in config.id}
    return _Subject(path, known, config, pair, resampling, context, ids, [doubt] if doubt else [])


def _evaluated(context: Context, datasets: Mapping[str, Dataset], bars: MakeBar) -> dict[str, list[Answers]]:
    config = context.config
    total = sum(d.listed for d in datasets.values()) * len(config.alphas)
    with contextlib.closing(bars(total=total, desc=f"{context.pair.name}: along alpha")) as bar:
        return answers_along(
            context.pair, context.path, config.alphas, datasets,
            batch_size=config.batch_size, device=context.device, progress=bar.update,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the advice
def _advised(subject: _Subject, targets: _Targets, keep_id: float, bars: MakeBar) -> Advice:
    """The advice on one pair, after a look at the target's images where there are any."""
    fronts: dict[str, pd.DataFrame] = {"measured": front(subject.path)} if subject.path.groups else {}
    known = subject.known
    if targets.labels is not None or targets.images:
        subject = dataclasses.replace(subject, context=subject.context or Context.load(subject.config, subject.pair))
    if targets.labels is not None:
        known, fronts["target_labels"] = _with_labels(subject, known, targets, bars)
    if targets.images:
        known, fronts["target_images"] = _with_images(subject, known, targets, bars)
    table = unless_doubted(advice_table(subject.path, known, keep_id=keep_id), subject.doubts)
    return Advice(table, fronts)


def _with_labels(subject: _Subject, known: Known, targets: _Targets, bars: MakeBar) -> tuple[Known, pd.DataFrame]:
    context = subject.context
    assert context is not None and targets.labels is not None
    names = context.pair.classifier.classnames
    dataset = labelled_files(Path(targets.labels), context.pair.model, names, fewest=FEWEST_LABELS)
    hits = seen_along(_evaluated(context, {_TARGET: dataset}, bars)[_TARGET]).correct
    curve = label_curve(subject.path.alphas, hits, subject.path.level)
    columns = ["pair", "alpha", "accuracy", "gain", "ci_low", "ci_high"]
    return dataclasses.replace(known, labels=hits), curve.assign(pair=subject.path.pair)[columns]


def _with_images(subject: _Subject, known: Known, targets: _Targets, bars: MakeBar) -> tuple[Known, pd.DataFrame]:
    context, config = subject.context, subject.config
    assert context is not None
    if not config.id:
        raise ConfigError(
            "target_images: what images without labels say has to be calibrated on an ID set (--id SPEC)."
        )
    own = {spec: context.datasets[spec] for spec in config.id}
    ids = dict(subject.answers) or _evaluated(context, own, bars)
    labelled = PathAnswers.joined([seen_along(ids[spec]) for spec in config.id])
    names = context.pair.classifier.classnames
    images = {
        spec: unlabelled_images(
            spec, context.pair.model, names, data_root=config.data_root, limit=config.limit, seed=config.seed,
            by_name=config.classnames is None,
        )
        for spec in targets.images
    }  # fmt: skip
    found = _evaluated(context, images, bars)
    target = PathAnswers.joined([seen_along(found[spec], labelled=False) for spec in images])
    specs = targets.shifts or tuple(f"{spec}+{corruption}" for spec in config.id for corruption in HELD_OUT)
    shifts = {spec: context.dataset(spec) for spec in specs}
    judged = held_out(subject.path, labelled, {s: seen_along(a) for s, a in _evaluated(context, shifts, bars).items()})
    how = subject.resampling
    curves = image_curves(labelled, target, bootstrap=how["bootstrap"], seed=how["seed"])
    table = estimates_table(subject.path.pair, subject.path.alphas, curves)
    return dataclasses.replace(known, images=curves, held_out=judged), table
