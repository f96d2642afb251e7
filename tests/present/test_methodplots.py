"""The figure that puts fine-tuning methods side by side, and its script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sharpscope.errors import NoData
from sharpscope.present.methodplots import methods
from tests.scripts import loaded


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for i, method in enumerate(("wise-ft", "flyp", "coop")):
        for seed in ("0", "1", "mean"):
            jitter = 0 if seed == "mean" else rng.uniform(-0.01, 0.01)
            rows.append({
                "method": method, "seed": seed, "id_zeroshot": 0.5, "id": 0.6 + jitter, "id_best": 0.58 + jitter,
                "ood_zeroshot": 0.4, "ood": 0.42 + jitter, "ood_best": 0.45 + 0.05 * i + jitter,
                "trace_image": 1000.0 * (i + 1), "trace_text": np.nan if i == 0 else -5.0 if i == 1 else 300.0,
            })  # fmt: skip
    return pd.DataFrame(rows)


def test_methods_stand_in_the_order_of_their_best_ood_accuracy(table: pd.DataFrame) -> None:
    figure = methods(table)
    ood, id_, trace = figure.axes
    assert [t.get_text() for t in ood.get_yticklabels()] == ["coop", "flyp", "wise-ft"]
    assert ood.get_title(loc="left") == "OOD accuracy, %" and id_.get_title(loc="left") == "ID accuracy, %"
    best = next(line for line in ood.lines if line.get_markerfacecolor() == "white")
    seeds = table[table["seed"] != "mean"]
    expected = 100 * seeds.groupby("method")["ood_best"].mean()[["coop", "flyp", "wise-ft"]]
    np.testing.assert_allclose(best.get_xdata(), expected)
    diamonds = [line.get_xdata() for line in trace.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(diamonds[0], [3000, 2000, 1000])
    np.testing.assert_allclose(diamonds[1], [300, np.nan, np.nan])  # a negative trace has no place on a log axis
    with pytest.raises(NoData):
        methods(table[table["seed"] == "mean"])


def test_the_script_writes_the_same_bytes_again(table: pd.DataFrame, tmp_path: Path) -> None:
    module = loaded("figures/fig_finetuners.py")
    table.to_csv(tmp_path / "finetuners.csv", index=False)
    for name in ("a", "b"):
        module.main([str(tmp_path / "finetuners.csv"), "--out", str(tmp_path / name)])
    for suffix in ("pdf", "png"):
        first, second = (tmp_path / n / f"finetuners.{suffix}" for n in ("a", "b"))
        assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 5000
