"""Several runs give the rows of one: stragglers by the criterion that decided, and the costs of the path."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sharpscope.cli.main import main
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.study.across import correlate, relations
from sharpscope.study.finished import doubts_of
from sharpscope.study.primaries import check_comparable
from sharpscope.study.results import Results, compared_alphas
from sharpscope.study.store import RunDirectory
from sharpscope.study.unitfile import Unit
from sharpscope.tables.files import csv_bytes, read_csv
from sharpscope.tables.rows import nearest, table
from sharpscope.tables.schema import KEYS
from sharpscope.vocabulary import CLAIMS, HOLDS

PAIRS = ("a", "b", "c", "d", "e", "f")
LAYERS = ("visual.conv1", "visual.proj", "head")
SHARE = "share:hessian_trace"


def rows_of(pair: str, alphas: Sequence[float] = (0.0, 0.5, 1.0)) -> dict[str, list[dict[str, object]]]:
    rng = np.random.default_rng(ord(pair))
    rows: dict[str, list[dict[str, object]]] = {"sharpness": [], "path": [], "accuracy": [], "stragglers": []}
    for alpha in alphas:
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


def made(root: Path, pairs: Sequence[str], criterion: str | None = SHARE, without: str = "", **config: object) -> Path:
    """A run directory of ``pairs`` as far as ``correlate`` reads it."""
    (root / "tables").mkdir(parents=True)
    for name in ("sharpness", "path", "accuracy", "stragglers"):
        if name != without:
            rows = [row for pair in pairs for row in rows_of(pair)[name]]
            (root / "tables" / f"{name}.csv").write_bytes(csv_bytes(table(name, rows), name))
    config |= {} if criterion is None else {"straggler_criterion": criterion}
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


# ------------------------------------------------------------------------------------------- what was named beforehand
def primary(found: pd.DataFrame) -> pd.DataFrame:
    return found[(found["family"] == "primary") & (found["layer"] == "(all)")].reset_index(drop=True)


@pytest.mark.parametrize(
    ("first", "second", "flag", "asked"),
    [
        ({}, {"primary_alpha": 1.0}, "--primary-alpha ALPHA", {"primary_alpha": 1.0}),
        ({"primary_alpha": 1.0}, {"primary_alpha": 0.5}, "--primary-alpha ALPHA", {"primary_alpha": 0.5}),
        ({"primary_measure": "lambda_max"}, {}, "--primary-measure MEASURE", {"primary_measure": "hessian_trace"}),
    ],
)
def test_the_order_of_runs_never_chooses_the_primary(
    first: dict, second: dict, flag: str, asked: dict, tmp_path: Path
) -> None:
    one, two = made(tmp_path / "a", PAIRS[:3], **first), made(tmp_path / "b", PAIRS[3:], **second)
    for order in ([one, two], [two, one]):
        with pytest.raises(ConfigError, match=rf"before looking (.|\n)* named (.|\n)*Remedy: {flag}"):
            correlate(order)
    got = [correlate(order, bootstrap=50, **asked) for order in ([one, two], [two, one])]
    rows = [primary(found) for found in got]
    columns = ["measure", "alpha", "estimate", "p_value"]
    pd.testing.assert_frame_equal(rows[0][columns], rows[1][columns])
    for name, value in asked.items():
        assert (rows[0][name.removeprefix("primary_")] == value).all()
    assert rows[0]["note"].str.contains("named for this comparison; the runs named ").all()
    others = got[0][got[0]["family"] != "primary"]
    assert not others["note"].fillna("").str.contains("named for this comparison").any()


def test_what_all_runs_named_is_no_choice_and_an_unknown_primary_is_refused(tmp_path: Path) -> None:
    runs = [made(tmp_path / "a", PAIRS[:3], primary_alpha=1.0), made(tmp_path / "b", PAIRS[3:], primary_alpha=1.0)]
    rows = primary(correlate(runs, bootstrap=50))
    assert (rows["alpha"] == 1.0).all() and not rows["note"].fillna("").str.contains("named for this").any()
    with pytest.raises(ConfigError, match=r"primary_measure: no run has 'hesian_trace'. Did you mean 'hessian_trace'"):
        correlate(runs, primary_measure="hesian_trace")
    with pytest.raises(ConfigError, match=r"--primary-alpha: 0.0 is outside \(0, 1\]"):
        correlate(runs, primary_alpha=0.0)
    command = ["correlate", *map(str, runs), "--primary-alpha", "0.5", "--primary-measure", "hessian_trace"]
    assert main(command) == 0


@pytest.mark.parametrize(
    ("measure", "first", "second", "refused"),
    [
        ("hessian_trace", {"probe": "mini:photo"}, {"probe": "cifar10"}, "probe"),
        ("hessian_trace", {}, {"probe_size": 64}, "probe_size"),
        ("hessian_trace", {}, {"rho_avg": 0.8, "normalize_logits": True, "pgd_steps": 5}, ""),
        ("sharpness_avg", {"rho_avg": 0.1}, {"rho_avg": 0.8}, "rho_avg"),
        ("sharpness_avg", {}, {"normalize_logits": True}, "normalize_logits"),
        ("sharpness_avg", {}, {"pgd_steps": 5}, ""),
        ("sharpness_max@0.001", {}, {"rho_linf": 0.1}, ""),
        ("sharpness_max@0.001", {}, {"pgd_steps": 5}, "pgd_steps"),
    ],
)
def test_runs_whose_measure_is_not_one_quantity_are_not_pooled(
    measure: str, first: dict, second: dict, refused: str, tmp_path: Path
) -> None:
    runs = [made(tmp_path / name, [], primary_measure=measure, **told) for name, told in (("a", first), ("b", second))]
    for order in (runs, runs[::-1]):
        if refused:
            said = rf"correlate: {refused} is .* in .* and .* in .*, so that {measure} is not the same quantity"
            with pytest.raises(ConfigError, match=said):
                check_comparable(order, measure)
        else:
            check_comparable(order, measure)


@pytest.mark.parametrize("wanted", [0.3, 0.35, 0.9])
def test_a_run_judges_at_the_alpha_that_its_study_named(wanted: float, tmp_path: Path) -> None:
    """The table of a run, its verdicts, and ``correlate`` of the run alone have one primary alpha."""
    alphas = (0.0, 0.3, 0.5, 1.0)
    at = nearest(alphas[1:], wanted)
    assert compared_alphas(alphas, at) == sorted({at, 0.5, 1.0})
    pairs = tuple(PairConfig(name, "z", name, {"learning_rate": float(i)}, name) for i, name in enumerate(PAIRS))
    config = StudyConfig(
        pairs=pairs, ood=("x", "y"), alphas=alphas, measures=("hessian_trace",), primary_alpha=wanted, bootstrap=20
    )
    made_of = [rows_of(name, alphas) for name in PAIRS]
    unit = Unit({name: [row for own in made_of for row in own[name]] for name in ("path", "sharpness", "accuracy")})
    results = Results(config, {})
    results.take({"made": unit}, {})
    tables = results.tables()
    found = primary(tables["correlations"])
    assert set(found["alpha"]) == {at} and set(tables["residuals"]["alpha"]) == {at}
    whole = tables["verdicts"].set_index("claim").loc[CLAIMS["whole"], "evidence"]
    assert f"hessian_trace at alpha {at:g}" in whole


# ------------------------------------------------------------------------------------------------------------- doubts
def test_pairs_of_which_their_own_run_gives_no_verdict_give_none_here(
    smallest_run: tuple[Path, str], tmp_path: Path
) -> None:
    """The ends of the smallest run's pair are exchanged in its units: ID accuracy falls along the path."""
    root = tmp_path / "run"
    shutil.copytree(smallest_run[0], root)
    assert doubts_of(root) == []
    sound = relations(correlate([root], bootstrap=20), [root], bootstrap=20, level=0.95)
    directory = RunDirectory.existing(root)
    ends = {alpha: directory.peek(f"path/success/{alpha!r}") for alpha in (0.0, 1.0)}
    assert all(ends.values())
    for alpha, unit in ends.items():
        other = ends[1.0 - alpha]
        arrays = {**unit.arrays, **{n: a for n, a in other.arrays.items() if n != "losses"}}
        worse = {n: (np.zeros_like(a) if alpha == 1.0 and a.dtype == bool else a) for n, a in arrays.items()}
        directory.save(f"path/success/{alpha!r}", dataclasses.replace(unit, arrays=worse))
    doubted = relations(correlate([root], bootstrap=20), [root], bootstrap=20, level=0.95)
    assert not sound["evidence"].str.startswith("No verdict is given").any()
    assert doubted["evidence"].eq("No verdict is given: in pair success the two ends look swapped.").all()


def test_a_path_without_its_ends_is_seen_in_tables_alone(tmp_path: Path) -> None:
    root = made(tmp_path / "run", PAIRS)
    found = correlate([root], bootstrap=20)
    for name in ("path", "sharpness", "accuracy"):
        file = root / "tables" / f"{name}.csv"
        rows = read_csv(file, name)
        file.write_bytes(csv_bytes(rows[rows["alpha"] > 0], name))
    told = relations(found, [root], bootstrap=20, level=0.95)
    assert len(told) and told["evidence"].eq("No verdict is given: the path has no point at alpha 0.").all()


@pytest.mark.parametrize(("level", "count"), [(0.95, 19), (0.5, 99)])
def test_verdicts_are_judged_at_the_level_and_the_permutations_of_the_table(
    level: float, count: int, tmp_path: Path
) -> None:
    rows = {"estimate": 0.8, "ci_low": 0.4, "ci_high": 0.9, "p_value": 1 / (1 + count), "q_value": 0.2, "n": 20}
    row = {"pair": "(pairs)", "layer": "(all)", "measure": "hessian_trace", "against": "ood_gain", "dataset": "x+y",
           "group": "ood", "scope": "pairs", "alpha": 0.5, "method": "spearman", "given": "learning_rate",
           "n_effective": 20, "family": "primary", "source": "run", "status": "ok", "note": ""}  # fmt: skip
    root = made(tmp_path / "run", PAIRS)
    told = tmp_path / "c.csv"
    told.write_text("pair,learning_rate,setting\n" + "".join(f"{p},{i},{p}\n" for i, p in enumerate(PAIRS)))
    found = relations(table("correlations", [row | rows]), [root], told, bootstrap=count, level=level)
    whole = found.set_index("claim").loc[CLAIMS["whole"]]
    assert (whole["verdict"] == HOLDS) == (1 - level >= 0.2) and f"p < 1/{count}" in whole["evidence"]
