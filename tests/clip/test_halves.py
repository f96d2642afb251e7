"""SPEC#base and SPEC#new: two halves of a set's classes that together are the set, whoever reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.found import Found, Request, match_labels
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.model import ClipModel
from sharpscope.config.halves import half_of, with_split
from sharpscope.config.specs import Spec, read_spec
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.miniworld import world as miniworld

MakeFolder = Callable[..., Path]
NAMES = ("ant", "bee", "cat", "dog", "eel")


def images(dataset: Dataset) -> list[bytes]:
    return [image.numpy().tobytes() for batch, _ in dataset.batches(64) for image in batch]


@given(st.integers(2, 400))
def test_the_halves_are_the_first_ceil_half_of_the_classes_and_the_others(count: int) -> None:
    base, new = half_of(count, "base", "s"), half_of(count, "new", "s")
    assert [*base, *new] == list(range(count))
    assert len(base) == math.ceil(count / 2)


def test_a_set_of_one_class_has_no_new_ones() -> None:
    with pytest.raises(DatasetError, match="has 1 classes, so it has no new classes"):
        half_of(1, "new", "folder:D#new")


def test_both_halves_of_a_folder_are_the_folder(image_folder: MakeFolder, tiny_model: ClipModel) -> None:
    top = image_folder(dict(zip(NAMES, (2, 3, 1, 2, 2), strict=True)))
    whole, base, new = (load_dataset(f"folder:{top}{end}", model=tiny_model) for end in ("", "#base", "#new"))
    assert base.classnames == NAMES[:3] and new.classnames == NAMES[3:]
    assert base.labels.tolist() == [0, 0, 1, 1, 1, 2] and new.labels.tolist() == [0, 0, 1, 1]
    assert images(base) + images(new) == images(whole)
    assert base.facts["half"] == "base" and base.classes is None
    few = load_dataset(f"folder:{top}#new", model=tiny_model, limit=2)
    assert few.labels.tolist() == [0, 1] and set(images(few)) <= set(images(new))


def test_a_half_is_the_same_in_every_split(image_folder: MakeFolder, tiny_model: ClipModel) -> None:
    image_folder(dict.fromkeys(NAMES, 1), "set/train")
    top = image_folder({"ant": 1, "cat": 1, "eel": 2}, "set/test").parent
    test = load_dataset(f"folder:{top}#base", model=tiny_model)
    assert test.classnames == NAMES[:3] and test.labels.tolist() == [0, 2]
    assert test.classes == (0, 2)  # as without the half: the classes that the split has compete


def test_a_path_that_ends_so_is_meant_itself(image_folder: MakeFolder, tiny_model: ClipModel) -> None:
    image_folder(dict.fromkeys(NAMES, 1), "birds")
    top = image_folder({"owl": 1, "tit": 1}, "birds#new")
    assert load_dataset(f"folder:{top}", model=tiny_model).classnames == ("owl", "tit")
    assert load_dataset("folder:birds#new", model=tiny_model, data_root=top.parent).classnames == ("owl", "tit")
    assert load_dataset(f"folder:{top}#new", model=tiny_model).classnames == ("tit",)


def test_names_of_a_head_and_names_of_a_person(image_folder: MakeFolder, tiny_model: ClipModel) -> None:
    top = image_folder(dict.fromkeys(NAMES, 1))
    spec = f"folder:{top}#new"
    turned = NAMES[::-1]
    head = load_dataset(spec, model=tiny_model, classnames=turned, by_name=True)
    assert head.classnames == turned and head.labels.tolist() == [1, 0]
    assert head.classes == (0, 1)  # only the half competes
    ours = load_dataset(spec, model=tiny_model, classnames=["A", "B", "C", "D", "E"])
    assert ours.classnames == ("D", "E") and ours.labels.tolist() == [0, 1]
    assert load_dataset(spec, model=tiny_model, classnames=["D", "E"]).classnames == ("D", "E")
    assert load_dataset(spec, model=tiny_model, classnames=["eel", "dog"], by_name=True).labels.tolist() == [1, 0]
    with pytest.raises(DatasetError, match="do not fit"):
        load_dataset(spec, model=tiny_model, classnames=["ant", "bee"], by_name=True)


def test_halves_of_sets_that_unite_or_lack_classes_of_the_head() -> None:
    """ImageNet-R's classes are those that it can contain; ObjectNet's are its targets."""
    request = Request("s", "k", "", "test", half="new")
    some = Found(Files("", ()), torch.tensor([4]).numpy(), NAMES, "s", indexed=True, present=(1, 2, 4))
    assert match_labels(some, request).classnames == ("eel",)
    whole = match_labels(some, Request("s", "k", "", "test", classnames=NAMES, by_name=True, half="new"))
    assert whole.classes == (4,) and list(whole.to) == [-1, -1, -1, -1, 4]
    united = Found(
        Files("", ()), torch.tensor([1]).numpy(), NAMES, "s", indexed=True, projection=(0, 0, 1, -1, 1),
        target_names=("small", "large"),
    )  # fmt: skip
    matched = match_labels(united, Request("s", "k", "", "test", classnames=NAMES, half="new"))
    assert (
        matched.projection == (-1, -1, 0, -1, 0) and matched.target_names == ("large",) and list(matched.to) == [-1, 0]
    )


def test_the_embedded_world() -> None:
    base, new = (load_dataset(f"mini:photo@val+fog@3#{half}") for half in ("base", "new"))
    assert base.classnames + new.classnames == miniworld.CLASSES
    assert len(base) == len(new) == 200 and set(new.labels.tolist()) == set(range(8))


def test_what_a_spec_may_end_in() -> None:
    assert read_spec("imagenet@train#base") == Spec("imagenet", "", "train", None, "base")
    assert read_spec("folder:/a#b/c").half is None and read_spec("folder:/a#b").rest == "/a#b"
    assert with_split("mini:photo@train#new", "val") == "mini:photo@val#new"
    with pytest.raises(ConfigError, match=r"unknown half 'nwe' of the classes. Did you mean 'new'\?"):
        read_spec("imagenet#nwe")
