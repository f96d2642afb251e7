"""A run directory belongs to what its files contain: prompts, class names and data sets, not to their names alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.model import ClipModel
from sharpscope.config.study import StudyConfig
from sharpscope.errors import RunDirectoryError
from sharpscope.miniworld import world as miniworld
from sharpscope.study.context import load_contexts
from sharpscope.study.manifest import contents_of, identity_of
from sharpscope.study.store import RunDirectory

CLASSES = ("first", "second")


def folder(root: Path, images: int = 6) -> Path:
    """A folder of pictures of the embedded world in two classes, one of them unreadable."""
    from PIL import Image

    drawn = load_dataset("mini:sketch", model=ClipModel.load("mini"), split="train", limit=2 * images)
    pixels = (next(iter(drawn.batches(2 * images)))[0] * 60 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        place = root / miniworld.CLASSES[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    (root / miniworld.CLASSES[0] / "broken.png").write_bytes(b"no picture")
    return root


def opened(config: StudyConfig, root: Path) -> RunDirectory:
    contexts = load_contexts(config)
    return RunDirectory.open(root, identity_of(config, contexts) | {"contents": contents_of(contexts)}, {})


def test_a_file_of_prompts_that_was_edited_is_another_experiment(smallest: StudyConfig, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a drawing of a {}.\n")
    config = replace(smallest, head="text", templates=str(prompts))
    opened(config, tmp_path / "run")
    opened(config, tmp_path / "run")
    prompts.write_text("a sketch of a {}.\n")
    with pytest.raises(RunDirectoryError, match=r"another experiment: contents\.success\.templates is"):
        opened(config, tmp_path / "run")


def test_pictures_that_move_to_another_class_are_another_experiment(smallest: StudyConfig, tmp_path: Path) -> None:
    pictures = folder(tmp_path / "pictures")
    config = replace(smallest, ood=(f"folder:{pictures}",), limit=None)
    opened(config, tmp_path / "run")
    first, second = (pictures / name for name in miniworld.CLASSES[:2])
    for a, b in ((first, tmp_path / "aside"), (second, first), (tmp_path / "aside", second)):
        a.rename(b)
    with pytest.raises(RunDirectoryError, match=r"another experiment: contents\.success\.data\.folder:"):
        opened(config, tmp_path / "run")


@pytest.mark.parametrize("corrupted", ["", "+gaussian_noise@3"])
def test_a_set_has_one_fingerprint_in_memory_and_streamed_before_and_after_a_pass(
    corrupted: str, tmp_path: Path
) -> None:
    spec, model = f"folder:{folder(tmp_path / 'pictures')}{corrupted}", ClipModel.load("mini")
    sets = [load_dataset(spec, model=model, image_cache=gib, classnames=miniworld.CLASSES) for gib in (4.0, 0.0)]
    assert [s.facts["streamed"] for s in sets] == [False, True]
    listed = len(sets[1])
    found = [s.fingerprint(8) for s in sets]
    for s in sets:
        list(s.batches(4))
    found += [s.fingerprint(8) for s in sets]
    assert listed > len(sets[1]) and len(set(found)) == 1
    assert sets[0].fingerprint(7) != found[0] != sets[0].subset([1, 0, 2, 3]).fingerprint(8)


def test_the_fingerprint_holds_targets_groups_classes_and_pictures() -> None:
    pixels = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels, zeros = torch.tensor([0, 1, 0, 1, 2, 2]), [0.0] * 3

    def found(pixels: Tensor = pixels, labels: Tensor = labels, **more: Any) -> str:
        return Dataset("x", ("a", "b", "c"), labels, Memory(pixels), mean=zeros, std=[1.0] * 3, **more).fingerprint(3)

    darker = pixels.clone()
    darker[0] //= 2  # rows 0, 2 and 4 are looked at
    others = [
        found(darker), found(labels=labels.flip(0)), found(classes=(0, 1, 2)),
        found(groups=torch.zeros(6), group_names=("here", "there")),
        found(groups=torch.ones(6), group_names=("here", "there")),
    ]  # fmt: skip
    assert found() == found(pixels.clone()) and len({found(), *others}) == 6


def test_a_directory_from_before_contents_were_kept_is_still_resumed(smallest: StudyConfig, tmp_path: Path) -> None:
    contexts = load_contexts(smallest)
    identity = identity_of(smallest, contexts)
    RunDirectory.open(tmp_path / "run", identity, {})
    opened(smallest, tmp_path / "run")
    assert "contents" not in json.loads((tmp_path / "run/manifest.json").read_text())["identity"]
