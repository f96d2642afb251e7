"""What training sees: crops as open_clip's, the same for the same seed; captions; few shots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF  # type: ignore[import-untyped]  # noqa: N812

from sharpscope.clip.data import load_dataset
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.finetune.data import FileExamples, crop_box, load_examples

ALL = torch.arange(5)


@pytest.fixture
def folder(image_folder: Callable[..., Path]) -> Path:
    return image_folder({"cat": 3, "dog": 2})


def test_without_augmentation_training_sees_what_evaluation_sees(folder: Path, tiny_model: Any) -> None:
    examples, names = load_examples(f"folder:{folder}", tiny_model, augment=False)
    dataset = load_dataset(f"folder:{folder}", model=tiny_model)
    assert names == dataset.classnames == ("cat", "dog") and torch.equal(examples.labels, dataset.labels)
    images, captions = examples.batch(ALL, 0)
    assert torch.equal(images, next(iter(dataset.batches(5)))[0]) and captions is None


def test_a_crop_is_torchvisions_of_the_same_box(folder: Path, tiny_model: Any) -> None:
    examples, _ = load_examples(f"folder:{folder}", tiny_model)
    assert isinstance(examples, FileExamples)
    first, again, other = (examples.batch(ALL, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(examples.batch(torch.tensor([3]), 1)[0][0], first[3])  # whoever else is in the batch
    from sharpscope.seeds import derive

    image = Image.open(examples.paths[3]).convert("RGB")
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
    assert torch.bincount(first.labels).tolist() == [2] * 16
    images = [e.batch(torch.arange(32), 0)[0] for e in (first, again, other)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    with pytest.raises(ConfigError, match="shots: needs at least one"):
        load_examples("mini:photo", tiny_model, shots=0)


@pytest.mark.parametrize("separator", ["\t", ","])
def test_captions_as_open_clip_reads_them(separator: str, folder: Path, tiny_model: Any) -> None:
    lines = [("filepath", "title", "label"), ("cat/000.png", "a cat", "0"), (str(folder / "dog/001.png"), "dogs!", "")]
    path = folder / "pairs.csv"
    path.write_text("\n".join(separator.join(row) for row in lines), encoding="utf-8")
    examples, names = load_examples(f"csv:{path}", tiny_model, classnames=("cat", "dog"), augment=False)
    images, captions = examples.batch(torch.tensor([1, 0]), 0)
    assert captions == ["dogs!", "a cat"] and examples.labels.tolist() == [0, -1] and names == ("cat", "dog")
    torch.testing.assert_close(images[1], tiny_model.preprocess(Image.open(folder / "cat/000.png")))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file\ttitle\nx\ty", "no column filepath"),
        ("filepath\ttitle", "names no images"),
        ("filepath\ttitle\nx\t", "line 2: needs a file, a caption"),
        ("filepath\ttitle\tlabel\nx\ty\t2", "line 2: .*label below 2"),
    ],
)
def test_captions_that_make_no_sense(text: str, complaint: str, tmp_path: Path, tiny_model: Any) -> None:
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=complaint):
        load_examples("csv:pairs.tsv", tiny_model, data_root=tmp_path, classnames=("a", "b"))
    with pytest.raises(ConfigError, match="captions name no classes"):
        load_examples("csv:pairs.tsv", tiny_model, data_root=tmp_path)


def test_a_broken_image_stops_training_with_its_name(folder: Path, tiny_model: Any) -> None:
    examples, _ = load_examples(f"folder:{folder}", tiny_model)
    (folder / "dog" / "001.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"001.png: cannot be read as an image"):
        examples.batch(ALL, 0)
    with pytest.raises(DatasetError, match="cannot read the folder"):
        load_examples("folder:nowhere", tiny_model)
