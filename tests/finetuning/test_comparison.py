"""The comparison's settings, its committed tables, and how its verdicts are reached."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from sharpscope.config.study import StudyConfig
from sharpscope.finetuning.recipes import published
from sharpscope.finetuning.registry import METHODS
from tests.scripts import loaded

ANALYSES = Path(__file__).parents[2] / "analyses"
SETTINGS: dict[str, Any] = yaml.safe_load((ANALYSES / "finetuners.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("analyses/finetuner_claims.py")


NOT_COMPARED = {"kd", "car-ft", "ldifs", "tpgm", "tpgm-project", "sam", "asam", "lora"}
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
    assert script.interval(values)[:3] == pytest.approx((values.mean(), low, high))
    assert script.interval(values).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert script.interval(pd.Series([0.3])) == (0.3, -math.inf, math.inf, 1.0)


def test_seeds_that_agree_leave_the_error_of_the_test_images(script: ModuleType) -> None:
    low, high = stats.norm.interval(0.95, 0.2, 0.05)
    assert script.interval(pd.Series([0.2, 0.2, 0.2]), images=0.05)[:3] == pytest.approx((0.2, low, high))


def test_the_more_claims_the_harder_each(script: ModuleType) -> None:
    few = script.claims(pairs(lipsum_ft=[0.50, 0.52, 0.505], wise_ft=[0.45, 0.46, 0.455]))
    assert (few["p_holm"] >= few["p_value"] - 1e-12).all() and (few["p_holm"] > few["p_value"]).any()
    smallest = few["p_value"].min()
    assert few["p_holm"].min() == pytest.approx(min(1.0, len(few) * smallest))


def test_the_error_of_the_test_images_is_that_of_paired_differences() -> None:
    """Two models that disagree on 20 of 400 images: how many images both miss does not matter."""
    images, rng = loaded("analyses/finetuner_images.py"), np.random.default_rng(0)
    both = rng.random(400) < 0.5
    other = both.copy()
    other[:20] = ~other[:20]
    right = {("a", "0"): {"id": [both], "ood": [both, both]}, ("b", "0"): {"id": [other], "ood": [other, both]}}
    table = pd.DataFrame({"method": ["a", "b"], "seed": ["0", "0"]})
    draws = images.resampled(table, right, 2000, 0)
    gap = np.array([d["id"][1] - d["id"][0] for d in draws])
    paired = other.astype(float) - both
    assert gap.mean() == pytest.approx(paired.mean(), abs=0.002)
    assert gap.std() == pytest.approx(paired.std() / 20, rel=0.06)
    half = np.array([d["ood"][1] - d["ood"][0] for d in draws])
    assert half.std() == pytest.approx(gap.std() / 2, rel=0.1)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.50, 0.51, 0.505], "holds here"),
        ([0.40, 0.41, 0.405], "does not hold here"),
        ([0.455, 0.461, 0.456], "does not hold here"),
        ([0.42, 0.47, 0.45], "cannot be told"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_its_margin(
    script: ModuleType, ours: list[float], verdict: str
) -> None:
    table = script.claims(pairs(lipsum_ft=ours, wise_ft=[0.45, 0.46, 0.455]))
    row = table[table["paper"].str.startswith("Lipsum")].iloc[0]
    assert row["verdict"] == verdict and row["n"] == 3
    assert row["estimate"] == pytest.approx(sum(ours) / 3 - 0.455)


def test_more_ood_for_less_id_is_not_what_the_paper_says(script: ModuleType) -> None:
    table = pairs(lipsum_ft=[0.50, 0.51, 0.505], wise_ft=[0.45, 0.46, 0.455])
    table.loc[table["method"] == "lipsum-ft", "id"] = 0.5
    claims = script.claims(table)
    row = claims[claims["paper"].str.startswith("Lipsum")].iloc[0]
    assert row["verdict"] == "does not hold here" and row["id_difference"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("ood", "verdict"),
    [
        ([0.40, 0.401, 0.399], "holds here"),
        ([0.35, 0.352, 0.349], "does not hold here"),
        ([0.38, 0.41, 0.36], "cannot be told"),
    ],
)
def test_no_less_is_not_more(script: ModuleType, ood: list[float], verdict: str) -> None:
    claims = script.claims(pairs(clipfit=ood))
    assert claims[claims["claim"].str.startswith("keeps")].iloc[0]["verdict"] == verdict


def test_claims_about_methods_that_are_not_there_are_left_out(script: ModuleType) -> None:
    assert set(script.claims(pairs(clipfit=[0.5, 0.5, 0.6]))["paper"]) == {"CLIPFit (2409.16718)"}
