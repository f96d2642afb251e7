"""Bad data: every fault is one error that names the file, or a count in the result; never silence."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sharpscope.clip.data import Dataset, load_dataset, read_classnames
from sharpscope.clip.evaluate import dataset_note
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.probe import Probe
from sharpscope.clip.sets.dataset import Memory
from sharpscope.errors import ConfigError, DatasetError

MakeFolder = Callable[..., Path]


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------- images
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"<html>not found</html>",
        b"\x89PNG\r\n\x1a\n\0\0\0\0",
        png_bomb(30_000, 30_000),
        "bomb",
        "truncated",
        "flipped",
    ],
)
def test_unreadable_images_are_skipped_and_counted(
    bad: bytes | str, tiny_model: ClipModel, image_folder: MakeFolder
) -> None:
    root = image_folder({"a": 3, "b": 2})
    victim = root / "a" / "001.png"
    if bad == "bomb":  # a sound file of 12 kB that would take 270 MB; PIL itself only warns
        Image.new("1", (9_500, 9_500)).save(victim)
        bad = victim.read_bytes()
    elif isinstance(bad, str):
        whole = victim.read_bytes()
        bad = whole[: len(whole) // 2] if bad == "truncated" else whole[:50] + bytes([whole[50] ^ 255]) + whole[51:]
    victim.write_bytes(bad)
    dataset = load_dataset(f"folder:{root}", model=tiny_model)
    assert len(dataset) == dataset.facts["n"] == 4
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.facts["skipped"] == 1
    assert dataset.facts["skipped_names"] == ["a/001.png"]
    assert dataset_note(dataset) == "1 unreadable images skipped"
    assert sum(len(labels) for _, labels in dataset.batches(3)) == 4


def test_nothing_readable_is_an_error(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    root = image_folder({"a": 1})
    (root / "a" / "000.png").write_bytes(b"?")
    with pytest.raises(DatasetError, match=r"none of 1 images can be read.*000\.png"):
        load_dataset(f"folder:{root}", model=tiny_model)


def test_pil_limits_are_left_as_they_are(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    before = Image.MAX_IMAGE_PIXELS
    load_dataset(f"folder:{image_folder({'a': 1})}", model=tiny_model)
    assert before == Image.MAX_IMAGE_PIXELS


# ---------------------------------------------------------------------- folders
def test_missing_and_empty_folders(tiny_model: ClipModel, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: No such file"):
        load_dataset("folder:nowhere", model=tiny_model, data_root=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no class folders"):
        load_dataset("folder:empty", model=tiny_model, data_root=tmp_path)
    (tmp_path / "empty" / "cat").mkdir()
    with pytest.raises(DatasetError, match="no image files"):
        load_dataset("folder:empty", model=tiny_model, data_root=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="file"):
        load_dataset("folder:file", model=tiny_model, data_root=tmp_path)


def test_hidden_folders_are_no_classes(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    root = image_folder({"a": 1, "b": 1, ".ipynb_checkpoints": 1})
    assert load_dataset(f"folder:{root}", model=tiny_model).classnames == ("a", "b")


@pytest.mark.parametrize(
    ("folders", "names", "message"),
    [
        (("a", "b", "c"), ("x", "y"), "3 class folders do not fit 2 class names"),
        (("a", "b"), ("a", "c", "d"), "2 class folders do not fit 3 class names. Not among the names: b"),
        (("a", "n1"), ("b", "a"), "2 class folders do not fit 2"),  # in sorted order folder a would be called b
        (("hot dog", "hot_dog"), ("hot dog", "cat"), "2 class folders do not fit 2"),
        (("x\x1b[31m", "y\nz"), ("p",), r"x\x1b[31m, y\nz"),
    ],
)
def test_folders_that_do_not_fit_the_names(
    folders: tuple[str, ...], names: tuple[str, ...], message: str, tiny_model: ClipModel, image_folder: MakeFolder
) -> None:
    root = image_folder(dict.fromkeys(folders, 1))
    with pytest.raises(DatasetError) as caught:
        load_dataset(f"folder:{root}", model=tiny_model, classnames=names)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


# ---------------------------------------------------------------------- class name files
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "line 2: blank"),
        (b"", "line 1: blank"),
        (b"cat\ndog\n\n", "line 3: blank"),
        (b"cat\ndog\nCAT\n", "line 3: 'CAT' is on line 1 already"),
        (b"hot_dog\nhot dog\n", "line 2: 'hot dog' is on line 1 already"),
        (b"\xef\xbb\xbfcat\nd\xffg\n", "line 2: not UTF-8"),
    ],
)
def test_bad_classname_files_name_file_and_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_classnames(tmp_path / "names.txt")
    assert message in str(caught.value)
    assert "names.txt" in str(caught.value)


def test_missing_classname_file(tiny_model: ClipModel, image_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.txt: No such file"):
        load_dataset(f"folder:{image_folder({'a': 1})}", model=tiny_model, classnames=tmp_path / "gone.txt")


# ---------------------------------------------------------------------- specs
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("photo", "Did you mean 'mini:photo'"),
        ("mini:", "no known kind"),
        ("mimi:sketch", "Did you mean 'mini:sketch'"),
        ("fodler:x", "Did you mean 'folder:PATH'"),
        ("imagenet:val", "mini:DOMAIN, folder:PATH"),
        ("mini:phot", "Did you mean 'photo'"),
        ("mini:photo@tset", "Did you mean 'test'"),
        ("mini:photo@", "unknown split"),
    ],
)
def test_unknown_specs_are_config_errors(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(spec)
    assert message in str(caught.value)


def test_limit_zero_and_folder_without_model(image_folder: MakeFolder) -> None:
    with pytest.raises(ConfigError, match="limit"):
        load_dataset("mini:photo", limit=0)
    with pytest.raises(ConfigError, match="need a model"):
        load_dataset(f"folder:{image_folder({'a': 1})}")


# ---------------------------------------------------------------------- labels
def dataset_of(labels: list[int], names: tuple[str, ...]) -> Dataset:
    pixels = torch.zeros(len(labels), 3, 16, 16, dtype=torch.uint8)
    return Dataset("toy", names, torch.tensor(labels), Memory(pixels), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(("labels", "bad"), [([0, 2, 1], "2"), ([0, -1], "-1")])
def test_labels_out_of_range(labels: list[int], bad: str) -> None:
    with pytest.raises(DatasetError, match=f"toy: label {bad} is out of range for 2 class names"):
        dataset_of(labels, ("a", "b"))


def test_empty_data_set() -> None:
    with pytest.raises(DatasetError, match="toy: the data set has no images"):
        dataset_of([], ("a", "b"))


def test_probe_and_classifier_must_agree_on_the_classes(tiny_model: ClipModel) -> None:
    with pytest.raises(DatasetError, match="label 2 is out of range for the classifier's 2"):
        Probe(Classifier(tiny_model, "text", ("a", "b")), dataset_of([0, 1, 2], ("a", "b", "c")))
