"""Memory of the engine in real CLIP image towers: bytes of a gradient graph an image, counted, and what follows.

    python benchmarks/large.py --json benchmarks/results/large.json

A tower of the real width, patch and image size is built with two and with three blocks, and its graphs of two and of
three images are counted (``graph_bytes``, exact and the same on every machine). Blocks and images add equal bytes, so
that these four numbers give the graph of any depth and batch; ViT-B-32 is also counted at its full depth. Weights are
drawn at random: no byte depends on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final, Literal

import open_clip
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from vit import CLASSES, Images

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.graphs import WORK, plan_memory

MODELS: Final = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14")
TEXT: Final = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
GIB: Final = 2**30
KRYLOV: Final = 12
"""Vectors of a basis that is counted for the whole tower's eigenvalues: what a followed eigenvalue mostly takes."""


class Shallow(nn.Module):
    """The image tower of ``name`` with ``blocks`` of its blocks, and a linear head on unit features."""

    def __init__(self, name: str, blocks: int) -> None:
        super().__init__()
        told = open_clip.get_model_config(name)
        clip = open_clip.CLIP(
            embed_dim=told["embed_dim"], vision_cfg={**told["vision_cfg"], "layers": blocks}, text_cfg=TEXT
        )
        self.visual, self.size = clip.visual, clip.visual.image_size
        self.register_buffer("classes", F.normalize(torch.randn(CLASSES, told["embed_dim"]), dim=1))
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 10 * F.normalize(self.visual(images), dim=-1) @ self.classes.mT


def counted(tower: Shallow, images: int, use: Literal["products", "probes"]) -> int:
    """Bytes of the gradient graph of one batch of ``images``."""
    work = Images(tower, torch.randn(images, 3, *tower.size), torch.arange(images) % CLASSES, images)  # type: ignore[arg-type]
    theta = {n: p.detach() for n, p in tower.named_parameters()}
    with second_order():
        return plan_memory(work, theta, list(theta), None, use)[1].graph_bytes


def model(name: str) -> dict[str, Any]:
    """Depth, parameters, and by use the bytes an image and the bytes that do not depend on images, at full depth."""
    depth = open_clip.get_model_config(name)["vision_cfg"]["layers"]
    towers = {k: Shallow(name, k) for k in (2, 3)}
    sizes = {k: sum(p.numel() for p in t.parameters()) for k, t in towers.items()}
    out: dict[str, Any] = {"blocks": depth, "parameters": sizes[2] + (depth - 2) * (sizes[3] - sizes[2])}
    for use in ("products", "probes"):
        count = {(k, n): counted(t, n, use) for k, t in towers.items() for n in (2, 3)}  # type: ignore[arg-type]
        each = {k: count[k, 3] - count[k, 2] for k in towers}
        fixed = {k: count[k, 2] - 2 * each[k] for k in towers}
        out[use] = {what: at[2] + (depth - 2) * (at[3] - at[2]) for what, at in (("image", each), ("fixed", fixed))}
    return out


def needed(told: dict[str, Any], use: str, vectors: int) -> float:
    """GiB on the device with batches of one image: theta, its copy that is differentiated, one graph with the
    temporaries of a product, and a basis of ``vectors``."""
    graph = (1 + WORK) * (told[use]["image"] + told[use]["fixed"])
    return float(graph + (2 + vectors) * 4 * told["parameters"]) / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for name in options.models:
        found[name] = told = model(name)
        told["gib_traces"] = needed(told, "probes", 0)
        told["gib_eigenvalues_of_layers"] = needed(told, "products", 0)
        told["gib_eigenvalues_of_the_whole"] = needed(told, "products", KRYLOV)
        image = {use: told[use]["image"] / GIB for use in ("probes", "products")}
        print(
            f"{name:12s} {told['parameters'] / 1e6:6.0f} M parameters; an image's graph {image['probes']:.2f} GiB for "
            f"traces, {image['products']:.2f} for products; one image at a time {told['gib_traces']:.1f} GiB for "
            f"traces, {told['gib_eigenvalues_of_layers']:.1f} with eigenvalues, "
            f"{told['gib_eigenvalues_of_the_whole']:.1f} with those of the whole tower",
            flush=True,
        )
    if "ViT-B-32" in found:  # the depth that is extrapolated to, counted
        whole = Shallow("ViT-B-32", found["ViT-B-32"]["blocks"])
        for use in ("products", "probes"):
            told = found["ViT-B-32"][use]
            direct = counted(whole, 3, use)  # type: ignore[arg-type]
            told["error_at_full_depth"] = (told["fixed"] + 3 * told["image"]) / direct - 1
            print(f"ViT-B-32, {use}: predicted / counted at full depth - 1 = {told['error_at_full_depth']:+.1e}")
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
