"""The same command on what is not the embedded world: other towers, image folders, a CLIP of real size."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from sharpscope.cli.main import main
from sharpscope.clip.model import ClipModel
from sharpscope.tables.files import read_csv
from sharpscope.vocabulary import ALL
from sharpscope.weights.checkpoint import write_checkpoint

MakeFolder = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("undrawn")


def save_pair(folder: Path, theta: dict[str, Any], moving: Callable[[str], bool], step: float = 0.02) -> list[str]:
    """theta and theta plus noise in the moving tensors, as the two container formats."""
    generator = torch.Generator().manual_seed(1)
    moved = {}
    for name, value in theta.items():
        noise = torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        moves = moving(name) and value.is_floating_point() and "running_var" not in name and name != "logit_scale"
        moved[name] = value + step * noise if moves else value
    write_checkpoint(folder / "zeroshot.safetensors", {k: v.contiguous() for k, v in theta.items()})
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in moved.items()}}, folder / "finetuned.pt")
    return ["--zeroshot", str(folder / "zeroshot.safetensors"), "--finetuned", str(folder / "finetuned.pt")]


@pytest.mark.parametrize(
    ("kind", "head", "moving"),
    [
        ("resnet", "zeroshot", "visual."),
        ("customtext", "text", ""),
        ("quickgelu", "auto", "visual."),
    ],
)
def test_run_on_another_tower_with_image_folders(
    kind: str,
    head: str,
    moving: str,
    tiny_paths: dict[str, Path],
    tiny_thetas: dict[str, Any],
    image_folder: MakeFolder,
    tmp_path: Path,
) -> None:
    files = save_pair(tmp_path, tiny_thetas[kind][1], lambda n: n.startswith(moving))
    (tmp_path / "names.txt").write_text("tabby cat\nred dog\nowl\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text("a photo of a {}\na {}\n", encoding="utf-8")
    image_folder({"tabby_cat": 5, "red_dog": 4, "owl": 5}, name="train")
    image_folder({"tabby_cat": 3, "red_dog": 3, "owl": 2}, name="val")
    image_folder({"owl": 4, "tabby_cat": 4}, name="shifted")  # a shift that holds only some of the classes
    (tmp_path / "shifted" / "owl" / "broken.png").write_bytes(b"no image")
    code = main(
        [
            "run", *files, "--model", str(tiny_paths[kind]), "--head", head, "--data-root", str(tmp_path),
            "--probe", "folder:train", "--id", "folder:val", "--ood", "folder:shifted",
            "--classnames", str(tmp_path / "names.txt"), "--templates", str(tmp_path / "templates.txt"),
            "--alphas", "0", "1", "--granularity", "block", "--probe-size", "6", "--batch-size", "4",
            "--measures", "hessian_trace", "lambda_max", "lambda_min", "--max-matvecs", "3",
            "--threads", "1", "--layer-alphas", "0", "1",
            "--densities", "0.5", "--selects", "random",
            "--targets", "delta", "--bootstrap", "50", "--dtype", "float64", "--out", str(tmp_path / "run"),
        ]
    )  # fmt: skip
    assert code == 0
    sharpness = read_csv(tmp_path / "run" / "tables" / "sharpness.csv", "sharpness")
    assert not (sharpness["status"] == "failed").any() and np.isfinite(sharpness["estimate"]).all()
    towers = set(sharpness["tower"])
    assert "image" in towers and ("text" in towers) == (head == "text")
    accuracy = read_csv(tmp_path / "run" / "tables" / "accuracy.csv", "accuracy")
    shifted = accuracy[(accuracy["role"] == "ood") & (accuracy["variant"] == "dense")]
    assert (shifted["n"] == 8).all()
    assert shifted["note"].str.contains("1 unreadable images skipped").all()
    assert shifted["note"].str.contains("among 2 of 3 classes").all()
    assert (tmp_path / "run" / "report.html").exists()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["pairs"]["finetuned"]["finetuned"]["container"] == "torch zip"


@pytest.mark.slow
def test_a_tower_as_wide_as_a_vit_b_32_needs_no_more_memory_than_its_weights_allow(
    image_folder: MakeFolder, tmp_path: Path
) -> None:
    """A fourth of its blocks on images of four patches: memory goes with the weights, and the log keeps its peak.

    A whole ViT-B/32 may need 20 GiB, so that it runs on a small machine.
    """
    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"] |= {"layers": 3, "image_size": 64}
    config["text_cfg"] |= {"width": 64, "heads": 1, "layers": 1}
    (tmp_path / "b32.json").write_text(json.dumps(config), encoding="utf-8")
    theta = ClipModel.load(str(tmp_path / "b32.json")).init(0)
    files = save_pair(tmp_path, theta, lambda n: n.startswith("visual."), step=0.001)
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n", encoding="utf-8")
    train, val = (image_folder({"cat": 2, "dog": 2, "owl": 2}, name=name, size=64) for name in ("train", "val"))
    arguments = [
        "run", *files, "--model", str(tmp_path / "b32.json"), "--head", "zeroshot", "--probe", f"folder:{train}",
        "--id", f"folder:{val}", "--classnames", str(tmp_path / "names.txt"), "--alphas", "1",
        "--granularity", "block", "--probe-size", "2", "--batch-size", "2",
        "--measures", "hessian_trace", "lambda_max", "--rtol", "0.5", "--max-matvecs", "1",
        "--layer-alphas", "0", "1", "--criticality-noise", "1", "--densities", "0.5", "--selects", "random",
        "--targets", "delta", "--repair-alphas", "1", "--masks", "1", "--bootstrap", "50", "--threads", "1",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(arguments) == 0
    sharpness = read_csv(tmp_path / "run" / "tables" / "sharpness.csv", "sharpness")
    assert len(set(sharpness["layer"])) == 3 + 2 + 1 and not (sharpness["status"] == "failed").any()
    weights = sharpness.loc[sharpness["layer"] == ALL, "num_params"].iloc[0]
    assert weights == 87_849_216 - 9 * (12 * 768**2 + 13 * 768) - (50 - 5) * 768  # nine blocks, 45 positions
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert math.isfinite(peak) and peak < 20 * 2**30 * weights / 87_849_216
    finish = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()][-1]
    assert finish["event"] == "report" and 2**28 < finish["peak_memory"] <= peak
