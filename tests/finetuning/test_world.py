"""The shipped checkpoints are what their manifest says, and the command that trains them does what it says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import runpy
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError
from sharpscope.finetuning import world
from sharpscope.finetuning.pretrain import Pretraining, pretrain
from sharpscope.finetuning.world import (
    FINETUNED,
    TEST_SIZE,
    UPGRADE,
    UPGRADED,
    ZEROSHOT,
    FineTuning,
    accuracies,
    load,
    train_world,
)
from sharpscope.miniworld import world as miniworld
from sharpscope.miniworld.world import SHIFTS, STYLES
from sharpscope.weights.checkpoint import read_checkpoint
from sharpscope.weights.theta import Theta

CHECKPOINTS: dict[str, Any] = miniworld.manifest()["checkpoints"]
OOD = STYLES[1:]
ONE_IMAGE = 1 / TEST_SIZE  # another processor's kernels may turn one tie


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return ClipModel.load("mini")


def path_of(model: ClipModel, name: str) -> dict[float, Theta]:
    theta_0, theta_1 = load(model, miniworld.checkpoint_path(ZEROSHOT)), load(model, miniworld.checkpoint_path(name))
    theta_1 = {**theta_0, **theta_1}
    return {a: {k: (1 - a) * theta_0[k] + a * theta_1[k] for k in theta_0} for a in (0.0, 0.3, 1.0)}


# ---------------------------------------------------------------- files
def test_the_manifest_lists_every_file_and_nothing_else() -> None:
    folder = miniworld.checkpoint_path(ZEROSHOT).parent
    assert miniworld.checkpoint_names() == (ZEROSHOT, *FINETUNED, UPGRADED)
    assert {f.name for f in folder.glob("*.safetensors")} == {c["file"] for c in CHECKPOINTS.values()}
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 6_500_000


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_file_has_the_bytes_of_the_manifest(name: str) -> None:
    data = miniworld.checkpoint_path(name).read_bytes()
    assert len(data) == CHECKPOINTS[name]["bytes"]
    assert hashlib.sha256(data).hexdigest() == CHECKPOINTS[name]["sha256"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_file_holds_what_its_method_trains_in_half_precision(name: str, model: ClipModel) -> None:
    checkpoint = read_checkpoint(miniworld.checkpoint_path(name), expected_sha256=CHECKPOINTS[name]["sha256"])
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.float16}
    assert all(t.isfinite().all() for t in checkpoint.tensors.values())
    if name in (ZEROSHOT, UPGRADED):
        assert set(checkpoint.tensors) == set(model.shapes)
        assert checkpoint.facts["head"] is None
        return
    assert set(checkpoint.tensors) == {*model.image_names, "head.weight"}
    head = checkpoint.facts["head"]
    assert head["scale_baked"] is False and head["normalize"] is True
    assert tuple(head["classnames"]) == miniworld.CLASSES


def test_the_recipes_of_the_manifest_are_those_of_the_code() -> None:
    configs: dict[str, Any] = {ZEROSHOT: Pretraining(), UPGRADED: UPGRADE, **FINETUNED}
    for name, config in configs.items():
        wanted = json.loads(json.dumps(dataclasses.asdict(config)))
        assert CHECKPOINTS[name]["seed"] == wanted.pop("seed", 1 if name == UPGRADED else 0)
        recorded = dict(CHECKPOINTS[name]["recipe"])
        if "recipe" in wanted:  # what a recipe could not yet say when the first files were made
            later = {"optimizer": "adamw", "momentum": 0.9, "warmup_lr": None}
            later |= {"schedule": "product", "decay": "matrices", "per_epoch": 1}
            recorded["recipe"] = {**later, **recorded["recipe"]}
        assert recorded == wanted


def test_success_and_failure_differ_in_the_learning_rate_alone() -> None:
    assert dataclasses.replace(FINETUNED["success"], lr=7e-3) == FINETUNED["failure"]


@pytest.mark.parametrize("name", ["succes", "mini:succes", "Success", "../secret", ""])
def test_unknown_names_are_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no such checkpoint.*Known: zeroshot, success, failure"):
        miniworld.checkpoint_path(name)


def test_names_resolve_with_and_without_their_prefix() -> None:
    assert miniworld.checkpoint_path("mini:success") == miniworld.checkpoint_path("success")
    with pytest.raises(ConfigError, match="Did you mean 'success'"):
        miniworld.checkpoint_path("succes")


# ---------------------------------------------------------------- accuracies
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_accuracies_at_the_end_are_those_of_the_manifest(name: str, model: ClipModel) -> None:
    theta = {**load(model, miniworld.checkpoint_path(ZEROSHOT)), **load(model, miniworld.checkpoint_path(name))}
    recorded = CHECKPOINTS[name]["accuracy"]["0" if name == ZEROSHOT else "1"]
    assert set(recorded) == set(miniworld.DOMAINS)
    for domain, value in accuracies(model, theta, ("photo", "sketch")).items():
        assert abs(value - recorded[domain]) <= ONE_IMAGE + 1e-9, domain


@pytest.mark.parametrize(("name", "sign"), [("success", 1), ("failure", -1)])
def test_the_middle_of_the_path_beats_both_ends_or_loses_to_both(name: str, sign: int, model: ClipModel) -> None:
    """On the five styles that fine-tuning did not see, recomputed from the files, by more than two standard errors."""
    measured = {a: accuracies(model, theta, OOD) for a, theta in path_of(model, name).items()}
    for domain in OOD:
        assert abs(measured[0.3][domain] - CHECKPOINTS[name]["accuracy"]["0.3"][domain]) <= ONE_IMAGE + 1e-9
    start, middle, end = (mean(measured[a].values()) for a in (0.0, 0.3, 1.0))
    stderr = (0.5 * 0.5 / (TEST_SIZE * len(OOD))) ** 0.5  # of one mean; the differences are paired, theirs is smaller
    assert sign * (middle - start) > 2 * stderr and sign * (middle - end) > 2 * stderr


def test_the_upgraded_model_is_better_everywhere() -> None:
    old, new = CHECKPOINTS[ZEROSHOT]["accuracy"]["0"], CHECKPOINTS[UPGRADED]["accuracy"]["1"]
    assert all(new[domain] > old[domain] + 0.05 for domain in miniworld.DOMAINS)


def test_both_pairs_end_at_the_same_id_accuracy() -> None:
    ends = [CHECKPOINTS[n]["accuracy"]["1"]["photo"] for n in ("success", "failure")]
    assert abs(ends[0] - ends[1]) < 0.03 and min(ends) > 0.87


def test_natural_shifts_follow_the_id_accuracy() -> None:
    """Not everything fails in the failure pair: all shifts of photo end above the zero-shot model."""
    for name in ("success", "failure"):
        for shift in SHIFTS:
            assert CHECKPOINTS[name]["accuracy"]["1"][shift] > CHECKPOINTS[ZEROSHOT]["accuracy"]["0"][shift]


# ---------------------------------------------------------------- training them again
def test_training_one_again_writes_its_file_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ClipModel
) -> None:
    tiny = {"short": FineTuning(1e-3, n=64, epochs=1), "small": FineTuning(1e-3, n=128, epochs=1)}
    monkeypatch.setattr(world, "FINETUNED", tiny)
    monkeypatch.setattr(world, "accuracies", lambda *a: {"photo": 0.5})
    for name in ("small", "short"):
        train_world(tmp_path, [name])
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert list(content["checkpoints"]) == ["short", "small"]
    for name, entry in content["checkpoints"].items():
        data = (tmp_path / f"{name}.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"] and entry["torch"] == torch.__version__
        assert entry["recipe"]["n"] == tiny[name].n and set(entry["accuracy"]) == {"0.3", "0.5", "1"}
    assert {f.name for f in tmp_path.iterdir()} == {"manifest.json", "short.safetensors", "small.safetensors"}
    first = (tmp_path / "short.safetensors").read_bytes()
    train_world(tmp_path, ["short"])
    assert (tmp_path / "short.safetensors").read_bytes() == first
    moved, start = load(model, tmp_path / "short.safetensors"), load(model, miniworld.checkpoint_path(ZEROSHOT))
    assert all(not torch.equal(moved[k], start[k]) for k in moved)  # one step moves every tensor of the tower


def test_without_names_everything_is_trained_from_the_pretraining_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ClipModel
) -> None:
    monkeypatch.setattr(world, "FINETUNED", {"short": FineTuning(1e-3, n=64, epochs=1)})
    monkeypatch.setattr(world, "accuracies", lambda *a: {})
    few = dataclasses.replace(Pretraining(), pool=320, recipe=dataclasses.replace(Pretraining().recipe, steps=1))
    monkeypatch.setattr(world, "pretrain", lambda clip, *on, **shown: pretrain(clip, few, *on[1:], **shown))
    train_world(tmp_path)
    assert list(json.loads((tmp_path / "manifest.json").read_text())["checkpoints"]) == [ZEROSHOT, "short", UPGRADED]
    # the fine-tuning started from the new zero-shot model, not from the packaged one: one step moves no weight by more
    # than a few learning rates
    new, packaged = (load(model, f) for f in (tmp_path / "zeroshot.safetensors", miniworld.checkpoint_path(ZEROSHOT)))
    moved = load(model, tmp_path / "short.safetensors")
    assert max(float((moved[k] - new[k]).abs().max()) for k in moved) < 5e-3
    assert max(float((moved[k] - packaged[k]).abs().max()) for k in moved) > 5e-2


def test_an_unknown_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'failur' is none of zeroshot.*Did you mean 'failure'"):
        train_world(tmp_path / "new", ["failur"])
    assert not (tmp_path / "new").exists()


def test_the_script_is_this_command(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "analyses" / "world.py"))
    with pytest.raises(ConfigError, match="Did you mean 'failure'"):
        script["main"](str(tmp_path / "new"), ("failur",))
