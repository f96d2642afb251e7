"""One function per format, from parsed content to the models that it measures. Each docstring describes the format as
its writer produces it, and the traps in it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpscope.errors import ResultsError, shown
from sharpscope.exchange.measured import METRIC_NAMES, Measured, alpha_of, fraction, spec_of, stem, unique

__all__ = ["clip_benchmark", "dassl", "flyp", "model_soups", "monosoup", "wise_ft"]

Line = tuple[str, Mapping[str, Any]]
"""(File and line as text, the JSON object of that line)."""


def wise_ft(lines: Sequence[Line]) -> list[Measured]:
    """WiSE-FT's ``results.jsonl`` (Wortsman et al. 2022, arXiv 2109.01903).

    A line holds all arguments of the program and the keys ``"<Dataset>:<metric>"``. Path rows have a number as
    ``alpha``. Training rows (one after every epoch) have the LIST of alphas to be evaluated later; they count only in a
    file without path rows, where the last one of each run counts as alpha = 1. A line is the program's whole state and
    may keep numbers of sets that were evaluated earlier, so only sets in ``eval_datasets`` count. The program appends
    to the file: of two lines for one model and alpha the later one counts.
    """
    path = [(w, row) for w, row in lines if _is_number(row.get("alpha"))]
    found: dict[tuple[str, float], Measured] = {}
    for where, row in path or lines:
        sets = row.get("eval_datasets")
        if not isinstance(sets, list) or not all(isinstance(s, str) for s in sets):
            raise ResultsError(f"{where}, key 'eval_datasets': needs a list of data sets, got {shown(repr(sets), 40)}.")
        if not path and not isinstance(row.get("alpha"), list):
            raise ResultsError(f"{where}, key 'alpha': needs a number, got {shown(repr(row.get('alpha')), 40)}.")
        alpha = float(row["alpha"]) if path else 1.0
        values = {}
        for key, value in row.items():
            dataset, colon, metric = key.partition(":")
            if colon and dataset in sets and metric in METRIC_NAMES:
                values[spec_of(dataset), METRIC_NAMES[metric]] = fraction(value, where, key)
        names = _wise_ft_names(row)
        trained = row.get("train_dataset")
        on = spec_of(trained) if isinstance(trained, str) else None
        found[names[0], alpha] = Measured(names, alpha, values, where, trained_on=on)
    return list(found.values())


def _wise_ft_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the fine-tuned checkpoint: the last of ``load``, or the file and folder of ``save`` if the program
    trained it itself."""
    load, save = row.get("load"), row.get("save")
    if isinstance(load, list) and len(load) > 1:
        return (str(load[-1]),)
    epochs = row.get("epochs")
    file = f"{save}/checkpoint_{epochs}.pt" if isinstance(save, str) else ""
    folder = re.sub(r"/finetuned/?$", "", save) if isinstance(save, str) else ""
    return unique([file, folder]) or ("finetuned",)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def model_soups(lines: Sequence[Line]) -> list[Measured]:
    """model-soups' ``individual_model_results.jsonl`` (Wortsman et al. 2022, arXiv 2203.05482).

    A line holds ``model_name`` and one accuracy per data set. ``model_0`` is the common start of all others (a linear
    probe, not the zero-shot model) and counts as alpha = 0 of each of them. ``ImageNet2p`` is a held-out part of the
    training set, hence a validation set, neither ID nor OOD.
    """
    rows: dict[str, tuple[str, dict[tuple[str, str], float]]] = {}
    for where, row in lines:
        name = row.get("model_name")
        if not isinstance(name, str) or not name:
            raise ResultsError(f"{where}, key 'model_name': needs a name, got {shown(repr(name), 40)}.")
        if name in rows:
            raise ResultsError(
                f"{where}, key 'model_name': '{shown(name, 60)}' appears twice (first in {rows[name][0]})."
            )
        numbers = {k: v for k, v in row.items() if k != "model_name"}
        rows[name] = where, {(spec_of(k), "top1"): fraction(v, where, k) for k, v in numbers.items()}
    start = rows.pop("model_0", None) if len(rows) > 1 else None
    out = []
    for name, (where, values) in rows.items():
        out.append(Measured((name,), 1.0, values, where))
        if start is not None:
            out.append(
                Measured((name,), 0.0, start[1], start[0], note="model_0, the linear probe from which all models start")
            )
    return out


def clip_benchmark(lines: Sequence[Line]) -> list[Measured]:
    """CLIP_benchmark's json: ``{dataset, model, pretrained, task, metrics: {acc1, acc5, mean_per_class_recall}}``.

    A file holds one model and data set, or many of them as a list or one per line. ``pretrained`` is a tag of open_clip
    or the path of a checkpoint. If it contains ``alpha=0.500``, that is the point of the path; otherwise the model
    counts as alpha = 1. Tasks other than classification have no acc1 and are left out.
    """
    found: dict[tuple[str, float], Measured] = {}
    for where, row in lines:
        metrics, tag, dataset = (row.get(k) for k in ("metrics", "pretrained", "dataset"))
        for key, value, kind in (("metrics", metrics, dict), ("pretrained", tag, str), ("dataset", dataset, str)):
            if not isinstance(value, kind):
                raise ResultsError(f"{where}, key '{key}': needs a {kind.__name__}, got {shown(repr(value), 40)}.")
        assert isinstance(metrics, dict)
        spec = spec_of(str(dataset))
        known = {k: v for k, v in metrics.items() if k in METRIC_NAMES and v is not None}
        values = {(spec, METRIC_NAMES[k]): fraction(v, where, k) for k, v in known.items()}
        if not values:
            continue
        name, alpha = alpha_of(stem(str(tag)))
        model = str(row.get("model", ""))
        before = found.get((f"{model}/{tag}", alpha))
        if before is not None and set(before.values) & set(values):
            raise ResultsError(
                f"{where}: '{shown(spec, 60)}' of '{shown(tag, 60)}' appears twice (first in {before.where})."
            )
        named = [f"{_folder(str(tag))}{name}", str(tag)]
        is_file = named[0] != tag or _folder(named[0])  # several architectures have a tag of the same name
        names = unique([*named, f"{model}/{tag}"] if is_file else [f"{model}/{tag}", *named])
        merged = {**(before.values if before else {}), **values}
        found[f"{model}/{tag}", alpha] = Measured(names, alpha, merged, before.where if before else where)
    return list(found.values())


def _folder(path: str) -> str:
    """The folder part of a path, with its last separator."""
    return path[: len(path) - len(re.split(r"[/\\]", path)[-1])]


def monosoup(lines: Sequence[Line]) -> list[Measured]:
    """MonoSoup's json (``--output-json``): ``{config, results: {<Dataset>: accuracy}, metrics: {imagenet, avg_ood}}``.

    The model is an EDIT of the fine-tuned checkpoint and not a point of the path; its variant is
    ``monosoup:<version>``.
    """
    out = []
    for where, row in lines:
        config, results = row["config"], row["results"]
        if not isinstance(config, dict) or not isinstance(config.get("finetuned_checkpoint"), str):
            raise ResultsError(f"{where}, key 'config': has no 'finetuned_checkpoint'.")
        if not isinstance(results, dict):
            raise ResultsError(
                f"{where}, key 'results': needs one accuracy per data set, got {shown(repr(results), 40)}."
            )
        file = config["finetuned_checkpoint"]
        values = {(spec_of(k), "top1"): fraction(v, where, k) for k, v in results.items()}
        variant = f"monosoup:{config.get('version', '')}"
        out.append(Measured((file,), 1.0, values, where, variant=variant))
    return out


def flyp(text: str, path: Path) -> list[Measured]:
    """``stats.tsv`` of FLYP (Goyal et al. 2023, arXiv 2212.00638) and StarFT: one row per epoch, from 0.

    Top-1 is ``<Dataset> Accuracy``; other metrics follow the data set without a space (``IWildCamOODF1-macro_all``).
    Values have 4 digits. ``Avg OOD Acc`` averages every set that is not called ImageNet and is left out, because means
    are computed here and name their sets. FLYP's file of epoch e is checkpoint_e.pt, StarFT's is epoch_(e+1).pt.
    """
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    out = []
    for number, row in enumerate(rows, 2):
        where = f"{shown(path)}, line {number}"
        epoch = row.get("epoch") or ""
        if not re.fullmatch(r"\d+(\.0)?", epoch):
            raise ResultsError(f"{where}, column 'epoch': needs a whole number, got '{shown(epoch, 40)}'.")
        e, values = int(float(epoch)), {}
        for key, cell in row.items():
            told = _flyp_column(key or "")
            if told is not None and cell:
                values[told] = fraction(_number(cell, where, key), where, key)
        names = (f"checkpoint_{e}", f"epoch_{e + 1}")
        out.append(Measured(names, 1.0, values, where, note="rounded to 4 digits"))
    return out


def _flyp_column(key: str) -> tuple[str, str] | None:
    if key.endswith(" Accuracy"):
        return spec_of(key.removesuffix(" Accuracy")), "top1"
    for theirs in ("F1-macro_all", "acc_worst_region"):
        if key.endswith(theirs) and key != theirs:
            return spec_of(key.removesuffix(theirs)), METRIC_NAMES[theirs]
    return None


def _number(text: str, where: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ResultsError(f"{where}, key '{shown(key, 60)}': needs a number, got '{shown(text, 40)}'.") from None


_DASSL = {"accuracy": "top1", "macro_f1": "macro_f1", "average": "mean_per_class"}


def dassl(text: str, path: Path) -> list[Measured]:
    """``log.txt`` of Dassl (CoOp, CLIPFit ...): the numbers after the last ``=> result`` of a test, in percent.

    The file also holds results of earlier epochs and of the validation set. The data set is the one after ``Loading
    dataset:``. Top-1 is correct / total where the file has both, because the percentage is rounded.
    """
    dataset, out_dir, split, kept = "", "", "test", dict[str, tuple[float, int]]()
    block: dict[str, tuple[float, int]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*Loading dataset: (\S+)", line):
            dataset = found.group(1)
        elif found := re.match(r"\s*output_dir: (\S+)", line, re.IGNORECASE):
            out_dir = found.group(1)
        elif found := re.search(r"(?:Evaluate|evaluation) on (?:the )?\*?(\w+)\*? set", line):
            split = found.group(1)
        elif line.strip() == "=> result":
            block = {}
            if split != "val":
                kept = block
        elif block is not None and (found := re.match(r"\s*\* (\w+): ([\d.,eE+-]+)%?\s*$", line)):
            block[found.group(1)] = (
                _number(found.group(2).replace(",", ""), f"{shown(path)}, line {number}", line),
                number,
            )
    if "accuracy" not in kept:
        raise ResultsError(f"{shown(path)}: has no '* accuracy:' after '=> result' on the test set.")
    if not dataset:
        raise ResultsError(f"{shown(path)}: has no line 'Loading dataset: NAME'.")
    spec = spec_of(dataset)
    values = {
        (spec, ours): fraction(kept[theirs][0] / 100, f"{shown(path)}, line {kept[theirs][1]}", theirs)
        for theirs, ours in _DASSL.items() if theirs in kept
    }  # fmt: skip
    total = int(kept["total"][0]) if "total" in kept else 0
    if total and "correct" in kept:
        values[spec, "top1"] = fraction(
            kept["correct"][0] / total, f"{shown(path)}, line {kept['correct'][1]}", "correct"
        )
    names = unique([out_dir, path.parent.name])
    return [Measured(names, 1.0, values, f"{shown(path)}", counts={spec: total} if total else {})]
