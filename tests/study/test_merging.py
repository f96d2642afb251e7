"""Merging files of the embedded world: what is written, what the files say, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpscope.clip.evaluate import evaluate
from sharpscope.clip.export import interpolate
from sharpscope.clip.pair import resolve_checkpoint
from sharpscope.errors import ConfigError, IdenticalPair, PairMismatch, ResultsError
from sharpscope.study.fishers import fisher
from sharpscope.study.merging import merge
from sharpscope.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

ZERO, ONE, TWO = "mini:zeroshot", "mini:success", "mini:failure"


def read(file: str | Path) -> Checkpoint:
    return read_checkpoint(resolve_checkpoint(file))


def told(file: Path) -> dict[str, Any]:
    return {k.removeprefix("sharpscope."): v for k, v in read(file).facts["metadata"].items()}


def test_a_uniform_soup_is_the_mean_and_names_its_files(tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"
    merged = merge([ONE, TWO], out, model="mini", zeroshot=ZERO)
    written, ends = read(out), [read(f) for f in (ONE, TWO)]
    for name in ends[0].tensors:
        if ends[0].tensors[name].is_floating_point():
            mean = torch.stack([e.tensors[name].double() for e in ends]).mean(0).float()
            torch.testing.assert_close(written.tensors[name], mean, rtol=0, atol=1e-7)
    facts = told(out)
    assert facts["merge"] == "uniform" and merged.members == ("success", "failure")
    assert [f["sha256"] for f in json.loads(facts["merge_files"])] == [e.sha256 for e in ends]
    assert facts["zeroshot_sha256"] == read(ZERO).sha256
    assert written.facts["head"]["classnames"] == ends[0].facts["head"]["classnames"]
    assert merged.theta.keys() == written.tensors.keys()


def test_greedy_follows_the_order_of_a_results_file_and_its_own_measurements(tmp_path: Path) -> None:
    """The held-out accuracies of model-soups' file decide the order, those on --val whether a candidate stays."""
    results, out = tmp_path / "individual_model_results.jsonl", tmp_path / "soup.safetensors"
    numbers = {"success": 0.71, "lr3e-4": 0.75, "failure": 0.73}
    lines = [json.dumps({"model_name": n, "ImageNet2p": v, "ImageNet": 0.5}) for n, v in numbers.items()]
    results.write_text("\n".join(lines))
    files = [f"mini:{n}" for n in numbers]
    options: dict[str, Any] = {"model": "mini", "zeroshot": ZERO, "val": "mini:photo", "limit": 16}
    merged = merge(files, out, "greedy", results=results, results_set="ImageNet2p", **options)
    assert [s.name for s in merged.steps] == ["lr3e-4", "failure", "success"]
    assert [s.alone for s in merged.steps] == [0.75, 0.73, 0.71]
    reached = merged.steps[0].alone
    for step in merged.steps[1:]:
        assert step.kept == (step.with_it >= reached)
        reached = step.with_it if step.kept else reached
    kept = [s.name for s in merged.steps if s.kept]
    assert merged.members == tuple(kept)
    assert json.loads(told(out)["merge_steps"])[0] == {"name": "lr3e-4", "alone": 0.75, "with_it": 0.75, "kept": True}
    assert json.loads(told(out)["merge_settings"])["results_set"] == "ImageNet2p"
    assert "lr3e-4: alone 0.7500" in merged.summary()
    with pytest.raises(ResultsError, match="has no data set 'mini:photo'"):
        merge(files, out, "greedy", results=results, **options)
    with pytest.raises(ResultsError, match="has no accuracies of 'small'"):
        merge([*files, "mini:small"], out, "greedy", results=results, results_set="ImageNet2p", **options)


def test_greedy_measures_the_single_checkpoints_on_val(tmp_path: Path) -> None:
    val = "mini:photo@val"
    merged = merge([ONE, TWO], tmp_path / "soup.safetensors", "greedy", model="mini", zeroshot=ZERO, val=val, limit=16)
    table = evaluate([ONE, TWO], "mini", [val], metrics=["top1"], limit=16).set_index("checkpoint")
    assert {s.name: s.alone for s in merged.steps} == pytest.approx(dict(table["estimate"]))


def test_merges_from_theta_0_record_their_settings(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    merged = merge([ONE, TWO], out, "model-stock", model="mini", zeroshot=ZERO)
    facts, zero = told(out), read(ZERO).tensors
    assert json.loads(facts["merge_ratios"]) == pytest.approx(dict(merged.ratios))
    name = "visual.proj"
    deltas = [read(f).tensors[name].double() - zero[name].double() for f in (ONE, TWO)]
    cosine = float(torch.nn.functional.cosine_similarity(*(d.flatten() for d in deltas), dim=0))
    assert merged.ratios[name] == pytest.approx(2 * cosine / (1 + cosine), rel=1e-5)
    merge([ONE, TWO], out, "dare", model="mini", zeroshot=ZERO, density=0.5, seed=4)
    assert json.loads(told(out)["merge_settings"]) == {"density": 0.5, "scale": 1.0, "seed": 4}


def test_what_does_not_fit_together_is_refused(tmp_path: Path, tiny_theta: dict[str, torch.Tensor]) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "m.safetensors"
    write_checkpoint(other, tiny_theta)
    with pytest.raises(PairMismatch, match="do not fit each other"):
        merge([ONE, other], out, model="mini", zeroshot=ZERO)
    with pytest.raises(PairMismatch, match=r"(?s)missing: logit_scale.*Remedy: --zeroshot FILE"):
        merge([ONE, TWO], out, model="mini")
    copy = tmp_path / "copy.safetensors"
    write_checkpoint(copy, read(ZERO).tensors)
    with pytest.raises(IdenticalPair, match="the same weights"):
        merge([copy, ONE], out, model="mini", zeroshot=ZERO)
    assert not out.exists()


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("unifrm", {}, "is none of uniform, .* Did you mean 'uniform'"),
        ("uniform", {"density": 0.5}, "density: has no effect on the method uniform"),
        ("uniform", {"val": "mini:photo"}, "val: has no effect"),
        ("greedy", {}, "needs held-out images"),
        ("greedy", {"val": "mini:photo", "seed": 1}, "draws nothing but the images of --limit"),
        ("greedy", {"val": "mini:photo", "results_set": "ImageNet"}, "is missing"),
        ("greedy", {"val": "mini:photo", "limit": 0}, "at least 1"),
        ("ties", {}, "needs it"),
        ("ties", {"zeroshot": ZERO, "seed": 1}, "seed: has no effect"),
        ("dare", {"zeroshot": ZERO, "density": 0.0}, r"outside \(0, 1\]"),
    ],
)
def test_settings_that_are_missing_or_do_nothing_are_refused(method: Any, settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        merge([ONE, TWO], "nowhere.safetensors", method, model="mini", **settings)


def test_one_file_or_the_same_twice_is_no_merge() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        merge([ONE], "nowhere.safetensors", model="mini")
    with pytest.raises(ConfigError, match="merge: a checkpoint is given twice"):
        merge([ONE, ONE], "nowhere.safetensors", model="mini", zeroshot=ZERO)


# ------------------------------------------------------------------ Fisher files and points of paths
@pytest.fixture(scope="module")
def fishers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    written = fisher(ZERO, ONE, "mini:photo", tmp_path_factory.mktemp("fisher"), model="mini", probe_size=2)
    assert written.summary().count("trace") == 2 and written.zeroshot.exact
    return written.paths


def test_a_point_of_a_path_and_its_file_are_evaluated_alike(fishers: tuple[Path, Path], tmp_path: Path) -> None:
    by_name = dict(zip(("fisher_0", "fisher_1"), fishers, strict=True))
    chosen: list[tuple[Any, dict[str, Any]]] = [("fisher", by_name), ("random", {}), ("monosoup", {})]
    for kind, more in chosen:
        interpolate(ZERO, ONE, 0.5, tmp_path / f"{kind}.safetensors", "mini", path=kind, **more)
    options: dict[str, Any] = {"metrics": ["top1", "nll"], "limit": 16, "bootstrap": 5}
    files = evaluate([tmp_path / f"{k}.safetensors" for k, _ in chosen], "mini", ["mini:sketch"], **options)
    points = evaluate(
        ONE, "mini", ["mini:sketch"], base=ZERO, paths=[k for k, _ in chosen], alphas=[0.5], **by_name, **options
    )
    assert list(points["variant"].unique()) == ["path:fisher", "path:random", "path:monosoup"]
    assert set(points["alpha"]) == {0.5} and all(math.isnan(a) for a in files["alpha"])
    assert list(points["estimate"]) == pytest.approx(list(files["estimate"]))
    said = told(tmp_path / "fisher.safetensors")
    assert said["path"] == "fisher" and said["fisher_1_sha256"] == read_checkpoint(fishers[1], partial=True).sha256
    assert (told(tmp_path / "random.safetensors")["seed"], "path_density" in said) == ("0", False)


def test_the_fisher_information_of_other_weights_is_refused(fishers: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    with pytest.raises(PairMismatch, match="holds the Fisher information of another file"):
        interpolate(ZERO, ONE, 0.5, out, "mini", path="fisher", fisher_0=fishers[1], fisher_1=fishers[0])
    strange = {n: torch.ones_like(t) for n, t in read_checkpoint(fishers[0], partial=True).tensors.items()}
    torch.save(strange, tmp_path / "plain.pt")  # as WiSE-FT's code: nothing says whose it is
    plain = tmp_path / "plain.pt"
    interpolate(ZERO, ONE, 0.5, out, "mini", path="fisher", fisher_0=plain, fisher_1=plain)
    middle = (read(ZERO).tensors["visual.proj"].float() + read(ONE).tensors["visual.proj"].float()) / 2
    torch.testing.assert_close(read(out).tensors["visual.proj"], middle)


def test_every_layer_at_its_own_alpha(tmp_path: Path) -> None:
    table, out = tmp_path / "alphas.csv", tmp_path / "x.safetensors"
    table.write_text("layer,alpha\nvisual.conv1,0\nvisual.proj,1\n")
    interpolate(ZERO, ONE, 0.5, out, "mini", layer_alphas=table)
    theta, ends = read(out).tensors, [read(f).tensors for f in (ZERO, ONE)]
    assert torch.equal(theta["visual.conv1.weight"], ends[0]["visual.conv1.weight"].float())
    assert torch.equal(theta["visual.proj"], ends[1]["visual.proj"].float())
    assert json.loads(told(out)["layer_alphas"]) == {"visual.conv1": 0.0, "visual.proj": 1.0}
    for text, words in (
        ("layer,alpha\nvisual.con1,0\n", "no layer 'visual.con1'. Did you mean 'visual.conv1'"),
        ("layer,alpha\nvisual.proj,a lot\n", "line 2: 'a lot' is no alpha"),
        ("layer,alpha\nvisual.proj,1\nvisual.proj,0\n", "line 3: the layer 'visual.proj' is given twice"),
        ("name,alpha\nvisual.proj,1\n", "needs the columns layer and alpha"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=words):
            interpolate(ZERO, ONE, 0.5, out, "mini", layer_alphas=table)
    with pytest.raises(ConfigError, match=r"(?s)says nothing about visual.conv1, .* and \d+ more.*Remedy: --alpha"):
        interpolate(ZERO, ONE, None, out, "mini", layer_alphas={"visual.proj": 1.0})
