"""Small tables with known content, in the columns of the schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from sharpscope.tables.schema import COLUMNS

Sharpness = Callable[..., pd.DataFrame]
Accuracy = Callable[..., pd.DataFrame]


@pytest.fixture
def sharpness_of() -> Sharpness:
    def make(
        pair: str,
        alphas: Sequence[float],
        layers: Mapping[str, Sequence[float]],
        measure: str = "ggn_trace",
        error: float = 0.01,
        whole: Sequence[float] | None = None,
        status: str = "ok",
    ) -> pd.DataFrame:
        rows = []
        total = np.sum([list(v) for v in layers.values()], axis=0) if whole is None else np.asarray(whole)
        for a, alpha in enumerate(alphas):
            for layer, values in {**layers, "(all)": total}.items():
                row = dict.fromkeys(COLUMNS["sharpness"], "")
                row |= {"pair": pair, "alpha": alpha, "layer": layer, "num_params": 10, "measure": measure}
                row |= {"estimate": values[a], "stderr": error * abs(values[a]), "residual": np.nan, "status": status}
                row |= {"stderr_images": error * abs(values[a]), "n": 48}
                row |= {"per_param": values[a] / 10, "share": values[a] / total[a], "converged": True}
                rows.append(row)
        return pd.DataFrame(rows, columns=list(COLUMNS["sharpness"]))

    return make


@pytest.fixture
def accuracy_of() -> Accuracy:
    def make(
        pair: str, alphas: Sequence[float], ood: Sequence[float], ids: Sequence[float] | None = None, half: float = 0.01
    ) -> pd.DataFrame:
        rows = []
        for role, dataset, values in (("id", "photo", ids), ("ood", "x", ood), ("ood_mean", "x+y", ood)):
            for alpha, value in zip(alphas, values if values is not None else [0.7] * len(alphas), strict=True):
                row = {"pair": pair, "alpha": alpha, "variant": "dense", "dataset": dataset, "role": role}
                row |= {"metric": "top1", "estimate": value, "ci_low": value - half, "ci_high": value + half}
                rows.append(row | {"n": 1000, "note": ""})
        return pd.DataFrame(rows, columns=list(COLUMNS["accuracy"]))

    return make
