from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sharpscope.findings.correlation import PAIRS, pair_correlations
from sharpscope.findings.families import holm
from sharpscope.findings.pathcorrelation import path_correlations
from sharpscope.tables.schema import COLUMNS, KEYS
from sharpscope.vocabulary import CONTRASTS

ALPHAS = (0.0, 0.5, 1.0)


@pytest.fixture
def world(sharpness_of, accuracy_of):
    """n pairs of one zero-shot model; ``values(rng)`` [n, layers] at alpha .5, ``ood(rng, values)`` [n]."""

    def make(n: int, seed: int = 0, layers: int = 3, link: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
        rng = np.random.default_rng(seed)
        values = np.exp(rng.normal(size=(n, layers)))
        ood = 0.4 + 0.02 * (link * np.log(values[:, 0]) + rng.normal(size=n))
        sharp = [
            sharpness_of(f"p{i}", ALPHAS, {f"l{k}": [1.0, values[i, k], 2 * values[i, k]] for k in range(layers)})
            for i in range(n)
        ]
        accuracy = [accuracy_of(f"p{i}", ALPHAS, [0.4, ood[i], ood[i] - 0.1]) for i in range(n)]
        return pd.concat(sharp, ignore_index=True), pd.concat(accuracy, ignore_index=True)

    return make


def covariates(n: int, seed: int = 9, **columns: np.ndarray) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = {"pair": [f"p{i}" for i in range(n)], "alpha": [0.5] * n, "distance": rng.random(n)}
    return pd.DataFrame(rows | columns)


def test_across_pairs_the_numbers_are_scipys(world) -> None:
    sharp, acc = world(9, layers=2)
    table = pair_correlations(sharp, acc, source="run", alphas=(0.5,), bootstrap=99)
    assert tuple(table.columns) == COLUMNS["correlations"]
    assert not table.duplicated(list(KEYS["correlations"])).any()
    assert set(table["pair"]) == {PAIRS} and set(table["dataset"]) == {"x+y"}
    x = sharp[(sharp["layer"] == "l1") & (sharp["alpha"] == 0.5)].set_index("pair")["estimate"]
    y = acc[(acc["role"] == "ood_mean") & (acc["alpha"] == 0.5)].set_index("pair")["estimate"].loc[x.index]
    rows = table[(table["layer"] == "l1") & (table["measure"] == "ggn_trace") & (table["against"] == "ood_accuracy")]
    got = rows.set_index("method")["estimate"]
    assert got["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert got["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert got["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic)
    assert (rows["ci_low"] <= rows["estimate"]).all() and (rows["estimate"] <= rows["ci_high"]).all()


def test_permutation_p_agrees_with_scipys_exact_test(world) -> None:
    sharp, acc = world(7, seed=3, layers=1, link=1.0)
    table = pair_correlations(sharp, acc, source="run", alphas=(0.5,), bootstrap=4000)
    row = table[(table["layer"] == "l0") & (table["method"] == "pearson") & (table["against"] == "ood_gain")].iloc[0]
    x = sharp[(sharp["layer"] == "l0") & (sharp["alpha"] == 0.5)]["estimate"].to_numpy()
    y = acc[(acc["role"] == "ood_mean") & (acc["alpha"] == 0.5)]["estimate"].to_numpy()
    exact = stats.permutation_test(
        (x,), lambda a: abs(np.corrcoef(a, y)[0, 1]), permutation_type="pairings", alternative="greater"
    ).pvalue
    assert row["p_value"] == pytest.approx(exact, abs=0.025)


def test_a_strong_link_is_found_and_p_is_never_zero(world) -> None:
    sharp, acc = world(12, layers=4, link=20.0)
    table = pair_correlations(sharp, acc, source="run", alphas=(0.5,), bootstrap=199)
    rows = table[(table["measure"] == "ggn_trace") & (table["method"] == "spearman")].set_index(["against", "layer"])
    best = rows.loc[("ood_gain", "(best)")]
    assert best["p_value"] == 1 / 200 and "best of 4 layers: l0" in best["note"] and np.isnan(best["ci_low"])
    assert rows.loc[("ood_gain", "l0"), "q_value"] == pytest.approx(4 / 200)
    known = table["p_value"].dropna()
    assert (known >= 1 / 200).all() and (known <= 1).all()
    assert (table["q_value"] >= table["p_value"] - 1e-12)[table["status"] == "ok"].all()


def test_q_is_benjamini_hochberg_over_the_layers_of_one_measure_and_method(world) -> None:
    sharp, acc = world(8, layers=5, link=1.0)
    table = pair_correlations(sharp, acc, covariates(8), source="run", alphas=(0.5,), bootstrap=99)
    layers = table[table["layer"].str.startswith("l")]
    for _, part in layers.groupby(["measure", "method", "against", "given"]):
        assert len(part) == 5
        np.testing.assert_allclose(part["q_value"], stats.false_discovery_control(part["p_value"]))
    alone = table[table["layer"].isin(("(all)", "(best)")) & (table["status"] == "ok")]
    np.testing.assert_array_equal(alone["q_value"], alone["p_value"])


@pytest.mark.parametrize("n", [5, 8])
def test_under_the_null_false_alarms_are_at_most_nominal(world, n: int) -> None:
    """300 measures of pure noise: given the outcomes their p-values are independent draws of the null."""
    runs = 300
    sharp, acc = world(n)
    rng = np.random.default_rng(n)
    tables = [sharp[sharp["alpha"] == 0.5].assign(measure=f"noise{k}") for k in range(runs)]
    noise = pd.concat(tables, ignore_index=True)
    noise["estimate"] = rng.normal(size=len(noise))
    z = covariates(n, distance=rng.normal(size=n))
    table = pair_correlations(noise, acc, z, source="run", alphas=(0.5,), bootstrap=199)
    rows = table[(table["against"] == "ood_gain") & table["measure"].str.startswith("noise")]
    partial = rows[(rows["given"] == "distance") & (rows["layer"] == "l1")]
    rows = rows[rows["given"] == ""].set_index(["layer", "method"]).sort_index()
    limit = 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)
    for method in ("pearson", "spearman", "kendall"):
        for layer in ("(all)", "l1", "(best)"):
            p = rows.loc[(layer, method), "p_value"]
            assert len(p) == runs and (p <= 0.1).mean() <= limit, (layer, method)
            if n == 8 and method == "pearson":  # and not by never raising one
                assert (p <= 0.1).mean() > 0.03, (layer, method)
    if n == 8:
        assert len(partial) == runs and (partial["p_value"] <= 0.1).mean() <= limit
    naive = rows.loc[[("l0", "pearson"), ("l1", "pearson"), ("l2", "pearson")], "p_value"].to_numpy().reshape(3, runs)
    assert (naive.min(axis=0) <= 0.1).mean() > limit  # the best layer's own p would promise too much


def test_intervals_of_moderate_samples_cover(world) -> None:
    """BCa over 30 pairs with true Pearson .6: coverage within a few points of nominal."""
    from sharpscope.findings.rank_correlation import correlate, weighted_correlate
    from sharpscope.findings.resampling import bca_interval
    from sharpscope.scores import resample_counts

    runs, hits = 300, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=30)
        y = 0.6 * x + 0.8 * rng.normal(size=30)
        draws = weighted_correlate(x[None], y, resample_counts(30, 300, rng), "pearson")
        jack = weighted_correlate(x[None], y, 1 - np.eye(30), "pearson")
        low, high = bca_interval(correlate(x[None], y[None], "pearson")[0], draws, jack, 0.9)
        hits += low[0] <= 0.6 <= high[0]
    assert 0.82 <= hits / runs <= 0.96


def test_what_the_covariate_explains_is_taken_away(sharpness_of, accuracy_of) -> None:
    """Distance drives both: sharper models look better until distance is held fixed."""
    rng = np.random.default_rng(0)
    distance = rng.random(40)
    sharp = np.exp(-3 * distance + 0.3 * rng.normal(size=40))
    ood = 0.5 - 0.2 * distance + 0.01 * rng.normal(size=40)
    sharpness = pd.concat([sharpness_of(f"p{i}", (0.5,), {"l0": [v], "l1": [1.0 + v]}) for i, v in enumerate(sharp)])
    accuracy = pd.concat([accuracy_of(f"p{i}", (0.0, 0.5), [0.4, v]) for i, v in enumerate(ood)])
    z = covariates(40, distance=distance)
    table = pair_correlations(sharpness, accuracy, z, source="run", alphas=(0.5,), bootstrap=199)
    rows = table[table["against"] == "ood_gain"].set_index(["measure", "layer", "method", "given"])
    plain, partial = (rows.loc[("ggn_trace", "l0", "spearman", given)] for given in ("", "distance"))
    assert plain["estimate"] > 0.8 and plain["p_value"] == 1 / 200
    assert abs(partial["estimate"]) < 0.4 and partial["ci_low"] < 0 < partial["ci_high"] and partial["p_value"] > 0.05
    assert rows.loc[("covariate:distance", "(all)", "spearman", ""), "estimate"] < -0.9


@pytest.mark.parametrize("n", [2, 3])
def test_fewer_than_four_pairs_are_undefined(world, n: int) -> None:
    sharp, acc = world(n)
    table = pair_correlations(sharp, acc, covariates(n), source="run", alphas=(0.5,), bootstrap=50)
    assert (table["status"] == "undefined").all() and table["estimate"].isna().all() and table["p_value"].isna().all()
    assert table["note"].str.contains(f"only {n} pairs; at least").all() and (table["n"] == n).all()


def test_four_pairs_have_a_correlation_but_no_partial_one(world) -> None:
    sharp, acc = world(4)
    table = pair_correlations(sharp, acc, covariates(4), source="run", alphas=(0.5,), bootstrap=99)
    partial = table["given"] != ""
    assert (table.loc[partial, "status"] == "undefined").all()
    assert table.loc[partial, "note"].str.contains("only 4 pairs; at least 8 are needed").all()
    plain = table[~partial & (table["measure"] == "ggn_trace")]
    assert (plain["status"] == "ok").all()
    assert (
        plain.loc[plain["layer"] != "(best)", "ci_low"].notna() | plain.loc[plain["layer"] != "(best)", "note"].ne("")
    ).all()


def test_constant_columns_are_undefined_with_the_reason(world) -> None:
    sharp, acc = world(8)
    sharp.loc[sharp["layer"] == "l1", "estimate"] = 3.0
    table = pair_correlations(sharp, acc, source="run", alphas=(0.5,), bootstrap=50)
    row = table[(table["layer"] == "l1") & (table["measure"] == "ggn_trace")]
    assert (row["status"] == "undefined").all() and (row["note"] == "the measure is constant").all()
    held = pair_correlations(sharp, acc, covariates(8), source="run", alphas=(0.5,), bootstrap=50)
    held = held[(held["layer"] == "l1") & (held["measure"] == "ggn_trace") & (held["given"] == "distance")]
    assert len(held) == 2 and held["note"].str.contains("the measure is constant").all()
    acc.loc[acc["role"] == "ood_mean", "estimate"] = 0.5
    flat = pair_correlations(sharp, acc, covariates(8), source="run", alphas=(0.5,), bootstrap=50)
    assert (flat["status"] == "undefined").all()
    assert set(flat.loc[flat["against"] == "ood_accuracy", "note"].str.contains("ood_accuracy is constant")) == {True}
    fixed = covariates(8, distance=np.ones(8))
    held = pair_correlations(*world(8), fixed, source="run", alphas=(0.5,), bootstrap=50)
    partial = held[held["given"] == "distance"]
    assert len(partial) and partial["note"].str.contains("every covariate is constant").all()


def test_failed_estimates_and_missing_covariates_cost_points_not_rows(world) -> None:
    sharp, acc = world(11)
    sharp.loc[(sharp["pair"] == "p0") & (sharp["layer"] == "l0"), "status"] = "failed"
    distance = np.random.default_rng(0).random(11)
    distance[:2] = np.nan
    table = pair_correlations(sharp, acc, covariates(11, distance=distance), source="run", alphas=(0.5,), bootstrap=50)
    rows = table[(table["measure"] == "ggn_trace") & (table["against"] == "ood_gain")]
    rows = rows.set_index(["layer", "method", "given"])
    assert rows.loc[("l0", "spearman", ""), "n"] == 10 and rows.loc[("l1", "spearman", ""), "n"] == 11
    for layer, without in (("l0", "1 pair without a covariate is"), ("l1", "2 pairs without a covariate are")):
        held = rows.loc[(layer, "spearman", "distance")]
        assert held["n"] == 9 and f"{without} left out" in held["note"]
    assert rows.loc[("(best)", "spearman", ""), "status"] == "ok"


def test_stragglers_are_added_up_pair_by_pair(world) -> None:
    sharp, acc = world(6)
    sets = {f"p{i}": ("l0",) if i % 2 else ("l1", "l2") for i in range(6)}
    table = pair_correlations(sharp, acc, source="shipped", alphas=(0.5,), bootstrap=50, stragglers=sets)
    at = sharp[sharp["alpha"] == 0.5].set_index(["pair", "layer"])["estimate"]
    x = [sum(at[(p, name)] for name in names) for p, names in sets.items()]
    y = acc[(acc["role"] == "ood_mean") & (acc["alpha"] == 0.5)]["estimate"]
    row = table[(table["layer"] == "(stragglers)") & (table["measure"] == "ggn_trace") & (table["method"] == "pearson")]
    np.testing.assert_allclose(row["estimate"], stats.pearsonr(x, y).statistic)
    share = table[(table["layer"] == "(stragglers)") & (table["measure"] == "share:ggn_trace")]
    others = table[(table["layer"] == "(others)") & (table["measure"] == "share:ggn_trace")]
    np.testing.assert_allclose(share["estimate"].to_numpy(), -others["estimate"].to_numpy(), atol=1e-12)
    assert set(table["source"]) == {"shipped"}
    none = pair_correlations(sharp, acc, source="run", alphas=(0.5,), bootstrap=50, stragglers={"p0": ("l0",)})
    assert (none.loc[none["layer"] == "(stragglers)", "status"] == "undefined").all()


def test_contrasts_of_layers_are_rows_at_the_primary_alpha_and_holm_is_over_groups(world) -> None:
    sharp, acc = world(16, link=1.0)
    more = acc[acc["role"] != "id"].assign(group="far", dataset=lambda t: t["dataset"] + "-far")
    acc = pd.concat([acc.assign(group=np.where(acc["role"] == "id", "", "near")), more], ignore_index=True)
    chosen = {f"p{i}": ("l0",) for i in range(16)}
    told = covariates(16).assign(learning_rate=np.random.default_rng(1).random(16))
    both = pd.concat([told, told.assign(alpha=1.0)])
    table = pair_correlations(
        sharp, acc, both, source="run", alphas=(0.5, 1.0), bootstrap=99, stragglers=chosen, by_instability=chosen,
        primary=("ggn_trace", 0.5),
    )  # fmt: skip
    names = [n for c in CONTRASTS.values() for n in (c.others, c.random)]
    rows = table[table["layer"].isin(names)]
    assert sorted(zip(rows["layer"], rows["group"], strict=True)) == sorted(
        (n, g) for n in names for g in ("near", "far")
    )
    assert set(rows["alpha"]) == {0.5} and set(rows["given"]) == {"learning_rate+distance"}
    ours = rows[rows["layer"].isin([c.others for c in CONTRASTS.values()])]
    assert set(ours["family"]) == {"primary"} and len(ours) == 2 * len(CONTRASTS)
    for _, own in ours.groupby("layer"):
        assert own["q_value"].tolist() == pytest.approx(holm(own["p_value"].to_numpy()).tolist())
    assert (ours["q_value"] > ours["p_value"]).any()
    others = rows[~rows.index.isin(ours.index)]
    assert set(others["family"]) == {"exploratory"} and (others["q_value"] == others["p_value"]).all()
    (whole,) = set(table.loc[(table["family"] == "primary") & (table["layer"] == "(all)"), "measure"])
    assert whole == "ggn_trace"


def test_the_numbers_do_not_depend_on_the_order_of_the_rows(world) -> None:
    sharp, acc = world(6)
    one = pair_correlations(sharp, acc, covariates(6), source="run", bootstrap=50, seed=2)
    mixed = pair_correlations(
        sharp.sample(frac=1, random_state=1),
        acc.sample(frac=1, random_state=2),
        covariates(6),
        source="run",
        bootstrap=50,
        seed=2,
    )
    keys = list(KEYS["correlations"])
    pd.testing.assert_frame_equal(
        one.sort_values(keys, ignore_index=True), mixed.sort_values(keys, ignore_index=True), rtol=1e-10
    )
    again = pair_correlations(sharp, acc, covariates(6), source="run", bootstrap=50, seed=2)
    pd.testing.assert_frame_equal(one, again, check_exact=True)
    assert sorted(set(one["alpha"])) == [0.5, 1.0]


def test_along_one_path_it_describes_and_claims_nothing(sharpness_of, accuracy_of) -> None:
    alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    sharp = sharpness_of("p", alphas, {"up": [1, 2, 3, 4, 5.0], "flat": [2.0] * 5})
    acc = accuracy_of("p", alphas, [0.5, 0.4, 0.3, 0.2, 0.1])
    table = path_correlations(sharp, acc)
    assert tuple(table.columns) == COLUMNS["correlations"]
    assert not table.duplicated(list(KEYS["correlations"])).any()
    rows = table[(table["measure"] == "ggn_trace")].set_index(["layer", "against", "method"])
    for method in ("pearson", "spearman", "kendall"):
        for against in ("ood_accuracy", "ood_gain"):
            row = rows.loc[("up", against, method)]
            assert row["estimate"] == pytest.approx(-1) and row["n"] == 5
            assert np.isnan(row["p_value"]) and np.isnan(row["ci_low"]) and "not independent" in row["note"]
    assert rows.loc[("flat", "ood_gain", "spearman"), "note"] == "the measure is constant"
    assert not ((table["layer"] == "(all)") & (table["measure"] == "share:ggn_trace")).any()
    short = path_correlations(sharp[sharp["alpha"] < 0.6], acc)
    assert (short["status"] == "undefined").all() and short["note"].str.contains(
        "only 3 alphas; at least 4 are needed"
    ).all()


def test_empty_tables_give_an_empty_table() -> None:
    sharp = pd.DataFrame(columns=list(COLUMNS["sharpness"]))
    acc = pd.DataFrame(columns=list(COLUMNS["accuracy"]))
    assert tuple(path_correlations(sharp, acc).columns) == COLUMNS["correlations"]
    assert not len(pair_correlations(sharp, acc, source="run"))
