"""Small files in the layout of the papers' data sets, drawn from the embedded world, for the commands of papers.py.

    python analyses/papers_data.py --out data

The layouts are those that sharpscope reads from the released sets (README, Data sets). The pictures are shapes:
accuracies on these sets say nothing, and neither do their class names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from sharpscope.clip.datasets.imagenet import wnids
from sharpscope.miniworld import world

WNIDS: Final = 4
"""Number of ImageNet's 1,000 classes that have pictures."""
Pixels = NDArray[np.uint8]


def pictures(count: int, seed: str, domain: str = "photo", size: int = 64) -> list[Image.Image]:
    """``count`` pictures of the embedded world; neighbours are of different classes."""
    images = world.make(domain, count, world.SEEDS[seed]).images
    return [Image.fromarray(image).resize((size, size)) for image in images]


def save(folder: Path, images: Sequence[Image.Image], suffix: str = ".JPEG") -> None:
    """One file for each picture, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number}{suffix}")


def imagenet(root: Path) -> None:
    """ImageNet with its validation images, and its shifts V2, A, R and Sketch."""
    names = wnids()
    for place, split, each, domain in (
        ("imagenet/train", "train", 8, "photo"),
        ("imagenet/val", "test", 3, "photo"),
        ("imagenet-r", "test", 2, "painting"),
        ("sketch", "test", 2, "sketch"),
    ):
        shown = pictures(WNIDS * each, split, domain)
        for c in range(WNIDS):
            save(root / place / names[c + 1], shown[c::WNIDS])  # from 1: ImageNet-R has the goldfish, not the tench
    shown = pictures(2 * WNIDS, "test", "photo-noise")
    for c in range(WNIDS):
        save(root / "imagenetv2-matched-frequency-format-val" / str(c + 1), shown[c::WNIDS], ".jpeg")
    save(root / "imagenet-a" / "n01498041", pictures(3, "test", "photo-clutter"))
    (root / "living.txt").write_text(
        f"fish: {names[0]} {names[1]}\nshark: {names[2]} {names[3]} {names[4]}\n", encoding="utf-8"
    )


def cifar(root: Path) -> None:
    """CIFAR-10 in its binary version, CIFAR-10.1, CIFAR-10.2 and STL-10."""
    labels = np.arange(40, dtype=np.uint8) % 10
    for domain, name, split in (("photo", "data_batch_{}.bin", "train"), ("photo", "test_batch.bin", "test")):
        pixels = _arrays(len(labels), split, domain, 32)
        records = np.concatenate([labels[:, None], pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)], axis=1)
        folder = root / "cifar-10-batches-bin"
        folder.mkdir(parents=True, exist_ok=True)
        for part in range(1, 6) if split == "train" else (0,):
            records.tofile(folder / name.format(part))
    for folder in ("CIFAR-10.1", "CIFAR-10.2", "stl10_binary"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shifted = _arrays(len(labels), "test", "photo-dark", 32)
    np.save(root / "CIFAR-10.1" / "cifar10.1_v6_data.npy", shifted)
    np.save(root / "CIFAR-10.1" / "cifar10.1_v6_labels.npy", labels.astype(np.int64))
    np.savez(root / "CIFAR-10.2" / "cifar102_test.npz", images=shifted, labels=labels.astype(np.int64))
    _arrays(len(labels), "test", "photo", 96).transpose(0, 3, 2, 1).tofile(root / "stl10_binary" / "test_X.bin")
    (labels + 1).tofile(root / "stl10_binary" / "test_y.bin")


def _arrays(count: int, split: str, domain: str, size: int) -> Pixels:
    return np.stack([np.asarray(image) for image in pictures(count, split, domain, size)])


def domainnet(root: Path) -> None:
    """DomainNet's five domains that Lipsum-FT uses, with their lists of training and test images."""
    for domain, drawn in (
        ("real", "photo"), ("painting", "painting"), ("clipart", "clipart"), ("infograph", "neon"), ("sketch", "sketch")
    ):  # fmt: skip
        for split in ("train", "test"):
            shown, lines = pictures(24, split, drawn), []
            for c, name in enumerate(("ant", "bee", "cup", "drum")):
                save(root / "domainnet" / domain / name / split, shown[c::4], ".jpg")
                lines += [f"{domain}/{name}/{split}/{i}.jpg {c}" for i in range(len(shown[c::4]))]
            (root / "domainnet" / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def wilds(root: Path) -> None:
    """iWildCam and FMoW of WILDS: three classes each, in and out of distribution."""
    cam, fmow = root / "iwildcam_v2.0", root / "fmow_v1.1"
    save(cam / "train", pictures(18, "test"), ".jpg")
    rows = [f"{('train', 'id_test', 'test')[i // 6]},{i}.jpg,{i % 3}" for i in range(18)]
    (cam / "metadata.csv").write_text("split,filename,y\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (cam / "categories.csv").write_text("y,category_id,name\n0,0,empty\n1,2,lion\n2,3,zebra\n", encoding="utf-8")
    fmow.mkdir(parents=True, exist_ok=True)
    (fmow / "images").mkdir(exist_ok=True)
    table = ["split,category,country_code,timestamp"]
    for i, image in enumerate(pictures(36, "test", "photo-tilt")):
        image.save(fmow / "images" / f"rgb_img_{i}.png")
        split, year = (("train", 2010), ("test", 2011), ("test", 2017))[i // 12]
        table.append(f"{split},{('dam', 'port', 'zoo')[i % 3]},{('FRA', 'KEN')[i % 2]},{year}-01-01T00:00:00Z")
    (fmow / "rgb_metadata.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    (fmow / "country_code_mapping.csv").write_text("alpha-3,region\nFRA,Europe\nKEN,Africa\n", encoding="utf-8")


def eurosat(root: Path) -> None:
    """EuroSAT as torchvision reads it."""
    shown = pictures(24, "test")
    for c, name in enumerate(("AnnualCrop", "Forest", "River")):
        save(root / "eurosat" / "2750" / name, shown[c::3], ".jpg")


def folders(root: Path) -> None:
    """The embedded world's own classes as class folders, with training and test images, and a table of captions."""
    for split, count in (("train", 320), ("test", 160)):
        labels = world.labels("photo", count, world.SEEDS[split])
        for c, name in enumerate(world.CLASSES):
            kept = [image for image, label in zip(pictures(count, split), labels, strict=True) if label == c]
            save(root / "shapes" / split / name, kept, ".png")
    rows = [f"shapes/train/{name}/0.png\ta photo of a {name}" for name in world.CLASSES]
    (root / "captions.tsv").write_text("filepath\ttitle\n" + "\n".join(rows) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Command:
    """Write all of them."""

    out: Path = Path("data")
    """Folder to write into; it becomes the --data-root of the commands."""

    def __call__(self) -> int:
        for make in (imagenet, cifar, domainnet, wilds, eurosat, folders):
            make(self.out)
        (self.out / "one.txt").write_text("a photo of a {}.\n", encoding="utf-8")
        (self.out / "made.txt").write_text("Made by analyses/papers_data.py.\n", encoding="utf-8")
        return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(Command, description=__doc__)())
