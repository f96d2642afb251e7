from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sharpscope.errors import ConfigError
from sharpscope.findings.advice import RULES, advice_table
from sharpscope.findings.prediction import REFERENCE, predict_gain, reference_table
from sharpscope.tables.schema import COLUMNS, KEYS

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
ROLES = {"id": "id", "x": "ood"}
N = 200


def answers(levels: tuple[float, ...], seed: int = 0) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(N)
    return np.array([order < round(level * N) for level in levels])


CORRECT = {"id": answers((0.5, 0.6, 0.8, 0.9, 0.85), 1), "x": answers((0.4, 0.55, 0.5, 0.45, 0.3), 2)}


def line(pair: str, ratio: float, sign: float = 1.0, distance: float = 1.0) -> pd.DataFrame:
    """A pair whose OOD gain bends with its sharpness ratio: + a hump, - a valley."""
    rows = []
    for a in GRID:
        gain = sign * ratio * a * (1 - a) - 0.05 * a
        numbers = (
            pair,
            a,
            "ggn_trace",
            math.exp(ratio * a),
            ratio * a,
            distance,
            0.5 + 0.4 * a,
            0.4 + gain,
            gain,
            "ood",
        )
        rows.append(dict(zip(REFERENCE, numbers, strict=True)))
    return pd.DataFrame(rows)


def others(sign: float = 1.0, n: int = 9) -> pd.DataFrame:
    ratios = np.linspace(-0.8, 0.8, n)
    return pd.concat([line(f"r{i}", r, sign, 1 + 0.1 * (i % 3)) for i, r in enumerate(ratios)], ignore_index=True)


def rule(table: pd.DataFrame, name: str) -> pd.Series:
    return table.set_index("rule").loc[name]


def test_baselines_oracle_and_regret_by_hand() -> None:
    table = advice_table("p", GRID, CORRECT, ROLES)
    assert tuple(table.columns) == COLUMNS["advice"] and list(table["rule"]) == list(RULES)
    assert not table.duplicated(list(KEYS["advice"])).any()
    alphas = table.set_index("rule")["alpha"]
    assert (alphas["zeroshot"], alphas["half"], alphas["finetuned"]) == (0, 0.5, 1)
    assert (alphas["id_best"], alphas["oracle"]) == (0.75, 0.25)
    regret = table.set_index("rule")["regret"]
    assert (
        regret["oracle"] == 0 and regret["half"] == pytest.approx(0.05) and regret["finetuned"] == pytest.approx(0.25)
    )
    assert (regret >= 0).all()
    assert "regret 95% interval [" in rule(table, "half")["note"]
    assert "ID test sets (id) serve as validation" in rule(table, "id_best")["note"]


def test_without_references_the_fallback_says_that_it_is_one() -> None:
    row = rule(advice_table("p", GRID, CORRECT, ROLES), "sharpscope")
    assert (row["alpha"], row["status"], row["layers"]) == (0.5, "undefined", "")
    assert np.isnan(row["predicted_gain"]) and row["note"].startswith("undefined: no reference pairs")
    assert "ID data of this pair cannot show" in row["note"]
    three = others().loc[lambda t: t["pair"].isin(("r0", "r1", "r2"))]
    few = rule(advice_table("p", GRID, CORRECT, ROLES, line("p", 0.7), three), "sharpscope")
    assert few["status"] == "undefined" and "fewer than 4 of 3" in few["note"]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_it_learns_the_sign_from_the_references(sign: float) -> None:
    """The same sharpness is a reason to interpolate in one world and not to in the other."""
    for ratio in (0.7, -0.7):
        row = rule(advice_table("p", GRID, CORRECT, ROLES, line("p", ratio), others(sign)), "sharpscope")
        assert row["status"] == "ok" and "9 reference pairs, ggn_trace" in row["note"]
        if sign * ratio > 0:
            assert 0 < row["alpha"] < 1 and row["predicted_gain"] > 0
            assert row["ci_low"] < row["predicted_gain"] < row["ci_high"]
        else:
            assert row["alpha"] == 0.0 and row["predicted_gain"] == 0.0 and row["note"].startswith("do not interpolate")


def test_the_end_wins_when_the_gain_grows_all_the_way() -> None:
    rising = others()
    rising["ood_gain"] = 0.3 * rising["alpha"] + 0.001 * rising["log_ratio"]
    row = rule(advice_table("p", GRID, CORRECT, ROLES, line("p", 0.2), rising), "sharpscope")
    assert row["alpha"] == 1.0 and "do not interpolate" in row["note"] and row["predicted_gain"] > 0.25


def test_no_ood_label_of_the_judged_pair_reaches_the_advice() -> None:
    honest, own = others(), line("p", 0.7)
    lies = own.assign(ood_accuracy=0.99, ood_gain=-0.9)
    swapped = {**CORRECT, "x": answers((0.9, 0.1, 0.1, 0.1, 0.9), 3)}
    one = rule(advice_table("p", GRID, CORRECT, ROLES, own, honest), "sharpscope")
    two = rule(advice_table("p", GRID, swapped, ROLES, lies, pd.concat([honest, lies])), "sharpscope")
    for column in ("alpha", "layers", "predicted_gain", "ci_low", "ci_high"):
        assert one[column] == two[column], column
    assert one["regret"] != two["regret"]


def test_no_ood_set_leaves_regret_open_and_the_advice_standing() -> None:
    table = advice_table("p", GRID, {"id": CORRECT["id"]}, {"id": "id"}, line("p", 0.7), others())
    assert table["regret"].isna().all() and table["ood_accuracy"].isna().all()
    assert rule(table, "oracle")["status"] == "undefined" and rule(table, "sharpscope")["status"] == "ok"
    no_id = advice_table("p", GRID, {"x": CORRECT["x"]}, {"x": "ood"})
    assert rule(no_id, "id_best")["status"] == "undefined" and np.isnan(rule(no_id, "id_best")["alpha"])


def test_an_alpha_off_the_grid_is_interpolated_or_undefined_and_says_so() -> None:
    coarse = {k: v[[0, 1, 4]] for k, v in CORRECT.items()}
    half = rule(advice_table("p", (0.0, 0.25, 1.0), coarse, ROLES), "half")
    assert half["ood_accuracy"] == pytest.approx(0.55 - 0.25 / 3) and "interpolated" in half["note"]
    short = advice_table("p", (0.25, 0.5), {k: v[[1, 2]] for k, v in CORRECT.items()}, ROLES)
    assert rule(short, "finetuned")["status"] == "undefined" and np.isnan(rule(short, "finetuned")["regret"])


def test_references_on_another_grid_are_interpolated() -> None:
    wide = others()
    sparse = wide[~((wide["pair"] == "r4") & (wide["alpha"] == 0.5))]
    row = rule(advice_table("p", GRID, CORRECT, ROLES, line("p", 0.7), sparse), "sharpscope")
    assert "9 reference pairs" in row["note"]


def test_layers_are_held_back_only_on_the_evidence_of_other_pairs() -> None:
    def repairs(gain: float, spread: float, n: int) -> pd.DataFrame:
        values = gain + spread * np.linspace(-1, 1, n)
        rows = {"pair": [f"r{i}" for i in range(n)], "target": "delta", "select": "random", "density": 0.5}
        return pd.DataFrame(rows | {"control": "none", "status": "ok", "gain": values})

    def advised(table: pd.DataFrame) -> pd.Series:
        got = advice_table("p", GRID, CORRECT, ROLES, stragglers=("a", "b"), reference_repairs=table)
        return rule(got, "sharpscope")

    sure = advised(repairs(0.05, 0.01, 6))
    assert (sure["layers"], sure["density"]) == ("a+b", 0.5) and "6 other pairs" in sure["note"]
    for table in (
        repairs(0.05, 0.2, 6),
        repairs(0.05, 0.01, 3),
        repairs(-0.05, 0.01, 6),
        repairs(0.05, 0.01, 6).assign(pair="p"),
    ):
        row = advised(table)
        assert row["layers"] == "" and np.isnan(row["density"]) and "cannot show" in row["note"]


def test_same_seed_same_bits() -> None:
    one, two = (advice_table("p", GRID, CORRECT, ROLES, line("p", 0.7), others(), seed=5) for _ in range(2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_reference_table_from_the_tables_of_a_run(sharpness_of, accuracy_of) -> None:
    alphas = (0.0, 0.5, 1.0)
    sharp = pd.concat(
        [
            sharpness_of("a", alphas, {"l": [1.0, 2.0, 4.0]}),
            sharpness_of("a", alphas, {"l": [-1.0, 2.0, 4.0]}, measure="hessian_trace"),
            sharpness_of("b", alphas, {"l": [2.0, 1.0, -1.0]}),
        ]
    )
    acc = pd.concat(
        [accuracy_of("a", alphas, [0.4, 0.5, 0.3], [0.5, 0.7, 0.9]), accuracy_of("b", alphas, [0.4, 0.2, 0.1])]
    )
    path = pd.DataFrame({"pair": ["a"] * 3, "alpha": alphas, "distance_0": [0, 1.5, 3], "distance_1": [3, 1.5, 0]})
    table = reference_table(sharp, acc, path).set_index(["pair", "measure", "alpha"])
    row = table.loc[("a", "ggn_trace", 1.0)]
    assert row["log_ratio"] == pytest.approx(math.log(4)) and row["distance"] == 3.0
    assert row["ood_gain"] == pytest.approx(-0.1) and row["id_accuracy"] == 0.9 and row["sharpness"] == 4.0
    assert np.isnan(table.loc[("a", "hessian_trace", 0.5), "log_ratio"])
    assert np.isnan(table.loc[("b", "ggn_trace", 1.0), "log_ratio"]) and np.isnan(
        table.loc[("b", "ggn_trace", 0.5), "distance"]
    )


def test_a_prediction_needs_four_pairs() -> None:
    with pytest.raises(ConfigError, match="3 reference pairs"):
        predict_gain(np.zeros((3, 2)), np.zeros(3), np.zeros(2))
