"""Every fine-tuning method side by side on the embedded world: its pairs, their analysis, one table, the claims.

    python analyses/finetuners.py --out runs/finetuners            (`make finetuners`; ten minutes on two quiet cores)
    python analyses/finetuners.py --out runs/finetuners --choose   the learning rates, on ID validation alone

An interrupted run is resumed. Settings: finetuners.yaml, and the recipes ``mini-METHOD`` of ``finetune --list``.
Writes results/finetuners.csv (a row for each method and seed, and their mean), results/finetuners_claims.csv (each
paper's claims, tested here) and, with --choose, results/finetuners_rates.csv. Accuracies are fractions. ``id`` and
``ood`` are those of the fine-tuned end, ``ood`` the mean over the OOD sets. ``best_alpha`` is the alpha with the best
OOD accuracy, chosen on the OOD labels themselves (an oracle), so that ``gain`` (over the better end) is never
negative; ``ood_half`` is the accuracy at alpha = 0.5, which needs no choice. Traces are sums over blocks, lambda_max
is the largest block's, both at theta_1. Intervals are Student's t, of differences with the same seed on the same
images; their variance is that over seeds plus that over draws of the test images. p-values are corrected for the
number of claims. They generalise to other seeds and images of this world, not to other data.
"""

from __future__ import annotations

import csv
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import tyro
import yaml
from finetuner_baselines import ENDS, ensembles, path_right, upgraded
from finetuner_claims import claims
from finetuner_images import read_right, resampled, write_right
from tqdm import tqdm

import sharpscope
from sharpscope.errors import NumericalError
from sharpscope.finetuning.recipes import published
from sharpscope.miniworld.world import SHIFTS, STYLES

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = yaml.safe_load((HERE / "finetuners.yaml").read_text(encoding="utf-8"))
OOD = (*STYLES[1:], *SHIFTS)
PATH = tuple(f"{role}{end}" for role in ("id", "ood") for end in ENDS)
"""The columns of the path, which the study measures too."""


def tuned(method: str, seed: int, out: Path | None, **changes: Any) -> Any:
    """One fine-tuning by the method's recipe for the embedded world."""
    return sharpscope.finetune(
        SETTINGS["zeroshot"],
        SETTINGS["train"],
        recipe=f"mini-{method}",
        model="mini",
        val=f"{SETTINGS['train']}@val",
        seed=seed,
        out=out and out / "pairs" / f"{method}-{seed}",
        progress=False,
        **changes,
    )


def choose(job: tuple[str, float]) -> tuple[str, float, float]:
    """(method, rate, ID validation accuracy at the end); nan where training diverges."""
    torch.set_num_threads(1)
    try:
        return (*job, tuned(job[0], SETTINGS["choice_seed"], None, lr=job[1]).accuracies[-1][1])
    except NumericalError:
        return (*job, float("nan"))


def pair(job: tuple[str, int, str]) -> None:
    """Train one pair and keep in its folder the curvature of its fine-tuned end and its other measurements.

    The folder belongs to the settings that it was made with: after changing these, another --out.
    """
    torch.set_num_threads(1)
    method, seed, out = job
    finished = tuned(method, seed, Path(out))
    folder = finished.path.parent
    if all((folder / name).exists() for name in ("curvature.csv", "right.npz")):
        return
    loaded = sharpscope.load_pair(SETTINGS["zeroshot"], finished.path, model="mini", upgraded=SETTINGS["upgraded"])
    train = data(SETTINGS["train"], loaded, "train", finished.method.shots * len(loaded.classifier.classnames))
    if not (folder / "curvature.csv").exists():
        curvature(loaded, train).to_csv(folder / "curvature.csv", index=False)
    write_right(folder / "right.npz", right_images(method, loaded, train))


def data(spec: str, loaded: Any, split: str, limit: int) -> Any:
    return sharpscope.load_dataset(spec, model=loaded.model, split=split, limit=limit)


def curvature(loaded: Any, train: Any) -> pd.DataFrame:
    """Trace and largest eigenvalue of every block at theta_1."""
    probe = sharpscope.Probe(loaded.classifier, train, size=SETTINGS["probe_size"], batch_size=SETTINGS["probe_size"])
    wanted = SETTINGS["curvature"]
    return sharpscope.layer_sharpness(loaded, probe, **{**wanted, "measures": tuple(wanted["measures"])})


def right_images(method: str, loaded: Any, train: Any) -> dict[str, list[Any]]:
    """Which test images are right, by the table's columns: along the path, on an upgraded backbone, and for the output
    ensembles where these are asked for."""
    limit = SETTINGS["study"]["limit"]
    test = {"id": data(SETTINGS["train"], loaded, "test", limit)}
    test |= {domain: data(f"mini:{domain}", loaded, "test", limit) for domain in OOD}
    found = {
        f"{role}{end}": sets for end, sets_of in path_right(loaded, test).items() for role, sets in sets_of.items()
    }
    found |= {column: [hits] for column, hits in upgraded(loaded, test["id"]).items()}
    if method in SETTINGS["ensembles"]:
        mixed = ensembles(loaded, train, data(SETTINGS["train"], loaded, "val", limit), test)
        for kind, sets in mixed.items():
            found |= {f"id_{kind}": [sets["id"]], f"ood_{kind}": [sets[domain] for domain in OOD]}
    return found


def study(method: str, out: Path) -> sharpscope.StudyConfig:
    """Path, accuracies, failures and stragglers of one method's pairs."""
    return sharpscope.StudyConfig.from_dict(
        {
            "pairs": [
                {
                    "name": f"{method}-{seed}",
                    "zeroshot": SETTINGS["zeroshot"],
                    "finetuned": str(out / "pairs" / f"{method}-{seed}" / f"{method}.safetensors"),
                }
                for seed in SETTINGS["seeds"]
            ],
            "model": "mini",
            "probe": SETTINGS["train"],
            "id": [SETTINGS["train"]],
            "ood": [f"mini:{domain}" for domain in OOD],
            "jobs": min(2, os.cpu_count() or 1),
            "probe_size": SETTINGS["probe_size"],
            "title": f"{method} on the embedded world",
            **SETTINGS["study"],
        }
    )


def rows(method: str, run: Any, out: Path) -> Iterator[dict[str, Any]]:
    """One row for each pair of ``method``."""
    for seed in SETTINGS["seeds"]:
        name = f"{method}-{seed}"
        table = run.accuracy[(run.accuracy["pair"] == name) & (run.accuracy["variant"] == "dense")]
        path = run.path[run.path["pair"] == name].set_index("alpha")
        by_role = {
            role: t.pivot(index="alpha", columns="dataset", values="estimate") for role, t in table.groupby("role")
        }
        accuracy_id, average = by_role["id"].iloc[:, 0], by_role["ood"].mean(axis=1)
        best = float(average.idxmax())
        sets = {f"ood_{d.removeprefix('mini:')}": by_role["ood"].loc[1.0, d] for d in by_role["ood"].columns}
        flags = run.failure[(run.failure["pair"] == name) & run.failure["present"].eq(True)]["flag"].unique()
        chosen = run.stragglers[(run.stragglers["pair"] == name) & run.stragglers["chosen"].eq(True)]
        chosen = chosen[chosen["criterion"] == SETTINGS["study"]["straggler_criterion"]]
        sharp = pd.read_csv(out / "pairs" / name / "curvature.csv")
        sharp = sharp[(sharp["layer"] != "(all)") & (sharp["status"] != "failed")]
        beside = read_right(out / "pairs" / name / "right.npz")
        measured = {}
        for tower in ("image", "text", "head"):
            of_tower = sharp[sharp["tower"] == tower]
            traces = of_tower[of_tower["measure"] == "hessian_trace"]["estimate"]
            largest = of_tower[of_tower["measure"] == "lambda_max"]["estimate"]
            measured[f"trace_{tower}"] = traces.sum() if len(traces) else float("nan")
            measured[f"lambda_max_{tower}"] = largest.max() if len(largest) else float("nan")
        yield {
            "method": method,
            "seed": str(seed),
            "lr": published(f"mini-{method}").settings["lr"],
            "id_zeroshot": accuracy_id[0.0],
            "id": accuracy_id[1.0],
            "ood_zeroshot": average[0.0],
            "ood": average[1.0],
            **sets,
            "id_half": accuracy_id[0.5],
            "ood_half": average[0.5],
            "best_alpha": best,
            "ood_best": average[best],
            "id_best": accuracy_id[best],
            "gain": average[best] - max(average[0.0], average[1.0]),
            "failures": " ".join(sorted(flags)),
            "stragglers": " ".join(sorted(chosen["layer"].unique())),
            "distance": path.loc[1.0, "distance_0"],
            "moving": path.loc[1.0, "num_moving"],
            **measured,
            **{c: float(np.mean([hits.mean() for hits in sets])) for c, sets in beside.items() if c not in PATH},
        }


def summarised(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with a row ``seed = mean`` after each method's own."""
    parts = []
    for method, of_method in table.groupby("method", sort=False):
        mean = of_method.mean(numeric_only=True).to_dict() | {"method": method, "seed": "mean"}
        parts += [of_method, pd.DataFrame([mean], columns=table.columns)]
    return pd.concat(parts, ignore_index=True)


def write(table: pd.DataFrame, name: str, results: Path) -> None:
    results.mkdir(parents=True, exist_ok=True)
    table.to_csv(results / name, index=False, float_format="%.5g", quoting=csv.QUOTE_MINIMAL)


def pooled(work: Any, jobs: list[Any], what: str) -> list[Any]:
    """``work`` on every job, two processes at a time."""
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        return list(tqdm(pool.map(work, jobs), total=len(jobs), desc=what, disable=None, file=sys.stderr))


def main(
    out: Path = Path("runs/finetuners"),
    results: Path = HERE / "results",
    methods: tuple[str, ...] = (),
    choose_rates: Annotated[bool, tyro.conf.arg(name="choose")] = False,
) -> None:
    """Train, analyse and tabulate.

    Args:
        out: Folder for pairs and runs; the same command again resumes an interrupted run.
        results: Folder for the tables.
        methods: Methods to run; default: all of finetuners.yaml.
        choose_rates: Compare learning rates on ID validation data instead.
    """
    settings: Mapping[str, Any] = SETTINGS["methods"]
    names = methods or tuple(settings)
    if choose_rates:
        found = pooled(choose, [(m, lr) for m in names for lr in settings[m]["rates"]], "rates")
        write(pd.DataFrame(found, columns=["method", "lr", "id_validation"]), "finetuners_rates.csv", results)
        return
    pooled(pair, [(m, seed, str(out)) for m in names for seed in SETTINGS["seeds"]], "pairs")
    bar = functools.partial(tqdm, file=sys.stderr, disable=None)
    collected: list[dict[str, Any]] = []
    for method in names:
        collected += rows(method, sharpscope.run(study(method, out), out / "runs" / method, progress=bar), out)
    table = pd.DataFrame(collected)
    write(summarised(table), "finetuners.csv", results)
    right = {
        (method, str(seed)): read_right(out / "pairs" / f"{method}-{seed}" / "right.npz")
        for method in names
        for seed in SETTINGS["seeds"]
    }
    write(claims(table, resampled(table, right, 200, SETTINGS["choice_seed"])), "finetuners_claims.csv", results)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
