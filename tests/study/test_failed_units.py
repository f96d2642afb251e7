"""A unit that failed leaves the rows that it would have had, and no others."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from sharpscope.config.study import StudyConfig
from sharpscope.study.compute import compute_each
from sharpscope.study.context import Context
from sharpscope.study.results import Results
from sharpscope.study.tasks import Task, plan_curvature
from sharpscope.vocabulary import ALL, BASES, CANNOT, CLAIMS

KEYS = ["pair", "alpha", "layer", "granularity", "tower", "depth", "kind", "num_params", "measure"]


@pytest.fixture(scope="module")
def both(smallest: StudyConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The sharpness tables of a study whose curvature units are done, and of one in which they failed."""
    config = dataclasses.replace(
        smallest, alphas=(0.0, 0.1, 0.5, 1.0), measures=("gradient_norm", "sharpness_avg"), perturbation_alphas=(0.5,),
        noise_samples=1,
    )  # fmt: skip
    context = Context.load(config, config.pairs[0])
    units = [f"curvature/success/{key}" for key in plan_curvature(config.measured_alphas)]
    done, failed = (Results(config, {"success": context.layers}) for _ in range(2))
    done.take({key: compute_each(context, [Task(key)])[0] for key in units}, {})
    failed.take({}, dict.fromkeys(units, "out of memory"))
    return done.tables()["sharpness"], failed.tables()["sharpness"]


def test_a_failed_unit_has_the_rows_of_a_finished_one(both: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    rows = [set(map(tuple, table[KEYS].to_numpy().tolist())) for table in both]
    assert rows[0] == rows[1] and len(rows[1]) == len(both[1]) > 0
    _, failed = both
    assert set(failed["layer"]) > {ALL}
    assert set(failed.loc[failed["measure"] == "sharpness_avg", "alpha"]) == {0.5}
    whole = failed["layer"] == ALL
    layers = failed[~whole].drop_duplicates("layer")
    assert (failed.loc[whole, "num_params"] == layers["num_params"].sum()).all()


def test_its_rows_have_no_number_and_say_why(both: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    _, failed = both
    assert set(failed["status"]) == {"failed"} and set(failed["note"]) == {"out of memory"}
    assert failed[["estimate", "stderr", "stderr_images", "per_param", "share"]].isna().all(axis=None)


def test_a_run_whose_straggler_criterion_has_failed_has_its_other_tables(smallest: StudyConfig) -> None:
    context = Context.load(smallest, smallest.pairs[0])
    results = Results(smallest, {"success": context.layers})
    units = [f"path/success/{alpha!r}" for alpha in smallest.alphas]
    failed = dict.fromkeys([f"layers/success/{base}" for base in BASES], "the loss is NaN")
    results.take({key: compute_each(context, [Task(key)])[0] for key in units}, failed)
    assert results.repair_tasks() == []
    tables = results.tables()
    assert len(tables["path"]) == 3 and not len(tables["repair"])
    repair = tables["verdicts"][tables["verdicts"]["claim"] == CLAIMS["repair"]].iloc[0]
    assert repair["verdict"] == CANNOT and "highest score" not in repair["evidence"]
