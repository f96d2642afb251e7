"""Effective robustness: zero on the baseline's line, what is above it elsewhere, an uncertainty that covers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from sharpscope.errors import ConfigError, ResultsError
from sharpscope.findings.robustness import (
    COLUMNS,
    Baseline,
    baseline_points,
    effective_robustness,
    points,
    read_baseline,
)

Accuracy = Callable[..., pd.DataFrame]


def models(ids: np.ndarray, slope: float, intercept: float, n: float = 0, dataset: str = "x") -> pd.DataFrame:
    oods = expit(intercept + slope * logit(ids))
    return pd.DataFrame({"dataset": dataset, "id_accuracy": ids, "ood_accuracy": oods, "id_n": n, "ood_n": n})


def test_the_line_is_found_and_what_is_above_it(accuracy_of: Accuracy) -> None:
    base = models(np.array([0.3, 0.5, 0.6, 0.8]), slope=0.9, intercept=-0.7)
    columns = (base[c].to_numpy(float) for c in ("id_accuracy", "ood_accuracy", "id_n", "ood_n"))
    assert Baseline(*columns).fit() == pytest.approx((-0.7, 0.9))
    own = accuracy_of("run", (0.0, 0.5), (0.4, 0.5), (0.55, 0.7))
    table = effective_robustness(own, base, "mine", bootstrap=200)
    assert tuple(table.columns) == COLUMNS
    x = table[table["dataset"] == "x"]
    assert list(x["expected"]) == pytest.approx(list(expit(-0.7 + 0.9 * logit(np.array([0.55, 0.7])))))
    assert list(x["estimate"]) == pytest.approx(list(x["ood_accuracy"] - x["expected"]))
    assert ((x["ci_low"] < x["estimate"]) & (x["estimate"] < x["ci_high"])).all()
    assert set(x["baseline"]) == {"mine"}
    assert set(x["baseline_n"]) == {4}
    mean = table[table["dataset"] == "x+y"]  # the baseline has no such average
    assert mean["estimate"].isna().all()
    assert mean["note"].str.contains("no model for this data set").all()
    pd.testing.assert_frame_equal(table, effective_robustness(own, base, "mine", bootstrap=200))


def test_a_run_as_its_own_baseline(accuracy_of: Accuracy) -> None:
    """Three fine-tuned models on a line lie on it, the zero-shot model above; two lie on a line whatever they are."""
    line = expit(-0.5 + 0.8 * logit(np.array([0.5, 0.7, 0.8, 0.9])))
    runs = [
        accuracy_of(name, (0.0, 1.0), (line[0] + 0.1, line[i]), (0.5, at))
        for i, (name, at) in enumerate({"a": 0.7, "b": 0.8, "c": 0.9}.items(), 1)
    ]
    accuracy, two = pd.concat(runs, ignore_index=True), pd.concat(runs[:2], ignore_index=True)
    assert len(points(accuracy)) == 3 * 2 * 2
    found = baseline_points(accuracy, "finetuned")
    assert len(found) == 6
    assert len(baseline_points(accuracy, "zeroshot")) == 2  # one model, shared
    table = effective_robustness(accuracy, found, "finetuned", bootstrap=100)
    assert table[table["alpha"] == 1]["estimate"].abs().max() < 1e-12
    assert list(table[table["alpha"] == 0]["estimate"]) == pytest.approx([0.1] * 6)
    assert set(table["note"]) == {""}
    refused = effective_robustness(two, baseline_points(two, "finetuned"), "finetuned", bootstrap=100)
    assert refused["expected"].isna().all() and refused["estimate"].isna().all()
    assert set(refused["note"]) == {"undefined: the baseline has 2 distinct ID accuracies (models: 2); a line needs 3"}
    alone = effective_robustness(accuracy, baseline_points(accuracy, "zeroshot"), "zeroshot", bootstrap=100)
    assert alone["estimate"].isna().all()
    assert alone["note"].str.startswith("undefined: the baseline has 1 distinct ID accuracy (models: 1)").all()
    with pytest.raises(ConfigError, match="neither a file nor one of zeroshot, finetuned, ends"):
        baseline_points(accuracy, "half")


def test_the_interval_covers_the_truth() -> None:
    """Models around a line, measured on finite sets, and one point known to lie 0.05 above it."""
    rng, covered, n = np.random.default_rng(0), 0, 2000
    truth_id, lift = 0.65, 0.05
    expected = expit(-0.4 + 0.9 * logit(truth_id))
    for seed in range(60):
        ids = rng.uniform(0.4, 0.85, 12)
        base = models(ids, 0.9, -0.4, n)
        base["id_accuracy"] = rng.binomial(n, ids) / n
        base["ood_accuracy"] = rng.binomial(n, expit(-0.4 + 0.9 * logit(ids))) / n
        row = {"pair": "p", "alpha": 0.5, "variant": "dense", "metric": "top1", "ci_low": np.nan, "ci_high": np.nan}
        own = pd.DataFrame([
            row | {"dataset": "i", "role": "id", "estimate": rng.binomial(n, truth_id) / n, "n": n},
            row | {"dataset": "x", "role": "ood", "estimate": rng.binomial(n, expected + lift) / n, "n": n},
        ])  # fmt: skip
        table = effective_robustness(own, base, "b", bootstrap=200, seed=seed).iloc[0]
        covered += table["ci_low"] <= lift <= table["ci_high"]
    assert 52 <= covered <= 60


def test_baselines_from_a_file(tmp_path: Path, accuracy_of: Accuracy) -> None:
    file, own = tmp_path / "baseline.csv", accuracy_of("run", (0.5,), (0.5,), (0.7,))
    models(np.array([0.4, 0.6, 0.8]), 1.0, -0.5).drop(columns=["id_n", "ood_n"]).to_csv(file, index=False)
    fitted = effective_robustness(own, read_baseline(file), "f").iloc[0]
    file.write_text("dataset,intercept,slope\nx,-0.5,1.0\n")
    given = effective_robustness(own, read_baseline(file), "f").iloc[0]
    assert given["estimate"] == pytest.approx(fitted["estimate"]) == pytest.approx(0.5 - expit(-0.5 + logit(0.7)))
    assert given["baseline_n"] == 0
    assert "the interval leaves out its uncertainty" in given["note"]
    for text, said in (
        ("dataset,id_accuracy\nx,0.5\n", "no column 'ood_accuracy'"),
        (
            "dataset,id_accuracy,ood_accuracy\nx,0.5,0.4\nx,61,0.5\n",
            "line 3, column 'id_accuracy': 61.* not a fraction",
        ),
        ("dataset,intercept,slope\nx,a,1\n", "line 2, column 'intercept': a is not a number"),
        ("", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(ResultsError, match=said):
            read_baseline(file)
    with pytest.raises(ResultsError, match="cannot be read"):
        read_baseline(tmp_path / "none.csv")


def test_accuracies_of_zero_and_one_have_a_place_on_the_scale(accuracy_of: Accuracy) -> None:
    own = accuracy_of("run", (0.0, 1.0), (0.0, 1.0), (1.0, 0.5))
    base = models(np.array([0.3, 0.5, 0.9]), 0.9, -0.7)
    table = effective_robustness(own, base, "b", bootstrap=100)
    assert np.isfinite(table[table["dataset"] == "x"][["expected", "estimate", "ci_low", "ci_high"]]).all(axis=None)


def test_a_group_of_one_set_is_one_row_a_point(accuracy_of: Accuracy) -> None:
    """The mean over one set is that set: it is in the accuracy table twice, but is one measurement."""
    accuracy = accuracy_of("run", (0.0, 0.5), (0.4, 0.5), (0.55, 0.7)).replace({"dataset": {"x+y": "x"}})
    base = models(np.array([0.3, 0.5, 0.6, 0.8]), slope=0.9, intercept=-0.7)
    table = effective_robustness(accuracy, base, "mine", bootstrap=50)
    assert list(table["alpha"]) == [0.0, 0.5] and set(table["dataset"]) == {"x"}
