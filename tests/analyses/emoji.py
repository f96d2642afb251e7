"""For tests of analyses/emoji: its scripts, which import each other by plain names, and results as study.py keeps them.

``write_results`` makes a population of which the truth is known, without any model.
"""

from __future__ import annotations

import gzip
import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sharpscope.tables.files import csv_bytes
from sharpscope.tables.schema import COLUMNS

SCRIPTS = Path(__file__).parents[2] / "analyses" / "emoji"
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SETS = {"emoji:a,b@val": "", "emoji:a,b": "", "emoji:c@ood": "clean", "emoji:d@ood": "clean", "emoji:e@ood": "known",
        "emoji:f@ood": "known"}  # fmt: skip
LAYERS = (*(f"visual.transformer.resblocks.{i}" for i in range(5)), "head")
CRITERIA = {"change:hessian_trace": ("1 alphas in [0, 1] against theta_0", "null:0.05"),
            "instability": ("finetuned", "mad:2")}  # fmt: skip


@contextmanager
def scripts(*names: str, absent: Sequence[str] = ()) -> Iterator[tuple[ModuleType, ...]]:
    """The scripts ``names``, imported where the packages ``absent`` are not installed, and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        for package in absent:
            patch.setitem(sys.modules, package, None)
        try:
            yield tuple(importlib.import_module(name) for name in names)
        finally:
            for name in [n for n, m in sys.modules.items() if _is_script(m)]:
                del sys.modules[name]


def _is_script(module: ModuleType | None) -> bool:
    return Path(getattr(module, "__file__", None) or "/").parent == SCRIPTS


@dataclass(frozen=True)
class Truth:
    """What holds in a made population.

    ``sharpness``: how much of the gain that the learning rate does not make is the trace of the pair's straggler layer.
    ``shown``: images a thing; with ``noisy`` their answers are drawn, else all things are named equally well.
    ``repair``, ``random``: what sparse stragglers and random layers gain, in accuracy.
    """

    sharpness: float = 0.0
    shown: int = 200
    noisy: bool = False
    repair: float = 0.03
    random: float = 0.0
    pairs: int = 20
    replicates: int = 4
    failing: int = 8


def write_results(folder: Path, truth: Truth = Truth(), bases: Sequence[int] = range(5), things: int = 120) -> None:
    """``folder``/base0 ... as study.py keeps them."""
    for base in bases:
        _write_base(folder / f"base{base}", base, truth, things)


def _write_base(folder: Path, base: int, truth: Truth, things: int) -> None:
    rng = np.random.default_rng(100 + base)
    n = truth.pairs
    numbers = list(range(n)) + (list(range(truth.replicates)) if base < 3 else [])
    rate, own, other = rng.permutation(np.linspace(0, 1, n)), rng.normal(size=n), rng.normal(size=n)
    steps, augment = rng.integers(50, 400, n), rng.permutation(np.arange(n) % 2 == 0)
    weight = rng.integers(len(LAYERS), size=n)
    parts = truth.sharpness * own + math.sqrt(1 - truth.sharpness**2) * other
    gain = 0.12 - 0.3 * np.maximum(rate - 0.4, 0) + 0.03 * parts
    names, kept = [], {name: [] for name in ("path", "sharpness", "accuracy", "stragglers", "failure")}
    rows: list[dict[str, Any]] = []
    shown = np.full((len(SETS), things), truth.shown, np.uint8)
    shown[2, :3] = 0  # a vendor that did not draw three things
    answers = []
    for k, i in enumerate(numbers):
        setting, seed = f"base{base}-{i:02d}", int(k >= n)
        pair = f"{setting}-seed{seed}"
        rows.append({"pair": pair, "setting": setting, "method": "wise-ft", "seed": seed, "augment": bool(augment[i]),
                     "learning_rate": 1e-4 * 100 ** rate[i], "steps": int(steps[i]), "batch_size": 64,
                     "weight_decay": 0.1, "warmup": 0.1, "label_smoothing": None if i % 5 == 0 else 0.1,
                     "epochs": 3.0, "diverged": ""})  # fmt: skip
        names.append(pair)
        right = _answers(gain[i] + 0.002 * rng.normal(), rate[i], shown, truth.noisy, rng)
        answers.append(right)
        kept["accuracy"] += _accuracy(pair, right, shown)
        kept["failure"] += _failure(pair, kept["accuracy"][-len(ALPHAS) * 8 :])
        kept["path"] += [
            {"pair": pair, "alpha": a, "loss": 2.0 - a * (1 - rate[i]) + rate[i] * a * (1 - a), "loss_stderr": 0.01,
             "distance_0": a * (1 + 9 * rate[i] + 0.5 * rng.random()), "distance_1": 1 - a, "num_moving": 9,
             "status": "ok"} for a in ALPHAS
        ]  # fmt: skip
        traces = np.exp(2 * rate[i] + 0.6 * rng.normal(size=len(LAYERS)))
        traces[weight[i]] = math.exp(2 * rate[i] + 0.6 * own[i] + 0.02 * rng.normal() + 1)
        kept["sharpness"] += _sharpness(pair, traces)
        kept["stragglers"] += _stragglers(pair, int(weight[i]))
    rows.append({**rows[0], "pair": f"base{base}-99-seed0", "setting": f"base{base}-99", "epochs": None,
                 "diverged": "The loss is not finite at step 7."})  # fmt: skip
    for name, found in kept.items():
        _keep(folder, name, found)
    folder.joinpath("pairs.csv").write_bytes(pd.DataFrame(rows).to_csv(index=False).encode())
    np.savez_compressed(
        folder / "answers.npz", right=np.stack(answers).astype(np.uint8), shown=shown, pairs=np.array(names),
        alphas=np.array(ALPHAS), sets=np.array(list(SETS)),
    )  # fmt: skip
    if base < 3:
        failing = [r["pair"] for r in kept["failure"] if r["dataset"] == "ood_mean" and r["estimate"] <= 0]
        _write_repairs(folder / "repairs", list(dict.fromkeys(failing))[: truth.failing], kept, truth, rng)


def _answers(gain: float, rate: float, shown: np.ndarray, noisy: bool, rng: np.random.Generator) -> np.ndarray:
    """[alphas, sets, things] right answers; the gain is that of OOD sets at alpha .5."""
    profile = np.array((0, 0.8, 1, 0.7, 0.3) if gain > 0 else (0, 0.5, 1, 1.4, 1.8))
    id_rise = 0.2 * np.array(ALPHAS) * (1 + rate + 0.3 * rng.random())
    stops = np.minimum(id_rise, id_rise[rng.integers(1, len(ALPHAS))])  # validation knows no better alpha from there on
    ood = {"clean": 0.4 + gain * profile, "known": 0.45 + (gain + 0.01 * rng.normal()) * profile}
    levels = [
        ood[group] if group else 0.5 + (stops if name.endswith("@val") else id_rise) for name, group in SETS.items()
    ]
    hit = np.stack(levels, axis=1)[:, :, None]
    counts = np.broadcast_to(shown, (len(ALPHAS), *shown.shape))
    return rng.binomial(counts, np.broadcast_to(hit, counts.shape)) if noisy else np.rint(counts * hit).astype(int)


def _accuracy(pair: str, right: np.ndarray, shown: np.ndarray, variant: str = "dense") -> list[dict[str, Any]]:
    """For every alpha the rows of six sets, then those of two means."""
    rows = []
    for k, alpha in enumerate(ALPHAS):
        head = {"pair": pair, "alpha": alpha, "variant": variant, "metric": "top1", "note": "", "primary": True}
        found = {s: right[k, j].sum() / shown[j].sum() for j, s in enumerate(SETS)}
        for s, group in SETS.items():
            rows.append({**head, "dataset": s, "group": group, "role": "ood" if group else "id", "estimate": found[s],
                         "ci_low": found[s] - 0.01, "ci_high": found[s] + 0.01, "n": 100})  # fmt: skip
        for group in ("clean", "known"):
            own = [s for s, g in SETS.items() if g == group]
            mean = float(np.mean([found[s] for s in own]))
            rows.append({**head, "dataset": "+".join(own), "group": group, "role": "ood_mean", "estimate": mean,
                         "ci_low": mean - 0.01, "ci_high": mean + 0.01, "n": 200})  # fmt: skip
    return rows


def _failure(pair: str, accuracy: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for group in ("clean", "known"):
        curve = [r["estimate"] for r in accuracy if r["role"] == "ood_mean" and r["group"] == group]
        best = max(curve[1:]) - curve[0]
        rows.append({"pair": pair, "flag": "F1", "dataset": "ood_mean", "group": group, "alpha": 0.5, "estimate": best,
                     "ci_low": best - 0.01, "ci_high": best + 0.01, "present": best < -0.01, "note": ""})  # fmt: skip
    rows.append({**rows[0], "flag": "F3", "dataset": "probe", "group": "", "estimate": -0.1})
    return rows


def _sharpness(pair: str, traces: np.ndarray) -> list[dict[str, Any]]:
    blank = dict.fromkeys(COLUMNS["sharpness"])
    rows = []
    for alpha in (0.0, 0.5):
        for m, measure in enumerate(("hessian_trace", "ggn_trace", "lambda_max")):
            values = dict(zip(LAYERS, traces * (1 + m) if alpha else np.ones(len(LAYERS)), strict=True))
            values["(all)"] = sum(values.values())
            rows += [{**blank, "pair": pair, "alpha": alpha, "layer": name, "measure": measure, "estimate": v,
                      "granularity": "block", "tower": "image", "status": "ok", "converged": True, "note": ""}
                     for name, v in values.items()]  # fmt: skip
    return rows


def _stragglers(pair: str, weight: int) -> list[dict[str, Any]]:
    """Both criteria choose one layer, the published one another."""
    rows = []
    for c, (criterion, (base, rule)) in enumerate(CRITERIA.items()):
        rows += [{"pair": pair, "layer": name, "criterion": criterion, "base": base, "score": 1.0, "threshold": 0.5,
                  "rule": rule, "chosen": k == (weight + c) % len(LAYERS), "probability": 1.0, "status": "ok",
                  "note": ""} for k, name in enumerate(LAYERS)]  # fmt: skip
    return rows


def _write_repairs(
    folder: Path, pairs: list[str], kept: dict[str, list[dict[str, Any]]], truth: Truth, rng: np.random.Generator
) -> None:
    """Sparse stragglers and random layers at alpha .5, and paths that gain a point at every alpha."""
    dense = [r for r in kept["accuracy"] if r["pair"] in pairs]
    paths = [{**r, "variant": f"path:{p}", "estimate": r["estimate"] + (0.01 if r["role"] != "id" else 0.0)}
             for p in ("lines", "monosoup", "fisher") for r in dense]  # fmt: skip
    repair = []
    for pair in pairs:
        for group in ("clean", "known"):
            for target in ("weight", "delta"):
                for density in (0.5, 0.0):
                    gains = {"none": truth.repair, "random_layers": truth.random, "all_layers": 0.0, "everything": 0.0}
                    for control, mean in gains.items():
                        kind = "straggler" if control == "none" else f"control:{control}"
                        gain = mean + 0.004 * rng.normal()
                        repair += [{**dict.fromkeys(COLUMNS["repair"]), "pair": pair, "group": group, "alpha": 0.5,
                                    "variant": f"{kind}:{target}:random:{density:g}", "layers": "head",
                                    "target": target, "select": "random", "density": density, "control": control,
                                    "gain": gain, "status": "ok", "note": ""}]  # fmt: skip
    _keep(folder, "accuracy", dense + paths)
    _keep(folder, "repair", repair)
    for name in ("stragglers", "failure"):
        _keep(folder, name, [r for r in kept[name] if r["pair"] in pairs])


def _keep(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = csv_bytes(pd.DataFrame(rows, columns=list(COLUMNS[name])), name)
    folder.joinpath(f"{name}.csv.gz").write_bytes(gzip.compress(data, mtime=0))
