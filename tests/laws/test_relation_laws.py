"""Laws of the verdicts across pairs: worlds with a known truth, and what must change nothing."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sharpscope.config.study import PairConfig
from sharpscope.findings.correlation import pair_correlations
from sharpscope.findings.design import Design
from sharpscope.findings.partial import partial_correlation
from sharpscope.findings.question import Question
from sharpscope.findings.relation import relation_rows
from sharpscope.findings.residuals import residual_rows
from sharpscope.study.designs import design_of, untold, with_covariates
from sharpscope.tables.rows import one_a_unit
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import CANNOT, HOLDS


def upper(rate: float, runs: int) -> float:
    """2.6 standard errors above a nominal rate."""
    return rate + 2.6 * math.sqrt(rate * (1 - rate) / runs)


def names(n: int) -> tuple[str, ...]:
    return tuple(f"p{i}" for i in range(n))


def correlations(
    x: np.ndarray, gain: np.ndarray, measured: dict[str, np.ndarray], design: Design, sets: list[str], draws: int = 59
) -> pd.DataFrame:
    """The table of n pairs with sharpness ``x`` and ``gain`` on the mean over ``sets`` at alpha .5."""
    sharp, acc = [], []
    for i, pair in enumerate(design.pairs):
        head = {"pair": pair, "alpha": 0.5, "layer": "(all)", "measure": "hessian_trace", "num_params": 1}
        sharp.append(head | {"estimate": x[i], "share": 1.0, "status": "ok"})
        for alpha, value in ((0.0, 0.5), (0.5, 0.5 + gain[i])):
            row = {"pair": pair, "alpha": alpha, "variant": "dense", "dataset": sets[i], "group": "ood"}
            acc.append(row | {"role": "ood_mean", "metric": "top1", "estimate": value, "n": 100, "primary": True})
    frames = [pd.DataFrame(r, columns=list(COLUMNS[n])) for n, r in (("sharpness", sharp), ("accuracy", acc))]
    told = pd.DataFrame({"pair": design.pairs, "alpha": 0.5, **measured})
    return pair_correlations(*frames, told, source="run", design=design, alphas=(0.5,), bootstrap=draws)


def whole(table: pd.DataFrame) -> dict[str, object]:
    return relation_rows(table, "ood", "hessian_trace", 0.5)[0]


# ------------------------------------------------------------------------------------------------- what is held fixed
@pytest.mark.parametrize(("n", "concluded"), [(8, False), (9, True)])
def test_id_accuracy_that_drives_both_is_no_relation_though_there_are_too_few_pairs_to_hold_it(
    n: int, concluded: bool
) -> None:
    """Eight pairs leave room for two covariates, and the null that ID accuracy makes is then rejected in a third."""
    rng, runs, held, significant = np.random.default_rng(0), 24, 0, 0
    for _ in range(runs):
        ids, rate = rng.normal(size=(2, n))
        design = Design(names(n), ("b",) * n, names(n), {"learning_rate": rate})
        x, gain = (ids + 0.2 * rng.normal(size=n) for _ in "xy")
        measured = {"distance": rate + 0.3 * rng.normal(size=n), "id_accuracy": ids}
        table = correlations(np.exp(x), 0.01 * gain, measured, design, ["o"] * n)
        primary = table[table["family"] == "primary"].iloc[0]
        assert primary["left_out"] == ("" if concluded else "id_accuracy")
        held += whole(table)["verdict"] == HOLDS
        significant += primary["q_value"] <= 0.05
    assert held <= (upper(0.05, runs) * runs if concluded else 0)
    assert concluded or significant >= 4  # so that it is the covariate that is left out which forbids the verdict


# ------------------------------------------------------------------------------------------------- what is one unit
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("times", [2, 3])
def test_checkpoints_entered_again_under_other_names_change_nothing(times: int, declared: bool) -> None:
    n, rng = 20, np.random.default_rng(times)
    x, y, rate, ids = rng.normal(size=(4, n))

    def found(copies: int) -> tuple[float, ...]:
        m = n * copies
        setting = tuple(f"s{i}" for i in range(m)) if declared else ("",) * m
        design = Design(names(m), ("b",) * m, setting, file=tuple(f"hash{i % n}" for i in range(m)))
        assert design.n_effective == n
        draw = np.random.default_rng(0)
        held = {"learning_rate": np.tile(rate, copies), "id_accuracy": np.tile(ids, copies)}
        keys = design.keys(199, draw)
        got = partial_correlation(np.tile(x, copies)[None], np.tile(y, copies), design, held, keys=keys, rng=draw)
        return tuple(float(v[0]) for v in (got.estimate, got.low, got.high, got.p, got.n_effective))

    assert found(times) == pytest.approx(found(1), abs=1e-9)


def test_the_points_behind_an_estimate_are_one_for_all_copies_of_a_file() -> None:
    """Over the units Pearson's correlation of the residuals is the estimate, though no setting is known."""
    n, rng = 12, np.random.default_rng(4)
    x, y, rate = (np.tile(v, 2) for v in rng.normal(size=(3, n)))
    design = Design(names(2 * n), ("b",) * 2 * n, ("",) * 2 * n, file=tuple(f"hash{i % n}" for i in range(2 * n)))
    rows = one_a_unit(pd.DataFrame(residual_rows(x, y, design, {"learning_rate": rate}, {})))
    keys = design.keys(19, rng)
    got = partial_correlation(x[None], y, design, {"learning_rate": rate}, keys=keys, rng=rng)
    assert len(rows) == n
    left = np.corrcoef(rows["residual_sharpness"], rows["residual_gain"])[0, 1]
    assert left == pytest.approx(float(got.estimate[0]))


def test_the_files_of_a_study_tell_copies_and_what_one_says_of_its_setting_holds_for_all() -> None:
    pairs = [
        PairConfig("a", "z", "f", {"learning_rate": 1.0}, setting="mine"),
        PairConfig("b", "z", "g", {"learning_rate": 1.0}),
    ]
    facts = {name: {"finetuned": {"sha256": sha}} for name, sha in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "2"))}
    design = design_of([*pairs, *(PairConfig(n, "z", n) for n in "cd")], facts)
    assert design.n_effective == 2 and design.told_setting == ("mine", "mine", "", "")
    assert design.unit_name[2] == design.unit_name[3] != ""
    half = design.subset(np.array([True, False, True, True])).reindexed(("d", "a"))
    assert half.told_setting == ("", "mine") and half.file == ("2", "1")


def test_while_settings_are_unknown_nothing_is_concluded_and_a_column_declares_them() -> None:
    """Sixteen settings with five seeds each, at four rates: unknown to the design, 40 % of nulls would hold."""
    rng, runs, rejected = np.random.default_rng(1), 12, 0
    at, n = np.repeat(np.arange(16), 5), 80
    for _ in range(runs):
        x, y, own, ids = (rng.normal(size=16)[at] + 0.3 * rng.normal(size=n) for _ in range(4))
        rate = rng.integers(0, 4, 16)[at].astype(float)
        design = Design(names(n), ("b",) * n, ("",) * n, {"learning_rate": rate})
        table = correlations(np.exp(x), 0.01 * y, {"distance": rate + own, "id_accuracy": ids}, design, ["o"] * n)
        row = relation_rows(table, "ood", "hessian_trace", 0.5, unknown={"run": untold(design)})[0]
        assert row["verdict"] == CANNOT and "the setting of 80 of 80 pairs is unknown" in row["evidence"]
        rejected += whole(table)["verdict"] == HOLDS
    assert rejected >= 2  # so that there is something to forbid
    told = with_covariates(design, {f"p{i}": {"setting": f"s{at[i]}"} for i in range(n)})
    assert told.n_effective == 16 and untold(told) == () and told.covariates.keys() == {"learning_rate"}
    some = with_covariates(design, {"p0": {"setting": "mine"}})
    assert some.n_effective == 80 and untold(some)[0].startswith("the setting of 79 of 80 pairs is unknown")


# --------------------------------------------------------------------------------------------------- which row counts
def test_neither_the_order_of_rows_nor_that_of_runs_decides() -> None:
    """Half of the pairs have the mean over two sets, on which sharpness orders them, half that over three."""
    n, rng = 40, np.random.default_rng(2)
    x, rate, distance, ids = rng.normal(size=(4, n))
    gain = 0.01 * np.concatenate([x[:20], rng.normal(size=20)])
    sets = ["a+b"] * 20 + ["a+b+c"] * 20
    seen = set()
    for order in (np.arange(n), np.arange(n)[::-1]):
        pairs = tuple(f"p{i}" for i in order)
        design = Design(pairs, ("b",) * n, pairs, {"learning_rate": rate[order]})
        measured = {"distance": distance[order], "id_accuracy": ids[order]}
        table = correlations(np.exp(x[order]), gain[order], measured, design, [sets[i] for i in order])
        for seed in range(4):
            rows = table.sample(frac=1, random_state=seed) if seed else table
            got = whole(rows)
            seen.add((got["verdict"], got["estimate"], got["n"]))
            primary = rows[(rows["family"] == "primary") & (rows["layer"] == "(all)")]
            assert primary["estimate"].tolist() == [got["estimate"]] and set(primary["dataset"]) == {"a+b+c"}
    assert len(seen) == 1, seen


# ------------------------------------------------------------------------------------------------------- the question
def asked(
    rng: np.random.Generator, rho: float, others: int, ids: tuple[float, float], images: int
) -> dict[str, object]:
    """The question on two of ``others`` + 2 models whose gain and log sharpness have the partial correlation ``rho``.

    ``ids``: the ID accuracies that the two were measured to have on so many ``images``.
    """
    n = others + 2
    z = rng.normal(size=n)
    gain = 0.02 * (rho * z + math.sqrt(1 - rho**2) * rng.normal(size=n))
    sharp = np.exp(0.5 * z)
    rows = pd.DataFrame({
        "pair": names(n), "alpha": 0.5, "measure": "hessian_trace", "sharpness": sharp, "distance": rng.random(n),
        "id_accuracy": rng.random(n), "ood_gain": gain,
    })  # fmt: skip
    frame = pd.DataFrame({
        "pair": names(2), "alpha": 0.5, "layer": "(all)", "measure": "hessian_trace", "estimate": sharp[:2],
        "stderr_images": 0.03 * sharp[:2], "status": "ok", "n": 512,
    })  # fmt: skip
    accuracy = []
    for i, pair in enumerate(names(2)):
        error = 1.959964 * math.sqrt(ids[i] * (1 - ids[i]) / images)
        for alpha, role, value, half in (
            (0.0, "ood_mean", 0.6, 0.005), (0.5, "ood_mean", 0.6 + gain[i], 0.005), (1.0, "id", ids[i], error)
        ):  # fmt: skip
            head = {"pair": pair, "alpha": alpha, "role": role, "dataset": "o", "variant": "dense", "metric": "top1"}
            accuracy.append(head | {"estimate": value, "ci_low": value - half, "ci_high": value + half, "n": images})
    design = Design(names(n), ("b",) * n, names(n), {"learning_rate": rng.random(n)})
    question = Question(names(2), "ood", "hessian_trace", 0.5, 0.95, 59, int(rng.integers(1000)), "run")
    return question.row(frame, pd.DataFrame(accuracy), rows if others else None, design)


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_one_pair_of_models_decides_nothing_whatever_the_truth(rho: float) -> None:
    rng, runs = np.random.default_rng(3), 24
    rows = [asked(rng, rho, 60, (0.8, 0.8), 20_000) for _ in range(runs)]
    assert {row["verdict"] for row in rows} == {CANNOT}
    told = [str(row["evidence"]) for row in rows]
    ordered = sum("(1 of 1)" in t for t in told), sum("(0 of 1)" in t for t in told)
    if rho:
        assert min(ordered) >= 1 and sum(ordered) >= 8  # both orders occur at a true relation of .6


@pytest.mark.parametrize("images", [100, 500])
def test_models_five_points_apart_are_seldom_taken_as_equally_accurate(images: int) -> None:
    rng, runs, equal = np.random.default_rng(images), 60, 0
    for _ in range(runs):
        first, second = (rng.binomial(images, p) / images for p in (0.8, 0.75))
        evidence = str(asked(rng, 0.0, 0, (first, second), images)["evidence"])
        equal += "is not known from so few images" not in evidence and "so the question does not arise" not in evidence
    assert equal <= upper(0.025, runs) * runs
