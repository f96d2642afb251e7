"""The points behind a partial correlation: they correlate as the table says, and every missing one has its reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sharpscope.findings.design import Design, independent
from sharpscope.findings.partial import partial_correlation
from sharpscope.findings.residuals import residual_rows, residuals
from sharpscope.study.designs import shipped_design
from sharpscope.study.known import shipped_table
from sharpscope.study.population import Population
from sharpscope.tables.rows import one_a_unit, primary_of_the_whole, stacked
from sharpscope.vocabulary import ALL

HEAD = {"group": "ood", "measure": "hessian_trace", "alpha": 0.5, "source": "run"}


def compared(pairs: tuple[str, ...] | None = None, design: Design | None = None, source: str = "run") -> Population:
    """The embedded world's pairs, or some of them."""
    tables = [shipped_table(name) for name in ("sharpness", "accuracy", "path")]
    tables[0] = tables[0][(tables[0]["layer"] == ALL) & (tables[0]["measure"] == "hessian_trace")]
    if pairs is not None:
        tables = [table[table["pair"].isin(pairs)] for table in tables]
    return Population(source, *tables, design or shipped_design(), ("hessian_trace", 0.5), alphas=(0.5,))


def test_residuals_correlate_to_the_estimate_of_the_table() -> None:
    world = compared()
    correlations = world.correlations(seed=0, bootstrap=20, level=0.95)
    table, primary = world.residuals(correlations), primary_of_the_whole(correlations).set_index("group")
    assert set(table["group"]) == set(primary.index) == {"styles", "natural"}
    for group, own in table.groupby("group"):
        units = one_a_unit(own)
        told = primary.loc[group]
        assert len(units) == told["n_effective"] == 8 < told["n"] == len(own) == 10
        assert set(own["given"]) == {told["given"]} and set(own["status"]) == {"ok"}
        found = np.corrcoef(units["residual_sharpness"].astype(float), units["residual_gain"].astype(float))[0, 1]
        assert found == pytest.approx(told["estimate"], abs=1e-9)
        assert np.allclose(units[["residual_sharpness", "residual_gain"]].astype(float).std(ddof=0), 1.0)
        seeds = own.groupby("setting")[["residual_sharpness", "residual_gain"]].nunique()
        assert (seeds == 1).all(axis=None), "pairs of one setting are one point"
    again = stacked("residuals", [table]).set_index(["pair", "group"])["ood_gain"]
    accuracy = shipped_table("accuracy").query("variant == 'dense' and role == 'ood_mean' and pair == 'short'")
    mean = accuracy[accuracy["group"] == "styles"].set_index("alpha")["estimate"]
    assert again["short", "styles"] == pytest.approx(mean[0.5] - mean[0.0])


def test_two_pairs_have_points_and_no_residuals() -> None:
    few = compared(("success", "failure"))
    table = few.residuals(few.correlations(seed=0, bootstrap=20, level=0.95))
    assert len(table) == 4 and set(table["status"]) == {"undefined"}
    assert set(table["note"]) == {"only 2 pairs; at least 8 are needed"}
    assert table[["sharpness", "ood_gain", "learning_rate"]].notna().all(axis=None)
    assert table[["residual_sharpness", "residual_gain"]].isna().all(axis=None)


@pytest.fixture
def made() -> tuple[Design, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    covariates = {"learning_rate": rng.random(24), "distance": rng.random(24)}
    design = Design(
        tuple(f"p{i}" for i in range(24)), tuple("ab"[i % 2] for i in range(24)),
        tuple(f"s{i // 4}{i % 2}" for i in range(24)), {"learning_rate": covariates["learning_rate"]},
    )  # fmt: skip
    return design, rng.normal(size=24), rng.normal(size=24), covariates


def test_a_pair_without_a_number_has_no_point_and_says_which(
    made: tuple[Design, np.ndarray, np.ndarray, dict[str, np.ndarray]],
) -> None:
    design, x, y, covariates = made
    x[3], y[7], covariates["distance"][9] = np.nan, np.nan, np.nan
    table = pd.DataFrame(residual_rows(x, y, design, covariates, HEAD)).set_index("pair")
    lost = table[table["status"] != "ok"]
    assert dict(lost["note"]) == {"p3": "without sharpness", "p7": "without gain", "p9": "without distance"}
    assert lost[["residual_sharpness", "residual_gain"]].isna().all(axis=None)
    keys = design.keys(9, np.random.default_rng(0))
    direct = partial_correlation(x[None], y, design, covariates, keys=keys, rng=np.random.default_rng(0))
    units = one_a_unit(table[table["status"] == "ok"].reset_index())
    assert len(units) == direct.n_effective[0]
    assert np.corrcoef(units["residual_sharpness"], units["residual_gain"])[0, 1] == pytest.approx(direct.estimate[0])


def test_residuals_do_not_change_with_a_monotone_map_or_the_order_of_pairs(
    made: tuple[Design, np.ndarray, np.ndarray, dict[str, np.ndarray]],
) -> None:
    design, x, y, covariates = made
    plain = pd.DataFrame(residual_rows(x, y, design, covariates, HEAD)).set_index("pair")
    order = np.random.default_rng(1).permutation(24)
    other = design.reindexed([design.pairs[i] for i in order])
    turned = {name: np.exp(3 * z[order]) for name, z in covariates.items()}
    moved = pd.DataFrame(residual_rows(x[order] ** 3, np.exp(y[order]), other, turned, HEAD)).set_index("pair")
    columns = ["residual_sharpness", "residual_gain"]
    np.testing.assert_allclose(moved.loc[plain.index, columns], plain[columns], atol=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "covariates", "why"),
    [
        (np.arange(9.0), np.zeros(9), {"learning_rate": np.arange(9.0) % 4}, "the outcome is constant"),
        (np.arange(9.0), np.arange(9.0) % 5, {}, "no covariate is known of any pair"),
        (np.arange(9.0), np.arange(9.0) % 5, {"steps": np.ones(9)}, "every covariate is constant"),
        (np.arange(9.0), np.arange(9.0), {"steps": np.arange(9.0)}, "steps determines the outcome"),
        (np.arange(7.0), np.arange(7.0), {"steps": np.arange(7.0)}, "only 7 pairs; at least 8 are needed"),
        (np.arange(1.0), np.arange(1.0), {"steps": np.arange(1.0)}, "only 1 pair; at least 8 are needed"),
    ],
)  # fmt: skip
def test_without_residuals_there_is_a_reason(
    x: np.ndarray, y: np.ndarray, covariates: dict[str, np.ndarray], why: str
) -> None:
    found = residuals(x[None], y, independent([f"p{i}" for i in range(len(y))]), covariates)
    assert found.why == why and np.isnan(found.x).all() and np.isnan(found.y).all()


@pytest.mark.parametrize(("x", "why"), [(np.ones(12), "the measure is constant"),
                                        (np.arange(12.0) % 5, "the covariates determine the measure")])  # fmt: skip
def test_a_measure_of_which_nothing_is_left_says_why(x: np.ndarray, why: str) -> None:
    rates, gain = {"learning_rate": np.arange(12.0) % 5}, np.arange(12.0) ** 2 % 7
    rows = residual_rows(x, gain, independent([f"p{i}" for i in range(12)]), rates, HEAD)
    assert {row["note"] for row in rows} == {why}
