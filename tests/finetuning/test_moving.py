"""Which tensors move: ``train_only``, and the methods that name layers by a pattern, on every kind of tower."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpscope.cli.main import main
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError
from sharpscope.finetuning.blocks import linears_of
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import Fitted, fit
from sharpscope.finetuning.method import Task
from sharpscope.finetuning.methods.clipfit import clipfit_names
from sharpscope.finetuning.methods.r_adapter import adapters_of
from sharpscope.finetuning.moving import only
from sharpscope.finetuning.registry import METHODS
from sharpscope.layers import tower_of
from sharpscope.miniworld.shipped import checkpoint_path
from sharpscope.weights.checkpoint import read_checkpoint


def tuned(name: str, pattern: str, task: Task, examples: TensorExamples) -> Fitted:
    small = {"lr": 0.1, "batch_size": 4, "steps": 2, "warmup": 0.0, "warmup_epochs": 0.0, "shots": None}
    small["judge_every"] = None  # type: ignore[assignment]
    small["falls"] = "steps"  # type: ignore[assignment]
    kind = METHODS[name]
    known = {f.name for f in dataclasses.fields(kind)}
    return fit(kind(**{k: v for k, v in small.items() if k in known}), task, examples, train_only=pattern)


def moved(fitted: Fitted) -> set[str]:
    start = fitted.prepared.theta
    return {n for n in start if not torch.equal(start[n], fitted.theta[n])}


@pytest.mark.parametrize(
    ("method", "pattern", "wanted"),
    [
        ("wise-ft", r"\.bias$", lambda n: n.endswith(".bias") and n.startswith(("visual.", "head."))),  # BitFit
        ("wise-ft", "head", lambda n: n.startswith("head.")),
        (
            "clipfit",
            r"c_proj\.bias",
            lambda n: n.endswith("c_proj.bias"),
        ),  # the text tower's, and the image tower's too
        ("clipfit", r"^transformer.*c_proj\.bias", lambda n: n == "transformer.resblocks.0.mlp.c_proj.bias"),
        ("clipfit", r"in_proj_bias", lambda n: n.endswith("in_proj_bias")),
        ("flyp", r"^(transformer|token|ln_final|positional|text)", lambda n: not n.startswith(("visual", "logit"))),
        ("lp-ft", r"bias", lambda n: n.endswith("bias") and n.startswith(("visual.", "head."))),
        ("r-adapter", r"adapter_attn", lambda n: "adapter_attn" in n),
    ],
)
def test_only_what_matches_moves(
    method: str, pattern: str, wanted: Callable[[str], bool], task: Task, examples: TensorExamples
) -> None:
    fitted = tuned(method, pattern, task, examples)
    expected = {n for n, t in fitted.prepared.theta.items() if t.is_floating_point() and wanted(n)}
    assert moved(fitted) == expected and expected
    assert {n for stage in fitted.prepared.stages for n in stage.trained} == expected


@pytest.mark.parametrize(
    ("method", "pattern", "complaint"),
    [
        ("wise-ft", "visual.*lnpre", r"matches no tensor. Near names: visual.ln_pre"),
        ("wise-ft", "^transformer", "matches transformer.*loss or file does not depend on"),
        ("coop", "^transformer", "loss or file does not depend on.\nWhat can move: .*ctx"),  # its file holds prompts
        ("lp-ft", "visual", "matches nothing that moves in the stage 'probe'"),
        ("wise-ft", "(", "is no regular expression"),
    ],
)
def test_what_would_do_nothing_is_refused(
    method: str, pattern: str, complaint: str, task: Task, examples: TensorExamples
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        tuned(method, pattern, task, examples)


def test_a_tensor_that_the_method_does_not_train_joins_the_last_stage_alone(task: Task) -> None:
    prepared = METHODS["lp-ft"](batch_size=4, warmup=0.0, scale_baked=False).prepare(task)
    stages = only(prepared, task, r"head\.weight|logit_scale", "lp-ft").stages
    assert [set(stage.trained) for stage in stages] == [{"head.weight"}, {"head.weight", "logit_scale"}]


def test_running_statistics_are_no_weights(task: Task, tiny_thetas: dict[str, Any]) -> None:
    """The loss depends on a batch norm's running mean and variance as well, but they are never trained."""
    model, theta = tiny_thetas["resnet"]
    resnet = dataclasses.replace(task, model=model, theta_0=theta)
    prepared = METHODS["wise-ft"](batch_size=4, warmup=0.0).prepare(resnet)
    (stage,) = only(prepared, resnet, r"^visual\.bn1", "wise-ft").stages
    assert stage.trained == ("visual.bn1.weight", "visual.bn1.bias")
    with pytest.raises(ConfigError, match="running_mean.*, which this method's loss or file does not depend on"):
        only(prepared, resnet, r"bn1\.running_mean", "wise-ft")


def test_by_command_it_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "finetune", "--zeroshot", "mini:zeroshot", "--train", "mini:photo", "--model", "mini", "--steps", "1",
        "--batch-size", "16", "--set", "shots=1", "warmup=0", "--out", str(tmp_path), "--train-only",
    ]  # fmt: skip
    assert main([*arguments, r"bias$"]) == 0
    read, start = (read_checkpoint(p) for p in (tmp_path / "wise-ft.safetensors", checkpoint_path("mini:zeroshot")))
    changed = {n for n, t in start.tensors.items() if n in read.tensors and not torch.equal(t, read.tensors[n])}
    assert changed and all(n.endswith("bias") for n in changed)
    told = json.loads(read.facts["metadata"]["sharpscope.finetuning"])
    assert told["train_only"] == "bias$"
    assert main([*arguments, "weight"]) == 2 and "fine-tuning: train_only was" in capsys.readouterr().err


# ---------------------------------------------------------------- towers
COVERED = {"clipfit": {"vit", "customtext", "eva02", "siglip"}, "r-adapter": {"vit", "customtext", "eva02", "siglip"}}
COVERED["clipfit"] |= {"convnext"}
COVERED["lora"] = COVERED["r-adapter"]


@pytest.mark.parametrize("kind", ["vit", "customtext", "resnet", "eva02", "siglip", "timm resnet", "convnext"])
@pytest.mark.parametrize("method", COVERED)
def test_a_method_that_names_layers_covers_every_block_of_both_towers_or_refuses(
    method: str, kind: str, towers: dict[str, ClipModel], tiny_thetas: dict[str, Any]
) -> None:
    model = towers[kind] if kind in towers else tiny_thetas[kind][0]
    names: Callable[[ClipModel], Any] = {
        "clipfit": clipfit_names, "r-adapter": adapters_of,
        "lora": lambda m: [one.weight for one in linears_of(m, ("q", "k", "v"), "lora")],
    }[method]  # fmt: skip
    if kind not in COVERED[method]:
        with pytest.raises(ConfigError, match=f"{method}: .*image"):
            names(model)
        return
    found = tuple(names(model))

    def blocks(chosen: tuple[str, ...]) -> set[tuple[str, ...]]:
        parts = [n.split(".") for n in chosen if tower_of(n) != "scale"]
        return {tuple(p[: i + 1]) for p in parts for i in range(len(p)) if p[i].isdigit() and "block" in p[i - 1]}

    assert {tower_of(n) for n in found} == {"image", "text"}
    assert blocks(found) == blocks(tuple(model.parameter_names))
