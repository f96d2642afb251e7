"""The first screen of a run: for every group what happened, what sharpness could tell, and advice."""

from __future__ import annotations

import pandas as pd
import pytest

from sharpscope.present.pathplots import accuracy_along_alpha, wiseft_curves
from sharpscope.present.plots import all_figures
from sharpscope.present.summary import summary_lines
from sharpscope.vocabulary import ADVICE, CANNOT, CLAIMS, DOES_NOT_HOLD, HOLDS, REMARKS

Tables = dict[str, pd.DataFrame]


def two_groups(tables: Tables) -> Tables:
    """The same tables, with their OOD sets in a second group too."""
    out = dict(tables)
    for name in ("accuracy", "failure", "verdicts", "repair"):
        own = tables[name]
        more = own[own["group"] != ""].assign(group="near")
        if name == "accuracy":
            more = more.assign(dataset=[f"{d}-near" for d in more["dataset"]])
        out[name] = pd.concat([own, more], ignore_index=True)
    return out


def test_blocks_come_in_order_and_remarks_are_left_to_the_report(tables: Tables) -> None:
    verdicts = tables["verdicts"].assign(claim=[*list(CLAIMS.values())[:3], CLAIMS["repair"]])
    verdicts["evidence"] = [f"{text} {REMARKS} nobody reads this first." for text in verdicts["evidence"]]
    lines = list(summary_lines(tables | {"verdicts": verdicts}, "share:hessian_trace"))
    heads = [line for line in lines if not line.startswith("  ")]
    assert [h.split()[0] for h in heads] == ["What", "What", "Which", "Advice:"]
    open_ones = [line for line in lines if "CANNOT BE TOLD" in line]
    assert open_ones and not any(REMARKS in line or "nobody reads" in line for line in open_ones)


@pytest.mark.parametrize(("verdict", "limited"), [(HOLDS, True), (DOES_NOT_HOLD, True), (CANNOT, False)])
def test_what_limits_a_conclusion_stands_in_its_line(tables: Tables, verdict: str, limited: bool) -> None:
    limits = "covariates left out, so that n - k is 6: steps; holds for these 2 models"
    row = tables["verdicts"].iloc[[0]].assign(verdict=verdict, evidence=f"Over 12 pairs. {REMARKS} {limits}.")
    told = "\n".join(summary_lines({"verdicts": row}, "share:hessian_trace"))
    assert (limits in told) == limited and verdict.upper() in told


def test_equal_answers_of_two_groups_are_one_line(tables: Tables) -> None:
    given = two_groups(tables)
    given["verdicts"] = given["verdicts"].assign(claim=CLAIMS["whole"])
    lines = [line for line in summary_lines(given, "share:hessian_trace") if line.startswith(f"  {CLAIMS['whole']}")]
    assert len(lines) == tables["verdicts"]["evidence"].nunique() and all("(ood, near)" in line for line in lines)


def test_rules_that_advise_the_same_alpha_are_said_together(tables: Tables) -> None:
    one = tables["advice"][tables["advice"]["advised"]][:1].assign(situation="measured", group="ood")
    rules = dict(zip(ADVICE["measured"], (0.3, 0.3, 1.0), strict=True))
    given = pd.concat([one.assign(rule=rule, alpha=alpha) for rule, alpha in rules.items()])
    line = next(x for x in summary_lines({"advice": given}, "share:hessian_trace") if "(measured)" in x)
    first, second, third = ADVICE["measured"].values()
    assert f"(measured): {first}, {second}: alpha 0.3 (" in line and f"; {third}: alpha 1 (" in line


def test_missing_tables_leave_their_blocks_out() -> None:
    assert list(summary_lines({}, "change:hessian_trace")) == []


def test_every_group_has_its_panels(tables: Tables) -> None:
    given = two_groups(tables)
    assert len(wiseft_curves(given["accuracy"]).axes) == 2 and len(wiseft_curves(tables["accuracy"]).axes) == 1
    one = accuracy_along_alpha(tables["accuracy"], tables["path"], tables["failure"])
    two = accuracy_along_alpha(given["accuracy"], given["path"], given["failure"])
    pairs = tables["accuracy"]["pair"].nunique()
    assert len(two.axes) - len(one.axes) == pairs  # one more panel for every pair
    drawn = all_figures({name: given[name] for name in ("accuracy", "path", "failure", "repair")})
    assert {"wiseft_curve", "accuracy_along_alpha", "repair"} <= set(drawn)
