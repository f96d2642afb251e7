"""Every group of OOD sets by itself: selections, means, and what happened on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sharpscope.clip.accuracy import mean_rows
from sharpscope.errors import ConfigError
from sharpscope.exchange.join import with_means
from sharpscope.findings.failure import failure_table
from sharpscope.findings.frames import members_of
from sharpscope.tables.happened import what_happened
from sharpscope.tables.rows import average, groups_in, of_group, pairs_and_groups, points_of, table, widest_means

SETS = {"x": "far", "y": "far", "z": "near"}


def row(dataset: str, value: float, alpha: float = 0.0, pair: str = "p", **more: Any) -> dict[str, Any]:
    role = "id" if dataset == "home" else "ood"
    head = {"pair": pair, "alpha": alpha, "variant": "dense", "dataset": dataset, "group": SETS.get(dataset, "")}
    span = {"estimate": value, "ci_low": value - 0.02, "ci_high": value + 0.02, "n": 100, "note": "", "primary": True}
    return head | span | {"role": role, "metric": "top1"} | more


def accuracy() -> pd.DataFrame:
    values = {"home": (0.5, 0.7, 0.9), "x": (0.4, 0.5, 0.3), "y": (0.2, 0.3, 0.1), "z": (0.3, 0.4, 0.5)}
    rows = [row(d, v, a) for d, several in values.items() for a, v in zip((0.0, 0.5, 1.0), several, strict=True)]
    means = [m for a in (0.0, 0.5, 1.0) for m in mean_rows([r for r in rows if r["alpha"] == a])]
    return table("accuracy", rows + means)


def test_every_group_has_a_mean_of_its_own_sets_and_there_is_no_other_mean() -> None:
    means = accuracy().query("role == 'ood_mean' and alpha == 0.5").set_index("group")
    assert means["estimate"].to_dict() == pytest.approx({"far": 0.4, "near": 0.4})
    assert means["dataset"].to_dict() == {"far": "x+y", "near": "z"}


def test_a_group_s_rows_are_its_own_and_those_of_no_group() -> None:
    frame = accuracy()
    assert groups_in(frame) == ["far", "near"]
    assert set(of_group(frame, "near")["dataset"]) == {"home", "z"}
    both = sum(len(of_group(frame, g)) for g in groups_in(frame))
    assert both == len(frame) + len(frame.query("role == 'id'"))


def test_rows_from_before_there_were_groups_are_in_the_group_ood() -> None:
    old = accuracy().drop(columns="group")
    assert groups_in(old) == ["ood"] and len(of_group(old, "ood")) == len(old)
    assert pairs_and_groups(old) is old


def test_several_groups_have_no_mean_in_common() -> None:
    with pytest.raises(ConfigError, match=r"several groups of OOD sets \(far, near\)"):
        average(accuracy(), "ood")
    near = average(of_group(accuracy(), "near"), "ood")
    np.testing.assert_allclose(near["estimate"], [30, 40, 50])


def test_names_of_panels_say_the_group_only_where_there_are_several() -> None:
    assert set(pairs_and_groups(accuracy().query("role != 'id'"))["pair"]) == {"p, far", "p, near"}
    assert len(widest_means(accuracy().query("role == 'ood_mean'"))) == 6


def test_means_of_measured_numbers_are_taken_by_group() -> None:
    bare = accuracy().query("role != 'ood_mean'")
    found = with_means(bare).query("role == 'ood_mean'")
    assert set(zip(found["group"], found["dataset"], strict=True)) == {("far", "x+y"), ("near", "z")}


def test_points_of_pairs_have_a_gain_for_every_group() -> None:
    sharp = pd.DataFrame({"pair": "p", "alpha": [0.0, 0.5], "layer": "(all)", "measure": "m", "estimate": [1.0, 2.0]})
    gains = points_of(sharp, accuracy()).set_index("group")["ood_gain"]
    assert gains.to_dict() == pytest.approx({"far": 0.1, "near": 0.1})


def failures() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    alphas, roles = (0.0, 0.5, 1.0), {"home": "id", **dict.fromkeys(SETS, "ood")}
    hits = {name: rng.random((3, 200)) < 0.5 for name in roles}
    hits["z"] = np.stack([np.arange(200) < k for k in (60, 20, 80)])
    return failure_table("p", alphas, hits, roles, np.ones((3, 8)), groups=SETS, bootstrap=200)


def test_failure_is_judged_by_group() -> None:
    flags = failures().set_index(["flag", "group", "dataset"])
    assert bool(flags.loc[("F2", "near", "ood_mean"), "present"]) and bool(flags.loc[("F2", "near", "z"), "present"])
    assert not flags.loc[("F2", "far", "ood_mean"), "present"]
    assert "LII" in flags.loc[("F3", "", "probe"), "note"]  # the probe loss belongs to no group


def test_what_happened_names_the_sets_and_is_one_sentence_per_group() -> None:
    far, near = what_happened(accuracy(), failures())
    assert far.startswith("far (x, y): along p ") and near.startswith("near (z): along p ")
    assert "zero-shot has 30.0 [28.6, 31.4] %" in far and "the fine-tuned model has 50.0 [48.0, 52.0] %" in near
    assert "failure flags F2" in near and "no failure flag" in far


@pytest.mark.parametrize(("gain", "beaten"), [(0.05, True), (0.0, False), (-0.14, False)])
def test_the_best_point_is_zero_shot_where_no_other_beats_it(gain: float, beaten: bool) -> None:
    shift = {"estimate": gain, "ci_low": gain - 0.02, "ci_high": gain + 0.02, "alpha": 1.0}
    flags = failures()
    flags.loc[flags["flag"] == "F1", list(shift)] = list(shift.values())
    for told in what_happened(accuracy(), flags):
        assert ("along p its best point, alpha 1, has" in told) == beaten
        assert ("along p no point beats zero-shot (the best other, alpha 1, has" in told) != beaten
        assert f"{100 * gain:+.1f} [{100 * gain - 2:+.1f}, {100 * gain + 2:+.1f}] points over zero-shot" in told


def test_what_all_pairs_start_from_is_said_once() -> None:
    both = [pd.concat([table, table.assign(pair="q")]) for table in (accuracy(), failures())]
    for told in what_happened(*both):
        assert told.count("zero-shot has") == 1 and told.index("zero-shot has") < told.index("along p ")
    apart = accuracy().assign(pair="q", estimate=lambda t: t["estimate"] + 0.01)
    for told in what_happened(pd.concat([accuracy(), apart]), both[1]):
        assert told.count("zero-shot has") == 2 and told.index("along p ") < told.index("zero-shot has")


def test_flags_that_are_undefined_are_not_called_absent() -> None:
    unknown = failures().assign(ci_low=np.nan, ci_high=np.nan, present=False)
    for told in what_happened(accuracy(), unknown):
        assert "no failure flag" not in told and "F1, F2, F3, F4 undefined or without interval" in told


def test_sets_without_a_group_are_in_the_default_one() -> None:
    assert members_of(["a", "b"], {"b": "g"}) == {"ood": ["a"], "g": ["b"]} and members_of([]) == {}
