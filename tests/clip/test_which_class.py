"""Which class, which split and which grey a picture has: one reading, or a refusal with both."""

from __future__ import annotations

import json
import os
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sharpscope.clip.accuracy import dataset_note
from sharpscope.clip.answering import correct
from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.datasets.imagenet import wnids
from sharpscope.clip.datasets.images import in_eight_bits
from sharpscope.clip.datasets.names import check_distinct, folded, match, match_indexed, read_classnames, two_orders
from sharpscope.clip.datasets.spec import check_spec, load_dataset
from sharpscope.clip.evaluate import evaluate
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel, imagenet_classnames
from sharpscope.clip.pair import load_pair
from sharpscope.clip.probe import Probe
from sharpscope.clip.prompts import CTX, Prompts
from sharpscope.config.specs import LAYOUTS, WORDS, chosen_split
from sharpscope.errors import ConfigError, DatasetError, PairMismatch
from sharpscope.weights import write_checkpoint

MakeFolder = Callable[..., Path]
Theta = dict[str, torch.Tensor]
WORD = st.text("aAbeéêÉößçñåÅİıſ각힣がΐῼ" + "\u0301\u0323\u0308\u212b", min_size=1, max_size=6)
"""Composed letters, marks that compose with the letter before, letters whose case changes their length."""


def per_class(dataset: Dataset) -> dict[str, int]:
    return {name: int((dataset.labels == i).sum()) for i, name in enumerate(dataset.classnames)}


# ---------------------------------------------------------------------- names
@given(WORD)
def test_a_name_is_the_same_in_every_form_of_unicode(name: str) -> None:
    forms = {folded(unicodedata.normalize(f, name)) for f in ("NFC", "NFD")}
    assert len(forms) == 1
    assert folded(name.replace(" ", "_")) == folded(name)
    assert folded(folded(name)) == folded(name)


@given(st.lists(WORD, min_size=1, max_size=6, unique_by=folded), st.randoms(use_true_random=False))
def test_folders_find_their_names_in_any_order_and_form(names: list[str], rng: random.Random) -> None:
    folders = sorted(unicodedata.normalize("NFD", n) for n in names)
    given_names = [unicodedata.normalize("NFC", n) for n in names]
    rng.shuffle(given_names)
    for by_name in (False, True):
        _, to, matching = match(folders, given_names, "toy", by_name=by_name)
        assert matching == "name"
        assert [folded(given_names[t]) for t in to] == [folded(f) for f in folders]


@given(st.integers(2, 30), st.sampled_from(["", "class_", "c"]), st.integers(0, 1))
def test_numbered_folders_are_taken_in_order_only_where_there_is_one(count: int, prefix: str, first: int) -> None:
    names = [f"name {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(count)]
    folders = sorted(f"{prefix}{i}" for i in range(first, first + count))
    padded = sorted(f"{prefix}{i:03d}" for i in range(first, first + count))
    assert match(padded, names, "toy")[1:] == (list(range(count)), "order")
    if first + count <= 10:
        assert match(folders, names, "toy")[1:] == (list(range(count)), "order")
    else:
        with pytest.raises(DatasetError, match=r"two readings.*\(as texts\) or .*\(as numbers") as caught:
            match(folders, names, "toy")
        assert len(str(caught.value).splitlines()) <= 3
    with pytest.raises(DatasetError, match="do not fit"):
        match(padded, names, "toy", by_name=True)


def test_case_decides_an_order_too_and_a_fit_by_names_settles_it() -> None:
    assert two_orders(["Zebra", "ant"]) and not two_orders(["ant", "zebra"])
    with pytest.raises(DatasetError, match="two readings"):
        match(["Zebra", "ant"], ["a", "b"], "toy")
    assert match(["Zebra", "ant", "bee"], ["zebra", "ant", "wasp"], "toy")[2] == "order"  # two of three say which


def test_names_of_a_checkpoint_never_go_by_number(tmp_path: Path) -> None:
    own, other = [f"own {i}" for i in range(10)], [f"other {i}" for i in range(10)]
    assert match_indexed(own, other, "toy") == list(range(10))  # a person's
    with pytest.raises(DatasetError, match="the 10 class names are different from"):
        match_indexed(own, other, "toy", by_name=True)
    half = own[:5] + other[5:]
    assert match_indexed(own, half, "toy", by_name=True) == list(range(10))
    # ImageNet's lists: WordNet ids, synonyms
    names = imagenet_classnames()
    for listed in (wnids(), [f"{n}, Latin name" for n in names]):
        assert match_indexed(names, listed, "toy", codes=wnids(), by_name=True) == list(range(1000))


def test_a_name_for_two_classes_where_classes_have_numbers(tmp_path: Path, tiny_model: ClipModel) -> None:
    (tmp_path / "names.txt").write_text("empty\nbird\nostrich\nbird\n", encoding="utf-8")
    assert read_classnames(tmp_path / "names.txt", repeated=True)[3] == "bird"
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4, 3), dtype=np.uint8), labels=np.array([3, 1, 3]))
    dataset = load_dataset("npz:x.npz", model=tiny_model, data_root=tmp_path, classnames=tmp_path / "names.txt")
    assert dataset.labels.tolist() == [3, 1, 3]
    with pytest.raises(DatasetError, match="'bird' is name 1 and name 2 of 2"):
        match(["bird", "dog"], ["bird", "Bird"], "toy")


# ---------------------------------------------------------------------- folders
def test_names_that_lie_beside_the_folders(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    top = image_folder({"train/cat": 1, "train/dog": 2, "train/eel": 3, "test/dog": 1, "test/eel": 2})
    (top / "classnames.txt").write_text("eel\ncat\ndog\n", encoding="utf-8")  # the folders' names, in another order
    test = load_dataset(f"folder:{top}", model=tiny_model)
    assert per_class(test) == {"eel": 2, "cat": 0, "dog": 1}
    assert dataset_note(test) == "scored among 2 of 3 classes"
    assert per_class(load_dataset(f"folder:{top}", model=tiny_model, split="train")) == {"eel": 3, "cat": 1, "dog": 2}
    (top / "classnames.txt").write_text("eel\ncat\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"classnames\.txt: 2 class names for 3 class folders"):
        load_dataset(f"folder:{top}", model=tiny_model)


def test_all_splits_of_a_folder_number_the_classes_alike(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    top = image_folder({"train/a": 1, "train/b": 2, "train/c": 3, "valid/b": 1, "valid/c": 2, "test/c": 4})
    for split, counts in (("train", (1, 2, 3)), ("val", (0, 1, 2)), ("test", (0, 0, 4))):
        dataset = load_dataset(f"folder:{top}", model=tiny_model, split=split)  # type: ignore[arg-type]
        assert per_class(dataset) == dict(zip("abc", counts, strict=True))
        assert dataset.facts["split"] == {"val": "valid"}.get(split, split)
    # a head needs the classes of the split alone
    head = load_dataset(f"folder:{top}", model=tiny_model, classnames=("c", "x"), by_name=True)
    assert head.labels.tolist() == [0] * 4


def test_weights_are_never_chosen_by_test_images(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    top = image_folder({"train/a": 1, "test/a": 2})
    with pytest.raises(ConfigError, match="has no val split; its splits are test, train"):
        load_dataset(f"folder:{top}", model=tiny_model, split="val")
    for spec in ("cifar10", "stl10", "torchvision:MNIST"):
        with pytest.raises(ConfigError, match="has no val split; its splits are train, test"):
            load_dataset(spec, model=tiny_model, split="val")
    only = image_folder({"train/a": 1, "val/a": 2}, name="only")
    dataset = load_dataset(f"folder:{only}", model=tiny_model)  # what evaluation reads by itself is told
    assert dataset_note(dataset) == "there is no test split, so split val was read"


def test_splits_and_classes_side_by_side(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    for n, folders in enumerate(({"train/a": 1, "test/a": 1, "more": 1}, {"train/a": 1, "images/b": 1})):
        with pytest.raises(DatasetError, match="may be splits .* or classes"):
            load_dataset(f"folder:{image_folder(folders, name=str(n))}", model=tiny_model)
    vehicles = image_folder({"train": 2, "bus": 1}, name="vehicles")
    assert per_class(load_dataset(f"folder:{vehicles}", model=tiny_model)) == {"bus": 1, "train": 2}


@pytest.mark.parametrize("names", [["a", "b", "a"], ["cat", "dog", "cat"], ["Big cat", "big_cat"]])
def test_a_class_that_is_named_twice_is_told(names: list[str]) -> None:
    """Also where both are one Python string, as short words from a file are."""
    with pytest.raises(DatasetError, match="are the same class name"):
        check_distinct(names, "classes.txt")
    check_distinct(names[:1], "classes.txt")


def test_two_folders_of_one_name_and_links_that_lead_back(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    twice = image_folder({"big_cat": 1, "Big cat": 1}, name="twice")
    with pytest.raises(DatasetError, match="'Big cat' and 'big_cat' are the same class name"):
        load_dataset(f"folder:{twice}", model=tiny_model)
    for number, (link, target) in enumerate((("a/up", ".."), ("a/self", "."), ("a/b", "../b"), ("c", "a"))):
        root = image_folder({"a": 2, "b": 1}, name=f"loop{number}")
        os.symlink(target, root / link)
        with pytest.raises(DatasetError, match="the same folder through a link"):
            load_dataset(f"folder:{root}", model=tiny_model)
    elsewhere = image_folder({"more": 3}, name="elsewhere")
    root = image_folder({"a": 2}, name="linked")
    os.symlink(elsewhere, root / "a" / "more")  # followed, as ImageFolder does
    assert len(load_dataset(f"folder:{root}", model=tiny_model)) == 5


def test_a_class_without_images_is_named(
    tiny_model: ClipModel, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder({"a": 2, "b": 1, "c": 1})
    (root / "d").mkdir()
    (root / "b" / "000.png").write_bytes(b"no image")
    for kept in (2**30, 0):  # decoded when loaded, and when looked at
        monkeypatch.setattr("sharpscope.clip.datasets.images.KEPT_BYTES", kept)
        dataset = load_dataset(f"folder:{root}", model=tiny_model)
        assert len(dataset.classnames) == 4
        assert sum(len(y) for _, y in dataset.batches(2)) == 3
        assert dataset_note(dataset) == "1 unreadable images skipped; no readable image of class 'd', 'b'"


# ---------------------------------------------------------------------- splits of other kinds
def test_every_word_for_a_split() -> None:
    for split, words in WORDS.items():
        for word in words:
            assert chosen_split("toy", split, ["other", word], named=True) == word
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        chosen_split("toy", "trian", ["train", "test"], named=True)
    with pytest.raises(ConfigError, match="has no val split"):
        chosen_split("toy", "val", ["train", "test"], named=False)
    assert chosen_split("toy", "test", ["train", "valid"], named=False) == "valid"
    with pytest.raises(ConfigError, match="unknown split 'test'"):
        chosen_split("toy", "test", ["train", "valid"], named=True)
    assert chosen_split("toy", "train", [], named=False) is None
    with pytest.raises(ConfigError, match="has no splits"):
        chosen_split("toy", "train", [], named=True)


def test_a_misspelt_split_is_found_before_any_data(tmp_path: Path, tiny_model: ClipModel) -> None:
    fixed = [x for x in LAYOUTS.values() if x.splits is not None]
    assert len(fixed) >= 12
    for layout in fixed:
        rest = {"DOMAIN": ":sketch", "FILE": ":x.txt", "STYLES": ":a,b"}.get(layout.rest, "")
        for split in layout.splits or ():
            check_spec(f"{layout.name}{rest}@{split}")
        with pytest.raises(ConfigError, match="unknown split 'trian'"):
            check_spec(f"{layout.name}{rest}@trian")
    check_spec("imagenet@probe.txt")
    with pytest.raises(ConfigError, match="unknown split 'trian'"):
        load_dataset("torchvision:MNIST@trian", model=tiny_model, data_root=tmp_path)
    with pytest.raises(ConfigError, match="has no splits"):
        load_dataset("wds:x/0.tar@train", model=tiny_model, data_root=tmp_path)


def test_sets_without_splits_say_so(tmp_path: Path, tiny_model: ClipModel) -> None:
    for name in ("Forest", "River"):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "eurosat" / "2750" / name / "a.jpg")
        (tmp_path / "domainnet" / "real" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "domainnet" / "real" / name / "a.jpg")
    for spec, said in (
        ("torchvision:EuroSAT", "the set has no splits"),
        ("domainnet:real", "there is no real_test.txt"),
    ):
        dataset = load_dataset(spec, model=tiny_model, data_root=tmp_path)
        assert (dataset.facts["split"], len(dataset)) == (None, 2)
        assert said in dataset_note(dataset)
        with pytest.raises(ConfigError, match="has no splits"):
            load_dataset(f"{spec}@train", model=tiny_model, data_root=tmp_path)


# ---------------------------------------------------------------------- greys
@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_deep_pictures_have_the_greys_of_eight_bits(greys: list[int]) -> None:
    values = np.array(greys, dtype=np.uint8).reshape(2, 2)
    deep = {
        "16 bits": Image.fromarray(values.astype(np.uint16) * 257),
        "32 bits": Image.fromarray(values.astype(np.int32) * 257),
        "float": Image.fromarray((values / 255).astype(np.float32)),
    }
    for image in deep.values():
        assert np.array_equal(np.asarray(in_eight_bits(image)), values)
    plain = Image.fromarray(values)
    assert in_eight_bits(plain) is plain


@pytest.mark.parametrize("values", [[0.0, 200.0], [-1.0, 0.5], [np.nan, 0.5], [0, 70_000], [-1, 0]])
def test_pictures_whose_white_nobody_knows_are_left_out(
    values: list[Any], tmp_path: Path, tiny_model: ClipModel
) -> None:
    (tmp_path / "a").mkdir()
    kind = np.float32 if isinstance(values[0], float) else np.int32
    Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "a" / "a.tiff")
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "b.png")
    dataset = load_dataset(f"folder:{tmp_path}", model=tiny_model)
    assert (len(dataset), dataset.facts["skipped_names"]) == (1, ["a/a.tiff"])


# ---------------------------------------------------------------------- heads
def toy(names: tuple[str, ...], labels: list[int], **more: Any) -> Dataset:
    pixels = torch.zeros(len(labels), 3, 16, 16, dtype=torch.uint8)
    return Dataset("toy", names, torch.tensor(labels), Memory(pixels), mean=(0.5,) * 3, std=(0.5,) * 3, **more)


def test_a_set_that_numbers_its_classes_otherwise_is_no_probe(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    classifier = Classifier(tiny_model, "text", ("Cat", "sea_horse"))
    assert len(Probe(classifier, toy(("cat", "sea horse"), [0, 1]))) == 2
    other = toy(("sea horse", "cat"), [0, 1])
    for use in (lambda: Probe(classifier, other), lambda: correct(classifier, tiny_theta, other)):
        with pytest.raises(DatasetError, match="class 0 is 'sea horse' here and 'Cat' there"):
            use()
    united = toy(("cat", "sea horse"), [0, 0], projection=(0, 0), target_names=("animal",))
    assert correct(classifier, tiny_theta, united).tolist() == [True, True]
    with pytest.raises(DatasetError, match="cannot be targets of the cross-entropy"):
        Probe(classifier, united)


def checkpoint(path: Path, theta: Theta, names: tuple[str, ...] | None) -> Path:
    """A whole model with a head that always says its last class."""
    bias = torch.arange(3.0)
    facts = {"sharpscope.head.scale_baked": "true", "sharpscope.head.normalize": "true"}
    facts |= {"sharpscope.classnames": json.dumps(names)} if names else {}
    write_checkpoint(path, {**theta, "head.weight": torch.zeros(3, 12), "head.bias": bias}, facts)
    return path


def said(table: Any) -> str:
    return str(table[table["metric"] == "top1"]["note"].iloc[0])


def test_as_many_other_classes_are_other_classes(
    tmp_path: Path, tiny_paths: dict[str, Path], tiny_theta: Theta, image_folder: MakeFolder
) -> None:
    model = str(tiny_paths["vit"])
    new = f"folder:{image_folder({'owl': 1, 'pig': 1, 'rat': 1})}"
    tuned = checkpoint(tmp_path / "base.safetensors", tiny_theta, ("ant", "bee", "cat"))
    table = evaluate(tuned, model, [new], metrics=["top1"], device="cpu")
    assert said(table) == "the head was made from the text tower, because the stored head has other classes"
    with pytest.raises(DatasetError, match="3 class folders do not fit 3 class names"):
        evaluate(tuned, model, [new], head="stored", device="cpu")
    for names in (("owl", "pig", "rat"), ("bee", "ant", "cat")):  # others; its own in another order
        with pytest.raises(PairMismatch, match="different or in a different order"):
            evaluate(tuned, model, [new], classnames=names, device="cpu")
        with pytest.raises(PairMismatch, match="different or in a different order"):
            load_pair(tiny_theta, tuned, model=model, classnames=names)
    # a head without names: said, and refused where there are two orders
    bare = checkpoint(tmp_path / "bare.safetensors", tiny_theta, None)
    assert "its rows were matched to the class folders in sorted order" in said(
        evaluate(bare, model, [new], metrics=["top1"], device="cpu")
    )
    numbers = f"folder:{image_folder({'1': 1, '2': 1, '10': 1}, name='numbers')}"
    with pytest.raises(DatasetError, match=r"two readings: 1, 10, 2 \(as texts\) or 1, 2, 10"):
        evaluate(bare, model, [numbers], head="stored", device="cpu")
    told = evaluate(bare, model, [numbers], head="stored", classnames=["1", "2", "10"], metrics=["top1"], device="cpu")
    assert told["estimate"].iloc[0] == pytest.approx(1 / 3)


def test_prompts_need_words(tmp_path: Path, tiny_paths: dict[str, Path], tiny_theta: Theta) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4, 3), dtype=np.uint8), labels=np.array([2, 1]))
    write_checkpoint(tmp_path / "zs.safetensors", tiny_theta)
    spec, model = f"npz:{tmp_path / 'x.npz'}", str(tiny_paths["vit"])
    with pytest.raises(DatasetError, match="has no class names"):
        evaluate(tmp_path / "zs.safetensors", model, [spec], device="cpu")
    named = evaluate(
        tmp_path / "zs.safetensors", model, [spec], classnames=["a", "b", "c"], metrics=["top1"], device="cpu"
    )
    assert said(named) == "the set has no class names, and its labels were assumed to number the head's classes"
    tuned = checkpoint(tmp_path / "ft.safetensors", tiny_theta, ("ant", "bee", "cat"))
    assert evaluate(tuned, model, [spec], metrics=["top1"], device="cpu")["estimate"].iloc[0] == 0.5


@pytest.mark.parametrize("shape", [(4, 16), (3, 4, 16)])
def test_learnt_prompts_before_other_classes(
    shape: tuple[int, ...], tmp_path: Path, tiny_model: ClipModel, tiny_paths: dict[str, Path], tiny_theta: Theta,
    image_folder: MakeFolder,
) -> None:  # fmt: skip
    model, base, path = str(tiny_paths["vit"]), tmp_path / "zs.safetensors", tmp_path / "coop.safetensors"
    write_checkpoint(base, tiny_theta)
    context = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    trained, new = ("ant", "bee", "cat"), ("owl", "pig", "rat")
    vectors = Prompts.of(tiny_model, trained, 4).class_vectors(tiny_model, {**tiny_theta, CTX: context})
    facts = {"sharpscope.head.scale_baked": "false", "sharpscope.head.normalize": "true"}
    write_checkpoint(
        path, {CTX: context, "head.weight": vectors}, {**facts, "sharpscope.classnames": json.dumps(trained)}
    )
    spec = f"folder:{image_folder(dict.fromkeys(new, 2))}"
    if len(shape) == 3:
        with pytest.raises(PairMismatch, match="a separate context for each class"):
            evaluate(path, model, [spec], base=base, device="cpu")
        return
    table = evaluate(path, model, [spec], metrics=["top1", "nll"], base=base, device="cpu")
    made = "the head was made from the learnt prompts, because the stored head has other classes"
    assert said(table) == f"{made}; its class names are assumed to stand behind the context"
    told = evaluate(path, model, [spec], metrics=["top1", "nll"], base=base, device="cpu", class_position="end")
    assert said(told) == made and told["estimate"].equals(table["estimate"])
    by_hand = Prompts.of(tiny_model, new, 4).class_vectors(tiny_model, {**tiny_theta, CTX: context})
    features, labels = next(iter(load_dataset(spec, model=tiny_model).batches(6)))
    logits = tiny_theta["logit_scale"].exp() * tiny_model.encode_image(tiny_theta, features, normalize=True) @ by_hand.T
    nll = torch.nn.functional.cross_entropy(logits, labels)
    values = table.set_index("metric")["estimate"]
    assert values["nll"] == pytest.approx(float(nll), rel=1e-5)
    zeroshot = evaluate(base, model, [spec], metrics=["nll"], device="cpu").set_index("metric")["estimate"]
    assert abs(values["nll"] - zeroshot["nll"]) > 1e-3
    pair = load_pair(base, path, model=model, classnames=new)
    torch.testing.assert_close(pair.theta_1["head.weight"], by_hand)
