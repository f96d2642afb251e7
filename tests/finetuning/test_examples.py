"""What training sees: any data set, in crops as open_clip's; captions; few shots; labels of what was read."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as TF  # type: ignore[import-untyped]  # noqa: N812

from sharpscope.clip.datasets.augment import OPEN_CLIP, Augmentation
from sharpscope.clip.datasets.crops import crop_box
from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.finetuning.examples import caption_rows, load_examples
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.method import Task
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.seeds import derive

ALL = torch.arange(5)


@pytest.fixture
def folder(image_folder: Callable[..., Path]) -> Path:
    return image_folder({"cat": 3, "dog": 2})


def test_without_augmentation_training_sees_what_evaluation_sees(folder: Path, tiny_model: Any) -> None:
    examples, names = load_examples(f"folder:{folder}", tiny_model, augment=None)
    dataset = load_dataset(f"folder:{folder}", model=tiny_model)
    images, labels, captions = examples.batch(ALL, 0)
    assert names == dataset.classnames == ("cat", "dog") and torch.equal(labels, dataset.labels)
    assert torch.equal(images, next(iter(dataset.batches(5)))[0]) and captions is None


def test_a_crop_is_torchvisions_of_the_same_box(folder: Path, tiny_model: Any) -> None:
    examples, _ = load_examples(f"folder:{folder}", tiny_model)
    first, again, other = (examples.batch(ALL, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(examples.batch(torch.tensor([3]), 1)[0][0], first[3])  # whoever else is in the batch
    image = Image.open(folder / "dog" / "000.png").convert("RGB")
    left, top, right, bottom = crop_box(image.size, torch.Generator().manual_seed(derive(1, 3)))
    cut = TF.resized_crop(
        image, top, left, bottom - top, right - left, [16, 16], TF.InterpolationMode.BICUBIC
    )  # fmt: skip
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny_model.mean, tiny_model.std))
    torch.testing.assert_close(first[3], (TF.to_tensor(cut) - mean) / std, rtol=0, atol=1e-6)


def test_boxes_lie_inside_and_have_the_area_and_shape_asked_for() -> None:
    g = torch.Generator().manual_seed(0)
    areas, ratios = [], []
    for _ in range(400):
        left, top, right, bottom = crop_box((200, 160), g)
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 160
        areas.append((right - left) * (bottom - top) / 32000)
        ratios.append((right - left) / (bottom - top))
    assert 0.89 < min(areas) < 0.92 and 0.98 < max(areas) <= 1.0
    assert min(ratios) > 0.74 and max(ratios) < 1.34
    left, top, right, bottom = crop_box((1000, 10), g)  # no such box: the largest centred one of an allowed shape
    assert (bottom - top, right - left, left) == (10, 13, 493)


def test_few_shots_are_so_many_of_each_class_and_the_same_for_a_seed(tiny_model: Any) -> None:
    first, again, other = (
        load_examples("mini:photo", tiny_model, classnames=None, shots=2, seed=s)[0] for s in (1, 1, 2)
    )
    images, labels, _ = zip(*(e.batch(torch.arange(32), 0) for e in (first, again, other)), strict=True)
    assert torch.bincount(labels[0]).tolist() == [2] * 16
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    with pytest.raises(ConfigError, match="shots: needs at least one"):
        load_examples("mini:photo", tiny_model, shots=0)


@pytest.mark.parametrize("separator", ["\t", ","])
def test_captions_as_open_clip_reads_them(separator: str, folder: Path, tiny_model: Any) -> None:
    lines = [("filepath", "title", "label"), ("cat/000.png", "a cat", "0"), (str(folder / "dog/001.png"), "dogs!", "")]
    path = folder / "pairs.csv"
    path.write_text("\n".join(separator.join(row) for row in lines), encoding="utf-8")
    examples, names = load_examples(f"csv:{path}", tiny_model, classnames=("cat", "dog"), augment=None)
    images, labels, captions = examples.batch(torch.tensor([1, 0]), 0)
    assert captions == ["dogs!", "a cat"] and labels.tolist() == [-1, 0] and names == ("cat", "dog")
    torch.testing.assert_close(images[1], tiny_model.preprocess(Image.open(folder / "cat/000.png")))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file\ttitle\nx\ty", "no column filepath"),
        ("filepath\ttitle", "names no images"),
        ("filepath\ttitle\nx\t", "line 2: needs a file and a caption"),
        ("filepath\ttitle\tlabel\nx\ty\t2", "line 2: .*label .* below 2"),
        ("filepath\ttitle\tlabel\nx\ty\t-2", "line 2: .*label .* below 2"),
        ("filepath\ttitle\tlabel\nx\ty\t\u00b2", "line 2: .*label .* below 2"),
        ("filepath,title\nx,a red, yellow circle", "line 2: the row has 3 fields, but there are 2 columns"),
        ("filepath,title\nx,a\ny", "line 3: the row has 1 fields, but there are 2 columns"),
        ('filepath\ttitle\nx\ty\nx\t"a star\nx\ty\nx\ty', "line 3: unexpected end of data"),
        ('filepath\ttitle\nx\t"a star\nx\ty\nx\ta "key"\nx\t"y"', "line 2: "),
        ('filepath\ttitle\nx\t"a star\nx\ty\nx\tz"\n', "line 2: a quotation mark is not closed in its row"),
    ],
)
def test_captions_that_make_no_sense(text: str, complaint: str, tmp_path: Path, tiny_model: Any) -> None:
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=complaint):
        load_examples("csv:pairs.tsv", tiny_model, data_root=tmp_path, classnames=("a", "b"))
    with pytest.raises(ConfigError, match="captions name no classes"):
        load_examples("csv:pairs.tsv", tiny_model, data_root=tmp_path)


@pytest.mark.parametrize("augment", [OPEN_CLIP, None])
def test_what_cannot_be_read_is_left_out_with_its_label_and_counted(
    augment: Augmentation | None, image_folder: Callable[..., Path], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"folder:{image_folder({'cat': 4, 'dog': 3})}"
    whole, _ = load_examples(spec, tiny_model, augment=augment)
    order = torch.tensor([5, 1, 6, 0, 4])
    images, labels, _ = whole.batch(order, 9)
    assert labels.tolist() == [1, 0, 1, 0, 1] and whole.skipped == ""
    (Path(spec[7:]) / "cat" / "001.png").write_bytes(b"no image")
    monkeypatch.setattr("sharpscope.clip.datasets.images.KEPT_BYTES", 0)  # found in mid-pass
    broken, _ = load_examples(spec, tiny_model, augment=augment)
    left = [0, 2, 3, 4]
    for _ in range(2):  # a second epoch sees the same
        assert len(broken) == 7
        got = broken.batch(order, 9)
        assert got.labels.tolist() == [1, 1, 0, 1] and torch.equal(got.images, images[left])
    assert broken.skipped == "note: 1 of 7 images cannot be read and were left out (cat/001.png)"
    with pytest.raises(DatasetError, match="none of the 1 images can be read, e.g. cat/001.png"):
        broken.batch(torch.tensor([1]), 0)


CAPTION = st.text('ab ,"\t\n\u2028\x0b\x85\r', min_size=1, max_size=8).map(lambda t: f"a{t}b")


@given(st.lists(CAPTION, min_size=1, max_size=4), st.sampled_from("\t,"))
def test_captions_come_back_as_they_were_written(captions: list[str], separator: str) -> None:
    text = io.StringIO(newline="")
    rows = [("filepath", "title"), *((f"{i}.png", caption) for i, caption in enumerate(captions))]
    csv.writer(text, delimiter=separator).writerows(rows)
    try:
        read = list(caption_rows(text.getvalue(), Path("x")))
    except DatasetError as e:  # a caption one of whose lines looks like a row of its own is refused, never guessed at
        assert any(separator in line for c in captions for line in re.split("[\r\n]", c)[1:])
        assert "is not closed in its row" in str(e)
        return
    assert [row["title"] for _, row in read] == captions


def test_captions_keep_to_their_images_where_one_cannot_be_read(folder: Path, tiny_model: Any) -> None:
    rows = [("cat/000.png", "one", 0), ("gone.png", "two", 1), ("dog/001.png", "one", 1)]
    lines = ["filepath,title,label", *(f"{f},{t},{n}" for f, t, n in rows)]
    (folder / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    examples, _ = load_examples(f"csv:{folder / 'pairs.csv'}", tiny_model, classnames=("cat", "dog"))
    _, labels, captions = examples.batch(torch.tensor([2, 1, 0]), 0)
    assert labels.tolist() == [1, 0] and captions == ["one", "one"]
    assert examples.skipped.startswith("note: 1 of 3 images")


def test_folders_of_splits_with_names_of_their_own(image_folder: Callable[..., Path], tiny_model: Any) -> None:
    top = image_folder({"train/n1": 3, "train/n2": 2, "val/n1": 1, "val/n2": 1})
    (top / "classnames.txt").write_text("hot dog\ncat\n", encoding="utf-8")
    examples, names = load_examples(f"folder:{top}", tiny_model)
    assert names == ("hot dog", "cat") and len(examples) == 5
    images, labels, _ = examples.batch(ALL, 4)
    assert labels.tolist() == [0, 0, 0, 1, 1] and not torch.equal(images, examples.batch(ALL, 5).images)


def test_shards_are_cropped_and_arrays_are_not(folder: Path, tmp_path: Path, tiny_model: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "train_images.npy", pixels)
    np.save(tmp_path / "train_labels.npy", np.array([1, 0, 1]))
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for i, name in enumerate(("cat/000.png", "dog/000.png")):
            (tmp_path / "label").write_text(str(i), encoding="utf-8")
            shard.add(folder / name, f"{i}.png")
            shard.add(tmp_path / "label", f"{i}.cls")
    for spec, cropped, classes in ((f"wds:{tmp_path}/0.tar", True, [0, 1]), (f"npz:{tmp_path}", False, [1, 0])):
        examples, _ = load_examples(spec, tiny_model)
        (one, labels, _), (other, _, _) = (examples.batch(torch.arange(2), seed) for seed in (1, 2))
        assert labels.tolist() == classes and torch.equal(one, other) != cropped
        plain = next(iter(load_dataset(spec, model=tiny_model, split="train").batches(2)))[0]
        assert torch.equal(one, plain) != cropped
    with pytest.raises(DatasetError, match="cannot read the folder"):
        load_examples("folder:nowhere", tiny_model)


def test_classes_coarser_than_the_names_are_refused(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = Memory(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    like_objectnet = Dataset(
        "objectnet", ("barber chair", "rocking chair", "mug"), torch.tensor([0, 1]), pixels, mean=(0.5,) * 3,
        std=(0.5,) * 3, projection=(0, 0, 1), target_names=("chair", "mug"),
    )  # fmt: skip
    monkeypatch.setattr("sharpscope.finetuning.examples.load_dataset", lambda *_, **__: like_objectnet)
    with pytest.raises(ConfigError, match="its 2 classes are not among the 3 class names"):
        load_examples("objectnet", tiny_model)


def test_an_image_in_an_epoch_is_one_picture_whatever_the_batches(
    folder: Path, tiny_model: Any, tiny_theta: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 1 and of 5: the same pictures in the same epoch, others in the next (two tiny crops may coincide)."""
    examples, names = load_examples(f"folder:{folder}", tiny_model)

    def seen(batch_size: int) -> list[dict[int, torch.Tensor]]:
        epochs: list[dict[int, torch.Tensor]] = [{}, {}]
        taken: list[list[int]] = []
        real = type(examples).batch

        def watched(self: Any, indices: torch.Tensor, seed: int) -> Any:
            drawn = real(self, indices, seed)
            at = epochs[len(taken) // (5 // batch_size)]
            at |= dict(zip(indices.tolist(), drawn.images, strict=True))
            taken.append(indices.tolist())
            return drawn

        with monkeypatch.context() as patch:
            patch.setattr(type(examples), "batch", watched)
            method = WiseFT(lr=1e-3, epochs=2, batch_size=batch_size, warmup=0.0)
            fit(method, Task(tiny_model, tiny_theta, names, ("a {}",), 5, seed=1), examples, progress=False)
        return epochs

    one, five = seen(1), seen(5)
    for epoch in (0, 1):
        assert sorted(one[epoch]) == sorted(five[epoch]) == list(range(5))
        assert all(torch.equal(one[epoch][i], five[epoch][i]) for i in range(5))
    assert not all(torch.equal(one[0][i], one[1][i]) for i in range(5))
