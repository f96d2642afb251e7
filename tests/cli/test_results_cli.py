"""evaluate, correlate and robustness from the command line to numbers: nothing is a stand-in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sharpscope.cli import main as cli
from sharpscope.errors import NoData
from sharpscope.tables.files import csv_bytes
from sharpscope.tables.schema import COLUMNS

Sharpness = Callable[..., pd.DataFrame]
PAIRS = ("a", "b", "c", "d", "e")
OOD = (0.5, 0.4, 0.45, 0.3, 0.35)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of five pairs whose fine-tuned files are runs/NAME/checkpoint_10.pt; nothing was measured OOD."""
    root = tmp_path / "run"
    (root / "tables").mkdir(parents=True)
    sharpness, path, accuracy = [], [], []
    for k, pair in enumerate(PAIRS):
        for alpha in (0.0, 1.0):
            for layer in ("(all)", "visual.conv1"):
                row = dict.fromkeys(COLUMNS["sharpness"], "")
                row |= {"pair": pair, "alpha": alpha, "layer": layer, "measure": "ggn_trace", "estimate": k + alpha}
                row |= {"stderr": 0.1, "residual": np.nan, "share": 1.0, "status": "ok", "num_params": 1, "depth": 0}
                row |= {"num_matvecs": 1, "seed": 0, "per_param": 1.0, "rho": np.nan, "converged": True}
                row |= {"stderr_images": 0.2, "n": 8}
                sharpness.append(row)
            path.append({"pair": pair, "alpha": alpha, "loss": 1.0, "distance_0": alpha * (k + 2), "num_moving": 1})
            cells = {"pair": pair, "alpha": alpha, "variant": "dense", "dataset": "imagenet", "role": "id"}
            accuracy.append(cells | {"metric": "top1", "estimate": 0.6 + k / 100, "n": 100, "primary": True})
    for name, rows in (("sharpness", sharpness), ("path", path), ("accuracy", accuracy)):
        (root / "tables" / f"{name}.csv").write_bytes(csv_bytes(pd.DataFrame(rows), name))
    pairs = [{"name": p, "zeroshot": "zs.pt", "finetuned": f"runs/{p}/checkpoint_10.pt"} for p in PAIRS]
    (root / "manifest.json").write_text(json.dumps({"config": {"pairs": pairs}}))
    return root


def results(folder: Path, pairs: tuple[str, ...] = PAIRS) -> Path:
    """WiSE-FT's results.jsonl of these pairs, in which OOD accuracy falls as sharpness rises."""
    lines = []
    for pair, ood in zip(pairs, OOD, strict=False):
        for alpha in (0.0, 1.0):
            lines.append({
                "alpha": alpha, "load": ["zs.pt", f"runs/{pair}/checkpoint_10.pt"], "train_dataset": "ImageNet",
                "eval_datasets": ["ImageNet", "ImageNetA", "ImageNetR"], "ImageNet:top1": 0.6 + alpha * ood / 4,
                "ImageNetA:top1": 0.2 + alpha * ood / 2, "ImageNetR:top1": 0.3 + alpha * ood / 2,
            })  # fmt: skip
    file = folder / "results.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def table_of(capsys: pytest.CaptureFixture[str]) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(capsys.readouterr().out))


def test_correlate_with_numbers_measured_elsewhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["correlate", "--accuracy", str(results(tmp_path)), str(run), "--csv"]) == 0
    table = table_of(capsys)
    row = table[(table["layer"] == "(all)") & (table["method"] == "spearman") & (table["against"] == "ood_gain")]
    row = row[(row["measure"] == "ggn_trace") & (row["alpha"] == 1)]
    assert set(row["dataset"]) == {"imagenet-a+imagenet-r"} and row["given"].fillna("").is_unique
    row = row[row["given"].fillna("") == ""]
    assert list(row["n"]) == [5]
    assert list(row["estimate"]) == pytest.approx([-0.8])  # ranks 1..5 against 5 3 4 1 2: 1 - 6 * 36 / 120


def test_correlate_draws_sharpness_and_gain_of_every_group(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["correlate", "--accuracy", str(results(tmp_path)), str(run), "--figures", str(tmp_path / "drawn")]
    assert cli.main(argv) == NoData.exit_code
    assert "no pair has the measure that was named before looking" in capsys.readouterr().err
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"] |= {"primary_measure": "ggn_trace", "primary_alpha": 1.0}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(argv) == 0
    (name,) = {path.stem for path in (tmp_path / "drawn").iterdir()}
    assert capsys.readouterr().out.splitlines()[-1] == f"1 figure in {tmp_path / 'drawn'}: {name}"
    assert {p.suffix for p in (tmp_path / "drawn").iterdir()} == {".png", ".pdf", ".txt"}
    caption = (tmp_path / "drawn" / f"{name}.txt").read_text()
    assert "n = 5 pairs" in caption and "only 5 pairs; at least 8 are needed" in caption


def test_correlate_says_a_line_a_finding_and_writes_the_rest(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.csv"
    argv = ["correlate", "--accuracy", str(results(tmp_path)), str(run)]
    assert cli.main([*argv, "--csv"]) == 0
    table = table_of(capsys)
    assert cli.main([*argv, "--out", str(out)]) == 0
    *findings, last = capsys.readouterr().out.splitlines()
    undefined = int((table["status"] != "ok").sum())
    assert last == f"All {len(table):,} correlations, {undefined:,} of them undefined: in {out}."
    assert len(findings) == 3 * table["group"].nunique() < 10
    assert "whole-model sharpness is related to the OOD gain" in findings[0]
    assert all(": cannot be told. " in line for line in findings)  # five pairs are too few
    assert len(pd.read_csv(out)) == len(table)
    kept = out.read_bytes()
    assert cli.main([*argv, "--covariates", str(out), "--out", str(out), "--overwrite"]) == 2
    assert out.read_bytes() == kept, "an input is never replaced"


def test_pairs_that_cannot_be_matched_are_one_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["correlate", "--accuracy", str(results(tmp_path, PAIRS[:3])), str(run)]) == 2
    said = capsys.readouterr().err
    assert "2 of 5 pairs cannot be matched by name: d; e." in said
    assert "Remedy: --match PAIR=MODEL" in said
    argv = ["--match", "d=runs/a/checkpoint_10.pt", "e=runs/b/checkpoint_10.pt"]
    assert cli.main(["correlate", "--accuracy", str(tmp_path / "results.jsonl"), str(run), *argv]) == 0


def test_a_table_of_ours_without_averages(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"pair": p, "alpha": a, "variant": "dense", "dataset": d, "role": role, "metric": "top1", "estimate": v}
        for p, ood in zip(PAIRS, OOD, strict=True)
        for a in (0.0, 1.0)
        for d, role, v in (("i", "id", 0.7 + a * ood / 10), ("x", "ood", 0.3 + a * ood))
    ]
    file = tmp_path / "accuracy.csv"
    pd.DataFrame(rows).to_csv(file, index=False)
    assert cli.main(["correlate", "--accuracy", str(file), str(run), "--csv"]) == 0
    table = table_of(capsys)
    assert set(table["dataset"]) == {"x"}
    assert (table["status"] == "ok").any()


def test_robustness(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["robustness", "--accuracy", str(results(tmp_path)), str(run), "--csv"]
    assert cli.main(argv) == 0
    table = table_of(capsys)
    end = table[(table["alpha"] == 1) & (table["dataset"] == "imagenet-a")]
    assert len(end) == 5
    assert abs(end["estimate"].mean()) < 0.002  # residuals of the line through these very models
    assert set(table["baseline"]) == {"finetuned"}
    assert cli.main([*argv, "--baseline", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_evaluate_gives_every_metric_of_every_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["evaluate", "mini:zeroshot", "mini:success", "--model", "mini", "--datasets", "mini:photo", "mini:neon"]
    assert cli.main([*argv, "--limit", "48", "--csv"]) == 0
    table = table_of(capsys)
    assert tuple(table.columns) == (
        "checkpoint",
        "dataset",
        "role",
        "metric",
        "estimate",
        "ci_low",
        "ci_high",
        "n",
        "note",
        "variant",
        "alpha",
    )
    keys = table[["checkpoint", "dataset", "metric"]].drop_duplicates()
    assert len(keys) == len(table) == 2 * 2 * 6
    assert set(table["metric"]) == {"top1", "top5", "mean_per_class", "macro_f1", "ece", "nll"}
    assert set(table["n"]) == {48}
    wide = table.pivot(index=["checkpoint", "dataset"], columns="metric", values="estimate")
    assert (wide["top5"] >= wide["top1"]).all()
    assert wide.loc[("success", "mini:photo"), "top1"] > wide.loc[("zeroshot", "mini:photo"), "top1"]
    assert cli.main([*argv, "--limit", "16", "--metrics", "ece"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["checkpoint", "dataset", "n", "top1", "ece"]
    assert len(lines) == 5
    assert lines[1].split()[:3] == ["zeroshot", "mini:photo", "16"]


def test_a_collection_has_its_average(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sharpscope.config import collections

    monkeypatch.setattr(collections, "COLLECTIONS", {"styles": ("mini:sketch", "mini:neon")})
    argv = ["evaluate", "mini:success", "--model", "mini", "--datasets", "styles", "mini:photo", "--metrics", "nll"]
    assert cli.main([*argv, "--limit", "32", "--csv"]) == 0
    table = table_of(capsys)
    top1 = table[table["metric"] == "top1"].set_index("dataset")
    assert list(top1.index) == ["mini:sketch", "mini:neon", "mini:photo", "mini:sketch+mini:neon"]
    mean = top1.loc["mini:sketch+mini:neon"]
    assert mean["role"] == "mean"
    assert mean["estimate"] == pytest.approx(top1["estimate"].iloc[:2].mean())
    assert mean["note"] == "mean of styles"
    assert mean["n"] == 64
    assert len(table[table["role"] == "mean"]) == 2  # top1 and nll, which both sets have


def test_a_stored_head_of_other_classes_gives_way_to_text_and_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["evaluate", "mini:zeroshot", "--model", "mini", "--datasets", "mini:photo"]
    assert cli.main([*argv[:2], "mini:zeroshot", *argv[2:]]) == 2
    assert "a checkpoint is given twice" in capsys.readouterr().err
    assert cli.main([*argv, "--metrics", "acc5"]) == 2
    assert "metrics: unknown metric 'acc5'. Known: top1, top5, mean_per_class, macro_f1" in capsys.readouterr().err
    assert cli.main([*argv, "--head", "stored"]) == 2
    assert "has no stored head" in capsys.readouterr().err
