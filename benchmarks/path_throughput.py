"""Images per second of evaluating a whole path, end to end, compared with a pass of a DataLoader for every alpha.

    python benchmarks/path_throughput.py --json FILE

A folder of JPEGs of ImageNet's usual size is evaluated at 11 alphas with ViT-B-32's preprocessing. The model is narrow,
so that reading images is most of the work, as it is beside a GPU. Peers: what CLIP_benchmark 1.6 (four workers) and
WiSE-FT (eight workers) do for 11 checkpoints, which is a pass of a torch DataLoader over torchvision's ImageFolder with
open_clip's transform for each of them. Ours keeps no pixels. All get the same accuracies. It also counts how often
every test image is opened in a whole study that keeps no pixels.
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
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from throughput import make
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import sharpscope
from sharpscope.clip.answering import answers_each, correct
from sharpscope.clip.datasets.images import Files

ALPHAS = tuple(i / 10 for i in range(11))
BATCH = 128
VISION = {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32}


def pair_in(folder: Path) -> dict[str, str]:
    """A narrow CLIP of ViT-B-32's image size, and a second one near it."""
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    config = {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": text}
    (folder / "narrow.json").write_text(json.dumps(config), encoding="utf-8")
    model = sharpscope.ClipModel.load(str(folder / "narrow.json"))
    zero = model.init(0)
    draw = torch.Generator().manual_seed(0)
    one = {
        n: v + 0.02 * torch.randn(v.shape, generator=draw) if n.startswith("visual.") else v for n, v in zero.items()
    }
    files = {"model": str(folder / "narrow.json")}
    for name, theta in (("zeroshot", zero), ("finetuned", one)):
        files[name] = str(folder / f"{name}.safetensors")
        sharpscope.write_checkpoint(files[name], theta)
    return files


def openings(files: dict[str, str], root: Path, train: Path) -> dict[str, float]:
    """How often a whole study that keeps no pixels opens every test image: mean and maximum.

    In one process, as beside a GPU; each of two opens the images for its share of the points, and only one would count.
    """
    counts: Counter[str] = Counter()
    before = Files.open

    def counted(self: Files, i: int) -> Any:
        counts[f"{self.root}/{self.paths[i]}"] += 1
        return before(self, i)

    Files.open = counted  # type: ignore[method-assign]
    pair = sharpscope.PairConfig("pair", files["zeroshot"], files["finetuned"])
    study = sharpscope.StudyConfig(
        pairs=(pair,), model=files["model"], head="zeroshot", probe=f"folder:{train}", id=(f"folder:{root}",),
        measures=(), straggler_criterion="rewind", layer_alphas=(0.0, 1.0), granularity="block", probe_size=64,
        repair_alphas=(0.5,), masks=2, targets=("delta",), image_cache=0.0, bootstrap=20, jobs=1,
    )  # fmt: skip
    try:
        sharpscope.run(study)
    finally:
        Files.open = before  # type: ignore[method-assign]
    own = [n for name, n in counts.items() if name.startswith(str(root))]
    return {"mean": statistics.mean(own), "max": max(own), "images": len(own)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, train = folder / "val", folder / "train"
        make(root, options.count)
        make(train, 100)
        for file in train.rglob("*.jpg"):  # other pictures than the test set's, which a study insists on
            picture = PIL.Image.open(file).transpose(PIL.Image.Transpose.ROTATE_180)
            picture.save(file, quality=80)
        files = pair_in(folder)
        counted = openings(files, root, train)
        names = sorted(p.name for p in root.iterdir())
        pair = sharpscope.load_pair(
            files["zeroshot"], files["finetuned"], model=files["model"], head="zeroshot", classnames=names
        )
        path = pair.path()
        thetas = [pair.classifier.frozen(path.at(alpha)) for alpha in ALPHAS]
        dataset = sharpscope.load_dataset(f"folder:{root}", model=pair.model, classnames=names, image_cache=0.0)
        images = ImageFolder(str(root), transform=pair.model.preprocess)

        def ours() -> list[float]:
            return [float(a.correct.mean()) for a in answers_each(pair.classifier, thetas, dataset, BATCH)]

        def ours_one_by_one() -> list[float]:
            return [float(correct(pair.classifier, theta, dataset, BATCH).mean()) for theta in thetas]

        def a_pass_for_each(workers: int) -> list[float]:
            found = []
            for theta in thetas:
                hits = []
                with torch.no_grad():
                    for x, y in DataLoader(images, BATCH, num_workers=workers):
                        hits.append(pair.classifier.logits(theta, x).argmax(1) == y)
                found.append(float(torch.cat(hits).double().mean()))
            return found

        contestants: dict[str, Callable[[], list[float]]] = {
            "sharpscope": ours,
            "sharpscope, a pass an alpha": ours_one_by_one,
            "CLIP_benchmark's way (DataLoader, 4 workers, a pass an alpha)": lambda: a_pass_for_each(4),
            "WiSE-FT's way (DataLoader, 8 workers, a pass an alpha)": lambda: a_pass_for_each(8),
        }
        rates: dict[str, list[float]] = {k: [] for k in contestants}
        answered: list[list[float]] = []
        for _ in range(options.repeats):
            for key, work in contestants.items():
                start = time.perf_counter()
                answered.append(work())
                rates[key].append(options.count * len(ALPHAS) / (time.perf_counter() - start))
        assert all(np.array_equal(answered[0], other) for other in answered)
    medians = {k: statistics.median(v) for k, v in rates.items()}
    best = max(v for k, v in medians.items() if not k.startswith("sharpscope"))
    result = {
        "images": options.count, "alphas": len(ALPHAS), "openings_an_image_in_a_study": counted,
        "images_times_alphas_a_second": rates, "median": medians,
        "sharpscope_over_best_peer": medians["sharpscope"] / best, "same_accuracies": True,
        "command": "python " + " ".join(sys.argv), "machine": platform.machine(), "cores": os.cpu_count(),
        "load_before": os.getloadavg(), "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
