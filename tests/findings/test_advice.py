"""The table of advice: rules by hand, no look at the judged pair's OOD labels, and refusal to extrapolate."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from sharpscope.errors import ConfigError
from sharpscope.findings.advice import Known, advice_table
from sharpscope.findings.advising.along import AlongPath, along_path
from sharpscope.findings.advising.measured import measured_rows
from sharpscope.findings.advising.published import Tuning, published_facts
from sharpscope.findings.advising.references import Reference, inside, leave_one_setting_out, reference_pairs
from sharpscope.findings.design import Design
from sharpscope.findings.prediction import REFERENCE, end_distance, predict_gain, reference_table
from sharpscope.tables.schema import COLUMNS, KEYS
from sharpscope.vocabulary import ADVICE, BASELINE, FIXED_ALPHAS, SITUATIONS

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
ROLES = {"id": "id", "x": "ood", "y": "ood"}
N = 200


def answers(levels: tuple[float, ...], seed: int = 0) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(N)
    return np.array([order < round(level * N) for level in levels])


CORRECT = {
    "id": answers((0.5, 0.6, 0.8, 0.9, 0.85), 1),
    "x": answers((0.4, 0.55, 0.5, 0.45, 0.3), 2),
    "y": answers((0.2, 0.3, 0.4, 0.5, 0.6), 3),
}


def judged_path(correct: dict[str, np.ndarray] = CORRECT, alphas: tuple[float, ...] = GRID, **more: int) -> AlongPath:
    return along_path("p", alphas, correct, ROLES, {"y": "far"}, **more)


PATH = judged_path()


def reference(pair: str, rate: float, distance: float = 10.0, setting: str = "") -> Reference:
    """A pair that a low learning rate lets gain in the middle, and a high one lets lose everywhere."""
    a = np.array(GRID)
    ood = 0.4 + (0.1 - rate) * 4 * a * (1 - a) - rate * a
    return Reference(
        pair, GRID, {"ood": ood}, 0.5 + 0.3 * a,
        {"log_learning_rate": math.log(rate), "log_distance": math.log(distance)}, setting or pair, "",
        {"ood": frozenset(("x",))},
    )  # fmt: skip


RATES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
OTHERS = [reference(f"r{i}", rate, 10 + i) for i, rate in enumerate(RATES)]


def advise(rate: float = 0.02, distance: float = 12.0, others: list[Reference] = OTHERS, path: AlongPath = PATH):
    judged = dataclasses.replace(reference("p", rate, distance), ood={})
    return advice_table(path, Known(judged=judged, references=others))


def rule(table: pd.DataFrame, name: str, group: str = "ood") -> pd.Series:
    return table.set_index(["rule", "group"]).loc[(name, group)]


def test_baselines_oracle_and_regret_by_hand() -> None:
    table = advice_table(PATH)
    assert tuple(table.columns) == COLUMNS["advice"] and not table.duplicated(list(KEYS["advice"])).any()
    assert all(r in ADVICE[s] for s, r in zip(table["situation"], table["rule"], strict=True))
    assert set(ADVICE) == {*SITUATIONS, BASELINE} and set(ADVICE[BASELINE]) == {*FIXED_ALPHAS, "id_best", "oracle"}
    for name, alpha, regret in (
        ("zeroshot", 0, 0.15),
        ("half", 0.5, 0.05),
        ("finetuned", 1, 0.25),
        ("oracle", 0.25, 0),
    ):
        assert (rule(table, name)["alpha"], rule(table, name)["regret"]) == (alpha, pytest.approx(regret))
    assert rule(table, "id_best")["alpha"] == 0.75 and rule(table, "oracle", "far")["regret"] == 0
    half = rule(table, "half")
    assert "regret 95% interval [" in half["note"] and 0 <= half["regret_low"] < half["regret_high"]
    assert "ID test sets (id) serve as validation" in rule(table, "id_best")["note"]


def test_every_group_gets_the_best_for_ood_for_both_and_with_id_kept() -> None:
    table = advice_table(PATH, keep_id=0.94)
    assert list(table["situation"].unique()) == ["measured", BASELINE], "the strongest first"
    alphas = {(r, g): rule(table, r, g)["alpha"] for r in ADVICE["measured"] for g in ("ood", "far")}
    assert alphas == {
        ("ood_best", "ood"): 0.25, ("mean_best", "ood"): 0.75, ("keep_id", "ood"): 0.75,
        ("ood_best", "far"): 1.0, ("mean_best", "far"): 1.0, ("keep_id", "far"): 1.0,
    }  # fmt: skip
    best = rule(table, "ood_best")
    assert np.isnan(best["regret"]) and best["regret_low"] == 0 <= best["regret_high"], "0 by definition"
    assert (best["best_baseline"], best["baseline_regret"]) == ("half", pytest.approx(0.05))
    assert best["id_accuracy"] == 0.6 and best["predicted_gain"] == pytest.approx(0.15)
    assert best["ci_low"] < best["predicted_gain"] < best["ci_high"]
    kept = rule(advice_table(PATH, keep_id=1.0), "keep_id")
    assert kept["alpha"] == 0.75 and "at least 90.0 %" in kept["note"]


def test_the_interval_of_a_measured_gain_allows_for_the_choice_of_alpha() -> None:
    """Ten equal points: the best looks better than it is, and its interval still holds the truth, which is 0."""
    rng, missed, naive = np.random.default_rng(0), 0, 0
    alphas = tuple(np.linspace(0, 1, 11))
    for seed in range(120):
        hits = rng.random((11, 150)) < 0.5
        (row,) = measured_rows(along_path("p", alphas, {"x": hits}, {"x": "ood"}, bootstrap=120, seed=seed))
        missed += not row["ci_low"] <= 0 <= row["ci_high"]
        se = np.sqrt(2 * 0.25 / 150)
        naive += row["ood_accuracy"] - hits[0].mean() - 1.96 * se > 0
    assert missed <= 12, "nominal 6 of 120"
    assert naive > 15, "without the allowance it would be wrong much more often"


# ----------------------------------------------------------------------------------------------------------- references
def test_the_references_decide_by_learning_rate_where_the_pair_is_like_them() -> None:
    low, high = advise(0.02), advise(0.15, 14.0)
    assert 0 < rule(low, "predicted")["alpha"] < 1 and rule(low, "predicted")["predicted_gain"] > 0
    assert rule(high, "predicted")["alpha"] == 0 and rule(high, "predicted")["predicted_gain"] == 0
    for table in (low, high):
        ours = table[table["situation"] == "references"]
        assert set(ours["rule"]) == set(ADVICE["references"]) and ours["advised"].sum() == 1
        assert "6 reference pairs of 6 settings decide, by their OOD labels" in ours["note"].iloc[0]
        assert (ours["expected_regret"] >= 0).all() and (ours["baseline_regret"] >= 0).all()


@pytest.mark.parametrize(
    ("rate", "distance", "words"),
    [
        (0.5, 12.0, "the learning rate is 0.5, and theirs are 0.01 to 0.32"),
        (0.02, 99.0, "the distance between the ends is 99, and theirs are 10 to 15"),
        (0.01, 15.0, "combination of features"),
        (0.001, 99.0, "the learning rate is 0.001"),
    ],
)
def test_a_pair_outside_its_references_gets_no_alpha_and_is_told_why(rate: float, distance: float, words: str) -> None:
    table = advise(rate, distance)
    ours = table[table["situation"] == "references"]
    assert ours["alpha"].isna().all() and not ours["advised"].any() and (ours["status"] == "undefined").all()
    assert ours["note"].str.contains(words).all() and ours["note"].str.startswith("no alpha: ").all()


def test_inside_is_a_matter_of_shape_not_of_scale_or_order() -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(size=(9, 3))
    assert all(inside(row, known) for row in known) and inside(known.mean(axis=0), known)
    matrix, shift = np.diag([3.0, 0.1, 50.0]), np.array([5.0, -2.0, 0.0])
    for point in rng.normal(size=(40, 3)) * 1.2:
        assert (
            inside(point, known) == inside(point @ matrix + shift, known @ matrix + shift) == inside(point, known[::-1])
        )
    assert not inside(known.max(axis=0) + 0.1, known)
    square = np.array([[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]])
    assert inside(np.array([0.9, 0.0]), square) and not inside(np.array([1.2, 0.0]), square), "out of one range"
    assert not inside(np.array([math.nan, 0, 0]), known)


def test_too_few_references_are_counted_in_plain_words() -> None:
    table = advise(others=[OTHERS[0]])
    assert rule(table, "predicted")["note"].startswith(
        "no alpha: 1 reference pair of 1 setting with OOD labels; advice"
    )
    assert "measured" in set(table["situation"]), "the measured labels stand"
    seeds = [dataclasses.replace(OTHERS[0], pair=f"s{i}") for i in range(9)]
    assert "9 reference pairs of 1 setting " in rule(advise(others=seeds), "predicted")["note"]


def test_no_ood_label_of_the_judged_pair_reaches_the_references_advice() -> None:
    swapped = judged_path({**CORRECT, "x": answers((0.9, 0.1, 0.1, 0.1, 0.9), 3)})
    own = dataclasses.replace(reference("p", 0.02), ood={"ood": np.array([0.1, 0.9, 0.9, 0.9, 0.1])})
    one, two = advise(), advise(path=swapped, others=[*OTHERS, own])
    for name in ADVICE["references"]:
        for column in ("alpha", "predicted_gain", "ci_low", "ci_high", "expected_regret", "advised"):
            assert rule(one, name)[column] == rule(two, name)[column] or np.isnan(rule(one, name)[column]), column
    assert rule(one, "predicted")["regret"] != rule(two, "predicted")["regret"]


def test_leaving_a_setting_out_leaves_all_its_seeds_out() -> None:
    odd = dataclasses.replace(OTHERS[2], ood={"ood": np.array([0.1, 0.1, 0.1, 0.1, 0.9])}, setting="odd")
    twin = dataclasses.replace(odd, pair="twin")
    grid, names = list(GRID), ["log_learning_rate"]
    one = leave_one_setting_out([*OTHERS[:2], *OTHERS[3:], odd], grid, "ood", names).by_setting
    two = leave_one_setting_out([*OTHERS[:2], *OTHERS[3:], odd, twin], grid, "ood", names).by_setting
    assert one["predicted"]["odd"] == pytest.approx(two["predicted"]["odd"])
    assert min(v for by in two.values() for v in by.values()) >= 0
    assert two["best_fixed"]["odd"] > 0.5, "what the other settings advise is wrong for the odd one"
    assert "r0" not in two["predicted"], "the lowest learning rate lies outside the others"
    assert "r0" in leave_one_setting_out(OTHERS, grid, "ood", names, check=False).by_setting["predicted"]


# ----------------------------------------------------------------------------------------------------------------- none
def test_without_knowledge_no_alpha_is_advised_and_the_published_paths_are_told_of() -> None:
    blind = along_path("p", GRID, {}, {})
    table = advice_table(blind)
    row = rule(table, "published", "")
    assert np.isnan(row["alpha"]) and not table["advised"].any() and "learning rate is not known" in row["note"]
    outside = advice_table(blind, Known(judged=reference("p", 0.5), references=OTHERS))
    assert rule(outside, "published", "")["note"] == row["note"], "references that refuse leave nothing known"


@pytest.mark.parametrize(
    ("tuning", "warned"),
    [
        (Tuning(1e-3, False), "0.001, and published paths of 0.0003 and more fail"),
        (Tuning(1e-4, False), "no published path between 3e-05 and 0.0003"),
        (Tuning(1e-5, False), ""),
        (Tuning(0.3, True), ""),
        (
            Tuning(1e-3),
            "tuned with learning rate 0.001, and published paths of 0.0003 and more fail at alpha 0.5 (unless",
        ),
    ],
    ids=str,
)
def test_a_high_learning_rate_of_an_end_to_end_tuning_is_warned_of(tuning: Tuning, warned: str) -> None:
    note = rule(advice_table(along_path("p", GRID, {}, {}), Known(tuning)), "published", "")["note"]
    assert ("WARNING" in note) == bool(warned) and warned in note


def test_the_published_facts_come_from_the_file() -> None:
    facts = published_facts()
    assert facts.paths == 28 and (facts.calm.paths, facts.failing.paths, facts.head_only.paths) == (16, 3, 9)
    assert facts.calm.lr_high == 3e-5 and facts.failing.lr_low == 3e-4 and facts.head_only.lr_high == 0.3
    assert facts.calm.most == pytest.approx(0.014, abs=5e-4) and facts.head_only.most == pytest.approx(0.007, abs=5e-4)
    assert (facts.failing.least, facts.failing.most) == (pytest.approx(0.22, abs=0.01), pytest.approx(0.59, abs=0.01))


# ------------------------------------------------------------------------------------------------------------ the edges
def test_an_alpha_off_the_grid_is_interpolated_or_undefined_and_says_so() -> None:
    coarse = judged_path({k: v[[0, 1, 4]] for k, v in CORRECT.items()}, (0.0, 0.25, 1.0))
    half = rule(advice_table(coarse), "half")
    assert half["ood_accuracy"] == pytest.approx(0.55 - 0.25 / 3) and "interpolated" in half["note"]
    short = advice_table(judged_path({k: v[[1, 2]] for k, v in CORRECT.items()}, (0.25, 0.5)))
    assert rule(short, "finetuned")["status"] == "undefined" and np.isnan(rule(short, "finetuned")["regret"])
    assert "no alpha 0" in rule(short, "ood_best")["note"] and np.isnan(rule(short, "ood_best")["predicted_gain"])


def test_no_id_set_leaves_id_rules_undefined() -> None:
    table = advice_table(judged_path({"x": CORRECT["x"]}))
    assert np.isnan(rule(table, "id_best")["alpha"]) and rule(table, "id_best")["note"] == "no ID set was given"
    assert set(table.loc[table["situation"] == "measured", "rule"]) == {"ood_best"}


def test_layers_are_held_back_only_on_the_evidence_of_other_pairs() -> None:
    def repairs(gain: float, spread: float, n: int) -> pd.DataFrame:
        values = gain + spread * np.linspace(-1, 1, n)
        rows = {"pair": [f"r{i}" for i in range(n)], "target": "delta", "select": "random", "density": 0.5}
        rows |= {"alpha": 0.5, "status": "ok", "group": "ood"}
        sides = [pd.DataFrame(rows | {"control": c, "gain": g}) for c, g in (("none", values), ("random_layers", 0.0))]
        return pd.concat(sides)

    def advised(table: pd.DataFrame) -> pd.Series:
        judged = reference("p", 0.02, 12)
        known = Known(judged=judged, references=OTHERS, stragglers=("a", "b"), repairs=table)
        found = advice_table(PATH, known)
        return found[(found["situation"] == "references") & found["advised"]].iloc[0]

    sure = advised(repairs(0.05, 0.01, 6))
    assert (sure["layers"], sure["density"]) == ("a+b", 0.5) and "over 6 settings of other pairs" in sure["note"]
    for table in (
        repairs(0.05, 0.2, 6),
        repairs(0.05, 0.01, 3),
        repairs(-0.05, 0.01, 6),
        repairs(0.05, 0.01, 6).assign(pair="p"),
        repairs(0.05, 0.01, 6).assign(group="far"),
    ):
        row = advised(table)
        assert row["layers"] == "" and np.isnan(row["density"]) and "cannot show" in row["note"]


def test_same_seed_same_bits() -> None:
    one, two = (advise(path=judged_path(seed=5)) for _ in range(2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


# ----------------------------------------------------------------------------------------------- references from tables
def tables(sharpness_of, accuracy_of):
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
    return sharp, acc, path


def test_reference_table_from_the_tables_of_a_run(sharpness_of, accuracy_of) -> None:
    table = reference_table(*tables(sharpness_of, accuracy_of)).set_index(["pair", "measure", "alpha"])
    row = table.loc[("a", "ggn_trace", 1.0)]
    assert tuple(table.reset_index().columns) and set(REFERENCE) == {*table.columns, "pair", "measure", "alpha"}
    assert row["log_ratio"] == pytest.approx(math.log(4)) and row["distance"] == 3.0
    assert row["ood_gain"] == pytest.approx(-0.1) and row["id_accuracy"] == 0.9 and row["sharpness"] == 4.0
    assert np.isnan(table.loc[("a", "hessian_trace", 0.5), "log_ratio"])


def test_reference_pairs_from_the_tables_of_a_run(sharpness_of, accuracy_of) -> None:
    sharp, acc, path = tables(sharpness_of, accuracy_of)
    told = Design(("b", "a"), ("", ""), ("", "one"), {"learning_rate": np.array([np.nan, 0.1])})
    a, b = reference_pairs(acc, path, sharp, told)
    assert a.feature("log_ratio:ggn_trace", 1.0) == pytest.approx(math.log(4)) and a.setting == "one"
    assert a.feature("log_distance", 0.5) == pytest.approx(math.log(3)) and np.isnan(b.feature("log_distance", 0.5))
    assert a.feature("log_learning_rate", 0.5) == pytest.approx(math.log(0.1)) and b.setting == "b"
    (group,) = a.ood
    assert a.gain(group, 0.5) == pytest.approx(0.1) and a.gain(group, 0.75) == pytest.approx(0.0)
    (named,) = reference_pairs(acc[acc["pair"] == "a"], path, None, told, dict.fromkeys(acc["dataset"], "mine"))
    assert set(named.ood) == {"mine"}


def test_a_prediction_needs_four_settings() -> None:
    with pytest.raises(ConfigError, match="references of 3 settings"):
        predict_gain(np.zeros((3, 2)), np.zeros(3), np.zeros(2))
    with pytest.raises(ConfigError, match="references of 2 settings"):
        predict_gain(np.zeros((8, 2)), np.zeros(8), np.zeros(2), list("aaaabbbb"))


def test_the_distance_of_a_pair_is_the_same_wherever_it_is_asked_for(sharpness_of, accuracy_of) -> None:
    """Beyond an end the two distances add up to more than the distance between the ends."""
    sharp, acc, path = tables(sharpness_of, accuracy_of)
    beyond = pd.DataFrame({"pair": "a", "alpha": [-1.0, 0.0, 0.5, 2.0], "distance_0": [3.0, 0, 1.5, 6],
                           "distance_1": [6.0, 3, 1.5, 3]})  # fmt: skip
    for rows in (path[path["pair"] == "a"], beyond, beyond.iloc[::-1], beyond.iloc[1:]):
        assert end_distance(rows) == 3.0
        assert reference_table(sharp, acc, rows).query("pair == 'a'")["distance"].unique() == 3.0
        assert reference_pairs(acc, rows)[0].feature("log_distance", 1.0) == pytest.approx(math.log(3))
    assert math.isnan(end_distance(beyond.iloc[:0]))
