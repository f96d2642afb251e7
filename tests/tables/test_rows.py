"""Rows that several rooms need: one metric a set, means over sets, the nearest of several."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sharpscope.tables.rows import (
    covariates,
    has_value,
    mean_accuracy,
    mean_row,
    measures_in,
    nearest,
    primary_rows,
    widest,
    with_ordered_layers,
    with_plain_layers,
)


def row(dataset: str, estimate: float, metric: str = "top1", n: float | None = 100, **more: object) -> dict:
    head = {"pair": "p", "alpha": 0.5, "variant": "dense", "dataset": dataset, "role": "ood", "metric": metric}
    numbers = {"estimate": estimate, "ci_low": estimate - 0.1, "ci_high": estimate + 0.2, "n": n}
    return head | numbers | {"note": ""} | more


def test_a_mean_names_its_sets_and_where_they_go_by_different_metrics_those() -> None:
    same = mean_row([row("a", 0.4), row("b", 0.6)])
    assert (same["dataset"], same["metric"], same["role"], same["n"], same["note"]) == (
        "a+b",
        "top1",
        "ood_mean",
        200,
        "",
    )
    assert same["estimate"] == 0.5
    assert same["ci_low"] == pytest.approx(0.5 - math.hypot(0.1, 0.1) / 2)
    assert same["ci_high"] == pytest.approx(0.5 + math.hypot(0.2, 0.2) / 2)
    mixed = mean_row([row("a", 0.4), row("b", 0.6, "macro_f1", None)], "mean")
    assert (mixed["metric"], mixed["role"], mixed["n"]) == ("primary", "mean", None)
    assert mixed["note"] == "mean of top1 of a, macro_f1 of b"


def test_every_room_has_the_same_id_accuracy() -> None:
    """Covariates, the reference table, the points of effective robustness: the mean over ID sets, primary metrics."""
    from sharpscope.findings.prediction import reference_table
    from sharpscope.findings.robustness import points

    rows = [
        row(d, v, alpha=a, role="id", **more)
        for a in (0.0, 1.0)
        for d, v, more in (("a", 0.4 + a / 10, {}), ("b", 0.9, {"n": 60}), ("a", 0.99, {"metric": "top5"}))
    ]
    rows += [row("x+y", 0.3, alpha=a, role="ood_mean") for a in (0.0, 1.0)]
    accuracy = pd.DataFrame(rows)
    accuracy["primary"] = accuracy["metric"] == "top1"
    path = pd.DataFrame({"pair": "p", "alpha": [0.0, 1.0], "distance_0": [0.0, 2.0], "distance_1": [2.0, 0.0]})
    sharp = pd.DataFrame({"pair": "p", "alpha": [0.0, 1.0], "layer": "(all)", "measure": "m", "estimate": 1.0})
    want = [0.65, 0.7]
    assert list(mean_accuracy(primary_rows(accuracy[accuracy["role"] == "id"]))["n"]) == [160, 160]
    for found in (
        covariates(accuracy, path),
        reference_table(sharp.assign(status="ok"), accuracy, path),
        points(accuracy),
    ):
        np.testing.assert_allclose(found.sort_values("alpha")["id_accuracy"], want, atol=1e-15)


def test_which_one_of_several() -> None:
    assert widest(["b", "a+c", "a+b", "z"]) == "a+b"
    assert nearest([0.25, 0.75, math.nan], 0.5) == 0.25 and nearest([1.0], 0.5) == 1.0
    assert math.isnan(nearest([math.nan], 0.5))
    table = pd.DataFrame(
        {"measure": ["zz", "lambda_max", "aa", "hessian_trace"], "status": ["ok", "failed", "undefined", "frozen"]}
    )
    assert measures_in(table) == ["hessian_trace", "lambda_max", "aa", "zz"]
    assert list(has_value(table)) == [True, False, False, True]


def test_layers_are_in_the_forward_order_whatever_the_order_of_the_rows() -> None:
    names = ["(all)", "visual.conv1", "visual.transformer.resblocks.2", "visual.transformer.resblocks.10", "head"]
    table = pd.DataFrame({"layer": list(reversed(names)) * 2, "estimate": range(10)})
    shown = with_ordered_layers(table)
    assert list(shown.sort_values("layer")["layer"].unique()) == names
    assert list(shown.groupby("layer", observed=True)["estimate"].sum().index) == names
    assert (shown["layer"] > "visual.transformer.resblocks.2").tolist() == [True, True, False, False, False] * 2
    given = with_ordered_layers(table, ["head", *names[:-1]])
    assert given["layer"].cat.categories[0] == "head"
    pd.testing.assert_frame_equal(with_plain_layers(shown), table)
    assert with_plain_layers(table) is table
    bare = pd.DataFrame({"alpha": [0.5]})
    assert with_ordered_layers(bare) is bare
