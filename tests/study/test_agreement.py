"""The table ``agreement``: rows of every point and set beside the accuracies of the same pass, which do not change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.study.compute import compute_each
from sharpscope.study.context import Context
from sharpscope.study.manifest import identity_of
from sharpscope.study.results import Results
from sharpscope.study.tasks import Task
from sharpscope.study.unitfile import Unit
from sharpscope.tables.files import csv_bytes, read_csv
from sharpscope.vocabulary import AGREEMENT

ALPHAS = (0.0, 0.5, 1.0)
CONFIG = StudyConfig(
    pairs=(PairConfig("success", "mini:zeroshot", "mini:success"),), model="mini", id=("mini:photo",),
    ood=("mini:sketch",), alphas=ALPHAS, probe_size=8, batch_size=16, limit=48, bootstrap=20, threads=1,
    agreement=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def context() -> Context:
    return Context.load(CONFIG, CONFIG.pairs[0])


@pytest.fixture(scope="module")
def units(context: Context) -> dict[str, Unit]:
    return {f"path/success/{a!r}": compute_each(context, [Task(f"path/success/{a!r}")])[0] for a in ALPHAS}


@pytest.fixture(scope="module")
def table(context: Context, units: dict[str, Unit]) -> pd.DataFrame:
    results = Results(CONFIG, {"success": context.layers})
    results.take(units, {})
    return results.measured("agreement")


def test_every_measure_of_every_point_and_set_has_a_row_with_an_interval(table: pd.DataFrame) -> None:
    against = {"end": 2, "point": 1, "ends": 1}
    assert len(table) == len(ALPHAS) * 2 * sum(against[m.of] for m in AGREEMENT.values())
    assert set(table["measure"]) == set(AGREEMENT) and set(table["status"]) == {"ok"}
    assert (table["ci_low"] <= table["estimate"]).all() and (table["estimate"] <= table["ci_high"]).all()
    inner = table[(table["alpha"] == 0.5) & (table["measure"] != "margin_difference")]
    assert (inner["ci_low"] < inner["ci_high"]).all()


def test_the_ends_agree_with_themselves(table: pd.DataFrame) -> None:
    compared = table[table["measure"].isin([n for n, m in AGREEMENT.items() if m.of == "end"])]
    for against, alpha in (("zeroshot", 0.0), ("finetuned", 1.0)):
        own = compared[(compared["against"] == against) & (compared["alpha"] == alpha)]
        assert len(own) and (own[["estimate", "ci_low", "ci_high"]] == 0).all(axis=None)
    index = table.set_index(["measure", "alpha", "dataset"])["estimate"].sort_index()
    assert (index["zeroshot_overrides", 0.0] == 1).all() and (index["zeroshot_overridden", 1.0] == 1).all()
    mirrored = compared.set_index(["against", "alpha", "measure", "dataset"])["estimate"].sort_index()
    for measure in ("disagreement", "kappa_complement", "cka_complement", "feature_distortion", "energy_gap"):
        one, other = mirrored["zeroshot", 1.0, measure], mirrored["finetuned", 0.0, measure]
        assert one.to_numpy() == pytest.approx(other.to_numpy(), abs=1e-12) and (one > 0).all()


def test_shares_follow_from_the_answers_of_the_units(table: pd.DataFrame, units: dict[str, Unit]) -> None:
    right = {a: units[f"path/success/{a!r}"].arrays["correct:mini:sketch"] for a in ALPHAS}
    own = table[(table["dataset"] == "mini:sketch") & (table["against"] == "zeroshot") & (table["alpha"] == 0.5)]
    found = own.set_index("measure")["estimate"]
    assert found["prediction_diversity"] == np.mean(right[0.0] != right[0.5])
    assert found["only_end_right"] == np.mean(right[0.0] & ~right[0.5])


def test_the_rest_of_the_unit_is_that_of_a_run_without(context: Context, units: dict[str, Unit]) -> None:
    plain = dataclasses.replace(context, config=dataclasses.replace(CONFIG, agreement=False))
    one, other = units["path/success/0.5"], compute_each(plain, [Task("path/success/0.5")])[0]
    assert set(one.rows) - set(other.rows) == {"agreement"}
    assert all(one.rows[name] == rows for name, rows in other.rows.items())
    assert all(np.array_equal(one.arrays[name], array) for name, array in other.arrays.items())
    keys = [identity_of(c.config, {"success": c})["config"] for c in (plain, context)]
    assert "agreement" not in keys[0] and keys[1]["agreement"] is True


def test_a_worker_that_starts_in_the_middle_gives_the_same_rows(context: Context, units: dict[str, Unit]) -> None:
    fresh = Context(CONFIG, context.pair)
    assert (
        compute_each(fresh, [Task("path/success/0.5")])[0].rows["agreement"]
        == units["path/success/0.5"].rows["agreement"]
    )


def test_the_table_survives_its_file(table: pd.DataFrame, tmp_path) -> None:
    file = tmp_path / "agreement.csv"
    file.write_bytes(csv_bytes(table, "agreement"))
    assert read_csv(file, "agreement").equals(table)


def test_without_a_text_tower_energies_are_undefined_and_the_rest_is_not(context: Context) -> None:
    pair = context.pair
    body = [
        {n: t for n, t in theta.items() if n not in pair.model.text_names} for theta in (pair.theta_0, pair.theta_1)
    ]
    headless = Context(CONFIG, dataclasses.replace(pair, theta_0=body[0], theta_1=body[1]))
    rows = pd.DataFrame(compute_each(headless, [Task("path/success/0.5")])[0].rows["agreement"])
    gap = rows["measure"] == "energy_gap"
    assert set(rows[gap]["status"]) == {"undefined"} and rows[gap]["note"].str.contains("text tower").all()
    assert set(rows[~gap]["status"]) == {"ok"}
    assert torch.equal(context.pair.theta_0["logit_scale"], headless.pair.theta_0["logit_scale"])
