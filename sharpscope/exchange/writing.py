"""Writes a run's accuracies as the files that other systems read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.exchange.measured import own_name
from sharpscope.tables.rows import unique_in_order
from sharpscope.vocabulary import DENSE

__all__ = ["WRITERS", "written"]

_WISE_FT = {"top1": "top1", "macro_f1": "F1-macro_all", "worst_group": "acc_worst_region", "pm0": "pm0", "pm10": "pm10"}
_BENCHMARK = {"top1": "acc1", "top5": "acc5", "mean_per_class": "mean_per_class_recall"}


def written(
    accuracy: pd.DataFrame, form: str, *, model: str, finetuned: Mapping[str, str], zeroshot: Mapping[str, str]
) -> dict[str, bytes]:
    """The plain path's accuracies in another system's format, as file name -> bytes. Values are fractions.

    ``wise-ft`` gives ``results.jsonl`` with one line per (pair, alpha) and the keys that WiSE-FT's ``scatter_plot.py``
    reads: ``alpha``, ``eval_datasets``, ``load`` (both checkpoints) and ``"<Dataset>:top1"``. ``clip-benchmark`` gives
    one json per (pair, alpha, data set) as ``clip_benchmark build`` reads it, with ``pretrained`` equal to
    ``PAIR_alpha=0.500``.

    Args:
        accuracy: accuracy table.
        form: a key of ``WRITERS``.
        model: name of the architecture.
        finetuned: pair -> file of its fine-tuned end.
        zeroshot: pair -> file of its zero-shot end.

    Raises:
        ConfigError: an unknown form.
    """
    if form not in WRITERS:
        raise ConfigError(f"results: unknown form '{shown(form, 40)}'.{did_you_mean(form, WRITERS)} Known: "
                          f"{', '.join(WRITERS)}.")  # fmt: skip
    rows = accuracy[
        (accuracy["variant"] == DENSE) & accuracy["role"].isin(("id", "ood")) & accuracy["estimate"].notna()
    ]
    return WRITERS[form](rows, model, finetuned, zeroshot)


def _wise_ft(
    rows: pd.DataFrame, model: str, finetuned: Mapping[str, str], zeroshot: Mapping[str, str]
) -> dict[str, bytes]:
    lines = []
    for (pair, alpha), own in rows.groupby(["pair", "alpha"], sort=True):
        load = [zeroshot[str(pair)], finetuned[str(pair)]]
        sets = [own_name(d) for d in unique_in_order(own["dataset"])]
        line: dict[str, Any] = {"model": model, "exp_name": pair, "load": load, "alpha": alpha, "eval_datasets": sets}
        for dataset, metric, value in zip(own["dataset"], own["metric"], own["estimate"], strict=True):
            if metric in _WISE_FT:
                line[f"{own_name(dataset)}:{_WISE_FT[metric]}"] = value
        lines.append(json.dumps(line) + "\n")
    return {"results.jsonl": "".join(lines).encode()}


def _clip_benchmark(
    rows: pd.DataFrame, model: str, finetuned: Mapping[str, str], zeroshot: Mapping[str, str]
) -> dict[str, bytes]:
    files = {}
    for (pair, alpha, dataset), own in rows.groupby(["pair", "alpha", "dataset"], sort=True):
        values = {_BENCHMARK[m]: v for m, v in zip(own["metric"], own["estimate"], strict=True) if m in _BENCHMARK}
        tag = f"{pair}_alpha={float(str(alpha)):.3f}"
        entry = {
            "dataset": dataset, "model": model, "pretrained": tag, "task": "zeroshot_classification",
            "metrics": values, "language": "en",
        }  # fmt: skip
        files[re.sub(r"[^\w.=+-]", "_", f"{dataset}_{tag}_{model}") + ".json"] = (json.dumps(entry) + "\n").encode()
    return files


WRITERS: Mapping[str, Callable[[pd.DataFrame, str, Mapping[str, str], Mapping[str, str]], dict[str, bytes]]] = {
    "wise-ft": _wise_ft,
    "clip-benchmark": _clip_benchmark,
}
"""The formats that can be written: name -> the function that writes it."""
