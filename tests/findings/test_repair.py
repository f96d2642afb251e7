from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sharpscope.errors import ConfigError
from sharpscope.findings.repair import CONTRASTS, Variant, analyse_repairs
from sharpscope.tables.schema import COLUMNS, KEYS

GRID = (0.0, 0.5, 1.0)
ROLES = {"id": "id", "x": "ood", "y": "ood"}
N = 400


def answers(levels: tuple[float, ...], seed: int = 0, n: int = N) -> np.ndarray:
    """Accuracies ``levels`` exactly, nested, in an order of difficulty given by the seed."""
    order = np.random.default_rng(seed).permutation(n)
    return np.array([order < round(level * n) for level in levels])


PLAIN = {"id": answers((0.5, 0.7, 0.9), 1), "x": answers((0.4, 0.5, 0.3), 2), "y": answers((0.6, 0.7, 0.5), 3)}


def variant(
    name: str,
    ids: float = 0.6,
    ood: float = 0.5,
    control: str = "none",
    alphas: tuple[float, ...] = (0.5,),
    mask: int = 1,
    **key: object,
) -> Variant:
    """A repair whose mask is not random, unless ``select`` says so."""
    k = len(alphas)
    correct = {"id": answers((ids,) * k, 1), "x": answers((ood,) * k, 2), "y": answers((ood + 0.2,) * k, 3)}
    how = {"target": "delta", "select": "magnitude", "density": 0.5, "layers": ("a", "b")} | key
    return Variant(name, kept_fraction=0.51, control=control, alphas=alphas, correct=correct, mask=mask, **how)


def masks(
    name: str, oods: tuple[float, ...], control: str = "none", numbers: tuple[int, ...] = (1, 2, 3, 4, 5), **key: object
) -> list[Variant]:
    """One repair with a random mask for every OOD accuracy."""
    return [
        variant(name, ood=ood, control=control, mask=i, **{"select": "random", "layers": (f"l{i}",)} | key)
        for i, ood in zip(numbers, oods, strict=True)
    ]


def test_gain_by_hand() -> None:
    row = analyse_repairs("p", GRID, PLAIN, ROLES, [variant("v", ids=0.6, ood=0.55)]).table.iloc[0]
    assert row["id_accuracy"] == pytest.approx(0.6) and row["ood_accuracy"] == pytest.approx(0.65)
    assert row["plain_alpha"] == pytest.approx(0.25) and row["plain_ood_accuracy"] == pytest.approx(0.55)
    assert row["gain"] == pytest.approx(0.1)
    assert row["ci_low"] < 0.1 < row["ci_high"] and row["ci_low"] > 0
    assert (row["layers"], row["kept_fraction"], row["control"], row["status"]) == ("a+b", 0.51, "none", "ok")


def test_a_variant_equal_to_a_point_of_the_path_gains_exactly_nothing() -> None:
    same = {name: values[[1]] for name, values in PLAIN.items()}
    v = Variant("v", ("a",), "delta", "random", 1.0, 1.0, "none", (0.5,), same)  # density 1: nothing is drawn
    row = analyse_repairs("p", GRID, PLAIN, ROLES, [v]).table.iloc[0]
    assert (row["gain"], row["plain_alpha"]) == (0.0, 0.5)
    assert row["ci_low"] == pytest.approx(0, abs=1e-12) and row["ci_high"] == pytest.approx(0, abs=1e-12)


def test_table_has_the_schemas_columns_a_row_a_cell_and_the_same_bits_again() -> None:
    variants = [variant("v", alphas=(0.25, 0.5)), variant("w", control="all_layers", alphas=(0.5,))]
    table = analyse_repairs("p", GRID, PLAIN, ROLES, variants, seed=1).table
    assert tuple(table.columns) == COLUMNS["repair"]
    assert list(zip(table["variant"], table["alpha"], strict=True)) == [("v", 0.25), ("v", 0.5), ("w", 0.5)]
    assert not table.duplicated(list(KEYS["repair"])).any()
    pd.testing.assert_frame_equal(
        table, analyse_repairs("p", GRID, PLAIN, ROLES, variants, seed=1).table, check_exact=True
    )
    other = analyse_repairs("p", GRID, PLAIN, ROLES, variants, seed=2).table
    assert (other["ci_low"] != table["ci_low"]).any()


@pytest.mark.parametrize("ids", [0.3, 0.95])
def test_id_accuracy_that_the_plain_path_never_has_is_undefined(ids: float) -> None:
    row = analyse_repairs("p", GRID, PLAIN, ROLES, [variant("v", ids=ids)]).table.iloc[0]
    assert row["status"] == "undefined" and "never has this ID accuracy (its range: 0.500-0.900)" in row["note"]
    assert row[["gain", "plain_alpha", "ci_low", "ci_high"]].isna().all()
    assert row["id_accuracy"] == pytest.approx(ids)


def test_a_match_at_the_edge_of_the_range_says_how_often_it_falls_outside() -> None:
    harder = {**PLAIN}
    v = variant("v")
    correct = {**v.correct, "id": answers((0.5,), 7)}
    edge = dataclasses.replace(v, correct=correct)
    row = analyse_repairs("p", GRID, harder, ROLES, [edge]).table.iloc[0]
    assert row["status"] == "ok" and "of the replicates the plain path never has this ID accuracy" in row["note"]


def test_the_verdicts_number_is_the_smaller_of_gain_and_difference_of_the_best_sparsity() -> None:
    variants = [
        *masks("s1", (0.54, 0.55, 0.56, 0.55, 0.55)),
        *masks("c1", (0.49, 0.50, 0.51, 0.50, 0.50), "random_layers"),
        *masks("s2", (0.60, 0.60), numbers=(1, 2), density=0.9),
        *masks("c2", (0.58, 0.60), "random_layers", (1, 2), density=0.9),
        variant("all", ood=0.70, control="all_layers"),
        variant("s3", ood=0.80, target="weight"),
    ]
    got = analyse_repairs("p", GRID, PLAIN, ROLES, variants)
    lines = got.contrasts.set_index(["target", "density"])
    assert tuple(got.contrasts.columns) == CONTRASTS
    assert lines.loc[("delta", 0.5), "gain"] == pytest.approx(0.10)
    assert lines.loc[("delta", 0.5), "difference"] == pytest.approx(0.05)
    assert lines.loc[("delta", 0.9), "difference"] == pytest.approx(0.01)
    assert "undefined" in lines.loc[("weight", 0.5), "note"] and lines.loc[("weight", 0.5), "num_alphas"] == 0
    assert got.estimate == pytest.approx(0.05) and got.best == "delta:random:0.5"
    assert got.ci_low < 0.05 < got.ci_high
    assert lines.loc[("delta", 0.5), "num_pairs"] == 5 and lines.loc[("delta", 0.9), "num_pairs"] == 2
    rows = got.table.set_index("variant")
    assert (rows.loc[["s1", "c1", "s2", "c2", "all"], "n_masks"] == [5, 5, 2, 2, 1]).all()
    assert (rows.loc[["s1", "c1", "s2", "c2", "all"], "n_controls"] == [5, 5, 2, 2, 0]).all()
    assert rows.loc["c1", "layers"] == "l1 | l2 | l3 | l4 | l5"


def test_the_interval_of_a_mean_over_masks_is_wider_the_more_they_differ() -> None:
    steady, unsteady = (0.55,) * 5, (0.45, 0.65, 0.5, 0.6, 0.55)
    rows = [analyse_repairs("p", GRID, PLAIN, ROLES, masks("v", oods)).table.iloc[0] for oods in (steady, unsteady)]
    assert [row["gain"] for row in rows] == pytest.approx([0.1, 0.1])
    half = stats.t.ppf(0.975, 4) * stats.sem(unsteady)  # the masks' part alone
    assert rows[1]["ci_low"] < 0.1 - half < rows[0]["ci_low"]
    assert rows[1]["ci_high"] > 0.1 + half > rows[0]["ci_high"]


def test_one_random_mask_has_no_interval_and_a_fixed_one_has() -> None:
    alone = [*masks("s", (0.6,), numbers=(1,)), *masks("c", (0.5,), "random_layers", (1,))]
    got = analyse_repairs("p", GRID, PLAIN, ROLES, alone)
    assert got.estimate == pytest.approx(0.1) and np.isnan([got.ci_low, got.ci_high]).all()
    assert set(got.table["note"]) == {"no interval: one mask"} == set(got.contrasts["note"])
    assert got.table["ci_low"].isna().all()
    fixed = [variant("s", ood=0.6), *masks("c", (0.5, 0.52, 0.48), "random_layers", (1, 2, 3), select="magnitude")]
    got = analyse_repairs("p", GRID, PLAIN, ROLES, fixed)
    assert got.contrasts["num_pairs"].iloc[0] == 3 and 0 < got.ci_low < 0.1 < got.ci_high
    assert got.contrasts["difference"].iloc[0] == pytest.approx(0.1)


def test_masks_have_no_order_and_are_paired_by_number() -> None:
    oods, others = (0.5, 0.6, 0.55, 0.65, 0.45), (0.48, 0.58, 0.53, 0.63, 0.43)
    shuffled = (4, 1, 5, 3, 2)

    def got(*numbers: tuple[int, ...]) -> tuple[float, float, float, float]:
        variants = masks("s", oods, numbers=numbers[0]) + masks("c", others, "random_layers", numbers[1])
        found = analyse_repairs("p", GRID, PLAIN, ROLES, variants)
        line = found.contrasts.iloc[0]
        return line["gain_low"], line["difference"], line["difference_low"], found.ci_low

    first = tuple(range(1, 6))
    assert got(shuffled, shuffled) == pytest.approx(got(first, first))
    paired, unpaired = got(first, first), got(shuffled, first)
    assert paired[1] == pytest.approx(unpaired[1]) and paired[2] > unpaired[2] + 0.02


def test_a_mask_that_cannot_be_matched_is_left_out_and_counted() -> None:
    low = dataclasses.replace(masks("v", (0.6,), numbers=(3,))[0], correct=variant("v", ids=0.2).correct)
    row = analyse_repairs("p", GRID, PLAIN, ROLES, [*masks("v", (0.5, 0.6), numbers=(1, 2)), low]).table.iloc[0]
    assert row["n_masks"] == 2 and row["gain"] == pytest.approx(0.1)
    assert "1 of 3 masks are left out" in row["note"] and np.isfinite(row["ci_low"])


def test_alphas_are_averaged_only_where_both_match() -> None:
    ours = variant("s", ood=0.55, alphas=(0.25, 0.5))
    control = variant("c", ood=0.50, control="random_layers", alphas=(0.25, 0.5))
    control = dataclasses.replace(control, correct={**control.correct, "id": answers((0.6, 0.2), 1)})
    got = analyse_repairs("p", GRID, PLAIN, ROLES, [ours, control])
    assert got.contrasts["num_alphas"].iloc[0] == 1
    assert (got.table["status"] == ["ok", "ok", "ok", "undefined"]).all()


def test_nothing_to_compare_is_an_empty_answer_not_an_error() -> None:
    none = analyse_repairs("p", GRID, PLAIN, ROLES, [])
    assert not len(none.table) and tuple(none.table.columns) == COLUMNS["repair"] and np.isnan(none.estimate)
    only_id = analyse_repairs("p", GRID, {"id": PLAIN["id"]}, {"id": "id"}, [variant("v")])
    assert only_id.table["status"].iloc[0] == "undefined" and "no OOD set" in only_id.table["note"].iloc[0]
    few = analyse_repairs("p", GRID, PLAIN, ROLES, [variant("v")], bootstrap=10).table.iloc[0]
    assert np.isnan(few["ci_low"]) and "replicates are too few for level" in few["note"] and np.isfinite(few["gain"])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="own number"):
        analyse_repairs("p", GRID, PLAIN, ROLES, [variant("v"), variant("v")])
    with pytest.raises(ConfigError, match=r"correct\['id'\] needs shape \[1, 400\], got \(2, 400\)"):
        bad = variant("v", alphas=(0.5, 0.6))
        analyse_repairs("p", GRID, PLAIN, ROLES, [Variant("v", (), "d", "r", 0.5, 0.5, "none", (0.5,), bad.correct)])
    with pytest.raises(ConfigError, match="control 'chance'"):
        analyse_repairs("p", GRID, PLAIN, ROLES, [variant("v", control="chance")])
