"""Bad data: every fault is one error that names the file, or a count in the result; never silence."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sharpscope.clip.accuracy import dataset_note
from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.datasets.names import read_classnames
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.probe import Probe
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


def test_a_program_that_is_called_a_picture_is_not_executed(
    tiny_model: ClipModel, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PIL goes by the content, and has Ghostscript execute an EPS file."""
    root, asked = image_folder({"a": 3}), []
    Image.new("RGB", (8, 8), "red").save(root / "a" / "001.png", "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: asked.append(a))
    dataset = load_dataset(f"folder:{root}", model=tiny_model)
    assert dataset.facts["skipped_names"] == ["a/001.png"] and not asked


def test_nothing_readable_is_an_error(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    root = image_folder({"a": 1})
    (root / "a" / "000.png").write_bytes(b"?")
    with pytest.raises(DatasetError, match=r"none of the 1 images can be read.*000\.png"):
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
        (("hot dog", "hot_dog"), ("hot dog", "cat"), "'hot dog' and 'hot_dog' are the same class name"),
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
        (b"cat\n\ndog\n", "line 2: the line is blank"),
        (b"", "line 1: the line is blank"),
        (b"cat\ndog\n\n", "line 3: the line is blank"),
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
        ("imagnet-r", "Did you mean 'imagenet-r'"),
        ("domainnet:photo", "Known: clipart, infograph"),
        ("imagenet+gausian_noise@3", "Did you mean 'gaussian_noise'"),
        ("imagenet+gaussian_noise@6", "severities 1 ... 5"),
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


# ---------------------------------------------------------------------- whatever else lies on a disk
def test_a_named_pipe_does_not_hang_the_run(tiny_model: ClipModel, image_folder: MakeFolder) -> None:
    root = image_folder({"a": 2})
    os.mkfifo(root / "a" / "pipe.png")
    dataset = load_dataset(f"folder:{root}", model=tiny_model)
    assert (len(dataset), dataset.facts["skipped_names"]) == (2, ["a/pipe.png"])


def test_an_image_that_never_comes_is_named(
    tiny_model: ClipModel, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()
    monkeypatch.setattr("sharpscope.clip.datasets.images.PATIENCE", 0.2)
    monkeypatch.setattr("sharpscope.clip.datasets.images.Files.open", lambda self, i: gone.wait(60))
    try:
        with pytest.raises(DatasetError, match=r"000\.png: this image was not decoded within"):
            load_dataset(f"folder:{image_folder({'a': 1})}", model=tiny_model)
    finally:
        gone.set()


def test_large_sets_find_bad_images_on_the_way(
    tiny_model: ClipModel, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder({"a": 3, "b": 3})
    (root / "a" / "001.png").write_bytes(b"not an image")
    monkeypatch.setattr("sharpscope.clip.datasets.images.KEPT_BYTES", 0)
    dataset = load_dataset(f"folder:{root}", model=tiny_model)
    assert (len(dataset), dataset.facts["skipped"]) == (6, 0)  # nothing decoded yet
    first = [(x, y) for x, y in dataset.batches(2)]
    assert [len(y) for _, y in first] == [1, 2, 2]
    assert (len(dataset), dataset.facts["skipped"], dataset.facts["skipped_names"]) == (5, 1, ["a/001.png"])
    assert dataset.labels.tolist() == torch.cat([y for _, y in first]).tolist() == [0, 0, 1, 1, 1]
    for (x, _), (again, _) in zip(first, dataset.batches(2), strict=True):  # the same batches in every pass
        assert torch.equal(x, again)
    assert len(dataset.subset([0, 4]).labels) == 2


def test_a_probe_of_a_large_set_counts_what_was_read(
    tiny_model: ClipModel, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder({"a": 3, "b": 3})
    (root / "a" / "001.png").write_bytes(b"not an image")
    monkeypatch.setattr("sharpscope.clip.datasets.images.KEPT_BYTES", 0)
    dataset = load_dataset(f"folder:{root}", model=tiny_model)
    probe = Probe(Classifier(tiny_model, "text", ("a", "b")), dataset, batch_size=4)
    assert probe.n == 5
    assert sum(probe.weights) == pytest.approx(1)


def tar_of(*members: tuple[str, bytes, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


FILE, LINK = tarfile.REGTYPE, tarfile.SYMTYPE
IMAGE = png_bomb(1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no images|not a tar archive"),
        (b"<html>not found</html>" * 50, "not a tar archive"),
        (gzip.compress(tar_of(("a.png", IMAGE, FILE), ("a.cls", b"0", FILE))), "gunzip"),
        (tar_of(("a.png", IMAGE * 50, FILE), ("a.cls", b"0", FILE))[:700], "ends within|damaged"),
        (tar_of(("a.png", IMAGE, FILE)), "sample 'a' has no label"),
        (tar_of(("a.cls", b"0", FILE)), "sample 'a' has no image"),
        (tar_of(("a.png", b"", LINK), ("a.cls", b"0", FILE)), "sample 'a' has no image"),
        (tar_of(("a.png", IMAGE, FILE), ("a.cls", b"cat", FILE)), "'a.cls' does not hold an integer label"),
        (tar_of(("a.png", IMAGE, FILE), ("a.cls", b"1" * 5000, FILE)), "'a.cls' does not hold an integer label"),
        (
            tar_of(("a.png", IMAGE, FILE), ("a.jpg", IMAGE, FILE), ("a.cls", b"0", FILE)),
            "'a.jpg' is a second image of one sample",
        ),
        (tar_of(("a.png", IMAGE, FILE), ("a.cls", b"7", FILE)), "label 7 of 0.tar/a is out of range for 2"),
        (tar_of(("a.png", IMAGE, FILE), ("a.cls", b"-1", FILE)), "label -1 of 0.tar/a is out of range for 2"),
    ],
)
def test_hostile_tars(content: bytes, message: str, tmp_path: Path, tiny_model: ClipModel) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset("wds:0.tar", model=tiny_model, data_root=tmp_path, classnames=("cat", "dog"))
    assert "0.tar" in str(caught.value)


def test_tars_and_arrays_that_are_not_there(tmp_path: Path, tiny_model: ClipModel) -> None:
    for spec in ("wds:gone", "wds:gone.tar", "npz:gone", "npz:gone.npz", "cifar10", "cifar10.1", "stl10", "fmow",
                 "imagenet", "domainnet:real", "subset:gone.txt", "objectnet", "torchvision:EuroSAT"):  # fmt: skip
        with pytest.raises(DatasetError):
            load_dataset(spec, model=tiny_model, data_root=tmp_path)


def test_arrays_are_not_unpickled(tmp_path: Path, tiny_model: ClipModel) -> None:
    np.save(tmp_path / "test_images.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "test_labels.npy", np.array([0]))
    with pytest.raises(DatasetError, match=r"test_images\.npy: not a plain array"):
        load_dataset(f"npz:{tmp_path}", model=tiny_model)
    np.save(tmp_path / "test_images.npy", np.zeros((1, 4, 4, 3)))
    with pytest.raises(DatasetError, match="must be uint8"):
        load_dataset(f"npz:{tmp_path}", model=tiny_model)
    np.save(tmp_path / "test_images.npy", np.zeros((2, 4, 4, 3), dtype=np.uint8))
    with pytest.raises(DatasetError, match="must be one integer per image"):
        load_dataset(f"npz:{tmp_path}", model=tiny_model)


def test_folders_that_are_no_classes_of_imagenet(tmp_path: Path, tiny_model: ClipModel) -> None:
    (tmp_path / "imagenet" / "val" / "n00000001").mkdir(parents=True)
    with pytest.raises(DatasetError, match="folder 'n00000001' is not the WordNet id"):
        load_dataset("imagenet", model=tiny_model, data_root=tmp_path)
    (tmp_path / "imagenetv2-matched-frequency-format-val" / "1000").mkdir(parents=True)
    with pytest.raises(DatasetError, match="folder '1000' is not the number of a class"):
        load_dataset("imagenet-v2", model=tiny_model, data_root=tmp_path)
    (tmp_path / "imagenet-a" / "n01440764").mkdir(parents=True)
    with pytest.raises(DatasetError, match="is not one of the 200 classes"):
        load_dataset("imagenet-a", model=tiny_model, data_root=tmp_path)
