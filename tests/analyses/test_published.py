"""analyses/published.py: published curves judged by the findings, and the committed tables and text that say so."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import sharpscope.findings
from sharpscope.errors import NoData
from sharpscope.findings import Counts, failure_table, published_paths
from sharpscope.present.publishedplots import published
from tests.scripts import loaded

ANALYSES = Path(__file__).parents[2] / "analyses"
RAW = Path(sharpscope.findings.__file__).parent / "published" / "wiseft_paths.csv"
PATHS, SUMMARY = (pd.read_csv(ANALYSES / "results" / f"{n}.csv") for n in ("published", "published_summary"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("analyses/published.py")


def curves(**values: Sequence[float]) -> pd.DataFrame:
    """A published table: path -> accuracies on every set at alphas 0, .1 ... 1."""
    rows = [
        {"pair": name, "model": "M", "lr": 1e-5, "epochs": 1.0, "wd": 0.0, "batch_size": 8.0, "freeze_encoder": False,
         "alpha": round(0.1 * i, 1)} | dict.fromkeys(("imagenet", "imagenet-v2", "imagenet-r", "imagenet-sketch"), v)
        for name, several in values.items()
        for i, v in enumerate(several)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def asked(question: str, population: str, what: str) -> pd.Series:
    rows = SUMMARY[(SUMMARY["question"] == question) & (SUMMARY["population"] == population)]
    (row,) = (r for _, r in rows[rows["what"] == what].iterrows())
    return row


# ------------------------------------------------------------------------------------------ numbers of right answers
def test_counts_have_binomial_replicates_and_refuse_what_is_no_count() -> None:
    counts = Counts(np.array([20, 50]), 100)
    drawn = counts.resampled(20_000, np.random.default_rng(0))
    assert counts.scores() == pytest.approx([0.2, 0.5]) and counts.shape == (2, 100)
    assert drawn.mean(axis=0) == pytest.approx(counts.scores(), abs=1e-3)
    assert drawn.var(axis=0) == pytest.approx([0.2 * 0.8 / 100, 0.5 * 0.5 / 100], rel=0.03)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03
    for right in ([-1], [101], []):
        with pytest.raises(ValueError, match="from 0 to 100"):
            Counts(np.array(right, dtype=int), 100)


def test_flags_of_counts_have_the_estimates_of_answers_and_wider_intervals() -> None:
    answers = np.arange(500) < np.array([[300], [280], [250]])
    alphas, roles, losses = (0.0, 0.5, 1.0), {"x": "ood"}, np.zeros((3, 1))
    known = failure_table("p", alphas, {"x": answers}, roles, losses).set_index(["flag", "dataset"])
    counted = failure_table("p", alphas, {"x": Counts(answers.sum(axis=1), 500)}, roles, losses)
    counted = counted.set_index(["flag", "dataset"])
    for flag in ("F1", "F2", "F4"):
        one, other = known.loc[(flag, "x")], counted.loc[(flag, "x")]
        assert (one["estimate"], one["alpha"]) == (other["estimate"], other["alpha"])
        assert other["ci_high"] - other["ci_low"] > one["ci_high"] - one["ci_low"]


# ------------------------------------------------------------------------------------------ one path
def test_a_path_that_is_best_at_zero_shot_fails_and_noise_does_not(script: ModuleType) -> None:
    down, up = np.linspace(0.6, 0.4, 11), np.linspace(0.6, 0.7, 11)
    data = script.read(curves(down=down, up=up, noise=[0.6, *[0.5999] * 10]))
    found = {pair: script.of_path(pair, data)[1] for pair in data.counts}
    assert found["down"]["flags"] == "F1" and found["down"]["best_alpha"] == 0 and found["down"]["F1_high"] < 0
    assert found["up"]["flags"] == "none" and (found["up"]["best_alpha"], found["up"]["regret_half"]) == (
        1.0,
        pytest.approx(0.05, abs=1e-4),
    )
    assert found["noise"]["flags"] == "none", "a fall inside the noise is no failure"


def test_equal_accuracies_at_alpha_0_are_one_zero_shot_model(script: ModuleType) -> None:
    data = script.read(curves(a=[0.5] * 11, b=[0.5, *[0.7] * 10], c=[0.51] * 11))
    assert list(data.facts["zero_shot"]) == ["A", "A", "B"] == list(data.design.base)
    assert data.design.n_effective == 1, "one setting, whatever its zero-shot models"


def test_the_committed_row_of_one_path_is_a_computation_by_hand() -> None:
    with RAW.open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["pair"] == "path19"]
    mean = {float(r["alpha"]): sum(float(r[f"imagenet-{s}"]) for s in ("v2", "r", "sketch")) / 3 for r in rows}
    best = max(mean, key=lambda a: mean[a])
    row = PATHS.set_index("pair").loc["path19"]
    assert row["best_alpha"] == best == 0.3
    assert row["gain_half"] == pytest.approx(mean[0.5] - mean[0.0], abs=1e-6)
    assert row["F1"] == pytest.approx(mean[best] - mean[0.0], abs=1e-6)
    assert row["regret_half"] == pytest.approx(mean[best] - mean[0.5], abs=1e-6)
    assert row["best_alpha_id"] == float(max(rows, key=lambda r: float(r["imagenet"]))["alpha"])
    assert row["gain_half_low"] < row["gain_half"] < row["gain_half_high"]


# ------------------------------------------------------------------------------------------ the whole table
def test_the_committed_tables_are_those_that_the_script_makes(script: ModuleType) -> None:
    data = script.read(published_paths())
    judged = {pair: script.of_path(pair, data) for pair in data.of(script.HEAD_ONLY)}
    table = pd.DataFrame([row for _, row in judged.values()])
    committed = PATHS[PATHS["tuned"] == script.HEAD_ONLY].reset_index(drop=True)
    pd.testing.assert_frame_equal(table.round(6), committed, check_dtype=False, atol=2e-6)
    paths = {pair: path for pair, (path, _) in judged.items()}
    rows = [*script.flag_rows(data, table, script.HEAD_ONLY), *script.regret_rows(data, paths, script.HEAD_ONLY)]
    fresh = pd.DataFrame(rows, columns=list(script.SUMMARY))
    own = SUMMARY[(SUMMARY["population"] == script.HEAD_ONLY) & SUMMARY["question"].isin(("failure", "regret"))]
    numbers = ["effect", "ci_low", "ci_high", "worst", "minus_half", "minus_low", "n", "n_effective"]
    assert list(own["verdict"].fillna("")) == list(fresh["verdict"])
    pd.testing.assert_frame_equal(
        fresh.set_index("what")[numbers].astype(float), own.set_index("what")[numbers].astype(float), atol=2e-6
    )


def test_a_regret_is_the_mean_over_settings_of_means_over_their_paths() -> None:
    for population in ("end-to-end", "head only"):
        own = PATHS[PATHS["tuned"] == population]
        of_settings = own.groupby("setting")["regret_half"].mean()
        row = asked("regret", population, "alpha 0.5")
        assert row["effect"] == pytest.approx(of_settings.mean(), abs=2e-6) and row["n_effective"] == len(of_settings)
        assert row["over_paths"] == pytest.approx(own["regret_half"].mean(), abs=2e-6)


def test_under_six_settings_nothing_is_told() -> None:
    few = SUMMARY[(SUMMARY["n_effective"] < 6) & SUMMARY["verdict"].notna()]
    assert len(few) and set(few["verdict"]) == {"cannot be told"}


def test_the_text_says_what_the_tables_say() -> None:
    text = " ".join((ANALYSES / "README.md").read_text(encoding="utf-8").split())

    def points(*cell: str) -> str:
        row = asked("regret", *cell)
        return f"{100 * row['effect']:.1f} [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"

    for population in ("end-to-end", "head only"):
        for rule in ("alpha 0", "alpha 0.5", "alpha 1", "id_best", "best_fixed", "learning_rate (unchecked)"):
            assert points(population, rule) in text, (population, rule)
    for population, what in (("end-to-end", "best_alpha"), ("end-to-end", "gain_half"), ("head only", "gain_half")):
        row = asked("learning rate, settings as units", population, what)
        assert f"{row['effect']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]" in text, (population, what)
    assert f"{asked('other models', 'all', 'effective number of models')['effect']:.1f} effective models" in text
    failing = PATHS[PATHS["flags"].str.contains("F1")]
    assert (
        f"{len(failing)} of the {len(PATHS)} paths raise F1" in text and f"{failing['learning_rate'].min():g}" in text
    )


def test_the_figure_has_every_path_and_needs_tables_with_rows() -> None:
    figure = published(PATHS, SUMMARY)
    drawn = max(len([x for x in ax.get_lines() if len(np.atleast_1d(x.get_xdata())) == 11]) for ax in figure.axes)
    assert drawn == len(PATHS)
    with pytest.raises(NoData, match="no path or no regret"):
        published(PATHS, SUMMARY[SUMMARY["question"] != "regret"])


def test_the_figure_script_writes_both_files_or_names_the_table_that_it_lacks(tmp_path: Path) -> None:
    figure = loaded("figures/fig_published.py")
    figure.main([str(ANALYSES / "results"), "--out", str(tmp_path)])
    assert sorted(f.name for f in tmp_path.iterdir() if f.stat().st_size > 5000) == ["published.pdf", "published.png"]
    with pytest.raises(SystemExit, match="published.csv: no such file; 'python analyses/published.py'"):
        figure.main([str(tmp_path), "--out", str(tmp_path)])
