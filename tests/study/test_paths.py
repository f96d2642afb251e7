"""Further paths beside the linear one, through the whole study: their accuracies, and nothing else is disturbed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sharpscope.cli.main import main
from sharpscope.clip.answering import answers
from sharpscope.clip.export import interpolate
from sharpscope.clip.pair import load_pair
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.curvature import diagonal_fisher
from sharpscope.errors import ConfigError
from sharpscope.study import run as study
from sharpscope.study.context import Context
from sharpscope.study.plan import plan
from sharpscope.vocabulary import DENSE
from sharpscope.weights.checkpoint import read_checkpoint

ALPHAS = (0.0, 0.5, 1.0)


def config(*paths: str) -> StudyConfig:
    return StudyConfig(
        pairs=(PairConfig("success", "mini:zeroshot", "mini:success"),),
        model="mini",
        id=("mini:photo",),
        ood=("mini:sketch", "mini:clipart"),
        alphas=ALPHAS,
        paths=paths,  # type: ignore[arg-type]
        granularity="block",
        measures=("ggn_trace",),
        probe_size=8,
        batch_size=8,
        limit=48,
        rtol=0.5,
        max_matvecs=2,
        layer_alphas=(0.0, 1.0),
        criticality_noise=(1.0,),
        straggler_rule="top:1",
        straggler_criterion="rewind",
        densities=(0.5,),
        targets=("delta",),
        selects=("random",),
        repair_alphas=(0.5,),
        masks=1,
        bootstrap=20,
        threads=1,
    )


def tables(root: Path) -> dict[str, bytes]:
    return {p.stem: p.read_bytes() for p in sorted((root / "tables").glob("*.csv"))}


@pytest.fixture(scope="module")
def finished(undrawn: None, tmp_path_factory: pytest.TempPathFactory) -> study.Run:
    return study.run(config("lines"), tmp_path_factory.mktemp("paths") / "run")


def test_every_point_of_the_further_path_has_its_accuracies(finished: study.Run) -> None:
    """By hand: LiNeS from the two ends of the pair, evaluated on every test set."""
    rows = finished.accuracy[finished.accuracy["variant"] == "path:lines"]
    own = rows[rows["role"].isin(("id", "ood"))].set_index(["alpha", "dataset"])["estimate"]
    assert set(own.index) == {(a, d) for a in ALPHAS for d in ("mini:photo", "mini:sketch", "mini:clipart")}
    assert set(rows.loc[rows["role"] == "ood_mean", "alpha"]) == set(ALPHAS)
    context = Context.load(config(), config().pairs[0])
    zero, one = context.pair.theta_0, context.pair.theta_1
    for alpha in ALPHAS:
        theta = dict(zero)
        for name in (n for n in zero if not torch.equal(zero[n], one[n])):
            block = re.search(r"visual\.transformer\.resblocks\.(\d)\.", name)
            stem = re.match(r"visual\.(conv1|class_embedding|positional_embedding|ln_pre)", name)
            factor = (int(block[1]) + 1) / 5 if block else 0.0 if stem else 1.0  # stem, four blocks, what follows them
            theta[name] = zero[name] + alpha * factor * (one[name] - zero[name])
        for name, dataset in context.datasets.items():
            given = answers(context.pair.classifier, theta, dataset, 16)
            assert own[alpha, name] == pytest.approx(given.correct.mean()), (alpha, name)


def test_the_start_is_the_linear_paths_and_the_rest_is_not(finished: study.Run) -> None:
    table = finished.accuracy.set_index(["variant", "alpha", "dataset"])["estimate"]
    linear, lines = table[DENSE], table["path:lines"]
    assert linear[0.0].equals(lines[0.0])
    assert not np.allclose(linear[1.0], lines[1.0])


def test_nothing_but_accuracy_knows_of_the_further_path(finished: study.Run, tmp_path: Path) -> None:
    alone = study.run(config(), tmp_path / "alone")
    with_lines, without = tables(finished.root), tables(alone.root)
    assert {n for n in without if with_lines[n] != without[n]} == {"accuracy"}
    kept = finished.accuracy[finished.accuracy["variant"] != "path:lines"].reset_index(drop=True)
    assert kept.equals(alone.accuracy)
    assert not set(alone.accuracy["variant"]) & {"path:lines"}
    identities = [json.loads((r.root / "manifest.json").read_text())["identity"]["config"] for r in (alone, finished)]
    assert not {"paths", "path_density"} & set(identities[0])  # as before there were further paths
    assert identities[1]["paths"] == ["linear", "lines"]


def test_a_run_cut_off_among_the_further_points_goes_on_with_the_same_bytes(
    finished: study.Run, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished.root, root)
    further = sorted((root / "units").glob("pathvariant+*"))
    assert len(further) == len(ALPHAS)
    for path in further[1:]:
        path.unlink()
    shutil.rmtree(root / "tables")
    kept = {p.name: p.stat().st_mtime_ns for p in (root / "units").iterdir()}
    study.run(config("linear", "lines"), root)  # the same study, the linear path written out
    assert tables(root) == tables(finished.root)
    assert {p.name for p in (root / "units").iterdir()} - set(kept) == {p.name for p in further[1:]}
    assert all((root / "units" / n).stat().st_mtime_ns == t for n, t in kept.items())


@pytest.mark.usefixtures("untimed")
def test_report_and_plan_tell_of_it(finished: study.Run, capsys: pytest.CaptureFixture[str]) -> None:
    page = finished.report.read_text(encoding="utf-8")
    assert "LiNeS path (Wang et al. 2024): best α between the ends, by the OOD labels of ood" in page
    assert re.search(r"further paths +3 units", plan(config("lines"))) and "further" not in plan(config())
    words = ["plan", "--zeroshot", "mini:zeroshot", "--finetuned", "mini:success", "--model", "mini"]
    words += ["--id", "mini:photo", "--probe-size", "8", "--batch-size", "8", "--eval-limit", "8", "--granularity"]
    words += ["block", "--measures", "hessian_trace", "--alphas", "0", "1", "--paths", "linear", "lines"]
    assert main(words) == 0
    assert re.search(r"further paths +2 units", capsys.readouterr().out)


# ------------------------------------------------------------------ the path alone
def test_a_studys_further_paths_have_its_seed_its_density_and_the_probe_sets_fisher_information() -> None:
    c = dataclasses.replace(config("fisher", "dare", "ties"), path_density=0.5, seed=3, probe_size=2)
    context = Context.load(c, c.pairs[0])
    assert c.paths == ("linear", "fisher", "dare", "ties")
    expected = context.pair.path(kind="dare", density=0.5, seed=3).at(1.0)
    assert all(torch.equal(expected[n], t) for n, t in context.further_path("dare").at(1.0).items())
    ends = [diagonal_fisher(context.probe, context.theta(a), context.pair.moving).values for a in (0.0, 1.0)]
    fisher = context.further_path("fisher").at(0.5)
    for name in ("visual.proj", "head.weight"):
        f_0, f_1 = (end[name].clamp(min=1e-8) for end in ends)
        weighted = (f_0 * context.pair.theta_0[name] + f_1 * context.pair.theta_1[name]) / (f_0 + f_1)
        torch.testing.assert_close(fisher[name], weighted)
    for refused, words in (
        ({"path_density": 0.5}, "no effect without the path ties or dare"),
        ({"paths": ("ties",), "path_density": 0.0}, r"outside \(0, 1\]"),
        ({"paths": ("random",), "alphas": (0.0, 1.5), "extrapolate": True}, "random has no points outside"),
    ):
        with pytest.raises(ConfigError, match=words):
            StudyConfig(**refused)


def test_the_path_of_a_pair_starts_at_theta_0_bit_for_bit_and_ends_in_the_edit(tmp_path: Path) -> None:
    pair = load_pair("mini:zeroshot", "mini:failure", model="mini")
    path = pair.path(kind="lines")
    start, end = path.at(0.0), path.at(1.0)
    assert all(torch.equal(start[n].view(torch.int32), pair.theta_0[n].view(torch.int32)) for n in pair.theta_0)
    assert torch.equal(end["visual.conv1.weight"], pair.theta_0["visual.conv1.weight"])
    assert torch.equal(end["head.weight"], pair.theta_1["head.weight"])
    assert set(path.moving) == {n for n in pair.moving if not torch.equal(end[n], pair.theta_0[n])} < set(pair.moving)
    with pytest.raises(ConfigError, match="path: 'line' is none of linear, lines, .* Did you mean 'lines'?"):
        pair.path(kind="line")  # type: ignore[arg-type]
    out = tmp_path / "point.safetensors"
    interpolate("mini:zeroshot", "mini:failure", 0.4, out, "mini", path="lines")
    written = read_checkpoint(out)
    assert written.facts["metadata"]["sharpscope.path"] == "lines"
    middle = path.at(0.4)
    assert all(torch.equal(written.tensors[n], middle[n]) for n in written.tensors)


def test_paths_are_declared_once_with_the_linear_one_first() -> None:
    assert StudyConfig().paths == StudyConfig(paths=()).paths == ("linear",)
    for given in (("lines",), ("lines", "linear"), ("linear", "lines")):
        assert StudyConfig(paths=given).paths == ("linear", "lines")
    with pytest.raises(ConfigError, match="paths: 'lines' is given twice"):
        StudyConfig(paths=("lines", "lines"))
    with pytest.raises(ConfigError, match=r"paths\[0\]: 'lins' is none of linear, lines, .* Did you mean 'lines'?"):
        StudyConfig(paths=("lins",))  # type: ignore[arg-type]
