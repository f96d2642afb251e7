"""Protocols from folders of images to tables, resumed and not; what is tuned on one model, put on another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from sharpscope.cli.main import main
from sharpscope.clip.answering import correct
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.evaluate import answered
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import load_pair
from sharpscope.clip.prompts import prompted_vectors
from sharpscope.config.protocol import ProtocolConfig
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import ConfigError, PairMismatch, RunDirectoryError
from sharpscope.finetuning.run import finetune
from sharpscope.study.compute import compute_each
from sharpscope.study.context import Context, load_study_pair
from sharpscope.study.protocols import run as protocol
from sharpscope.study.tasks import Task
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint
from sharpscope.weights.prompts import read_prompts

MakeFolder = Callable[..., Path]


@pytest.fixture
def world(image_folder: MakeFolder, tiny_paths: dict[str, Path], tiny_theta: dict[str, Any], tmp_path: Path) -> Any:
    """Settings for ``ProtocolConfig``: a tiny model and a folder of four classes with train and test images."""
    names = ("ant", "bee", "cat", "dog")
    image_folder(dict.fromkeys(names, 4), "set/train")
    top = image_folder(dict.fromkeys(names, 5), "set/test").parent
    write_checkpoint(tmp_path / "zeroshot.safetensors", tiny_theta, {})
    return {
        "zeroshot": str(tmp_path / "zeroshot.safetensors"), "datasets": (f"folder:{top}",),
        "model": str(tiny_paths["vit"]), "shots": (2,), "seeds": (1, 2),
        "hyperparameters": {"steps": 2, "batch_size": 2, "lr": 0.5},
    }  # fmt: skip


def deeper(tiny_paths: dict[str, Path], theta: dict[str, Any], folder: Path, **text: int) -> dict[str, str]:
    """A CLIP whose vision tower has one block more and whose other weights are ``theta``'s, as --upgraded flags."""
    vit = json.loads(tiny_paths["vit"].read_text(encoding="utf-8"))
    config = {**vit, "vision_cfg": {**vit["vision_cfg"], "layers": 3}, "text_cfg": {**vit["text_cfg"], **text}}
    path = tiny_paths["vit"].parent / f"deeper{len(text)}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    weights = ClipModel.load(str(path)).init(1)
    weights |= {n: t for n, t in theta.items() if n in weights and weights[n].shape == t.shape}
    write_checkpoint(folder / path.with_suffix(".safetensors").name, weights, {})
    return {"upgraded": str(folder / path.with_suffix(".safetensors").name), "upgraded_model": str(path)}


def tables(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((root / "tables").iterdir())}


def test_a_stopped_protocol_goes_on_to_the_same_tables(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ProtocolConfig("base-to-new", **world)
    done = protocol.run_protocol(config, tmp_path / "whole")
    assert done.table["method"].tolist() == ["coop", "zero-shot"] and not done.failed
    assert set(done.rows["evaluated"]) == {f"{world['datasets'][0]}#{half}" for half in ("base", "new")}
    assert set(done.rows["n"]) == {10}
    measured, calls = protocol.measured, []

    def stopped(*args: Any) -> Any:
        calls.append(args[1].key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(*args)

    monkeypatch.setattr(protocol, "measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        protocol.run_protocol(config, tmp_path / "parts")
    assert not (tmp_path / "parts/tables").exists()
    protocol.run_protocol(config, tmp_path / "parts")
    assert len(calls) == 4 and calls[2] == calls[3]  # the finished two were not made again
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")
    with pytest.raises(RunDirectoryError, match="seeds"):
        protocol.run_protocol(ProtocolConfig("base-to-new", **{**world, "seeds": (3,)}), tmp_path / "parts")


def test_prompts_are_put_before_new_names(world: Any, tmp_path: Path) -> None:
    spec, zeroshot, model = world["datasets"][0], world["zeroshot"], world["model"]
    kwargs = {"steps": 2, "batch_size": 2, "lr": 0.5, "progress": False}
    file = finetune(zeroshot, f"{spec}#base", "contcoop", model=model, out=tmp_path, **kwargs).path
    clip, theta, prompts = ClipModel.load(model), read_checkpoint(zeroshot).tensors, read_prompts(str(file))
    stored = read_checkpoint(str(file), partial=True).tensors["head.weight"]
    assert torch.equal(prompted_vectors(clip, theta, prompts, ("ant", "bee"), "file"), stored)
    new = prompted_vectors(clip, theta, prompts, ("cat", "dog"), "file")
    for half, expected in (("base", stored), ("new", new)):
        study = StudyConfig((PairConfig("p", zeroshot, str(file)),), model=model, probe=f"{spec}#{half}")
        pair = load_study_pair(study, study.pairs[0])
        assert pair.classifier.classnames == (("ant", "bee") if half == "base" else ("cat", "dog"))
        assert torch.equal(pair.theta_1["head.weight"], expected)
    said = answered(str(file), model, [f"{spec}#base", f"{spec}#new"], base=zeroshot)
    assert said[f"{spec}#base"].note == "" and "learnt prompts" in said[f"{spec}#new"].note


def test_upgrade_of_the_model_itself_and_of_a_deeper_one(
    world: Any, tiny_paths: dict[str, Path], tiny_theta: dict[str, Any], tmp_path: Path
) -> None:
    own = ProtocolConfig("upgrade", **world, upgraded=world["zeroshot"], upgraded_model=world["model"])
    rows = protocol.run_protocol(own, tmp_path / "own").rows.set_index(["seed", "role"])["estimate"]
    for seed in (1, 2):
        assert rows[seed, "upgraded"] == rows[seed, "old"]
        assert rows[seed, "upgraded_zeroshot"] == rows[seed, "old_zeroshot"]
    file = next((tmp_path / "own/checkpoints").rglob("coop.safetensors"))
    pair = load_pair(
        world["zeroshot"], file, model=world["model"], upgraded=world["zeroshot"], upgraded_model=own.model
    )
    assert pair.upgraded is not None
    for mine, there in zip((pair.theta_0, pair.theta_1), pair.upgraded, strict=True):
        assert mine.keys() == there.keys() and all(torch.equal(mine[n], there[n]) for n in mine)

    other = ProtocolConfig("upgrade", **world, **deeper(tiny_paths, tiny_theta, tmp_path))
    done = protocol.run_protocol(other, tmp_path / "deeper")
    assert done.table["method"].tolist() == ["coop"] and done.table["n"].tolist() == [20]
    crossed = load_pair(
        world["zeroshot"], file, model=world["model"], upgraded=other.upgraded, upgraded_model=other.upgraded_model
    )
    assert crossed.upgraded is not None and crossed.upgraded_classifier is not None
    # the same text tower: the same prompts give the same class vectors, before another image tower
    assert torch.equal(crossed.upgraded[1]["head.weight"], pair.theta_1["head.weight"])
    assert "visual.transformer.resblocks.2.ln_1.weight" in crossed.upgraded[1]


def test_what_does_not_fit_another_model_is_refused_with_both_widths(
    world: Any, tiny_paths: dict[str, Path], tiny_theta: dict[str, Any], tmp_path: Path
) -> None:
    def on(method: str, flags: dict[str, str]) -> None:
        file = finetune(
            world["zeroshot"], world["datasets"][0], method, model=world["model"], out=tmp_path / method, steps=1,
            batch_size=2, lr=0.1, progress=False,
        ).path  # fmt: skip
        load_pair(world["zeroshot"], str(file), model=world["model"], **flags)  # type: ignore[arg-type]

    wide = deeper(tiny_paths, tiny_theta, tmp_path, width=8)
    with pytest.raises(PairMismatch, match=r"context vectors have 16 entries, but the text tower of .* needs 8"):
        on("coop", wide)
    deep = deeper(tiny_paths, tiny_theta, tmp_path)
    with pytest.raises(PairMismatch, match=r"moves the image tower .* is missing here and \[16\] there"):
        on("wise-ft", deep)
    on("linear-probe", deep)  # a head needs the embedding only
    config = json.loads(Path(deep["upgraded_model"]).read_text()) | {"embed_dim": 10}
    Path(deep["upgraded_model"]).write_text(json.dumps(config), encoding="utf-8")
    write_checkpoint(Path(deep["upgraded"]), ClipModel.load(deep["upgraded_model"]).init(1), {})
    with pytest.raises(PairMismatch, match="class vectors with 12 entries, and .* has image features with 10"):
        on("linear-probe", deep)


def test_a_run_reads_the_upgraded_model_with_its_own_pictures(
    world: Any, tiny_paths: dict[str, Path], tiny_theta: dict[str, Any], tmp_path: Path
) -> None:
    """The point alpha = 1 on a deeper model that takes larger pictures, against the same evaluation by hand."""
    flags = deeper(tiny_paths, tiny_theta, tmp_path)
    config = json.loads(Path(flags["upgraded_model"]).read_text())
    config["vision_cfg"]["image_size"] = 24
    Path(flags["upgraded_model"]).write_text(json.dumps(config), encoding="utf-8")
    clip = ClipModel.load(flags["upgraded_model"])
    write_checkpoint(Path(flags["upgraded"]), clip.init(1), {})
    spec = world["datasets"][0]
    file = finetune(
        world["zeroshot"], spec, "coop", model=world["model"], out=tmp_path / "coop", steps=1, batch_size=2,
        progress=False,
    ).path  # fmt: skip
    study = StudyConfig(
        (PairConfig("p", world["zeroshot"], str(file)),), model=world["model"], probe=spec, id=(spec,), **flags
    )
    context = Context.load(study, study.pairs[0])
    rows = compute_each(context, [Task("upgraded/p/1.0")])[0].rows["accuracy"]
    theta = read_checkpoint(flags["upgraded"]).tensors
    classifier = Classifier(clip, "stored", ("ant", "bee", "cat", "dog"))
    vectors = prompted_vectors(clip, theta, read_prompts(str(file)), classifier.classnames, "file")
    hits = correct(classifier, {**theta, "head.weight": vectors}, load_dataset(spec, model=clip))
    assert len(hits) == 20 and rows[0]["estimate"] == hits.mean() and rows[0]["variant"] == "upgraded"
    with pytest.raises(ConfigError, match="upgraded_model: names the architecture of upgraded"):
        StudyConfig(upgraded_model="mini")


@pytest.mark.parametrize(("change", "said"), [
    ({"train": "mini:photo"}, "train: base-to-new tunes on each of its datasets"),
    ({"protocol": "cross-dataset"}, "train: cross-dataset needs the set that is tuned on"),
    ({"datasets": ("mini:photo@train",)}, "names a split"),
    ({"datasets": ("mini:photo#new",)}, "is a half already"),
    ({"datasets": ("mini:photo", "mini:photo")}, "given twice"),
    ({"methods": ("coop",), "recipes": ("coop",)}, "'coop' is given twice"),
    ({"shots": (1, 2)}, "only few-shot takes several"),
    ({"shots": (0,)}, "at least one image of each class"),
    ({"hyperparameters": {"shots": 2}}, "a flag of its own"),
    ({"protocol": "upgrade"}, "upgraded: is missing"),
    ({"upgraded": "x"}, "base-to-new has no upgraded backbone"),
    ({"data_root": "."}, "changes nothing here"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(change: dict[str, Any], said: str) -> None:
    plain = {"protocol": "base-to-new", "zeroshot": "mini:zeroshot", "datasets": ("mini:photo",), "model": "mini"}
    with pytest.raises(ConfigError, match=said):
        ProtocolConfig(**{**plain, **change})


def test_the_command(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["protocol", "few-shot", "--zeroshot", world["zeroshot"], "--model", world["model"], "--datasets"]
    flags += [*world["datasets"], "--shots", "1", "2", "--seeds", "1", "--steps", "1", "--batch-size", "2"]
    flags += ["--set", "length=2", "--methods", "coop", "--recipes", "coop-SHOTSshots"]
    assert main([*flags, "--out", str(tmp_path / "few")]) == 0
    said = capsys.readouterr().out
    assert "| method | data set | zero-shot | 1 shots | 2 shots |" in said
    table = pd.read_csv(tmp_path / "few/tables/few_shot.csv")
    assert table["shots"].tolist() == [1, 2, 1, 2, 0]
    assert list(dict.fromkeys(table["method"])) == ["coop", "coop-SHOTSshots", "zero-shot"]
    recipes = []
    for file in (tmp_path / "few").rglob("coop.safetensors"):
        with safe_open(file, "pt") as opened:
            facts = json.loads(opened.metadata()["sharpscope.finetuning"])
        recipes.append(facts.get("recipe", {}).get("name"))
    assert sorted(r for r in recipes if r) == ["coop-1shots", "coop-2shots"] and len(recipes) == 4
    assert main([*flags[:-1], "coop-3shots", "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
    assert main(["protocol", "few-shot", "--zeroshot", "mini:zeroshot", "--datasets", "mini:photo@test"]) == 2
