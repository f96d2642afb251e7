"""The comparison's settings, its committed tables, and how its verdicts are reached."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import yaml
from scipy import stats

from sharpscope.config.study import StudyConfig
from sharpscope.finetuning.recipes import published
from sharpscope.finetuning.registry import METHODS

ANALYSES = Path(__file__).parents[2] / "analyses"
SETTINGS: dict[str, Any] = yaml.safe_load((ANALYSES / "finetuners.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetuner_claims", ANALYSES / "finetuner_claims.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


NOT_COMPARED = {"kd", "car-ft", "ldifs", "tpgm", "tpgm-project", "sam", "asam"}
"""Methods that came after the comparison: its rates were chosen, and its pairs trained, without them."""


def test_every_method_is_compared_with_settings_that_it_knows() -> None:
    compared = set(METHODS) - NOT_COMPARED
    assert set(SETTINGS["methods"]) == compared
    assert {published(f"mini-{name}").method for name in compared} == compared
    StudyConfig.from_dict(SETTINGS["study"])


def test_the_rates_are_those_with_the_best_id_validation_accuracy() -> None:
    table = pd.read_csv(ANALYSES / "results" / "finetuners_rates.csv")
    for name, own in SETTINGS["methods"].items():
        tried = table[table["method"] == name].set_index("lr")["id_validation"]
        assert sorted(tried.index) == pytest.approx(sorted(own["rates"]))
        assert tried.idxmax() == pytest.approx(published(f"mini-{name}").settings["lr"]), name


def pairs(**values: list[float]) -> pd.DataFrame:
    rows = [
        {"method": name.replace("_", "-"), "seed": str(seed), "ood": v, "id": 0.6, "ood_half": v, "id_half": 0.6,
         "ood_zeroshot": 0.4, "id_zeroshot": 0.5, "id_upgraded": v, "ood_ose": 0.4, "ood_vrf": 0.4, "id_ose": 0.6,
         "id_vrf": 0.6}
        for name, several in values.items()
        for seed, v in enumerate(several)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_interval_is_students(script: ModuleType) -> None:
    values = pd.Series([0.1, 0.2, 0.4])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert script.interval(values) == pytest.approx((values.mean(), low, high))
    assert script.interval(pd.Series([0.3])) == (0.3, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.50, 0.51, 0.505], "holds here"),
        ([0.40, 0.41, 0.405], "does not hold here"),
        ([0.42, 0.47, 0.45], "cannot be told"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(script: ModuleType, ours: list[float], verdict: str) -> None:
    table = script.claims(pairs(lipsum_ft=ours, wise_ft=[0.45, 0.46, 0.455]))
    row = table[table["paper"].str.startswith("Lipsum")].iloc[0]
    assert row["verdict"] == verdict and row["n"] == 3
    assert row["estimate"] == pytest.approx(sum(ours) / 3 - 0.455)


def test_more_ood_for_less_id_is_not_what_the_paper_says(script: ModuleType) -> None:
    table = pairs(lipsum_ft=[0.50, 0.51, 0.505], wise_ft=[0.45, 0.46, 0.455])
    table.loc[table["method"] == "lipsum-ft", "id"] = 0.5
    claims = script.claims(table)
    row = claims[claims["paper"].str.startswith("Lipsum")].iloc[0]
    assert row["verdict"] == "cannot be told" and row["id_difference"] == pytest.approx(-0.1)


def test_claims_about_methods_that_are_not_there_are_left_out(script: ModuleType) -> None:
    assert set(script.claims(pairs(clipfit=[0.5, 0.5, 0.6]))["paper"]) == {"CLIPFit (2409.16718)"}
