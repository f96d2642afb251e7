"""What interpolation costs in loss, as measures of the correlations: closed forms, and SciPy across pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sharpscope.findings.correlation import pair_correlations
from sharpscope.findings.pathcosts import path_costs
from sharpscope.tables.rows import table
from sharpscope.tables.schema import COLUMNS, KEYS

ALPHAS = (0.0, 0.5, 1.0)
COSTS = ("instability", "barrier", "rewind")


def path_of(pair: str, losses: list[float], alphas: tuple[float, ...] = ALPHAS) -> pd.DataFrame:
    return table("path", [{"pair": pair, "alpha": a, "loss": v} for a, v in zip(alphas, losses, strict=True)])


def stragglers_of(pair: str, scores: dict[str, list[float]], base: str = "finetuned") -> pd.DataFrame:
    rows = [
        {"pair": pair, "layer": f"l{i}", "criterion": c, "base": base, "score": v, "chosen": False}
        for c, values in scores.items()
        for i, v in enumerate(values)
    ]
    return table("stragglers", rows)


def test_the_whole_path_in_closed_form() -> None:
    """Ends 2 and 1, 3 in the middle: LII 3 - 1.5, barrier 3 - 1.5, rewind 2 - 1; a convex path has no barrier."""
    bump = path_costs(path_of("p", [2.0, 3.0, 1.0])).set_index("measure")["value"]
    assert bump.to_dict() == {"instability": 1.5, "barrier": 1.5, "rewind": 1.0}
    convex = path_costs(path_of("p", [2.0, 1.2, 1.0])).set_index("measure")["value"]
    assert convex["barrier"] == 0 and convex["instability"] == 0.5 and convex["rewind"] == 1.0


@pytest.mark.parametrize(
    ("losses", "alphas"), [([2.0, np.nan, 1.0], ALPHAS), ([2.0, 1.0], (0.0, 0.5)), ([2.0, 1.0], (0.5, 1.0))]
)
def test_a_path_without_its_ends_or_with_a_hole_has_no_cost(losses: list[float], alphas: tuple[float, ...]) -> None:
    assert path_costs(path_of("p", losses, alphas))["value"].isna().all()


def test_layers_have_the_scores_of_the_first_base() -> None:
    here, there = {"rewind": [1.0, 2.0], "criticality": [5.0, 5.0]}, {"rewind": [7.0, 7.0]}
    scores = pd.concat([stragglers_of("p", here), stragglers_of("p", there, "zeroshot")], ignore_index=True)
    costs = path_costs(path_of("p", [2.0, 3.0, 1.0]), scores)
    layers = costs[costs["layer"] != "(all)"]
    assert layers.to_numpy().tolist() == [["p", "l0", "rewind", 1.0], ["p", "l1", "rewind", 2.0]]


@pytest.mark.parametrize("measured", [True, False])
def test_across_pairs_the_numbers_are_scipys(measured: bool, sharpness_of, accuracy_of) -> None:
    """With sharpness beside them or without any: costs need no curvature."""
    rng = np.random.default_rng(3)
    middle, ood, one = rng.random(7), rng.random(7), rng.random((7, 2))
    pairs = [f"p{i}" for i in range(7)]
    path = pd.concat([path_of(p, [1.0, 2 + m, 1.0]) for p, m in zip(pairs, middle, strict=True)], ignore_index=True)
    scores = pd.concat(
        [stragglers_of(p, {"rewind": list(v)}) for p, v in zip(pairs, one, strict=True)], ignore_index=True
    )
    accuracy = pd.concat([accuracy_of(p, ALPHAS, [0.4, v, v]) for p, v in zip(pairs, ood, strict=True)])
    sharp = pd.concat([sharpness_of(p, ALPHAS, {"l0": [1.0, 2.0, 3.0]}) for p in pairs], ignore_index=True)
    sharp = sharp if measured else sharp.iloc[:0]
    more = {"source": "run", "bootstrap": 60}
    found = pair_correlations(sharp, accuracy, **more, costs=path_costs(path, scores))
    assert tuple(found.columns) == COLUMNS["correlations"] and not found.duplicated(list(KEYS["correlations"])).any()
    at = found[(found["alpha"] == 0.5) & (found["against"] == "ood_gain")].set_index(["measure", "layer", "method"])
    for name in ("instability", "barrier"):
        assert at.loc[(name, "(all)", "pearson"), "estimate"] == pytest.approx(stats.pearsonr(middle, ood).statistic)
    for i in (0, 1):
        rho = stats.spearmanr(one[:, i], ood).statistic
        assert at.loc[("rewind", f"l{i}", "spearman"), "estimate"] == pytest.approx(rho)
    assert at.loc[("rewind", "(all)", "spearman"), "note"] == "the measure is constant"  # all ends have the loss 1
    assert set(at.loc["rewind"].index.get_level_values("layer")) == {"(all)", "(best)", "l0", "l1"}
    if measured:  # what was there before is there unchanged
        plain = pair_correlations(sharp, accuracy, **more)
        rest = found[~found["measure"].isin(COSTS)].reset_index(drop=True)
        keys = ["measure", "layer", "method", "alpha", "against"]
        pd.testing.assert_frame_equal(
            rest.sort_values(keys, ignore_index=True)[[*keys, "estimate", "n", "status"]],
            plain.sort_values(keys, ignore_index=True)[[*keys, "estimate", "n", "status"]],
        )
