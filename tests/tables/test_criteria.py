"""Two straggler criteria side by side: overlaps against numbers by hand and SciPy."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy import stats

from sharpscope.tables.criteria import choices, overlap, side_by_side
from sharpscope.tables.rows import table
from sharpscope.vocabulary import SIDE_BY_SIDE

NAMES = SIDE_BY_SIDE


def rows_of(criterion: str, scores: list[float], threshold: float, base: str = "finetuned") -> list[dict[str, object]]:
    return [
        {
            "pair": "p", "layer": f"l{i}", "criterion": criterion, "base": base, "score": score,
            "threshold": threshold, "rule": "mad:2", "chosen": score > threshold, "probability": 0.5, "status": "ok",
        }
        for i, score in enumerate(scores)
    ]  # fmt: skip


FIRST, SECOND = [9.0, 8.0, 1.0, 2.0, 3.0, 0.5], [7.0, 1.0, 2.0, 3.0, 6.0, 0.1]


def test_numbers_by_hand_and_by_scipy() -> None:
    found = overlap(table("stragglers", rows_of(NAMES[0], FIRST, 5) + rows_of(NAMES[1], SECOND, 5)), "p")
    assert found is not None and found.chosen == (("l0", "l1"), ("l0", "l4"))
    assert found.jaccard == pytest.approx(1 / 3)
    assert (found.top, found.shared_top, found.layers) == (3, 2, 6)  # l0 l1 l4 and l0 l4 l3
    assert found.top_by_chance == pytest.approx(9 / 6)
    assert found.spearman == pytest.approx(stats.spearmanr(FIRST, SECOND).statistic)


def test_a_criterion_agrees_with_itself() -> None:
    stragglers = table("stragglers", rows_of("rewind", FIRST, 5) + rows_of("barrier", FIRST, 5))
    found = overlap(stragglers, "p", ("rewind", "barrier"))
    assert found is not None and (found.jaccard, found.spearman) == (1, pytest.approx(1))
    assert found.shared_top == found.top == 3


def test_what_is_not_defined_is_not_a_number() -> None:
    flat = overlap(table("stragglers", rows_of(NAMES[0], [0.0] * 6, 1) + rows_of(NAMES[1], SECOND, 9)), "p")
    assert flat is not None and flat.chosen == ((), ()) and flat.top == 0
    assert math.isnan(flat.jaccard) and math.isnan(flat.spearman)
    holes = [math.nan, *FIRST[1:]]
    some = overlap(table("stragglers", rows_of(NAMES[0], holes, 5) + rows_of(NAMES[1], SECOND, 5)), "p")
    assert some is not None and some.layers == 5 and some.chosen[0] == ("l1",)
    assert overlap(table("stragglers", rows_of(NAMES[0], FIRST, 5)), "p") is None


def test_a_tie_at_the_cut_leaves_a_shorter_top() -> None:
    tied = [9.0, 5.0, 5.0, 5.0, 1.0, 0.0]
    found = overlap(table("stragglers", rows_of(NAMES[0], tied, 5) + rows_of(NAMES[1], SECOND, 5)), "p")
    assert found is not None and (found.top, found.shared_top) == (1, 1)


def test_the_first_base_counts() -> None:
    rows = rows_of(NAMES[0], FIRST, 5) + rows_of(NAMES[0], SECOND, 5, "zeroshot") + rows_of(NAMES[1], SECOND, 5)
    both = side_by_side(table("stragglers", rows), "p")
    assert (
        both is not None and both[0]["score"].tolist() == FIRST and list(both[1].index) == [f"l{i}" for i in range(6)]
    )
    frame: pd.DataFrame = both[0]
    assert set(frame["base"]) == {"finetuned"}


def test_every_criterion_without_a_measure_and_with_that_of_the_deciding_one_is_compared() -> None:
    rows = (
        rows_of("rewind", FIRST, 5) + rows_of("rewind", SECOND, 5, "zeroshot") + rows_of("change:ggn_trace", SECOND, 9)
    )
    rows += rows_of("share:ggn_trace", FIRST, 8) + rows_of("share:lambda_max", FIRST, 0)
    found = table("stragglers", rows)
    assert choices(found, "p", "change:ggn_trace") == {
        "rewind": ("l0", "l1"), "change:ggn_trace": (), "share:ggn_trace": ("l0",)
    }  # fmt: skip
    assert list(choices(found, "p", "share:lambda_max")) == ["rewind", "share:lambda_max"]
    assert list(choices(found, "p", "rewind")) == ["rewind"]  # the default's measure, which the table lacks
