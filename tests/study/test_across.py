"""Several runs give the rows of one: stragglers by the criterion that decided, and the costs of the path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sharpscope.cli.main import main
from sharpscope.errors import ConfigError
from sharpscope.study.across import correlate
from sharpscope.tables.files import csv_bytes
from sharpscope.tables.rows import table
from sharpscope.tables.schema import KEYS

PAIRS = ("a", "b", "c", "d", "e", "f")
LAYERS = ("visual.conv1", "visual.proj", "head")
SHARE = "share:hessian_trace"


def rows_of(pair: str) -> dict[str, list[dict[str, object]]]:
    rng = np.random.default_rng(ord(pair))
    rows: dict[str, list[dict[str, object]]] = {"sharpness": [], "path": [], "accuracy": [], "stragglers": []}
    for alpha in (0.0, 0.5, 1.0):
        values = dict(zip(LAYERS, rng.gamma(2.0, size=3), strict=True))
        for layer, value in {**values, "(all)": sum(values.values())}.items():
            rows["sharpness"].append({
                "pair": pair, "alpha": alpha, "layer": layer, "measure": "hessian_trace", "estimate": value,
                "stderr": 0.1, "share": value / sum(values.values()), "status": "ok", "num_params": 1, "depth": 0,
                "num_matvecs": 1, "seed": 0, "converged": True, "n": 8,
            })  # fmt: skip
        rows["path"].append({"pair": pair, "alpha": alpha, "loss": rng.random(), "distance_0": alpha, "num_moving": 1})
        for role, dataset in (("id", "photo"), ("ood_mean", "x+y")):
            rows["accuracy"].append({
                "pair": pair, "alpha": alpha, "variant": "dense", "dataset": dataset, "role": role, "metric": "top1",
                "estimate": rng.random(), "n": 100, "primary": True,
            })  # fmt: skip
    for criterion, chosen in ((SHARE, {"head"}), ("instability", {LAYERS[ord(pair) % 2], "head"})):
        rows["stragglers"] += [
            {"pair": pair, "layer": x, "criterion": criterion, "base": "finetuned", "score": rng.random(),
             "rule": "mad:2", "chosen": x in chosen}
            for x in LAYERS
        ]  # fmt: skip
    return rows


def made(root: Path, pairs: Sequence[str], criterion: str | None = SHARE, without: str = "") -> Path:
    """A run directory of ``pairs`` as far as ``correlate`` reads it."""
    (root / "tables").mkdir(parents=True)
    for name in ("sharpness", "path", "accuracy", "stragglers"):
        if name != without:
            rows = [row for pair in pairs for row in rows_of(pair)[name]]
            (root / "tables" / f"{name}.csv").write_bytes(csv_bytes(table(name, rows), name))
    config = {} if criterion is None else {"straggler_criterion": criterion}
    (root / "manifest.json").write_text(json.dumps({"config": config}))
    return root


def sums(found: pd.DataFrame, layer: str = "(stragglers)") -> pd.DataFrame:
    own = found[(found["layer"] == layer) & (found["measure"] == "hessian_trace") & (found["method"] == "spearman")]
    own = own[own["given"] == ""]
    return own.drop(columns="layer").reset_index(drop=True)


def test_several_runs_give_the_rows_of_one_with_all_pairs(tmp_path: Path) -> None:
    whole = correlate([made(tmp_path / "whole", PAIRS)], bootstrap=50)
    parts = correlate([made(tmp_path / "b", PAIRS[3:]), made(tmp_path / "a", PAIRS[:3])], bootstrap=50)
    pd.testing.assert_frame_equal(parts, whole)
    assert not whole.duplicated(list(KEYS["correlations"])).any()
    assert {"(stragglers)", "(others)", "(best)"} <= set(whole["layer"])
    assert {"instability", "barrier", "rewind"} <= set(whole["measure"])
    assert (sums(whole)["n"] == 6).all() and (sums(whole)["status"] == "ok").all()


def test_the_stragglers_are_those_of_the_criterion_that_decided_or_is_asked_for(tmp_path: Path) -> None:
    """By the share every pair has the head as its only straggler, so the group is the layer head itself."""
    one, two = made(tmp_path / "a", PAIRS[:3]), made(tmp_path / "b", PAIRS[3:])
    decided = correlate([one, two], bootstrap=50)
    columns = ["alpha", "against", "estimate", "n"]
    pd.testing.assert_frame_equal(sums(decided)[columns], sums(decided, "head")[columns])
    asked = correlate([one, two], bootstrap=50, straggler_criterion="instability")
    assert not sums(asked)["estimate"].equals(sums(decided)["estimate"])
    pd.testing.assert_frame_equal(sums(asked, "head"), sums(decided, "head"))
    with pytest.raises(ConfigError, match=r"straggler_criterion: no run has 'instabilty'. Did you mean 'instability'"):
        correlate([one], straggler_criterion="instabilty")


def test_runs_that_chose_by_different_criteria_need_one(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a", PAIRS[:3]), made(tmp_path / "b", PAIRS[3:], "instability")
    with pytest.raises(
        ConfigError, match=r"share:hessian_trace chose the stragglers in (.|\n)*Remedy: --straggler-crit"
    ):
        correlate([one, two])
    assert main(["correlate", str(one), str(two), "--straggler-criterion", "instability"]) == 0


@pytest.mark.parametrize("how", [{"criterion": None}, {"without": "stragglers"}])
def test_without_a_choice_the_group_is_undefined_and_nothing_else_is(how: dict[str, str], tmp_path: Path) -> None:
    found = correlate([made(tmp_path / "run", PAIRS, **how)], bootstrap=50)  # type: ignore[arg-type]
    assert (sums(found)["status"] == "undefined").all() and (sums(found, "(all)")["status"] == "ok").all()
