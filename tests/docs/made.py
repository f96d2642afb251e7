"""A folder in which the pages' commands find what they name: checkpoints, data of the named layouts, runs, tables.

The checkpoints are the embedded world's. ``data`` stands for the pages' ``/data``: ImageNet with four of its classes,
CoOp's sets, folders of classes, captions, all of a few drawn pictures (``analyses/papers_data.py``).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sharpscope.cli.main import main
from sharpscope.exchange.writing import written
from sharpscope.miniworld.shipped import checkpoint_path
from sharpscope.study import report
from sharpscope.tables.files import read_csv
from sharpscope.weights.checkpoint import read_checkpoint
from tests.docs.blocks import ROOT, blocks

TINY: dict[str, Any] = {
    "alphas": (0.0, 0.5, 1.0), "measures": ("hessian_trace",), "granularity": "block", "probe_size": 4, "batch_size": 8,
    "limit": 4, "max_matvecs": 2, "layer_alphas": (0.0, 1.0), "criticality_noise": (1.0,), "densities": (),
    "bootstrap": 20, "threads": 1,
}  # fmt: skip
"""Settings of a study with which it takes a second or two."""
FROM_ZERO = ("zeroshot.pt", "ViT-B-32.pt", "ViT-B-16.pt", "A.pt")
FROM_ONE = ("finetuned.pt", "finetuned_epoch10.pt", "B1.pt", "B2.pt", "B3.pt")


def make(root: Path) -> None:
    """Fill ``root``, the folder that commands are run in."""
    _data(root / "data")
    _checkpoints(root)
    _runs(root)
    for block in blocks("yaml", "text", "python"):
        if block.name:
            assert not (root / block.name).exists(), f"{block.place}: a second {block.name}"
            (root / block.name).write_text(block.text, encoding="utf-8")
    (root / "corpus").mkdir()
    (root / "one.txt").write_text("a photo of a {}\n", encoding="utf-8")


def tiny_flags() -> list[str]:
    """``TINY`` as flags."""
    words: list[str] = []
    for name, value in TINY.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def _papers_data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("papers_data", ROOT / "analyses/papers_data.py")
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _data(root: Path) -> None:
    made = _papers_data()
    made.imagenet(root)
    made.objectnet(root)
    made.coop(root)
    listed = [f"{p.parent.name}/{p.name}" for p in sorted((root / "imagenet/train").glob("*/*.JPEG"))]
    for index in (root / "train.txt", root.parent / "train.txt"):
        index.write_text("\n".join(listed) + "\n", encoding="utf-8")
    pictures = made.pictures(24, "test")
    for place in ("pets/train", "pets/val", "sketches"):
        for c, name in enumerate(("cat", "dog")):
            made.save(root / place / name, pictures[c::8], ".png")
    coco, images = root / "coco", []
    made.save(coco / "val2014", pictures, ".jpg")
    for i in range(len(pictures)):
        told = [{"raw": f"picture {i}, text {k}", "tokens": []} for k in range(5)]
        images.append({"filepath": "val2014", "filename": f"{i}.jpg", "split": "test", "sentences": told})
    (coco / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}), encoding="utf-8")
    made.save(root.parent / "target", pictures, ".png")
    rows = [f"target/{i}.png,{('circle', 'square')[i % 2]}" for i in range(len(pictures))]
    (root.parent / "target.csv").write_text("filepath,label\n" + "\n".join(rows) + "\n", encoding="utf-8")


def _checkpoints(root: Path) -> None:
    zero = read_checkpoint(checkpoint_path("mini:zeroshot")).tensors
    one = read_checkpoint(
        checkpoint_path("mini:success"), base=read_checkpoint(checkpoint_path("mini:zeroshot"))
    ).tensors
    head = torch.randn(1000, one["head.weight"].shape[1], generator=torch.Generator().manual_seed(0))
    bare = {n: t for n, t in zero.items() if not n.startswith("head.")}
    for name in FROM_ZERO:
        torch.save(bare, root / name)
    for name in FROM_ONE:
        torch.save({**one, "head.weight": head}, root / name)
    shutil.copy(checkpoint_path("mini:upgraded"), root / "EVA02.pt")
    (root / "runs/pets").mkdir(parents=True)
    shutil.copy(checkpoint_path("mini:success"), root / "runs/pets/lipsum-ft.safetensors")


def _runs(root: Path) -> None:
    common = ["--zeroshot", "mini:zeroshot", "--model", "mini", "--probe", "mini:photo", "--id", "mini:photo"]
    for name, pair in (("a", "success"), ("b", "failure")):
        told = [*common, "--ood", "mini:sketch", "--finetuned", f"mini:{pair}", "--out", f"runs/{name}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "build_report", lambda *tables: "")
            assert main(["run", *told, *tiny_flags()]) == 0
    for copy, of in (("seed0", "a"), ("seed1", "a"), ("x", "a"), ("sweep", "a")):
        shutil.copytree(root / "runs" / of, root / "runs" / copy)
    lines = b""
    for name, pair in (("a", "success"), ("b", "failure")):
        ends = {"zeroshot": {pair: "mini:zeroshot"}, "finetuned": {pair: f"mini:{pair}"}}
        accuracy = read_csv(root / f"runs/{name}/tables/accuracy.csv", "accuracy")
        lines += written(accuracy, "wise-ft", model="mini", **ends)["results.jsonl"]
    (root / "results.jsonl").write_bytes(lines)
    rows = [f"mini:sketch,{x},{x - 0.2:.2f}" for x in (0.4, 0.5, 0.6, 0.7)]
    (root / "models.csv").write_text("dataset,id_accuracy,ood_accuracy\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (root / "covariates.csv").write_text("pair,learning_rate\nsuccess,1e-5\nfailure,1e-3\n", encoding="utf-8")
