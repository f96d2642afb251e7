"""Verdicts on sharpness and OOD gain across pairs, from made correlations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sharpscope.findings.relation import relation_rows
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import CANNOT, CLAIMS, CONTRASTS, DOES_NOT_HOLD, HOLDS

ROW: dict[str, Any] = {
    "pair": "(pairs)", "layer": "(all)", "measure": "hessian_trace", "against": "ood_gain", "dataset": "a+b",
    "group": "styles", "scope": "pairs", "alpha": 0.5, "method": "spearman", "given": "learning_rate+distance",
    "n": 20, "n_effective": 20, "family": "primary", "source": "run", "status": "ok", "note": "",
}  # fmt: skip


def row(rho: float, low: float, high: float, p: float, **more: Any) -> dict[str, Any]:
    return ROW | {"estimate": rho, "ci_low": low, "ci_high": high, "p_value": p, "q_value": p} | more


def judged(*rows: dict[str, Any], **options: Any) -> pd.DataFrame:
    table = pd.DataFrame(list(rows), columns=list(COLUMNS["correlations"]))
    found = relation_rows(table, "styles", "hessian_trace", 0.5, permutations=500, **options)
    return pd.DataFrame(found).set_index("claim")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("numbers", "effective", "verdict"),
    [
        ((0.8, 0.4, 0.95, 0.001), 20, HOLDS),
        ((0.1, -0.2, 0.25, 0.6), 20, DOES_NOT_HOLD),
        ((0.4, -0.3, 0.8, 0.2), 20, CANNOT),
        ((0.5, 0.05, 0.8, 0.08), 20, CANNOT),
        ((0.5, -0.02, 0.8, 0.04), 20, CANNOT),
        ((0.1, -0.2, 0.31, 0.6), 20, CANNOT),
        ((0.8, 0.4, 0.95, 0.001), 5, CANNOT),
        ((0.0, -0.1, 0.1, 0.9), 5, CANNOT),
    ],
)
def test_the_whole_model_is_judged_by_its_joint_partial_whatever_its_sign(
    sign: int, numbers: tuple[float, float, float, float], effective: int, verdict: str
) -> None:
    rho, low, high, p = numbers
    low, high = sorted((sign * low, sign * high))
    got = judged(row(sign * rho, low, high, p, n_effective=effective)).loc[CLAIMS["whole"]]
    assert got["verdict"] == verdict and got["n_effective"] == effective and got["group"] == "styles"
    assert f"{sign * rho:+.2f}" in got["evidence"]


def test_a_marginal_correlation_stands_beside_and_never_instead() -> None:
    alone = row(0.9, 0.7, 0.98, 0.001, given="")
    joint = row(0.02, -0.2, 0.2, 0.9)
    got = judged(alone, joint).loc[CLAIMS["whole"]]
    assert got["verdict"] == DOES_NOT_HOLD and "+0.90 [+0.70, +0.98] by itself" in got["evidence"]
    assert "+0.02 [-0.20, +0.20] with learning_rate, distance held fixed" in got["evidence"]
    only = judged(alone).loc[CLAIMS["whole"]]
    assert only["verdict"] == CANNOT and np.isnan(only["estimate"])


def test_the_row_with_the_most_covariates_is_the_evidence() -> None:
    rows = [row(0.9, 0.7, 0.98, 0.001, given="distance"), row(0.02, -0.2, 0.2, 0.9)]
    assert judged(*rows).loc[CLAIMS["whole"], "estimate"] == 0.02


def test_without_learning_rates_nothing_can_be_told() -> None:
    strong = row(0.8, 0.4, 0.95, 0.001, given="distance")
    assert judged(strong).loc[CLAIMS["whole"], "verdict"] == HOLDS
    got = judged(strong, unknown={"run": ("no learning rate is known",)}).loc[CLAIMS["whole"]]
    assert got["verdict"] == CANNOT
    assert got["evidence"].endswith("Nothing is concluded, because no learning rate is known.")
    assert judged(strong, unknown={"shipped": ("no learning rate is known",)})["verdict"].iloc[0] == HOLDS


@pytest.mark.parametrize("numbers", [(0.8, 0.4, 0.95, 0.001), (0.0, -0.09, 0.09, 0.9)])
@pytest.mark.parametrize("claim", ["whole", *CONTRASTS])
def test_nothing_is_concluded_while_a_covariate_of_the_claim_is_left_out_or_nobody_named_the_row(
    claim: str, numbers: tuple[float, float, float, float]
) -> None:
    def verdict(**more: Any) -> pd.Series:
        if claim == "whole":
            return judged(row(*numbers, **more)).loc[CLAIMS[claim]]
        names = CONTRASTS[claim]
        both = [row(*numbers, layer=names.others, **more), row(0.1, np.nan, np.nan, 0.005, layer=names.random)]
        return judged(*both).loc[CLAIMS[claim]]

    assert verdict()["verdict"] != CANNOT and verdict(left_out="steps")["verdict"] != CANNOT
    got = verdict(left_out="id_accuracy+steps")
    assert got["verdict"] == CANNOT and got["estimate"] == numbers[0]
    assert "Nothing is concluded, because id_accuracy could not be held fixed." in got["evidence"]
    got = verdict(family="exploratory")
    assert got["verdict"] == CANNOT and "this comparison was not named before looking" in got["evidence"]


def test_absence_states_its_margin_and_a_weak_relation_is_called_one() -> None:
    absent = judged(row(0.1, -0.2, 0.25, 0.6)).loc[CLAIMS["whole"]]
    weak = judged(row(0.17, 0.09, 0.25, 0.001)).loc[CLAIMS["whole"]]
    assert absent["verdict"] == weak["verdict"] == DOES_NOT_HOLD
    margin = "the whole interval lies between -0.3 and +0.3, which counts as no relation."
    assert f"; {margin}" in absent["evidence"] and "they are related" not in absent["evidence"]
    assert f"; they are related, but only weakly: {margin}" in weak["evidence"]
    names = CONTRASTS["stragglers"]
    both = [row(0.05, 0.02, 0.08, 0.01, layer=names.others), row(0.1, np.nan, np.nan, 0.005, layer=names.random)]
    got = judged(*both).loc[CLAIMS["stragglers"]]
    assert got["verdict"] == DOES_NOT_HOLD
    assert "it is more, but only slightly: the whole interval lies below +0.1" in got["evidence"]


def test_the_mean_over_the_most_sets_counts_whatever_the_order_of_the_rows() -> None:
    rows = [row(0.0, -0.2, 0.2, 0.9, dataset="a+b+c"), row(0.9, 0.7, 0.98, 0.001, family="exploratory")]
    rows += [r | {"given": ""} for r in rows]
    for order in (rows, rows[::-1]):
        got = judged(*order).loc[CLAIMS["whole"]]
        assert (got["verdict"], got["estimate"]) == (DOES_NOT_HOLD, 0.0)
        assert "pairs that lack the mean over a+b+c and have a+b do not count" in got["evidence"]


def test_holm_decides_and_is_said() -> None:
    got = judged(row(0.8, 0.4, 0.95, 0.03) | {"q_value": 0.06}).loc[CLAIMS["whole"]]
    assert got["verdict"] == CANNOT and "0.06 after Holm over groups" in got["evidence"]


def test_the_resolution_of_a_p_value_is_that_of_its_permutations() -> None:
    assert "p < 1/500" in judged(row(0.8, 0.4, 0.95, 1 / 501)).loc[CLAIMS["whole"], "evidence"]


def test_undefined_or_missing_correlations_cannot_tell() -> None:
    undefined = row(np.nan, np.nan, np.nan, np.nan, status="undefined", note="only 2 pairs", n=2, n_effective=2)
    got = judged(undefined)
    assert (got["verdict"] == CANNOT).all()
    whole = got.loc[CLAIMS["whole"], "evidence"]
    assert whole.startswith("The whole model's ") and whole.endswith(
        " could not be correlated with the OOD gain: only 2 pairs."
    )
    assert (judged()["verdict"] == CANNOT).all() and len(judged()) == 1 + len(CONTRASTS)
    assert (judged(row(0.8, 0.4, 0.9, 0.001, group="natural"))["verdict"] == CANNOT).all()


def test_the_larger_source_and_the_nearest_alpha_are_used() -> None:
    rows = [
        row(0.1, -0.9, 0.9, 0.9, n=2, status="undefined"),
        row(0.8, 0.5, 0.9, 0.001, source="shipped", alpha=0.4),
        row(0.0, -0.9, 0.9, 0.9, source="shipped", alpha=1.0),
    ]
    got = judged(*rows).loc[CLAIMS["whole"]]
    assert (got["source"], got["estimate"], got["n"]) == ("shipped", 0.8, 20) and "alpha 0.4" in got["evidence"]


@pytest.mark.parametrize("claim", CONTRASTS)
@pytest.mark.parametrize(
    ("numbers", "random_p", "verdict"),
    [
        ((0.3, 0.1, 0.5, 0.01), 0.01, HOLDS),
        ((0.3, 0.1, 0.5, 0.01), 0.3, CANNOT),
        ((-0.02, -0.2, 0.08, 0.9), 0.9, DOES_NOT_HOLD),
        ((-0.4, -0.6, -0.2, 0.01), 0.01, DOES_NOT_HOLD),
        ((0.2, -0.1, 0.4, 0.2), 0.01, CANNOT),
    ],
)
def test_stragglers_are_judged_against_other_layers_and_random_ones(
    claim: str, numbers: tuple[float, float, float, float], random_p: float, verdict: str
) -> None:
    names = CONTRASTS[claim]
    rows = [row(*numbers, layer=names.others), row(0.1, np.nan, np.nan, random_p, layer=names.random)]
    got = judged(*rows, row(0.99, 0.9, 1.0, 0.001, layer=names.chosen)).loc[CLAIMS[claim]]
    assert got["verdict"] == verdict and got["estimate"] == numbers[0]
    assert f"random sets of as many layers reach it with p = {random_p:g}" in got["evidence"]
    assert judged(rows[0]).loc[CLAIMS[claim], "verdict"] == CANNOT
