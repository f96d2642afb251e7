"""Data sets: the same images in the same order whatever the batch size, the same bits as torchvision and open_clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from sharpscope.clip.datasets.dataset import Dataset, stratified
from sharpscope.clip.datasets.names import read_classnames
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.miniworld import world as miniworld

MakeFolder = Callable[..., Path]


def everything(dataset: Dataset, batch_size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*dataset.batches(batch_size), strict=True)
    return torch.cat(images), torch.cat(labels)


# ---------------------------------------------------------------------- stratified choices
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda c: sum(c) > 0),
    size=st.integers(1, 80),
    seed=st.integers(0, 5),
)
def test_stratified_laws(counts: list[int], size: int, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    chosen = stratified(labels, size, seed)
    assert len(chosen) == len(set(chosen)) == min(size, len(labels))
    got = torch.bincount(labels[torch.tensor(chosen)], minlength=len(counts)).tolist()
    for a, _ in enumerate(counts):  # nobody has two more than a class that still had members to give
        assert all(got[a] <= got[b] + 1 for b, count in enumerate(counts) if got[b] < count)
    assert chosen == stratified(labels, None, seed)[:size]


def test_stratified_depends_on_seed_and_purpose_only() -> None:
    labels = torch.arange(60) % 5
    torch.manual_seed(1)
    first = stratified(labels, 20, 0, "probe")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert stratified(labels, 20, 0, "probe") == first
    assert torch.equal(torch.get_rng_state(), before)
    assert stratified(labels, 20, 1, "probe") != first
    assert stratified(labels, 20, 0, "limit") != first


# ---------------------------------------------------------------------- the embedded world
def test_mini_is_the_rendered_world_normalised() -> None:
    dataset = load_dataset("mini:sketch@val", model=ClipModel.load("mini"))
    sample = miniworld.make("sketch", 400, miniworld.SEEDS["select"])
    images, labels = everything(dataset)
    expected = (torch.from_numpy(sample[0]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    assert torch.equal(images, expected)
    assert torch.equal(labels, torch.from_numpy(sample[1]).long())
    assert dataset.classnames == miniworld.CLASSES
    assert dataset.classes is None
    assert dataset.facts["n"] == len(dataset) == 400


def test_batch_size_changes_nothing() -> None:
    dataset = load_dataset("mini:photo@val", limit=50)
    for a, b in zip(everything(dataset, 7), everything(dataset, 50), strict=True):
        assert torch.equal(a, b)
    assert [len(labels) for _, labels in dataset.batches(20)] == [20, 20, 10]


def test_splits_differ_and_the_spec_overrides_the_argument() -> None:
    test, val = (load_dataset("mini:neon", split=s, limit=32) for s in ("test", "val"))
    assert test.facts["split"] == "test"
    assert not torch.equal(everything(test)[0], everything(val)[0])
    asked = load_dataset("mini:neon@val", split="test", limit=400)
    assert torch.equal(everything(asked)[0], everything(load_dataset("mini:neon", split="val"))[0])
    assert len(load_dataset("mini:neon")) == 1600


def test_limit_is_balanced_fixed_and_growing() -> None:
    def pixels(limit: int, seed: int = 0) -> set[bytes]:
        return {x.numpy().tobytes() for x in everything(load_dataset("mini:photo@val", limit=limit, seed=seed))[0]}

    labels = load_dataset("mini:photo@val", limit=40).labels
    assert set(torch.bincount(labels, minlength=16).tolist()) == {2, 3}
    assert pixels(16) == pixels(16)
    assert pixels(16) < pixels(40)
    assert pixels(16) != pixels(16, seed=1)


def test_a_few_rows_are_drawn_as_among_all_of_them() -> None:
    for domain in miniworld.DOMAINS:
        everyone, some = miniworld.make(domain, 40, 5), miniworld.make(domain, 40, 5, rows=[3, 17, 38])
        assert np.array_equal(some.images, everyone.images[[3, 17, 38]])
        assert np.array_equal(some.labels, everyone.labels)
        assert np.array_equal(miniworld.labels(domain, 40, 5), everyone.labels)


def test_mini_fits_a_model_of_another_size(tiny_paths: dict[str, Path]) -> None:
    model = ClipModel.load(str(tiny_paths["nested"]))
    images, _ = everything(load_dataset("mini:photo@val", model=model, limit=4))
    small = load_dataset("mini:photo@val", limit=4)
    picture = next(small._source.stream([[small._rows[2]]]))[1][0]
    expected = model.preprocess(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    assert images.shape == (4, 3, 16, 16)
    assert torch.equal(images[2], expected)


# ---------------------------------------------------------------------- folders
def test_folder_equals_torchvision_with_open_clips_transform(
    tiny_paths: dict[str, Path], image_folder: MakeFolder
) -> None:
    root = image_folder({"dog": 3, "Cat": 2, "_x": 1}, size=40)
    (root / "dog" / "deeper").mkdir()
    Image.new("L", (30, 50), 77).save(root / "dog" / "deeper" / "grey.JPEG")
    with Image.open(root / "dog" / "000.png") as image:
        image.quantize(64).save(root / "dog" / "palette.png")
    (root / "dog" / "notes.txt").write_text("no image")
    model = ClipModel.load(str(tiny_paths["nested"]))
    theirs = ImageFolder(str(root), transform=model.preprocess)
    ours = load_dataset(f"folder:{root}", model=model)
    images, labels = everything(ours, 3)
    assert labels.tolist() == theirs.targets
    assert torch.equal(images, torch.stack([x for x, _ in theirs]))
    assert ours.classnames == ("Cat", "x", "dog")
    assert ours.facts["matching"] == "own"


def test_folders_too_big_to_keep_give_the_same_bits(
    tiny_model: ClipModel, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder({"a": 5, "b": 4})
    (root / "a" / "002.png").write_bytes(b"not an image")
    kept = load_dataset(f"folder:{root}", model=tiny_model)
    monkeypatch.setattr("sharpscope.clip.datasets.images.KEPT_BYTES", 100)
    monkeypatch.setattr("sharpscope.clip.datasets.images.REMEMBERED", 0)
    lazy = load_dataset(f"folder:{root}", model=tiny_model)
    for a, b in zip(everything(kept), everything(lazy), strict=True):
        assert torch.equal(a, b)
    assert kept.facts | {"streamed": True} == lazy.facts
    (root / "b" / "000.png").unlink()
    with pytest.raises(DatasetError, match=r"000\.png"):
        everything(lazy)


def test_a_split_of_folders_is_named_as_any_other(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    for i, part in enumerate(("train", "val")):
        image_folder({"cat": 1 + i, "dog": 2}, name=f"set/{part}")
    root = image_folder({"cat": 2}, name="flat").parent
    read = [
        load_dataset(f"folder:set{at}", model=tiny_model, data_root=root, split="test") for at in ("@train", "@val", "")
    ]
    assert [(len(d), d.facts["split"]) for d in read] == [(3, "train"), (4, "val"), (4, "val")]
    for spec, words in (("folder:set@test", "unknown split 'test'"), ("folder:flat@train", "the set has no splits")):
        with pytest.raises(ConfigError, match=words):
            load_dataset(spec, model=tiny_model, data_root=root)


def test_relative_folders_are_under_the_data_root(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    root = image_folder({"a": 1, "b": 1}, name="val")
    relative = load_dataset("folder:val", model=tiny_model, data_root=root.parent)
    absolute = load_dataset(f"folder:{root}", model=tiny_model, data_root="/nowhere")
    assert torch.equal(everything(relative)[0], everything(absolute)[0])


def test_subset_keeps_order_and_pairs_images_with_labels(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    dataset = load_dataset(f"folder:{image_folder({'a': 4, 'b': 4})}", model=tiny_model)
    images, labels = everything(dataset)
    part = dataset.subset([6, 1, 3]).subset(torch.tensor([2, 0]))
    got_images, got_labels = everything(part)
    assert torch.equal(got_images, images[[3, 6]])
    assert torch.equal(got_labels, labels[[3, 6]])
    assert part.facts["n"] == len(part) == 2


# ---------------------------------------------------------------------- labels and names
@pytest.mark.parametrize(
    ("folders", "names", "expected", "matching", "classes"),
    [
        (("bird", "hot_dog"), ("Hot dog", "Bird"), [1, 0], "name", None),
        (("Bird", "hot_dog"), ("ant", "hot dog", "cat", "bird"), [3, 1], "name", (1, 3)),
        (("n01", "n02"), ("tench", "goldfish"), [0, 1], "order", None),
        (("ant", "n02"), ("ant", "bee"), [0, 1], "order", None),
    ],
)
def test_folders_are_matched_to_class_names(
    folders: tuple[str, ...],
    names: tuple[str, ...],
    expected: list[int],
    matching: str,
    classes: tuple[int, ...] | None,
    tiny_model: ClipModel,
    image_folder: MakeFolder,
) -> None:
    root = image_folder(dict.fromkeys(folders, 1))
    dataset = load_dataset(f"folder:{root}", model=tiny_model, classnames=names)
    assert dataset.labels.tolist() == expected
    assert (dataset.classnames, dataset.facts["matching"], dataset.classes) == (names, matching, classes)


def test_mini_labels_follow_the_given_names() -> None:
    names = ("unknown", *reversed(miniworld.CLASSES))
    own, given_names = load_dataset("mini:photo@val"), load_dataset("mini:photo@val", classnames=names)
    assert [names[i] for i in given_names.labels] == [miniworld.CLASSES[i] for i in own.labels]
    assert given_names.classes is not None
    assert sorted(given_names.classes) == list(range(1, 17))


def test_classnames_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfhot dog\r\n  caf\xc3\xa9 \r\n")
    assert read_classnames(tmp_path / "names.txt") == ("hot dog", "café")
