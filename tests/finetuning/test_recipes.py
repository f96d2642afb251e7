"""Recipes as published: every default beside its source, every value backed or said to be ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sharpscope.cli.main import main
from sharpscope.errors import ConfigError
from sharpscope.finetuning.recipes import NEUTRAL, RECIPES, published
from sharpscope.finetuning.registry import METHODS, configured
from sharpscope.finetuning.run import finetune
from sharpscope.weights.checkpoint import read_checkpoint

DEFAULT = {
    "wise-ft": "wise-ft-imagenet", "linear-probe": "linear-probe-imagenet", "lp-ft": "lp-ft", "l2-sp": "l2-sp",
    "lipsum-ft": "lipsum-imagenet", "flyp": "flyp-imagenet", "starft": "starft-imagenet", "coop": "coop-words",
    "clipfit": "clipfit-base-to-new", "kgcoop": "kgcoop", "contcoop": "contcoop", "r-adapter": "r-adapter",
    "kd": "kd", "car-ft": "car-ft", "ldifs": "ldifs", "tpgm": "tpgm", "tpgm-project": "tpgm-project", "sam": "sam",
    "asam": "asam", "lora": "cliplora-16shots",
}  # fmt: skip
"""Method -> the recipe that its defaults are."""

# What the lines say, read once more, by hand: recipe -> (hyperparameter, value) ...
READ: dict[str, dict[str, Any]] = {
    # README.md:80-86, src/args.py:82-101, src/models/finetune.py:61-89, src/models/modeling.py:35-50, clip/clip.py:68
    "wise-ft-imagenet": {"lr": 3e-5, "epochs": 10, "batch_size": 512, "warmup": 500, "weight_decay": 0.1,
                         "decay": "all", "clip_norm": 1.0, "head_bias": True, "crop": (0.9, 1.0), "flip": 0},
    # src/args.py:71-101; src/models/finetune.py:30: val_preprocess
    "linear-probe-imagenet": {"lr": 1e-3, "batch_size": 128, "epochs": 10, "warmup": 500, "crop": None,
                              "head_bias": True, "head_start": "zeroshot", "l1": 0},
    # README.md:34, src/args.py:87-90; flyp_loss.py has no clipping
    "flyp-imagenet": {"lr": 1e-5, "epochs": 10, "batch_size": 512, "weight_decay": 0.1, "warmup": 500,
                      "clip_norm": None, "decay": "all"},
    "flyp-iwildcam": {"lr": 1e-5, "epochs": 20, "batch_size": 256, "weight_decay": 0.2},
    # README.md:128, 109; scripts/Lipsum-FT.py:234-251, 290, 450-487; scripts/defaults.py:37; input_pipeline.py:48-69
    "lipsum-imagenet": {"lr": 1e-5, "steps": 50_000, "batch_size": 256, "warmup": 0.1, "weight_decay": 0,
                        "schedule": "zero-linear-cosine", "judge_every": 1000, "strength": 1, "texts": 80,
                        "text_length": 8, "crop": (0.08, 1.0), "flip": 0.5, "kind": "random", "captions": None},
    "lipsum-domainnet": {"steps": 5000, "lr": 1e-5},
    # configs/trainers/CoOp/vit_b16*.yaml; COOP.md:13, 17-22; Dassl's defaults.py:40, 153
    "coop-16shots": {"epochs": 200, "shots": 16, "length": 16, "batch_size": 32, "lr": 2e-3, "optimizer": "sgd",
                     "warmup_epochs": 1, "warmup_lr": 1e-5, "weight_decay": 5e-4, "crop": (0.08, 1.0), "flip": 0.5},
    "coop-8shots": {"epochs": 200, "shots": 8}, "coop-4shots": {"epochs": 100, "shots": 4},
    "coop-2shots": {"epochs": 100, "shots": 2}, "coop-1shots": {"epochs": 50, "shots": 1},
    "coop-imagenet": {"epochs": 50}, "coop-words": {"epochs": 200, "words": "a photo of a", "length": None},
    # KgCoOp/configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml; KgCoOp/scripts/run.sh
    "kgcoop": {"batch_size": 128, "epochs": 100, "strength": 8, "words": "a photo of a", "length": None},
    # README.md:10, 23 of CLIPFit; its config does not set WEIGHT_DECAY, so Dassl's default holds
    "clipfit-base-to-new": {"strength": 8, "epochs": 100, "weight_decay": 5e-4, "decay": "all", "batch_size": 32,
                            "distance": "cosine"},
    "clipfit-base-to-new-food101": {"strength": 8, "epochs": 10},
    "clipfit-base-to-new-imagenet": {"strength": 8, "epochs": 10},
    "clipfit-few-shot": {"strength": 2, "epochs": 100}, "clipfit-few-shot-dtd": {"strength": 8, "epochs": 100},
    "clipfit-few-shot-sun397": {"strength": 8, "epochs": 100},
    "clipfit-few-shot-food101": {"strength": 2, "epochs": 10},
    "clipfit-few-shot-imagenet": {"strength": 2, "epochs": 10},
    # README.md:34, scripts/train.sh:25-41, src/main.py:185, 264-266
    "starft-imagenet": {"lr": 1e-5, "epochs": 10, "batch_size": 512, "weight_decay": 0.1, "warmup": 500,
                        "strength": 0.5, "base": "contrastive", "falls": "epochs", "decay": "all",
                        "spurious_type": "star"},
    # args.py:32-36, 89-94 of ldifs_code; ImageNet_ViT_Exp/main_finetune.py:65-74 of TPGM; example_cifar.py of ASAM
    "ldifs": {"batch_size": 128, "strength": 10.0, "epochs": 10, "warmup": 500, "weight_decay": 0.1},
    "tpgm": {"radius_steps": 200, "radius_lr": 0.01, "norm": "l2"},
    # ImageNet_ViT_Exp/main_finetune.py:58-74: batch 64, 200 steps at 1e-2; utils/tpgm.py:131: Adam over the radii
    "tpgm-project": {"batch_size": 64, "steps": 200, "lr": 0.01, "norm": "l2", "schedule": "constant",
                     "weight_decay": 0, "clip_norm": None, "crop": None},
    "asam": {"rho": 0.5},
    # MaxZanella/CLIP-LoRA@358f0d7 run_utils.py:24-37, lora.py:73-76 (500 iterations a shot), layers.py:42, main.py:39
    "cliplora-16shots": {"rank": 2, "alpha": 1, "scaling": "sqrt", "dropout": 0.25, "targets": ("q", "k", "v"),
                         "towers": "both", "lr": 2e-4, "weight_decay": 0.01, "steps": 8000, "batch_size": 32,
                         "shots": 16, "schedule": "floored-cosine", "decay": "all", "crop": (0.08, 1.0), "flip": 0.5,
                         "clip_norm": None, "warmup": 0},
    "cliplora-8shots": {"shots": 8, "steps": 4000}, "cliplora-4shots": {"shots": 4, "steps": 2000},
    "cliplora-2shots": {"shots": 2, "steps": 1000}, "cliplora-1shots": {"shots": 1, "steps": 500},
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULT)
def test_the_defaults_of_a_method_are_its_recipe(name: str) -> None:
    assert METHODS[name]().hyperparameters() == published(DEFAULT[name]).settings


@pytest.mark.parametrize("name", READ)
def test_a_recipe_is_what_the_lines_say(name: str) -> None:
    settings = published(name).settings
    assert {n: settings[n] for n in READ[name]} == READ[name]


def test_no_recipe_of_a_paper_is_left_out_of_this_table() -> None:
    ours = {"lp-ft", "l2-sp", "contcoop", "r-adapter", "kd", "car-ft", "sam"}
    same = {"flyp-fmow"}  # as flyp-iwildcam
    assert set(READ) | ours | same == {n for n in RECIPES if not n.startswith("mini-")}
    assert published("flyp-fmow").settings == published("flyp-iwildcam").settings


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_everything_and_everything_is_backed(name: str) -> None:
    row = RECIPES[name]
    fields = {f.name for f in dataclasses.fields(METHODS[row.method])}
    assert set(row.settings) == fields
    assert configured(row.method, row.settings).hyperparameters() == row.settings
    backed = {n for source in row.sources for n in source.sets} | set(row.ours)
    assert backed <= fields
    assert not [n for n, v in row.settings.items() if n not in backed and not (n in NEUTRAL and NEUTRAL[n] == v)]
    assert bool(row.ours) == bool(row.why) and row.what and row.paper


def test_the_embedded_worlds_recipes_keep_its_curve_and_change_only_what_they_say() -> None:
    mini = {n: row for n, row in RECIPES.items() if n.startswith("mini-")}
    # analyses/finetuners.py has no rates for them yet
    rivals = {"kd", "car-ft", "ldifs", "tpgm", "tpgm-project", "sam", "asam", "lora"}
    assert {row.method for row in mini.values()} == set(DEFAULT) - rivals
    free = {"lr", "probe_lr", "ema", "weight_decay", "falls", "scale_baked", "head_bias"}
    shared = {"shots", "epochs", "steps", "batch_size", "warmup", "warmup_epochs", "warmup_lr", "schedule", "decay",
              "judge_every", "crop", "flip"}  # fmt: skip
    for row in mini.values():
        base = published(DEFAULT[row.method]).settings
        assert {n for n in base if row.settings[n] != base[n]} <= free | shared
        assert (row.settings["schedule"], row.settings["decay"]) == ("product", "matrices")


# ---------------------------------------------------------------------- by command
def test_a_recipe_by_command_is_recorded_with_what_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["finetune", "--zeroshot", "mini:zeroshot", "--train", "mini:photo", "--model", "mini", "--out"]
    changed = ["--steps", "2", "--lr", "0.002", "--set", "shots=2", "batch_size=16"]
    assert main([*common, str(tmp_path), "--recipe", "mini-wise-ft", *changed]) == 0
    capsys.readouterr()
    told = json.loads(read_checkpoint(tmp_path / "wise-ft.safetensors").facts["metadata"]["sharpscope.finetuning"])
    assert told["method"] == "wise-ft" and told["hyperparameters"]["schedule"] == "product"
    assert told["recipe"] == {
        "name": "mini-wise-ft", "changed": {"batch_size": 16, "lr": 0.002, "shots": 2, "steps": 2}
    }  # fmt: skip
    for more, complaint in (
        (["--recipe", "mini-wise-ft", "--method", "wise-ft"], "sets the method (wise-ft), so no method goes beside it"),
        (["--recipe", "lipsum-domainet"], "Did you mean 'lipsum-domainnet'?"),
        (["--recipe", "kgcoop", "--set", "strenght=2"], "Did you mean 'strength'?"),
        (["--set", "flip=0.5"], "flip would change no image, because arrays and the embedded world stay as they are"),
        (["--set", "crop=[0.5,2]"], "crop: needs two shares of the area"),
        (["--set", "jitter=[1,1]"], "jitter: needs four strengths"),
        (["--set", "ema_debias=true"], "there is none (ema is none)"),
        (["--set", "label_smoothing=1.5", "shots=2", "batch_size=16"], "label_smoothing: needs a share"),
    ):
        assert main([*common, str(tmp_path / "other"), *more]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["finetune", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "clipfit-few-shot-dtd" in listed and "minglllli/CLIPFit@4dde049" in listed and "not public" in listed


def test_given_epochs_replace_steps_and_a_warm_up_replaces_the_other_kind() -> None:
    assert configured("lipsum-ft", {"epochs": 3}).steps is None
    assert configured("lipsum-ft", {"epochs": 3, "steps": 7}).steps == 7
    assert configured("coop", {"warmup": 0.1}).warmup_epochs == 0
    with pytest.raises(ConfigError, match="exclude each other"):
        configured("coop", {"warmup": 0.1, "warmup_epochs": 2})


def test_without_a_recipe_the_method_is_wise_ft() -> None:
    quick: dict[str, Any] = {"model": "mini", "steps": 1, "batch_size": 16, "shots": 1, "progress": False}
    assert finetune("mini:zeroshot", "mini:photo", **quick).method.name == "wise-ft"
