"""The step evaluate on files: which head reads which set, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sharpscope.clip.answering import correct
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.evaluate import evaluate
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, DatasetError, PairMismatch
from sharpscope.weights import write_checkpoint

NAMES = ("cup", "key", "fish", "ring")
Theta = dict[str, torch.Tensor]


def folder(root: Path, *classes: str) -> str:
    rng = np.random.default_rng(len(classes))
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return f"folder:{root}"


@pytest.fixture
def sets(tmp_path: Path) -> tuple[str, str, str]:
    """All four classes; two of them; two others."""
    return (
        folder(tmp_path / "all", *NAMES),
        folder(tmp_path / "some", "ring", "key"),
        folder(tmp_path / "x", "dog", "owl"),
    )


@pytest.fixture
def tuned(tmp_path: Path, tiny_theta: Theta) -> Path:
    """A whole model with a head of four classes that always answers 'ring', else 'key'."""
    head = {"head.weight": torch.zeros(4, 12), "head.bias": torch.tensor([0.0, 2.0, 1.0, 3.0])}
    facts = {
        "sharpscope.head.scale_baked": "true", "sharpscope.head.normalize": "true",
        "sharpscope.classnames": json.dumps(NAMES),
    }  # fmt: skip
    write_checkpoint(tmp_path / "tuned.safetensors", {**tiny_theta, **head}, facts)
    return tmp_path / "tuned.safetensors"


def top1(table: pd.DataFrame, spec: str) -> float:
    (value,) = table[(table["dataset"] == spec) & (table["metric"] == "top1")]["estimate"]
    return float(value)


def note(table: pd.DataFrame, spec: str) -> str:
    (said,) = table[(table["dataset"] == spec) & (table["metric"] == "top1")]["note"]
    return str(said)


def test_each_set_gets_the_head_that_has_its_classes(
    tuned: Path, sets: tuple[str, str, str], tiny_paths: dict[str, Path], tiny_model: ClipModel, tiny_theta: Theta
) -> None:
    every, some, other = sets
    table = evaluate(tuned, str(tiny_paths["vit"]), sets, device="cpu")
    assert top1(table, every) == 0.25  # always ring
    assert top1(table, some) == 0.5
    assert note(table, every) == ""
    assert note(table, some) == "scored among 2 of 4 classes"
    assert note(table, other) == "the head was made from the text tower, because the stored head has other classes"
    dataset = load_dataset(other, model=tiny_model)
    zeroshot = Classifier(tiny_model, "zeroshot", ("dog", "owl"))
    assert top1(table, other) == correct(zeroshot, zeroshot.attach(tiny_theta), dataset).mean()
    assert set(table["checkpoint"]) == {"tuned"}
    with pytest.raises(DatasetError, match="2 class folders do not fit 4 class names"):
        evaluate(tuned, str(tiny_paths["vit"]), sets, head="stored", device="cpu")


def test_without_a_text_tower_the_stored_head_is_all_there_is(
    tmp_path: Path, sets: tuple[str, str, str], tiny_paths: dict[str, Path], tiny_theta: Theta
) -> None:
    body = {k: v for k, v in tiny_theta.items() if k.startswith("visual.")}
    head = {"head.weight": torch.zeros(4, 12), "head.bias": torch.tensor([0.0, 2.0, 1.0, 3.0])}
    write_checkpoint(tmp_path / "v.safetensors", {**body, **head}, {"sharpscope.head.scale_baked": "true"})
    model = str(tiny_paths["vit"])
    table = evaluate(tmp_path / "v.safetensors", model, sets[:1], device="cpu")
    assert top1(table, sets[0]) == 0.25  # the folder's own names, of which there are as many
    with pytest.raises(PairMismatch, match="does not fit 2 class names"):
        evaluate(tmp_path / "v.safetensors", model, sets[2:], device="cpu")
    with pytest.raises(PairMismatch, match="18 missing: positional_embedding"):
        evaluate(tmp_path / "v.safetensors", model, sets[:1], head="zeroshot", device="cpu")


def test_class_names_and_templates_of_the_user_come_first(
    tuned: Path, sets: tuple[str, str, str], tiny_paths: dict[str, Path], tiny_model: ClipModel, tiny_theta: Theta
) -> None:
    model = str(tiny_paths["vit"])
    table = evaluate(
        tuned, model, sets[2:], head="zeroshot", classnames=["an owl", "a dog"], templates=["{}!"], metrics=["nll"],
        device="cpu",
    )  # fmt: skip
    classifier = Classifier(tiny_model, "zeroshot", ("an owl", "a dog"), ["{}!"])
    dataset = load_dataset(sets[2], model=tiny_model, classnames=["an owl", "a dog"])
    assert top1(table, sets[2]) == correct(classifier, classifier.attach(tiny_theta), dataset).mean()
    assert list(table["metric"]) == ["top1", "nll"]


def test_several_checkpoints_and_the_bars_they_show(
    tmp_path: Path, tuned: Path, sets: tuple[str, str, str], tiny_paths: dict[str, Path]
) -> None:
    class Bar:
        def __init__(self, total: int, desc: str) -> None:
            self.total, self.desc, self.done, self.closed = total, desc, 0, False
            bars.append(self)

        def update(self, n: int) -> None:
            self.done += n

        def close(self) -> None:
            self.closed = True

    bars: list[Bar] = []
    (tmp_path / "b").mkdir()
    again = tmp_path / "b" / "tuned.safetensors"
    again.write_bytes(tuned.read_bytes())
    model = str(tiny_paths["vit"])
    table = evaluate([tuned, again], model, sets[:2], metrics=["ece"], device="cpu", progress=Bar)
    assert list(dict.fromkeys(table["checkpoint"])) == [str(tuned), str(again)]  # of one stem: the paths
    first, second = (g.drop(columns="checkpoint").reset_index(drop=True) for _, g in table.groupby("checkpoint"))
    pd.testing.assert_frame_equal(first[["dataset", "estimate"]], second[["dataset", "estimate"]])
    assert [(b.total, b.done, b.closed) for b in bars] == [(12, 12, True), (6, 6, True)] * 2
    assert bars[0].desc.startswith(str(tuned))
    with pytest.raises(ConfigError, match="given twice"):
        evaluate([tuned, tuned], model, sets[:1])


def test_named_sets_under_one_data_root(tmp_path: Path, tiny_paths: dict[str, Path], tiny_theta: Theta) -> None:
    """A head of 1000 classes that always says electric ray (5), else tiger shark (3), else goldfish (1)."""
    bias = torch.zeros(1000)
    bias[[5, 3, 1]] = torch.tensor([30.0, 20.0, 10.0])
    facts = {"sharpscope.head.scale_baked": "true", "sharpscope.head.normalize": "true"}
    head = {"head.weight": torch.zeros(1000, 12), "head.bias": bias}
    write_checkpoint(tmp_path / "ft.safetensors", {**tiny_theta, **head}, facts)
    folder(tmp_path / "imagenet-r", "n01443537")  # goldfish: of ImageNet-R's classes the others are none
    (tmp_path / "imagenet-r" / "n01443537" / "broken.jpg").write_bytes(b"no image")
    folder(tmp_path / "objectnet-1.0" / "images", "chair", "mug", "zebra")
    maps = {
        "folder_to_objectnet_label.json": json.dumps({"chair": "Chair", "mug": "Mug", "zebra": "Zebra"}),
        "objectnet_to_imagenet_1k.json": json.dumps({"Mug": "coffee mug", "Chair": "barber chair; rocking chair"}),
        "imagenet_to_label_2012_v2": "barber chair\ncoffee mug\nrocking chair\n",
        "pytorch_to_imagenet_2012_id.json": json.dumps({"7": 0, "3": 1, "5": 2}),
    }  # fmt: skip
    (tmp_path / "objectnet-1.0" / "mappings").mkdir()
    for name, text in maps.items():
        (tmp_path / "objectnet-1.0" / "mappings" / name).write_text(text)
    specs = ("imagenet-r", "objectnet")
    table = evaluate(tmp_path / "ft.safetensors", str(tiny_paths["vit"]), specs, data_root=str(tmp_path), device="cpu")
    assert top1(table, "imagenet-r") == 1
    assert note(table, "imagenet-r") == "1 unreadable images skipped; scored among 200 of 1000 classes"
    assert top1(table, "objectnet") == 0.5  # chair by its class 5 against the mug's 3: 30 to 20
    values = table.set_index(["dataset", "metric"])["estimate"]
    assert values["objectnet", "nll"] == pytest.approx(np.log1p(np.exp(-10)) + 10 / 2)
    assert values["imagenet-r", "nll"] == pytest.approx(np.log1p(199 * np.exp(-10)), rel=1e-5)
    assert set(table[table["dataset"] == "objectnet"]["n"]) == {6}
