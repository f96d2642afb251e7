"""Advice in a whole run: what sparse stragglers gained on the OTHER pairs says whether to hold layers back here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.findings.advice import advice_table
from sharpscope.findings.design import Design, independent
from sharpscope.layers import Layer
from sharpscope.study.advise import _with_rate, advise
from sharpscope.study.known import tuning_of
from sharpscope.study.results import Results
from sharpscope.study.unitfile import Unit

ALPHAS = (0.0, 0.5, 1.0)
N = 400
ID, OOD = "mini:photo", "mini:sketch"
LAYERS = tuple(Layer(f"l{i}", (f"l{i}.weight",), "image", i, "mlp", 10) for i in range(6))


def right(level: float) -> np.ndarray:
    return np.arange(N) < round(level * N)


def results_of(pairs: int, gains: dict[str, float], stragglers: str = "p0p1p2p3p4p5") -> Results:
    """A run in which the repaired layers of pair NAME gain ``gains[NAME]`` at equal ID accuracy, random ones nothing.

    ``stragglers``: the pairs that have one; in the others the layer of the highest score is repaired instead.
    """
    names = [f"p{i}" for i in range(pairs)]
    config = StudyConfig(
        pairs=tuple(PairConfig(n, "mini:zeroshot", f"mini:{n}") for n in names),
        id=(ID,), ood=(OOD,), alphas=ALPHAS, measures=("ggn_trace",), straggler_criterion="rewind",
        densities=(0.5,), targets=("delta",), selects=("random",), bootstrap=60,
    )  # fmt: skip
    results = Results(config, dict.fromkeys(names, LAYERS))
    units: dict[str, Unit] = {}
    for name in names:
        for alpha in ALPHAS:
            row = {"pair": name, "alpha": alpha, "loss": 1.0, "distance_0": alpha, "distance_1": 1 - alpha}
            answered = {f"correct:{ID}": right(0.5 + 0.4 * alpha), f"correct:{OOD}": right(0.4 + 0.1 * alpha)}
            plain = {"pair": name, "alpha": alpha, "variant": "dense", "metric": "top1", "n": N, "primary": True}
            accuracy = [
                plain | {"dataset": ID, "role": "id", "estimate": 0.5 + 0.4 * alpha},
                plain | {"dataset": OOD, "group": "ood", "role": "ood", "estimate": 0.4 + 0.1 * alpha},
            ]
            arrays = {"losses": np.ones(8), **answered}
            units[f"path/{name}/{alpha!r}"] = Unit({"path": [row], "accuracy": accuracy}, arrays)
        losses = np.ones((6, 3, 8))
        losses[2, 0] += 5.0 * (name in stragglers)
        units[f"layers/{name}/finetuned"] = Unit({}, {"losses": losses, "alphas": np.array(ALPHAS)})
    results.take(units, {})
    for task in results.repair_tasks():
        gain = gains.get(task.pair, 0.0) if "straggler" in task.key.split("/")[2] else 0.0
        answered = {f"correct:{ID}": right(0.7), f"correct:{OOD}": right(0.45 + gain)}
        results.take({task.key: Unit({}, answered)}, {})
    return results


def run_of(pairs: int, gains: dict[str, float], stragglers: str = "p0p1p2p3p4p5") -> pd.DataFrame:
    """The advice from references of ``results_of``, a row a pair."""
    advice = results_of(pairs, gains, stragglers).tables()["advice"]
    ours = advice[advice["situation"] == "references"]
    return ours[ours["advised"] | ours["alpha"].isna()].drop_duplicates("pair").set_index("pair")


def test_layers_are_held_back_where_it_helped_the_other_pairs() -> None:
    gains = {f"p{i}": 0.1 + 0.01 * i for i in range(6)}
    found = run_of(6, gains)
    assert set(found["layers"]) == {"l2"} and set(found["density"]) == {0.5}
    assert found["note"].str.contains("over 5 settings of other pairs is").all()


def test_what_is_known_of_a_pair_is_the_same_for_the_report_and_for_whoever_asks_later() -> None:
    results = results_of(6, {f"p{i}": 0.1 + 0.01 * i for i in range(6)})
    table = results.tables()["advice"]
    for name in results.layers:
        later = advice_table(results.along(name), results.known(name, results.references()))
        keys, seen = ["situation", "rule", "group"], ["alpha", "layers", "density", "advised"]
        own, later = (rows.set_index(keys)[seen].sort_index() for rows in (table[table["pair"] == name], later))
        pd.testing.assert_frame_equal(own, later)
        assert (later["layers"] == "l2").any()


def test_units_that_come_later_are_among_the_repairs() -> None:
    results = results_of(2, {})
    before = len(results.repairs()[0].table)
    results.units = {k: u for k, u in results.units.items() if not k.startswith("repair/")}
    results.take({}, {})
    assert before > 0 and len(results.repairs()[0].table) == 0


def test_a_pairs_own_ood_labels_say_nothing_to_its_advice() -> None:
    without = {f"p{i}": 0.1 + 0.01 * i for i in range(1, 6)}
    judged = [run_of(6, without | {"p0": own}).loc["p0"] for own in (-0.4, 0.5)]
    for column in ("layers", "density", "alpha"):
        assert judged[0][column] == judged[1][column]
    assert judged[0]["layers"] == "l2"


@pytest.mark.parametrize(
    ("pairs", "gain", "stragglers"), [(4, 0.1, "p0p1p2p3"), (6, -0.1, "p0p1p2p3p4p5"), (6, 0.1, "p0")], ids=str
)
def test_nothing_is_held_back_without_that_evidence(pairs: int, gain: float, stragglers: str) -> None:
    found = run_of(pairs, {f"p{i}": gain + 0.01 * i for i in range(pairs)}, stragglers)
    assert set(found["layers"]) == {""} and found["density"].isna().all()
    assert (
        found["note"].str.contains("ID data of this pair cannot show|no alpha: 3 reference pairs of 3 settings").all()
    )


def test_replicates_level_and_seed_that_are_told_are_those_of_the_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a run they replace its own, and nothing else changes."""
    results = results_of(2, {})
    monkeypatch.setattr("sharpscope.study.advise.finished_results", lambda root: (None, results))
    usual, same = advise("run").table, advise("run", bootstrap=60, level=0.95, seed=0).table
    pd.testing.assert_frame_equal(usual, same)
    for told in ({"level": 0.8}, {"bootstrap": 100}, {"seed": 1}):
        other = advise("run", **told).table  # type: ignore[arg-type]
        assert not other["ci_high"].equals(usual["ci_high"]), told
        assert other["ood_accuracy"].equals(usual["ood_accuracy"])
    assert advise("run", level=0.8).table["note"].str.contains("regret 80% interval").any()


def test_a_learning_rate_that_is_told_is_that_of_the_pairs_of_which_none_is_known() -> None:
    design = Design(("a", "b"), ("", ""), ("", ""), {"learning_rate": np.array([np.nan, 1e-5])})
    assert _with_rate(design, 1e-3, Path("run")).covariates["learning_rate"].tolist() == [1e-3, 1e-5]
    assert _with_rate(independent(("a",)), 1e-3, Path("run")).covariates["learning_rate"].tolist() == [1e-3]


def test_what_moved_is_a_fact_and_not_the_first_words_of_a_description() -> None:
    design = independent(("a",))
    described = {"what moves": "only the head: the towers are the same at both ends"}
    assert tuning_of(design, "a", described).head_only is None, "a run from before the fact was kept"
    for told in (True, False):
        assert tuning_of(design, "a", described | {"head_only": told}).head_only is told
