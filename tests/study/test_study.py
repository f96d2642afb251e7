"""The whole method as a user runs it, small: one study of the embedded world, looked at from every side."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sharpscope.cli.main import main
from sharpscope.clip.pair import load_pair
from sharpscope.clip.probe import Probe
from sharpscope.config.study import DEFAULT_MEASURES, PairConfig, StudyConfig
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.errors import ConfigError, IdenticalPair, NonFiniteWeights, PairMismatch, RunDirectoryError
from sharpscope.findings.reliability import answer_error
from sharpscope.notebook import layer_sharpness
from sharpscope.present.plots import all_figures
from sharpscope.study import report as study_report
from sharpscope.study import run as study
from sharpscope.study.across import correlate
from sharpscope.study.context import Context
from sharpscope.study.demo import demo_config
from sharpscope.study.figures.reading import tables_of
from sharpscope.study.finished import answers_of
from sharpscope.study.plan import plan
from sharpscope.study.report import report
from sharpscope.study.store import RunDirectory
from sharpscope.tables.files import read_csv
from sharpscope.tables.schema import COLUMNS, KEYS
from sharpscope.vocabulary import ALL, MEASURES, STATUSES
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint


def small_config(**changes: Any) -> StudyConfig:
    """The demo's two pairs with everything small: seconds instead of a minute."""
    config = dataclasses.replace(
        demo_config(),
        ood=("mini:sketch", "mini:clipart"),
        alphas=(0.0, 0.25, 0.5, 1.0),
        curvature_alphas=(0.0, 0.5, 1.0),
        paths=("linear", "lines"),
        granularity="block",
        measures=(*DEFAULT_MEASURES, "lambda_min"),
        probe_size=12,
        perturbation_size=6,
        batch_size=8,
        limit=64,
        max_matvecs=4,
        perturbation_alphas=(0.5,),
        pgd_steps=2,
        noise_samples=2,
        layer_alphas=(0.0, 1.0),
        criticality_noise=(1.0,),
        repair_alphas=(0.5,),
        targets=("delta",),
        masks=2,
        repair_limit=64,
        bootstrap=60,
        density_layers=("visual.post",),
        density_alphas=(0.5,),
        eigenvectors=2,
        eigenvector_layers=("visual.post",),
        eigenvector_alphas=(0.5,),
        agreement=True,
        jobs=1,
    )
    return dataclasses.replace(config, **changes)


Tables = dict[str, pd.DataFrame]


def table_bytes(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((root / "tables").glob("*.csv"))}


def one_measure(tables: Tables, *how: Any) -> dict[str, Any]:
    """The figures of the path, with one measure of sharpness: tests/present draws all of all measures."""
    others = ("agreement", "correlations", "points", "residuals")
    kept = {name: table for name, table in tables.items() if name not in others}
    return all_figures({**kept, "sharpness": kept["sharpness"].query("measure == 'hessian_trace'")}, *how)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> study.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sharpscope.study.report.all_figures", one_measure)
        return study.run(small_config(), tmp_path_factory.mktemp("study") / "run")


# ------------------------------------------------------------------ what a finished run holds
def test_every_table_has_rows_its_columns_and_no_repeated_key(finished: study.Run) -> None:
    assert set(finished.tables) == set(COLUMNS)
    for name, columns in COLUMNS.items():
        table = read_csv(finished.root / "tables" / f"{name}.csv", name)
        assert len(table) > 0 or name == "vrf", name  # test_still_layers asks for vrf
        assert list(table.columns)[: len(columns)] == list(columns)
        assert not table.duplicated(list(KEYS[name])).any(), name
        pd.testing.assert_frame_equal(table, finished.tables[name])
        assert (finished.root / "tables" / f"{name}.parquet").stat().st_size > 0


def test_every_layer_and_the_whole_model_has_every_measure_at_every_alpha(finished: study.Run) -> None:
    table, config = finished.sharpness, small_config()
    layers = {"visual.stem", *(f"visual.transformer.resblocks.{i}" for i in range(4)), "visual.post", "head", ALL}
    for measure in config.measures:
        alphas = config.perturbation_alphas if measure.startswith("sharpness_") else config.curvature_alphas
        rows = table[table["measure"] == measure]
        assert {(a, x) for a, x in zip(rows["alpha"], rows["layer"], strict=True)} >= {
            (a, x) for a in alphas for x in layers
        }
        assert len(rows) == len(layers) * len(alphas) * len(config.pairs)


def test_no_estimate_stands_without_its_uncertainty_or_status(finished: study.Run) -> None:
    sharpness = finished.sharpness
    assert set(sharpness["status"]) <= set(STATUSES)
    sampled = sharpness[sharpness["measure"].str.endswith("_trace") | (sharpness["measure"] == "sharpness_avg")]
    assert np.isfinite(sampled["stderr"]).all()
    assert np.isfinite(sharpness.loc[sharpness["measure"].str.startswith("lambda"), "residual"]).all()
    assert (sharpness["converged"] == (sharpness["status"] == "ok")).all()
    whole = sharpness[sharpness["layer"] == ALL]
    np.testing.assert_allclose(whole["share"].to_numpy(dtype=float), 1.0)
    for name in ("accuracy", "failure", "advice", "repair"):
        table = finished.tables[name]
        known = np.isfinite(table["estimate" if "estimate" in table else "ci_low"])
        bounded = np.isfinite(table["ci_low"]) & np.isfinite(table["ci_high"])
        explained = table["note"].fillna("") != ""
        assert (bounded | explained | ~known).all(), name
    undefined = finished.correlations["status"] == "undefined"
    assert (finished.correlations.loc[undefined, "note"] != "").all()
    assert undefined.any() and (~undefined).any()


def test_finite_radii_are_taken_on_a_part_of_the_probe_set(finished: study.Run) -> None:
    sizes = finished.sharpness.groupby("measure")["n"].agg(["min", "max"])
    for measure, (least, most) in sizes.iterrows():
        assert least == most == (6 if MEASURES[measure].radius is not None else 12)
    config = small_config(pairs=small_config().pairs[:1])
    context = Context.load(config, config.pairs[0])
    thin = context.probe.thinned(6)
    settings, layers = context.settings, [x for x in context.layers if x.name == "head"]
    rows = measure_layers(thin, context.theta(0.5), layers, ("sharpness_max",), settings, key=("success", 0.5)).rows
    mine = finished.sharpness.query("pair == 'success' and measure == 'sharpness_max' and alpha == 0.5")
    told = mine.set_index("layer").loc["head", "estimate"]
    assert [row["estimate"] for row in rows if row["layer"] == "head"] == [pytest.approx(told, rel=1e-5)]


def test_eigenvalues_and_traces_are_consistent(finished: study.Run) -> None:
    wide = finished.sharpness.pivot_table(index=["pair", "alpha", "layer"], columns="measure", values="estimate")
    assert (wide["lambda_max"] >= wide["lambda_min"]).all()
    magnitude = np.maximum(wide["lambda_max"].abs(), wide["lambda_min"].abs())
    np.testing.assert_allclose(wide["lambda_abs"].abs(), magnitude)
    assert (wide["ggn_trace"] > 0).all()


def test_the_density_of_a_chosen_layer_has_its_trace_as_mean(finished: study.Run) -> None:
    table = finished.density
    assert set(table["layer"]) == {"visual.post"} and set(table["alpha"]) == {0.5} and (table["stderr"] >= 0).all()
    for pair, own in table.groupby("pair"):
        assert np.trapezoid(own["density"], own["value"]) == pytest.approx(1, abs=0.01)
        mean = np.trapezoid(own["density"] * own["value"], own["value"]) * own["num_params"].iloc[0]
        rows = finished.sharpness.query("layer == 'visual.post' and alpha == 0.5 and measure == 'hessian_trace'")
        trace = rows[rows["pair"] == pair].iloc[0]
        assert mean == pytest.approx(trace["estimate"], rel=0.5, abs=6 * trace["stderr"])
    assert (finished.root / "figures" / "spectral_density.png").stat().st_size > 0


def test_the_saved_eigenvectors_are_those_of_the_table(finished: study.Run) -> None:
    assert len(finished.eigenpairs) == 2 * len(small_config().pairs) and set(finished.eigenpairs["rank"]) == {1, 2}
    for pair, rows in finished.eigenpairs.groupby("pair"):
        tensors = dict(np.load(finished.root / "eigenvectors" / f"{pair}_0.5.npz"))
        assert {name.partition(":")[0] for name in tensors} == {"visual.post"}
        vectors = np.concatenate([t.reshape(2, -1) for t in tensors.values()], axis=1)
        assert vectors.shape[1] == rows["num_params"].iloc[0]
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=1e-5)
        top = rows[rows["rank"] == 1].iloc[0]
        found = finished.sharpness.query("layer == 'visual.post' and alpha == 0.5 and measure == 'lambda_max'")
        other = found[found["pair"] == pair].iloc[0]
        assert abs(top["eigenvalue"] - other["estimate"]) <= top["residual"] + other["residual"]


def test_path_table_has_the_ends_where_they_belong(finished: study.Run) -> None:
    for _, rows in finished.path.groupby("pair"):
        ends = rows.set_index("alpha")
        assert ends.loc[0.0, "distance_0"] == 0 and ends.loc[1.0, "distance_1"] == 0
        assert ends.loc[0.5, "distance_0"] == pytest.approx(ends.loc[1.0, "distance_0"] / 2)
    zero = finished.accuracy[(finished.accuracy["alpha"] == 0) & (finished.accuracy["variant"] == "dense")]
    assert zero.groupby("dataset")["estimate"].nunique().eq(1).all()  # both pairs start at the same model


def test_the_failure_pair_fails_and_the_success_pair_does_not(finished: study.Run) -> None:
    flags = finished.failure[finished.failure["dataset"] == "ood_mean"].set_index(["pair", "flag"])["present"]
    assert bool(flags["failure", "F2"]) and not bool(flags["success", "F2"])


def test_the_report_is_one_file_with_every_section_and_no_address(finished: study.Run) -> None:
    html = finished.report.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|@import|url\(\s*["']?http""", html)
    assert "can sharpness on ID data tell" in html
    for row in finished.verdicts.itertuples():
        assert str(row.verdict) in html
    for word in ("Stragglers", "Repair", "Correlation", "Failure", "Sharpness", "Advice"):
        assert re.search(word, html, re.IGNORECASE), word
    ends = finished.accuracy[finished.accuracy["alpha"].isin((0.0, 1.0)) & (finished.accuracy["variant"] == "dense")]
    for number in ends.loc[ends["role"] == "ood_mean", "estimate"]:
        assert f"{100 * number:.1f}" in html
    text = re.sub(r"base64,[^\"]*|<script.*?</script>", "", html, flags=re.DOTALL)
    assert "NaN" not in text and not re.search(r"\bnan\b", text)
    names = {p.stem for p in (finished.root / "figures").glob("*.png")}
    assert {"wiseft_curve", "accuracy_along_alpha", "heatmap_hessian_trace", "straggler_ranking", "repair"} <= names
    assert names == {p.stem for p in (finished.root / "figures").glob("*.pdf")}


def test_the_manifest_says_what_was_done(finished: study.Run) -> None:
    manifest = json.loads((finished.root / "manifest.json").read_text())
    assert manifest["alpha_on"] == "finetuned" and manifest["seed"] == 0 and manifest["threads"] == 1
    assert StudyConfig.from_dict(manifest["config"]) == small_config()
    assert re.fullmatch("[0-9a-f]{64}", manifest["pairs"]["success"]["finetuned"]["sha256"])
    log = [json.loads(line) for line in (finished.root / "log.jsonl").read_text().splitlines()]
    curvature = [e for e in log if e["event"] == "unit" and e["key"].startswith("curvature/")]
    layout = curvature[0]["engine"][0]
    assert layout["alpha"] == 0.0 and layout["graphs_kept"] == layout["batches"] == 2 and layout["graph_bytes"] > 2**20


@pytest.mark.usefixtures("untimed")
def test_the_plan_says_what_fits_into_memory() -> None:
    config = small_config(pairs=small_config().pairs[:1], measures=("hessian_trace",), probe_size=12, batch_size=8)
    assert "2 gradient graphs of 8 examples" in plan(config) and "all kept" in plan(config)
    tight = plan(dataclasses.replace(config, memory=0.006))
    assert re.search(r"memory: \d+ gradient graphs of [24] examples, [345] MiB each, \d+ kept, the others", tight), (
        tight
    )


def test_notebook_names_and_summary(finished: study.Run) -> None:
    assert finished.summary().count("\n") >= 4 and "  success, " in finished.summary().partition("Advice:")[2]
    assert "<ul>" in finished._repr_html_()
    told = dataclasses.replace(finished, caveat="A designed world.").summary()
    assert told == finished.summary().replace(finished.caveat, "A designed world.", 1) and told.startswith("A designed")
    with pytest.raises(AttributeError, match="Did you mean 'sharpness'"):
        _ = finished.sharpnes


# ------------------------------------------------------------------ same numbers, whatever happens
def test_running_again_computes_only_what_is_missing_or_damaged(
    finished: study.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharpscope.study.report.all_figures", lambda *_: {})  # the next test draws them again
    root = tmp_path / "copy"
    shutil.copytree(finished.root, root)
    units = {p.name: p.stat().st_mtime_ns for p in (root / "units").iterdir()}
    missing, damaged = (sorted(n for n in units if n.startswith(kind))[0] for kind in ("layers", "path"))
    (root / "units" / missing).unlink()
    data = bytearray((root / "units" / damaged).read_bytes())
    data[len(data) // 2] ^= 1
    (root / "units" / damaged).write_bytes(bytes(data))
    study.run(small_config(), root)
    again = {p.name: p.stat().st_mtime_ns for p in (root / "units").glob("*.unit")}
    assert set(again) == set(units) and {n for n in units if again[n] != units[n]} == {missing, damaged}
    assert list((root / "units").glob("*.bad*"))
    assert table_bytes(root) == table_bytes(finished.root)


def test_correlate_of_one_run_gives_the_runs_own_rows(finished: study.Run) -> None:
    keys = list(KEYS["correlations"])
    found = correlate([finished.root], bootstrap=60)
    own = finished.tables["correlations"][
        (finished.tables["correlations"]["scope"] == "pairs") & (finished.tables["correlations"]["source"] == "run")
    ]
    assert {"(stragglers)", "(others)"} <= set(own["layer"]) and {"instability", "rewind"} <= set(own["measure"])
    same = found[found["alpha"].isin(set(own["alpha"]))]
    columns = [*keys, "estimate", "n", "status", "note"]
    pd.testing.assert_frame_equal(
        same.sort_values(keys, ignore_index=True)[columns], own.sort_values(keys, ignore_index=True)[columns]
    )


def test_the_answers_of_a_run_are_found_in_its_units_and_are_its_accuracies(
    finished: study.Run, tmp_path: Path
) -> None:
    answers = answers_of(finished.root)
    accuracy = finished.tables["accuracy"]
    dense = accuracy[(accuracy["variant"] == "dense") & (accuracy["metric"] == "top1")]
    assert set(answers) == set(dense["pair"])
    for pair, (alphas, by_set) in answers.items():
        for name, right in by_set.items():
            own = dense[(dense["pair"] == pair) & (dense["dataset"] == name)].sort_values("alpha")
            np.testing.assert_allclose(right.mean(axis=1), own["estimate"])
            assert list(alphas) == own["alpha"].tolist()
    shutil.copytree(finished.root / "tables", tmp_path / "tables")
    shutil.copy(finished.root / "manifest.json", tmp_path)
    assert all(not own[0] for own in answers_of(tmp_path).values()) and answers_of(tmp_path / "tables") == {}
    pairs = tuple(answers)
    error = answer_error(answers, pairs, list(next(iter(answers.values()))[1])[:1], 1.0, gain=False)
    assert error is not None and error.paired


def test_report_rebuilds_everything_without_checkpoints_or_data(
    finished: study.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the figures are drawn again; tests/present holds that every figure has the same bytes each time."""
    root = tmp_path / "copy"
    shutil.copytree(finished.root, root)
    for derived in ("tables", "figures"):
        shutil.rmtree(root / derived)
    (root / "report.html").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sharpscope.study.report.all_figures", lambda *_: {})
        other = report(root, alpha_on="zeroshot")
    assert table_bytes(other.root) == table_bytes(finished.root)
    assert "weight of the zero-shot model (1: zero-shot, 0: fine-tuned)" in other.report.read_text(encoding="utf-8")
    assert other.summary().startswith("α′ = 1 − α is the weight of the zero-shot model (1: zero-shot, 0: fine-tuned).")
    before = {p.name: p.read_bytes() for p in (finished.root / "figures").iterdir()}

    def draw(tables: Tables, *how: Any) -> dict[str, tuple[bytes, bytes]]:
        slow = ("agreement", "correlations", "density", "points", "sharpness")
        again = drawn({n: table for n, table in tables.items() if n not in slow}, *how)
        assert {"wiseft_curve", "straggler_ranking", "repair"} <= set(again)
        points, key = tables["points"], ["pair", "measure", "group"]
        pd.testing.assert_frame_equal(  # 'sharpscope figures' draws what the report shows
            *(t.sort_values(key, ignore_index=True) for t in (points, tables_of([str(root)]).needed("points")))
        )
        own = {p.name for p in small_config().pairs}
        assert set(points.loc[points["source"] == "run", "pair"]) == own < set(points["pair"])
        return {n: (before[f"{n}.png"], before[f"{n}.pdf"]) for n in figures} | again

    figures = {Path(name).stem for name in before}
    drawn = study_report._draw
    monkeypatch.setattr(study_report, "_draw", draw)
    rebuilt = report(root)
    assert before == {p.name: p.read_bytes() for p in (root / "figures").iterdir()}
    assert table_bytes(rebuilt.root) == table_bytes(finished.root)
    assert rebuilt.report.read_bytes() == finished.report.read_bytes()


def test_another_config_is_refused_with_the_difference(finished: study.Run) -> None:
    with pytest.raises(RunDirectoryError, match="rtol"):
        study.run(small_config(rtol=0.1), finished.root)


# ------------------------------------------------------------------ bad input: one line, exit 2, nothing written
def save(folder: Path, name: str, theta: dict[str, torch.Tensor]) -> str:
    write_checkpoint(folder / name, {k: v.contiguous() for k, v in theta.items()})
    return str(folder / name)


@pytest.fixture
def zeroshot() -> dict[str, torch.Tensor]:
    from sharpscope.miniworld import world as miniworld

    return dict(read_checkpoint(miniworld.checkpoint_path("zeroshot")).tensors)


Bad = dict[str, Callable[[Path, dict[str, torch.Tensor]], list[str]]]
BASE = ["--model", "mini", "--id", "mini:photo", "--ood", "mini:sketch"]
PAIR = ["--zeroshot", "mini:zeroshot", "--finetuned", "mini:success"]
BAD: Bad = {
    "missing file": lambda d, z: ["--zeroshot", str(d / "no.pt"), "--finetuned", "mini:success", *BASE],
    "wrong architecture": lambda d, z: [*PAIR, *BASE, "--model", "RN50"],
    "identical pair": lambda d, z: ["--zeroshot", "mini:zeroshot", "--finetuned", "mini:zeroshot", *BASE],
    "NaN weights": lambda d, z: [
        "--zeroshot", "mini:zeroshot",
        "--finetuned", save(d, "nan.safetensors", z | {"visual.proj": z["visual.proj"] * math.nan}), *BASE,
    ],
    "unknown spec": lambda d, z: [*PAIR, *BASE, "--ood", "mini:sketsh"],
    "alpha outside": lambda d, z: [*PAIR, *BASE, "--alphas", "0", "1.5"],
    "unknown measure": lambda d, z: [*PAIR, *BASE, "--measures", "lambda_mx"],
    "criterion without its measure": lambda d, z: [*PAIR, *BASE, "--measures", "lambda_max"],
    "no test set": lambda d, z: [*PAIR, "--model", "mini"],
    "class names that do not fit": lambda d, z: [*PAIR, *BASE, "--classnames", __file__],
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_2_and_leaves_nothing(
    case: str, tmp_path: Path, zeroshot: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", *BAD[case](tmp_path, zeroshot), "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("sharpscope: error: ") and said.count("\n") <= 3 and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_api_raises_the_typed_errors(zeroshot: dict[str, torch.Tensor]) -> None:
    with pytest.raises(IdenticalPair):
        load_pair(zeroshot, zeroshot, model="mini")
    broken = zeroshot | {"visual.proj": zeroshot["visual.proj"] * math.nan}
    with pytest.raises(NonFiniteWeights, match="visual.proj"):
        load_pair(zeroshot, broken, model="mini")
    with pytest.raises(PairMismatch):
        load_pair(zeroshot, {k: v for k, v in zeroshot.items() if "resblocks.3" not in k}, model="mini")
    with pytest.raises(ConfigError, match="stored"):
        moved = zeroshot | {"visual.proj": zeroshot["visual.proj"] + 1}
        load_pair(zeroshot, moved, model="mini", head="stored")
    text = {k: v + 0.01 if k.startswith("transformer.") else v for k, v in zeroshot.items()}
    with pytest.raises(PairMismatch, match="head 'zeroshot'"):
        load_pair(zeroshot, text, model="mini", head="zeroshot")
    assert load_pair(zeroshot, text, model="mini").classifier.mode == "text"


def test_a_unit_that_fails_is_said_and_the_rest_goes_on(
    tmp_path: Path, zeroshot: dict[str, torch.Tensor], drawing: Callable[..., AbstractContextManager[None]]
) -> None:
    huge = zeroshot | {"visual.conv1.weight": zeroshot["visual.conv1.weight"].float() * 1e30}
    config = small_config(
        pairs=(PairConfig("huge", "mini:zeroshot", save(tmp_path, "huge.safetensors", huge)),), shipped_pairs=False,
        alphas=(0.0, 1.0), curvature_alphas=None, perturbation_alphas=(1.0,), density_alphas=(1.0,),
        repair_alphas=(1.0,), paths=("linear",), eigenvector_alphas=(1.0,), agreement=False,
    )  # fmt: skip
    with drawing("sharpness", "density", "stragglers"):
        run = study.run(config, tmp_path / "run")
    rows = run.sharpness
    assert run.failed_units or (rows["status"] == "failed").any()
    failed = rows[rows["status"] == "failed"]
    assert len(failed) and failed["estimate"].isna().all() and (failed["note"] != "").all()
    assert (rows.loc[rows["alpha"] == 0, "status"] != "failed").any()
    assert run.report.exists()


# ------------------------------------------------------------------ notebook
def test_ten_lines_in_a_notebook(zeroshot: dict[str, torch.Tensor]) -> None:
    pair = load_pair("mini:zeroshot", "mini:success", model="mini")
    from sharpscope.clip.datasets.spec import load_dataset

    probe = Probe(pair.classifier, load_dataset("mini:photo", model=pair.model, split="train"), size=8, batch_size=8)
    table = layer_sharpness(pair, probe, alphas=(0.0, 1.0), granularity="block", max_matvecs=4)
    assert set(table["alpha"]) == {0.0, 1.0} and set(table["measure"]) == {"hessian_trace", "lambda_max", "lambda_min"}
    assert "16 classes" in repr(pair.classifier) and "<table>" in pair._repr_html_()
    before = {k: v.clone() for k, v in zeroshot.items()}
    other = {k: v + 0.01 if k.startswith("visual.") and v.is_floating_point() else v for k, v in zeroshot.items()}
    load_pair(zeroshot, other, model="mini")
    assert all(torch.equal(before[k], zeroshot[k]) for k in before)


def test_the_run_directory_is_readable_by_others(finished: study.Run) -> None:
    directory = RunDirectory.existing(finished.root)
    assert directory.load("path/success/0.5") is not None
    assert directory.load("repair/failure/straggler:delta:random:0.5#2/0.5") is not None
