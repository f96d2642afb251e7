"""The committed verdicts of the emoji study follow from the committed tables, by the rules of its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.analyses.emoji import scripts

RESULTS = Path(__file__).parents[2] / "analyses/emoji/results"
DIGITS = 5e-6
"""The files have six significant digits."""
pytestmark = pytest.mark.skipif(not (RESULTS / "verdicts.csv").exists(), reason="not all bases are measured yet")


@pytest.fixture(scope="module")
def study() -> Iterator[SimpleNamespace]:
    names = ("population", "evidence", "remedies", "regret", "verdicts")
    with scripts(*names) as modules:
        yield SimpleNamespace(**dict(zip(names, modules, strict=True)))


@pytest.fixture(scope="module")
def population(study: SimpleNamespace) -> Any:
    return study.population.load(RESULTS)


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{name}.csv")


def test_verdicts_follow_from_the_tables(study: SimpleNamespace, population: Any) -> None:
    """The primary correlations are computed again from every pair, the other rules are applied to their tables."""
    found = {name: table(name) for name in ("reliability", "layers", "ways", "advice")}
    again, kept = study.verdicts.judged(population, found), table("verdicts")
    pd.testing.assert_frame_equal(again, kept, check_dtype=False, rtol=DIGITS)
    assert population.bases == (0, 1, 2, 3, 4)


def test_the_packages_stricter_rule_stands_beside_the_registered_one(study: SimpleNamespace, population: Any) -> None:
    parts = {"training": population.of([0, 1, 2]), "held-out": population.of([3, 4])}
    again, kept = study.verdicts.by_base(parts), table("by_base")
    pd.testing.assert_frame_equal(again.fillna({"note": ""}), kept.fillna({"note": ""}), check_dtype=False, rtol=DIGITS)
    registered = table("verdicts").head(2).set_index("group")["effect"]
    own = kept[kept["bases"] == "training"].set_index("group")["estimate"]
    assert ((own - registered).abs() > 0.01).all() and (kept["q_value"] <= 0.05).all() and (kept["ci_low"] > 0).all()


def test_outcomes_follow_from_the_answers(study: SimpleNamespace, population: Any) -> None:
    pd.testing.assert_frame_equal(study.verdicts.outcomes(population), table("pairs"), check_dtype=False, rtol=DIGITS)
