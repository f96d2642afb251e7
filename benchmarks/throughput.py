"""Images per second from files to normalised batches, compared with CLIP_benchmark on the same folder in one run.

    python benchmarks/throughput.py --json FILE

The script writes a folder of JPEGs of ImageNet's usual size and reads it with ViT-B-32's preprocessing. The peer is
CLIP_benchmark 1.6's loader for a folder: torchvision's ImageFolder with open_clip's transform behind a torch
DataLoader, with its default of four workers and with as many as there are cores. Ours decodes anew in every pass and
keeps nothing. The passes of the two alternate, and their medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import sharpscope
from sharpscope.clip.datasets import images as ours
from sharpscope.clip.model import ClipModel

BATCH = 128


def make(root: Path, count: int) -> None:
    """``count`` JPEGs of 500 x 375 in ten class folders, about 70 kB each."""
    rng = np.random.default_rng(0)
    for i in range(count):
        folder = root / f"class{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + rng.integers(-20, 21, smooth.shape)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=80)


def rate(batches: Callable[[], object], count: int) -> float:
    """Images per second of one pass."""
    start = time.perf_counter()
    seen = sum(len(labels) for _, labels in batches())  # type: ignore[attr-defined]
    assert seen == count
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = ClipModel.load("ViT-B-32")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ours.KEPT_BYTES = 0  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make(root, options.count)
        size = sum(f.stat().st_size for f in root.rglob("*.jpg")) / options.count
        dataset = sharpscope.load_dataset(f"folder:{root}", model=model)
        folder = ImageFolder(str(root), transform=model.preprocess)
        for (a, y), (b, z) in zip(dataset.batches(BATCH), DataLoader(folder, BATCH), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(y, z)
            break
        contestants: dict[str, Callable[[], object]] = {"sharpscope": lambda: dataset.batches(BATCH)}
        for workers in sorted({4, cores}):
            contestants[f"DataLoader, {workers} workers"] = lambda w=workers: DataLoader(folder, BATCH, num_workers=w)
        rates: dict[str, list[float]] = {k: [] for k in contestants}
        for _ in range(options.repeats):
            for key, batches in contestants.items():
                rates[key].append(rate(batches, options.count))
    medians = {k: statistics.median(v) for k, v in rates.items()}
    best = max(v for k, v in medians.items() if k != "sharpscope")
    result = {
        "images": options.count, "bytes_an_image": round(size), "images_a_second": rates, "median": medians,
        "sharpscope_over_best_peer": medians["sharpscope"] / best, "same_bits": True,
        "command": "python " + " ".join(sys.argv), "machine": platform.machine(), "cores": cores,
        "load_before": os.getloadavg(), "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
