"""Reads a file of results into the models that it measures; the format is recognised by the file's content."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sharpscope.errors import ResultsError, shown
from sharpscope.exchange import formats
from sharpscope.exchange.measured import Measured
from sharpscope.scores import PROPORTIONS, wilson
from sharpscope.tables.rows import table

__all__ = ["FORMATS", "accuracy_table", "is_accuracy_csv", "read_measured", "read_results"]

FORMATS: Mapping[str, str] = {
    "wise-ft": "results.jsonl of WiSE-FT: program arguments, '<Dataset>:top1'",
    "model-soups": "individual_model_results.jsonl of model-soups: 'model_name', '<Dataset>'",
    "clip-benchmark": "json of CLIP_benchmark: 'dataset', 'pretrained', 'metrics'",
    "monosoup": "json of MonoSoup: 'config', 'results'",
    "flyp": "stats.tsv of FLYP and StarFT: 'epoch', '<Dataset> Accuracy'",
    "dassl": "log.txt of Dassl: 'Loading dataset:', '=> result'",
}
"""The formats that can be read: name -> the file and the keys by which it is recognised."""

_MOST_BYTES = 256 * 2**20
_JSON: Mapping[str, tuple[frozenset[str], Callable[[Sequence[formats.Line]], list[Measured]]]] = {
    "clip-benchmark": (frozenset({"dataset", "pretrained", "metrics"}), formats.clip_benchmark),
    "monosoup": (frozenset({"config", "results"}), formats.monosoup),
    "wise-ft": (frozenset({"eval_datasets", "alpha"}), formats.wise_ft),
    "model-soups": (frozenset({"model_name"}), formats.model_soups),
}


def read_results(path: str | Path, *, ids: Sequence[str] = ()) -> pd.DataFrame:
    """The accuracies in a file (or all ``*.json`` of a folder) that another system wrote, as an accuracy table.

    Args:
        path: the file or folder.
        ids: names of the ID sets (default: the training set that the file names, else ImageNet and WILDS' ID sets).

    Returns:
        An accuracy table. ``pair`` is the model's name in the file, ``alpha`` its position on the path (1 for a model
        as it was fine-tuned). Intervals are Wilson's where the file has the number of examples, else NaN.

    Raises:
        ResultsError: a file that cannot be read; the message names file, line and key.
    """
    return accuracy_table(read_measured(path), ids)


def accuracy_table(models: Sequence[Measured], ids: Sequence[str] = ()) -> pd.DataFrame:
    """The accuracy table of ``models``, one row per (model, data set, metric)."""
    rows = []
    for m in models:
        for (dataset, metric), value in m.values.items():
            n = m.counts.get(dataset)
            low, high = wilson(round(value * n), n) if n and metric in PROPORTIONS else (math.nan, math.nan)
            rows.append(
                {
                    "pair": m.names[0], "alpha": m.alpha, "variant": m.variant, "dataset": dataset,
                    "role": m.role(dataset, ids), "metric": metric, "estimate": value, "ci_low": low,
                    "ci_high": high, "n": n, "note": m.note,
                }
            )  # fmt: skip
    return table("accuracy", rows)


def read_measured(path: str | Path) -> list[Measured]:
    """The models that a file, or every ``*.json`` of a folder, measures.

    Raises:
        ResultsError: the file cannot be read or has an unknown format.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise ResultsError(f"{shown(path)}: the folder has no *.json.")
        lines = [line for file in files for line in _json_lines(_text(file), file)]
        return _of_json(lines, path)
    text = _text(path)
    if text.lstrip()[:1] in ("{", "["):
        return _of_json(_json_lines(text, path), path)
    head = text.split("\n", 1)[0].split("\t")
    if "epoch" in head and any(column.endswith(" Accuracy") for column in head):
        return formats.flyp(text, path)
    if any(line.strip() == "=> result" for line in text.splitlines()):
        return formats.dassl(text, path)
    raise _unknown(path, f"it starts with '{shown(text[:40], 60)}'")


def is_accuracy_csv(file: Path) -> bool:
    """Whether the first line of ``file`` holds the columns of accuracy.csv."""
    with file.open("rb") as stream:
        columns = stream.readline(10_000).decode("utf-8-sig", errors="replace").strip().replace('"', "").split(",")
    return {"pair", "dataset", "estimate"} <= set(columns)


def _of_json(lines: list[formats.Line], path: Path) -> list[Measured]:
    if not lines:
        raise ResultsError(f"{shown(path)}: holds no results.")
    for keys, read in _JSON.values():
        if keys <= set(lines[0][1]):
            for where, row in lines:
                if lost := keys - set(row):
                    raise ResultsError(f"{where}: has no key '{min(lost)}', which the first object has.")
            models = read(lines)
            if not any(m.values for m in models):
                raise ResultsError(f"{shown(path)}: holds no accuracy under a known name.")
            return models
    raise _unknown(path, f"its keys: {shown(', '.join(list(lines[0][1])[:6]), 100)}")


def _unknown(path: Path, seen: str) -> ResultsError:
    return ResultsError(
        f"{shown(path)}: the format of these results is unknown ({seen}).\n"
        f"Known: {', '.join(FORMATS)}, CSV with the columns of accuracy.csv."
    )


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ResultsError(f"{shown(path)}: {path.stat().st_size:,} bytes; too large for a file of results.")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise ResultsError(f"{shown(path)}, line {line}: not UTF-8 text.") from e
    except OSError as e:
        raise ResultsError(f"{shown(path)}: cannot be read: {e.strerror or e}.") from e
    if not text.strip():
        raise ResultsError(f"{shown(path)}: is empty.")
    return text


def _json_lines(text: str, path: Path) -> list[formats.Line]:
    """The objects of a JSON file, a JSON list or JSON lines, each with its file and line or entry."""
    try:
        whole: Any = json.loads(text)
    except ValueError:
        return [_object(line, f"{shown(path)}, line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    except RecursionError:
        raise ResultsError(f"{shown(path)}: nested too deeply for a file of results.") from None
    entries = whole if isinstance(whole, list) else [whole]
    for i, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ResultsError(f"{shown(path)}, entry {i}: is not a JSON object.")
    return [(f"{shown(path)}" + f", entry {i}" * (len(entries) > 1), entry) for i, entry in enumerate(entries, 1)]


def _object(line: str, where: str) -> formats.Line:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ResultsError(f"{where}: is not JSON ({shown(getattr(e, 'msg', e), 60)}).") from None
    if not isinstance(value, dict):
        raise ResultsError(f"{where}: is not a JSON object.")
    return where, value
