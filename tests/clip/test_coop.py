"""CoOp's eleven sets: split files, lists and folders of their layout, made here, in the class order that CoOp reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.model import ClipModel
from sharpscope.config.coopsets import COOP
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.finetuning.examples import load_examples
from sharpscope.finetuning.run import finetune

WITH_FILES = [name for name, kind in COOP.items() if kind.split_file]


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), shade, dtype=np.uint8)).save(path)


def layout(root: Path, name: str, entries: dict[str, Any]) -> Path:
    """The set ``name`` under ``root`` as CoOp's DATASETS.md describes it; returns its split file."""
    kind = COOP[name]
    for shade, (path, *_) in enumerate(e for split in entries.values() for e in split):
        picture(root / kind.folder / kind.images / path, 10 * shade)
    file = root / kind.folder / kind.split_file
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def entries() -> dict[str, Any]:
    """Three classes; the labels decide their order, not the names."""
    return {
        "train": [[f"t/{i}.png", i % 3, ("pink_rose", "aster", "moss")[i % 3]] for i in range(9)],
        "val": [["v/0.png", 1, "aster"]],
        "test": [["e/0.png", 2, "moss"], ["e/1.png", 0, "pink_rose"]],
    }


@pytest.mark.parametrize("name", WITH_FILES)
def test_a_split_file_is_read_as_the_set(name: str, tmp_path: Path, tiny_model: ClipModel) -> None:
    layout(tmp_path, name, entries())
    test = load_dataset(f"coop:{name}", model=tiny_model, data_root=tmp_path)
    assert test.classnames == ("pink rose", "aster", "moss") and test.labels.tolist() == [2, 0]
    assert test.templates == (COOP[name].template,) and test.facts["split"] == "test"
    val = load_dataset(f"coop:{name}@val#base", model=tiny_model, data_root=tmp_path)
    assert val.classnames == ("pink rose", "aster") and val.labels.tolist() == [1]


def test_there_are_eleven_sets() -> None:
    assert len(COOP) == 11 and len(WITH_FILES) == 9
    assert all("{}" in kind.template for kind in COOP.values())
    assert COOP["dtd"].template == "{} texture." and COOP["ucf101"].images == "UCF-101-midframes"
    with pytest.raises(ConfigError, match="CoOp has no set 'flower'. Did you mean 'flowers'"):
        load_dataset("coop:flower")


def test_aircraft_and_imagenet_have_lists_and_folders(tmp_path: Path, tiny_model: ClipModel) -> None:
    air = tmp_path / "fgvc_aircraft"
    for i, split in enumerate(("train", "val", "test")):
        picture(air / "images" / f"00{i}.jpg", 10 * i)
        (air / f"images_variant_{split}.txt").write_text(f"00{i} {('A 1', 'B', 'A 1')[i]}\n", encoding="utf-8")
    (air / "variants.txt").write_text("B\nA 1\n", encoding="utf-8")
    train = load_dataset("coop:aircraft@train", model=tiny_model, data_root=tmp_path)
    assert train.classnames == ("B", "A 1") and train.labels.tolist() == [1]

    top = tmp_path / "imagenet"
    for split, wnid in (("train", "n02"), ("train", "n01"), ("val", "n02")):
        picture(top / "images" / split / wnid / "0.png", 40)
    (top / "classnames.txt").write_text("n02 great white shark\nn01 tench\n", encoding="utf-8")
    test = load_dataset("coop:imagenet", model=tiny_model, data_root=tmp_path)
    assert test.classnames == ("tench", "great white shark") and test.labels.tolist() == [1]
    with pytest.raises(ConfigError, match="unknown split 'val'"):  # CoOp's val is its test set
        load_dataset("coop:imagenet@val", model=tiny_model, data_root=tmp_path)


def test_shots_are_drawn_by_seed_and_fewer_are_among_more(tmp_path: Path, tiny_model: ClipModel) -> None:
    layout(tmp_path, "flowers", entries())

    def drawn(shots: int, seed: int) -> set[bytes]:
        found, names = load_examples(
            "coop:flowers", tiny_model, data_root=tmp_path, shots=shots, augment=None, seed=seed
        )
        assert names == ("pink rose", "aster", "moss")
        assert found.dataset.labels.bincount().tolist() == [min(shots, 3)] * 3
        return {image.numpy().tobytes() for batch, _ in found.dataset.batches(9) for image in batch}

    assert drawn(1, 0) < drawn(2, 0) < drawn(3, 0)
    assert drawn(2, 0) == drawn(2, 0)
    assert len({frozenset(drawn(1, seed)) for seed in range(6)}) > 1


@pytest.mark.parametrize(("change", "said"), [
    ({"train": [["../x.png", 0, "a"]]}, r"train\[0\]: .* is not of the form"),
    ({"train": [["/x.png", 0, "a"]]}, r"train\[0\]"),
    ({"test": [["x.png", -1, "a"]]}, r"test\[0\]"),
    ({"test": [["x.png", 0, "aster"]]}, "label 0 is 'pink_rose' at first and 'aster' later"),
    ({"val": [["x.png", 4, "fern"]]}, "no image has label 3"),
    ({"val": [["x.png", 3, "Pink rose"]]}, "same class name"),
    ({"val": None}, "not a split file of CoOp"),
])  # fmt: skip
def test_a_file_of_another_form_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path, tiny_model: ClipModel
) -> None:
    file = layout(tmp_path, "pets", entries())
    file.write_text(json.dumps(entries() | change), encoding="utf-8")
    with pytest.raises(DatasetError, match=said):
        load_dataset("coop:pets", model=tiny_model, data_root=tmp_path)


def test_fine_tuning_starts_from_the_sets_own_prompt(
    tmp_path: Path, tiny_paths: dict[str, Path], tiny_theta: dict[str, Any]
) -> None:
    layout(tmp_path, "dtd", entries())
    for i, name in enumerate(("aster", "moss")):
        picture(tmp_path / "set" / name / "0.png", 90 * i)
    (tmp_path / "set" / "zeroshot_classification_templates.txt").write_text("a {c}.\n")
    options: dict[str, Any] = {"model": str(tiny_paths["vit"]), "data_root": tmp_path, "progress": False}
    quick = {"steps": 1, "batch_size": 2, "warmup": 0}

    def templates(spec: str, **given: Any) -> tuple[list[str], str]:
        tuned = finetune(tiny_theta, spec, "linear-probe", **options, **quick, **given)
        return json.loads(tuned.metadata["sharpscope.templates"]), tuned.prompted

    assert templates("coop:dtd") == (["{} texture."], "templates (the data set's own): '{} texture.'")
    own = ["one {}", "two {}"]
    assert templates("coop:dtd", templates=own) == (own, "templates (given): 'one {}' and 1 more")
    elsewhere, said = templates("folder:set")
    assert said.startswith("templates (the model's): '") and elsewhere != ["a {}."]
