from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from sharpscope.curvature.imageerrors import error_over_images
from sharpscope.findings.design import Design
from sharpscope.findings.doubts import Doubt
from sharpscope.findings.prediction import REFERENCE
from sharpscope.findings.repair import CONTRASTS, Repairs
from sharpscope.findings.verdicts import verdicts_table
from sharpscope.tables.schema import COLUMNS, KEYS
from sharpscope.vocabulary import CANNOT, CLAIMS, DOES_NOT_HOLD, HOLDS

ALPHAS = (0.0, 0.5, 1.0)
CORRELATION = {"pair": "(pairs)", "measure": "hessian_trace", "against": "ood_gain", "dataset": "x+y", "scope": "pairs"}
CORRELATION |= {"alpha": 0.5, "source": "run", "status": "ok", "note": "", "n": 20, "n_effective": 20}
CORRELATION |= {"group": "ood", "given": "learning_rate", "family": "primary"}


def correlation(
    layer: str, rho: float, low: float, high: float, p: float, method: str = "spearman", **more: object
) -> dict:
    numbers = {"estimate": rho, "ci_low": low, "ci_high": high, "p_value": p, "q_value": p}
    return CORRELATION | {"layer": layer, "method": method} | numbers | more


def correlations(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(COLUMNS["correlations"]))


def flags(pair: str, *present: str) -> pd.DataFrame:
    same = {"pair": pair, "dataset": "ood_mean", "estimate": 0.0, "ci_low": -0.1, "ci_high": 0.1}
    rows = [same | {"flag": f, "present": f in present} for f in ("F1", "F2", "F4")]
    return pd.DataFrame(rows, columns=list(COLUMNS["failure"]))


GONE = {"F1": (0.02, -0.005, 0.04), "F2": (-0.02, -0.04, 0.005), "F4": (0.0, -0.02, 0.005)}
STAYS = {"F1": (-0.20, -0.23, -0.17), "F2": (0.05, 0.02, 0.08), "F4": (0.05, 0.002, 0.08)}
OPEN = {"F1": (-0.01, -0.04, 0.01), "F2": (0.02, 0.005, 0.04), "F4": (0.01, -0.01, 0.03)}


def repairs(pair: str, estimate: float, low: float, high: float, left: dict | None = None) -> Repairs:
    """``left``: the flags of the repaired points; by default no failure is left of any."""
    known = {"name": "delta:random:0.5", "num_alphas": 3, "num_pairs": 5, "gain": estimate + 0.02, "note": ""}
    rows = [{"pair": pair, "difference": estimate, **known}, {"pair": pair, "num_alphas": 0}]
    lines = pd.DataFrame(rows, columns=list(CONTRASTS))
    empty = pd.DataFrame(columns=list(COLUMNS["repair"]))
    return Repairs(pair, "ood", empty, lines, estimate, low, high, "delta:random:0.5", GONE if left is None else left)


def references(sign: float, n: int = 24, measure: str = "hessian_trace") -> pd.DataFrame:
    rows = []
    for i in range(n):
        for a in ALPHAS:
            gain = 0.01 * sign * i * a
            numbers = (f"r{i}", a, measure, 1.0 + i * a, np.log(1 + i * a), 1.0, 0.9, 0.4 + gain, gain, "ood")
            rows.append(dict(zip(REFERENCE, numbers, strict=True)))
    return pd.DataFrame(rows)


def design(n: int = 24, rates: np.ndarray | None = None, two: tuple[float, float] = (1.0, 1.0)) -> Design:
    """The pairs of ``references`` and the two judged ones, with learning rates that are unrelated to everything."""
    known = np.random.default_rng(0).permutation(n).astype(float) if rates is None else rates
    names = (*(f"r{i}" for i in range(n)), "good", "bad")
    return Design(names, ("",) * len(names), ("",) * len(names), {"learning_rate": np.array([*known, *two])})


@pytest.fixture
def two(sharpness_of, accuracy_of):
    """Pairs good and bad: same ID accuracy, OOD at .5 higher for good, sharpness of good ``ratio`` times bad's."""

    def make(ratio: float = 4.0, good: float = 0.6, bad: float = 0.3, ids: float = 0.9, error: float = 0.05) -> dict:
        def sharp(pair: str, value: float) -> pd.DataFrame:
            return sharpness_of(pair, ALPHAS, {"l": [1.0, value, 1.0]}, measure="hessian_trace", error=error)

        acc = [accuracy_of("good", ALPHAS, [0.4, good, 0.5], [0.5, 0.7, 0.9])]
        acc.append(accuracy_of("bad", ALPHAS, [0.4, bad, 0.5], [0.5, 0.7, ids]))
        frame = pd.concat([sharp("good", ratio), sharp("bad", 1.0)], ignore_index=True)
        return {"sharpness": frame, "accuracy": pd.concat(acc, ignore_index=True)}

    return make


def judge(two: dict, table: pd.DataFrame | None = None, **options: object) -> pd.DataFrame:
    table = correlations() if table is None else table
    failure = options.pop("failure", flags("bad"))
    primary = {"measure": "hessian_trace", "alpha": 0.5, "design": design()}
    given = (table, failure, options.pop("repairs", ()), two["sharpness"], two["accuracy"])
    got = verdicts_table(*given, **(primary | options))
    assert tuple(got.columns) == COLUMNS["verdicts"] and not got.duplicated(list(KEYS["verdicts"])).any()
    assert set(got["verdict"]) <= {HOLDS, DOES_NOT_HOLD, CANNOT} and got["evidence"].str.endswith(".").all()
    return got.set_index("claim")


@pytest.mark.parametrize(
    ("present", "numbers", "verdict"),
    [
        (("F1", "F2"), (0.05, 0.01, 0.08), HOLDS),
        (("F1",), (-0.05, -0.08, -0.01), DOES_NOT_HOLD),
        (("F1",), (0.002, -0.002, 0.006), DOES_NOT_HOLD),
        (("F1",), (0.02, -0.01, 0.05), CANNOT),
        (("F1",), (0.08, np.nan, np.nan), CANNOT),
        ((), (0.05, 0.01, 0.08), CANNOT),
        (("F1",), (np.nan, np.nan, np.nan), CANNOT),
    ],
)
def test_a_repair_is_judged_where_there_is_a_failure(two, present: tuple, numbers: tuple, verdict: str) -> None:
    got = judge(two(), failure=flags("bad", *present), repairs=[repairs("bad", *numbers)])
    row = got.loc[CLAIMS["repair"]]
    assert (row["verdict"], row["pair"]) == (verdict, "bad")
    assert (", ".join(present) if present else "nothing to repair") in row["evidence"]


@pytest.mark.parametrize("flag", ["F1", "F2", "F4"])
@pytest.mark.parametrize(
    ("left", "verdict", "words"),
    [
        (GONE, HOLDS, "the failure is gone"),
        (STAYS, DOES_NOT_HOLD, "mitigates, does not repair"),
        (OPEN, CANNOT, "whether the failure is gone is not known"),
        ({}, CANNOT, "whether the failure is gone is not known"),
    ],
)
def test_a_gain_is_a_repair_only_where_the_failure_is_gone(
    two, flag: str, left: dict, verdict: str, words: str
) -> None:
    given = {"failure": flags("bad", flag), "repairs": [repairs("bad", 0.05, 0.01, 0.08, left)]}
    row = judge(two(), **given).loc[CLAIMS["repair"]]
    assert row["verdict"] == verdict and words in row["evidence"]
    mixed = repairs("bad", 0.05, 0.01, 0.08, GONE | {f: v for f, v in left.items() if f == flag})
    if left:  # the failures that the path has count, and no others
        assert judge(two(), **given | {"repairs": [mixed]}).loc[CLAIMS["repair"], "verdict"] == verdict


def test_a_failure_of_the_loss_alone_is_not_repaired_by_a_gain_of_accuracy(two) -> None:
    failure = flags("bad")
    loss = {"pair": "bad", "flag": "F3", "dataset": "probe", "estimate": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    failure = pd.concat([failure, pd.DataFrame([loss | {"present": True}])], ignore_index=True)
    given = {"failure": failure, "repairs": [repairs("bad", 0.05, 0.01, 0.08)]}
    row = judge(two(), **given).loc[CLAIMS["repair"]]
    assert row["verdict"] == CANNOT and "OOD accuracy does not fail" in row["evidence"]
    failure.loc[failure["flag"] == "F1", "present"] = True
    assert judge(two(), **given).loc[CLAIMS["repair"], "verdict"] == HOLDS


@pytest.mark.parametrize(
    ("unknown", "words"),
    [(("F1", "F2", "F4"), "flags are undefined or have no interval"), (("F2",), "F1, F4 are absent, F2 undefined")],
)
def test_flags_that_are_undefined_are_never_called_absent(two, unknown: tuple, words: str) -> None:
    failure = flags("bad")
    failure.loc[failure["flag"].isin(unknown), ["ci_low", "ci_high"]] = np.nan
    row = judge(two(), failure=failure, repairs=[repairs("bad", 0.05, 0.01, 0.08)]).loc[CLAIMS["repair"]]
    assert row["verdict"] == CANNOT and words in row["evidence"] and "No failure flag" not in row["evidence"]


def test_where_numbers_are_meaningless_no_verdict_is_given(two) -> None:
    rows = [correlation(name, 0.8, 0.4, 0.95, 0.001) for name in ("(all)", "(stragglers)")]
    given = {
        "failure": flags("bad", "F1"), "references": references(1.0), "reference_source": "shipped",
        "repairs": [repairs("good", 0.05, 0.01, 0.08), repairs("bad", 0.05, 0.01, 0.08)],
    }  # fmt: skip
    sound = judge(two(), correlations(*rows), **given)
    assert set(sound["verdict"]) == {HOLDS, CANNOT}
    of_pair = judge(two(), correlations(*rows), **given, doubts=[Doubt("bad", "the ends look swapped", "")])
    doubted = of_pair[of_pair["pair"].isin(["(pairs)", "bad"])]
    assert len(doubted) == 5 and (doubted["verdict"] == CANNOT).all() and doubted["estimate"].isna().all()
    assert doubted["evidence"].str.startswith("No verdict is given: ").all()
    assert doubted["n_effective"].isna().all() and (doubted["n"] == 0).all()
    assert "pair bad the ends look swapped" in doubted.loc[CLAIMS["question"], "evidence"]
    assert of_pair[of_pair["pair"] == "good"].equals(sound[sound["pair"] == "good"])
    of_all = judge(two(), correlations(*rows), **given, doubts=[Doubt("(pairs)", "the path has no ends", "")])
    assert of_all["evidence"].eq("No verdict is given: the path has no ends.").all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [4.0, 0.25])
def test_the_question_takes_its_sign_from_the_other_pairs(two, sign: float, ratio: float) -> None:
    got = judge(two(ratio=ratio), references=references(sign), reference_source="shipped").loc[CLAIMS["question"]]
    rightly = sign * np.log(ratio) > 0
    assert got["verdict"] == CANNOT  # one order decides nothing
    assert ("predicts the right order of the two (1 of 1)" in got["evidence"]) == rightly
    assert ("predicts the wrong order of the two (0 of 1)" in got["evidence"]) != rightly
    assert got["estimate"] == pytest.approx(np.log(ratio)) and got["n"] == 24 and got["source"] == "shipped"
    assert got["ci_low"] < got["estimate"] < got["ci_high"]


def test_the_two_pairs_are_left_out_of_the_references(two) -> None:
    planted = references(-1.0).assign(pair=lambda t: t["pair"].replace({"r0": "good", "r7": "bad"}))
    got = judge(two(), references=planted).loc[CLAIMS["question"]]
    assert got["n"] == 22 and "over 22 other pairs" in got["evidence"]


def test_the_question_without_an_answer_says_why(two) -> None:
    cases = {
        "ID accuracies are more than 2 points apart": (two(ids=0.8), references(1.0)),
        "the same to 2 points is not known": (two(ids=0.89), references(1.0)),
        "its interval contains 0": (two(good=0.305), references(1.0)),
        "there are no other pairs": (two(), None),
        "over 7 other pairs no partial correlation": (two(), references(1.0, n=7)),
        "one of these numbers is missing": (two(ratio=-1.0), references(1.0)),
    }
    for reason, (tables, others) in cases.items():
        got = judge(tables, references=others).loc[CLAIMS["question"]]
        assert got["verdict"] == CANNOT and reason in got["evidence"], reason
    same = judge(two(ratio=1.01), references=references(1.0)).loc[CLAIMS["question"]]
    assert same["verdict"] == CANNOT and "their sharpness does not, which predicts no order" in same["evidence"]


def test_the_ratio_s_interval_is_that_over_draws_of_images_and_missing_where_that_is_unknown(two) -> None:
    tables = two(ratio=2.0)
    sharp = tables["sharpness"]
    same = judge(tables, references=references(1.0)).loc[CLAIMS["question"]]
    assert "over draws of 48 images" in same["evidence"]
    wide = judge(
        tables | {"sharpness": sharp.assign(stderr_images=0.5 * sharp["estimate"])}, references=references(1.0)
    )
    row = wide.loc[CLAIMS["question"]]
    assert row["ci_high"] - row["ci_low"] == pytest.approx(2 * 1.959964 * 0.5 * 2**0.5, rel=1e-6)
    assert row["verdict"] == CANNOT and "choice of images" in row["evidence"]  # a wide interval is no absence
    row = judge(tables | {"sharpness": sharp.assign(stderr_images=np.nan)}, references=references(1.0)).loc[
        CLAIMS["question"]
    ]
    assert row["verdict"] == CANNOT and "draws of images is not known" in row["evidence"] and np.isnan(row["ci_low"])


def test_under_the_null_the_ratio_s_interval_misses_0_as_seldom_as_it_says(two) -> None:
    """Two models of one sharpness, whose images' parts are skewed: 48 images each, drawn again and again."""
    tables, rng, missed, narrow = two(ratio=1.0), np.random.default_rng(0), 0, 0
    for _ in range(32):
        each = rng.lognormal(0, 1, (2, 48)) / 48
        frame = tables["sharpness"].copy()
        for pair, parts in zip(("good", "bad"), each, strict=True):
            error = error_over_images((torch.from_numpy(parts),), (1.0,), (48,))
            frame.loc[frame["pair"] == pair, ["estimate", "stderr", "stderr_images"]] = parts.sum(), 0.02, error
        row = judge(tables | {"sharpness": frame}, bootstrap=10).loc[CLAIMS["question"]]
        missed += not row["ci_low"] <= 0 <= row["ci_high"]
        narrow += abs(row["estimate"]) > 1.96 * 0.02 * 2**0.5
    assert missed <= 5, missed  # 1.6 of 32 expected; more than 5 once in 150
    assert narrow > 20  # what random directions alone say


def test_one_pair_leaves_the_question_open(two) -> None:
    tables = {k: v[v["pair"] == "good"] for k, v in two().items()}
    assert "this run has one" in judge(tables).loc[CLAIMS["question"], "evidence"]


def test_the_question_is_not_answered_by_what_the_learning_rate_explains(two) -> None:
    """The other pairs' gains follow their learning rates, and their sharpness does: given the rate nothing is left."""
    follows = design(rates=np.arange(24.0), two=(13.0, 2.0))
    got = judge(two(), references=references(1.0), design=follows).loc[CLAIMS["question"]]
    assert got["verdict"] == CANNOT and "learning_rate determines" in got["evidence"]
    assert "The learning rate alone has a Spearman correlation of +1.00" in got["evidence"]
    assert "predicts the right order" in got["evidence"]


def test_a_gap_that_may_be_noise_is_not_predicted_by_the_learning_rate_either(two) -> None:
    follows = design(rates=np.arange(24.0), two=(13.0, 2.0))
    told = judge(two(good=0.305), references=references(1.0), design=follows).loc[CLAIMS["question"], "evidence"]
    assert "its interval contains 0" in told and "learning rate alone" not in told


def test_the_question_needs_the_learning_rates_of_the_other_pairs(two) -> None:
    some = references(1.0).assign(distance=lambda t: t["pair"].map(lambda p: float(int(p[1:]) * 7 % 24)))
    got = judge(two(), references=some, design=None).loc[CLAIMS["question"]]
    assert got["verdict"] == CANNOT and "the learning rates are not known" in got["evidence"]


def test_a_repair_of_layers_that_are_no_stragglers_is_no_evidence(two) -> None:
    options = {"failure": flags("bad", "F1"), "repairs": [repairs("bad", 0.05, 0.01, 0.08)]}
    got = judge(two(), **options, no_evidence={"bad": "no layer is a straggler"}).loc[CLAIMS["repair"]]
    assert got["verdict"] == CANNOT and got["evidence"].startswith("No layer is a straggler")
    assert np.isnan(got["estimate"]) and judge(two(), **options).loc[CLAIMS["repair"], "verdict"] == HOLDS
