"""The pairs of one base of the emoji study: fine-tune them, measure them, keep their tables.

    python analyses/emoji/study.py --data-root DIR --base 0        (make study BASE=0)

Resumable. Half an hour to an hour on two quiet cores. Writes analyses/emoji/results/base0/*.csv.gz and answers.npz.
What is trained and measured is decided in design.py and ``config`` below, what follows from it in protocol.md.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import evidence
import numpy as np
import pandas as pd
import torch
import tyro
from design import TRAINING, Trial, trials
from population import RELIABLE, load, never_gains
from pretrain import CONFIG, PROMPTS
from styles import csv_of, styles_of
from tqdm import tqdm

import sharpscope
from sharpscope.atomic import write_atomic
from sharpscope.errors import NumericalError
from sharpscope.layers import HEAD_WEIGHT, tower_of
from sharpscope.study.designs import recipe_numbers
from sharpscope.study.finished import finished_results
from sharpscope.weights.heads import head_metadata

HERE: Final = Path(__file__).parent
BASES: Final = HERE / "bases"
ID: Final = "emoji:" + ",".join(styles_of("id"))
KNOWN: Final = ("noto", "fluent", "fxemoji")
"""The known group: one style of each family that the bases were pretrained on."""
LIMIT: Final = 1600
"""Images a set, spread over the things: at least two of the four views of every thing that a vendor drew."""
FAILING: Final = 6
"""The largest number of pairs that fail in a group, of each base, on which repairs are tried."""
REPAIR_LIMIT: Final = 600
"""Images a set on which repairs and other paths are judged."""
TABLES: Final = ("path", "sharpness", "accuracy", "stragglers", "failure")
REPAIR_TABLES: Final = ("accuracy", "stragglers", "repair", "failure")
MEASURES: Final = ("hessian_trace", "ggn_trace", "lambda_max", "weighted_trace")
ALPHAS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


def groups() -> dict[str, str]:
    """OOD set -> its group: styles of families that no model saw (clean), and of those that the bases know (known)."""
    return {f"emoji:{s}@ood": "clean" for s in styles_of("clean")} | {f"emoji:{s}@ood": "known" for s in KNOWN}


def config(base: int, data_root: Path, pairs: tuple[sharpscope.PairConfig, ...], jobs: int) -> sharpscope.StudyConfig:
    """How the pairs of a base are measured."""
    return sharpscope.StudyConfig(
        pairs=pairs,
        model=str(BASES / CONFIG),
        templates=str(BASES / PROMPTS),
        data_root=str(data_root),
        probe=ID,
        id=(f"{ID}@val", ID),
        ood=tuple(f"{group}={spec}" for spec, group in groups().items()),
        alphas=ALPHAS,
        curvature_alphas=(0.0, 0.5),
        granularity="block",
        measures=MEASURES,
        probe_size=128,
        batch_size=128,
        limit=LIMIT,
        rtol=0.2,
        atol_share=0,  # the default when the first bases were measured
        max_matvecs=12,
        layer_alphas=(0.0, 0.5, 1.0),
        criticality_noise=(1.0,),
        densities=(),
        threads=1,
        jobs=jobs,
    )


def all_views(measured: sharpscope.StudyConfig) -> sharpscope.StudyConfig:
    """The second evaluation, of a base whose outcome is not reliable enough: every view of every thing."""
    unmeasured = {"measures": (), "curvature_alphas": None, "atol_share": sharpscope.StudyConfig.atol_share}
    return dataclasses.replace(measured, limit=None, straggler_criterion="instability", **unmeasured)


def repairs(measured: sharpscope.StudyConfig, failing: tuple[str, ...]) -> sharpscope.StudyConfig:
    """How repairs of the ``failing`` pairs, and other ways from theta_0 to theta_1, are judged.

    Density 0 with target delta gives the stragglers an alpha of 0 of their own.
    """
    return dataclasses.replace(
        measured,
        pairs=tuple(p for p in measured.pairs if p.name in failing),
        paths=("linear", "lines", "monosoup", "fisher"),
        limit=REPAIR_LIMIT,
        densities=(0.5, 0.0),
        targets=("weight", "delta"),
        repair_alphas=(0.5,),
        repair_limit=REPAIR_LIMIT,
    )


def failing(failure: pd.DataFrame, pairs: Iterable[str]) -> tuple[str, ...]:
    """For every group the first pairs on whose path no point beats zero-shot in the group's mean (flag F1)."""
    order, flagged = list(pairs), failure[never_gains(failure)]
    first = {p for _, own in flagged.groupby("group") for p in sorted(own["pair"], key=order.index)[:FAILING]}
    return tuple(p for p in order if p in first)


def tuned(trial: Trial, base: int, data_root: Path, out: Path) -> tuple[Trial, Path | None, str]:
    """(the trial, its file or None, why there is none)."""
    torch.set_num_threads(1)
    try:
        done = sharpscope.finetune(
            str(BASES / f"base{base}.safetensors"), ID, trial.method, model=str(BASES / CONFIG),
            templates=BASES / PROMPTS, data_root=data_root, seed=trial.seed, out=out / trial.name, device="cpu",
            progress=False, **trial.settings,
        )  # fmt: skip
    except NumericalError as error:
        return trial, None, str(error)
    assert done.path is not None
    return trial, with_head(done.path, done.classnames) if trial.method == "flyp" else done.path, ""


def with_head(file: Path, classnames: Sequence[str]) -> Path:
    """FLYP's image tower with the head that its text tower makes, as WiSE-FT stores one.

    So every pair has the same parameters, and a curvature of the same layers; with 1,310 classes the text tower's own
    curvature would cost more than all else. The head is interpolated instead of being made at every alpha.
    """
    out = file.with_name("flyp-head.safetensors")
    if not out.exists():
        told = sharpscope.read_checkpoint(file)
        model = sharpscope.ClipModel.load(str(BASES / CONFIG))
        prompts = (BASES / PROMPTS).read_text(encoding="utf-8").splitlines()
        theta = sharpscope.Classifier(model, "stored", classnames, prompts).attach(told.tensors)
        kept = {name: t for name, t in theta.items() if tower_of(name) == "image"}
        kept[HEAD_WEIGHT] = theta[HEAD_WEIGHT] * theta["logit_scale"].exp()
        metadata = {k: v for k, v in told.facts["metadata"].items() if k.startswith("sharpscope.")}
        sharpscope.write_checkpoint(out, kept, metadata | head_metadata(scale_baked=True, classnames=classnames))
    return out


def main(data_root: Path, base: int, out: Path = Path("runs/emoji"), jobs: int = 2) -> None:
    """Make and measure the pairs of ``base``.

    Args:
        data_root: Folder that fetch.py filled.
        base: Number of the base, 0 to 4.
        out: Folder of fine-tuned models and runs.
        jobs: Processes, of one thread each.
    """
    folder = HERE / "results" / f"base{base}"
    work = functools.partial(tuned, base=base, data_root=data_root, out=out / f"pairs{base}")
    todo = trials(base)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = list(tqdm(pool.map(work, todo), "fine-tune", len(todo), file=sys.stderr, disable=None))
    pairs, rows = [], []
    for trial, file, why in made:
        rows.append(_row(trial, file, why))
        if file is not None:
            known = {"augment": float(trial.augment)}
            zeroshot = str(BASES / f"base{base}.safetensors")
            pairs.append(sharpscope.PairConfig(trial.name, zeroshot, str(file), known, trial.setting, f"base{base}"))
    bar = functools.partial(tqdm, file=sys.stderr, disable=None)
    measured = config(base, data_root, tuple(pairs), jobs)
    run = sharpscope.run(measured, out / f"run{base}", progress=bar)
    keep(run, TABLES, folder)
    write_atomic(folder / "pairs.csv", csv_of(pd.DataFrame(rows)))
    write_atomic(folder / "answers.npz", answers(run, measured))
    if evidence.reliability(load(folder.parent).of([base]))["reliability"].min() < RELIABLE:
        again = all_views(measured)
        run = sharpscope.run(again, out / f"run{base}-all-views", progress=bar)
        keep(run, ("accuracy", "failure"), folder)
        write_atomic(folder / "answers.npz", answers(run, again))
    if base in TRAINING and (found := failing(run.failure, [p.name for p in pairs])):
        repaired = sharpscope.run(repairs(measured, found), out / f"repairs{base}", progress=bar)
        keep(repaired, REPAIR_TABLES, folder / "repairs")


def _row(trial: Trial, file: Path | None, why: str) -> dict[str, Any]:
    """What is known of a fine-tuning, whether it converged or not."""
    facts: dict[str, Any] = {}
    if file is not None:
        told = json.loads(sharpscope.read_checkpoint(file).facts["metadata"]["sharpscope.finetuning"])
        facts = recipe_numbers(told)
    return {"pair": trial.name, "setting": trial.setting, "method": trial.method, "seed": trial.seed,
            "augment": trial.augment, "learning_rate": trial.settings["lr"], "steps": trial.settings["steps"],
            "batch_size": trial.settings["batch_size"], "weight_decay": trial.settings.get("weight_decay"),
            "warmup": trial.settings["warmup"], "label_smoothing": trial.settings.get("label_smoothing"),
            "epochs": facts.get("epochs"), "diverged": why}  # fmt: skip


def keep(run: sharpscope.Run, tables: Iterable[str], folder: Path) -> None:
    """Write ``tables`` of a run as compressed CSV files of reproducible bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in tables:
        data = (run.root / "tables" / f"{name}.csv").read_bytes()
        write_atomic(folder / f"{name}.csv.gz", gzip.compress(data, mtime=0))


def answers(run: sharpscope.Run, measured: sharpscope.StudyConfig) -> bytes:
    """Right answers and images by pair, alpha, set and thing, as the bytes of an npz file.

    right uint8 [pairs, alphas, sets, things], shown uint8 [sets, things], pairs, alphas, sets.
    """
    model = sharpscope.ClipModel.load(measured.model)
    sets = [*measured.id, *groups()]
    labels = {}
    for spec in sets:
        data = sharpscope.load_dataset(spec, model=model, data_root=measured.data_root, limit=measured.limit)
        labels[spec] = data.labels.numpy()
    things = len(data.classnames)
    _, results = finished_results(run.root)
    right = np.zeros((len(measured.pairs), len(measured.alphas), len(sets), things), np.uint8)
    for i, pair in enumerate(measured.pairs):
        _, hits, _ = results.arrays(pair.name)
        for j, spec in enumerate(sets):
            for k, row in enumerate(np.asarray(hits[spec])):
                right[i, k, j] = np.bincount(labels[spec], weights=row.astype(float), minlength=things)
    shown = np.stack([np.bincount(labels[spec], minlength=things) for spec in sets]).astype(np.uint8)
    file = io.BytesIO()
    np.savez_compressed(
        file, right=right, shown=shown, pairs=np.array([p.name for p in measured.pairs]),
        alphas=np.array(measured.alphas), sets=np.array(sets),
    )  # fmt: skip
    return file.getvalue()


if __name__ == "__main__":
    tyro.cli(main)
