"""The whole layer map of a real CLIP tower on a GPU, and the cost of a product in it.

    python benchmarks/vit.py --model ViT-B-32 --precision full tf32 bf16 --json FILE
    python benchmarks/vit.py --model tiny --images 16 --batch-size 8 --alphas 3 --json FILE      # smoke test, CPU

The weights of the open_clip vision tower are drawn at random (none are shipped) and trained for some steps on images
with one pattern per class; further training on other images gives the other end of the path. The cost of a map depends
on the weights only through the number of products that the stopping rules take. Measured are trace and both ends of the
spectrum for every block and the whole model at 11 alphas: wall time, peak memory, products, and the cost of a product
in gradients (of the faster attention kernel). With less than full precision the error is reported too.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from work import quiet

from sharpscope.curvature.arithmetic import in_precision, precision_error, second_order
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.layers import Layer, split_layers

TINY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
CLASSES = 100
MEASURES = ("hessian_trace", "lambda_max", "lambda_min")


class Tower(nn.Module):
    """An open_clip vision tower with a linear head on unit features."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name == "tiny":
            text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
            clip = open_clip.CLIP(embed_dim=64, vision_cfg=TINY, text_cfg=text)
        else:
            clip = open_clip.create_model(name)
        self.visual, self.size = clip.visual, clip.visual.image_size
        width = self.visual.output_dim
        self.register_buffer("classes", F.normalize(torch.randn(CLASSES, width), dim=1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return 10 * F.normalize(self.visual(images), dim=-1) @ self.classes.mT


@dataclass
class Images:
    """The mean cross-entropy over ``n`` images in batches: an objective for the engine, which may cut it anew."""

    module: Tower
    images: Tensor
    labels: Tensor
    batch_size: int

    @property
    def batch_sizes(self) -> list[int]:
        return [len(y) for y in self.labels.split(self.batch_size)]

    @property
    def weights(self) -> list[float]:
        return [n / len(self.labels) for n in self.batch_sizes]

    def rebatched(self, batch_size: int) -> Images:
        return Images(self.module, self.images, self.labels, batch_size)

    def batch_labels(self, i: int) -> Tensor:
        return self.labels.split(self.batch_size)[i]

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        images = self.images.split(self.batch_size)[i]
        return torch.func.functional_call(self.module, dict(theta), (images,))

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.batch_labels(i))


def patterned(n: int, size: tuple[int, int], seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images with one coarse pattern per class, under equally strong noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    images = F.interpolate(patterns[labels] + torch.randn(n, 3, 8, 8, generator=generator), size=size)
    return images.to(device), labels.to(device)


def trained_path(work: Images, steps: int) -> Callable[[float], dict[str, Tensor]]:
    """theta(alpha) from a tower trained on other images to the same tower trained further on these images."""
    other = Images(work.module, *patterned(len(work.labels), work.module.size, 1, work.labels.device), work.batch_size)
    ends = []
    for part, rate in ((other, 3e-4), (work, 1e-4)):
        optimizer = torch.optim.AdamW(work.module.parameters(), lr=rate)
        for step in range(steps):
            i = step % len(part.weights)
            optimizer.zero_grad()
            images = part.images.split(part.batch_size)[i]
            F.cross_entropy(part.module(images), part.batch_labels(i)).backward()
            optimizer.step()
        ends.append({n: p.detach().clone() for n, p in work.module.named_parameters()})
    return lambda alpha: {n: torch.lerp(ends[0][n], ends[1][n], alpha) for n in ends[0]}


class Clock:
    """Wall seconds of the work on the device, and its peak memory."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __call__(self, call: Callable[[], Any]) -> tuple[Any, float]:
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        out = call()
        if self.cuda:
            torch.cuda.synchronize()
        return out, time.perf_counter() - start

    def best(self, call: Callable[[], Any], repeats: int = 3) -> float:
        call()
        return min(self(call)[1] for _ in range(repeats))

    @property
    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.cuda else None


def product_costs(
    work: Images, theta: Mapping[str, Tensor], layers: Sequence[Layer], precision: str, clock: Clock
) -> dict[str, float]:
    """In the first batch: seconds of a gradient, and in gradients a product with the whole and one for every layer."""
    first = Images(work.module, work.images[: work.batch_size], work.labels[: work.batch_size], work.batch_size)
    params = {n: t.clone().requires_grad_() for n, t in theta.items()}
    rough = in_precision(first, precision, theta)

    def gradient() -> None:
        torch.autograd.grad(rough.batch_loss(0, params), list(params.values()))

    unit = clock.best(gradient)
    with second_order(tf32=precision == "tf32"):
        unit = min(unit, clock.best(gradient))
        blocks = {"(all)": [n for x in layers for n in x.params]} | {x.name: x.params for x in layers}
        engine = HessianEngine(rough, theta, blocks)
        costs = {}
        for name in blocks:
            operator = engine.operator(name)
            v = torch.ones(operator.shape[0], dtype=operator.dtype, device=operator.device)
            costs[name] = clock.best(lambda call=operator.matvec, v=v: call(v)) / unit
    whole = costs.pop("(all)")
    return {"gradient_seconds": unit, "hvp_full": whole, "hvp_all_layers": sum(costs.values())}


def layer_map(
    work: Images, at: Callable[[float], dict[str, Tensor]], layers: Sequence[Layer], alphas: int,
    settings: MeasureSettings, clock: Clock,
) -> dict[str, Any]:  # fmt: skip
    """Trace and both ends of every layer and of the whole model, along the path."""
    warm, seconds, rows, facts = None, [], [], {}
    for k in range(alphas):
        theta = at(k / (alphas - 1))
        result, spent = clock(
            lambda theta=theta, k=k, warm=warm: measure_layers(
                work, theta, layers, MEASURES, settings, key=(k,), warm=warm
            )
        )
        warm, facts = result.warm, result.facts
        rows += result.rows
        seconds.append(spent)
        print(f"alpha {k / (alphas - 1):.1f}: {spent:.1f} s", file=sys.stderr, flush=True)
    of = {m: [r for r in rows if r["measure"] == m] for m in MEASURES}
    return {
        "seconds": sum(seconds), "seconds_by_alpha": seconds, "memory": facts,
        "products": {m: sum(r["num_matvecs"] for r in rs) / len(rs) for m, rs in of.items()},
        "converged": {m: sum(r["converged"] for r in rs) / len(rs) for m, rs in of.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip model name, or tiny")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--alphas", type=int, default=11)
    parser.add_argument("--rtol", type=float, default=0.03)
    parser.add_argument("--steps", type=int, default=40, help="number of training steps for each end of the path")
    parser.add_argument("--precision", nargs="+", default=["full"], choices=["full", "tf32", "bf16"])
    parser.add_argument(
        "--memory", type=float, help="memory in GiB for gradient graphs; default: four fifths of the free memory"
    )
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    module = Tower(options.model).to(device)
    work = Images(module, *patterned(options.images, module.size, 2, device), options.batch_size)
    at = trained_path(work, options.steps)
    layers = split_layers({n: p.shape for n, p in module.named_parameters()}, "block")
    clock, out = Clock(device), {}
    memory = None if options.memory is None else int(options.memory * 2**30)
    if memory is None and clock.cuda:
        memory = int(0.8 * torch.cuda.mem_get_info()[0])
    for precision in options.precision:
        settings = MeasureSettings(rtol=options.rtol, atol_share=0, max_matvecs=200, precision=precision, memory=memory)
        out[precision] = product_costs(work, at(0.5), layers, precision, clock)
        out[precision] |= layer_map(work, at, layers, options.alphas, settings, clock)
        if precision != "full":
            blocks = {x.name: x.params for x in layers}
            out[precision]["error"] = precision_error(work, at(0.5), blocks, precision, memory=memory)
        print(precision, {k: v for k, v in out[precision].items() if k not in ("error", "seconds_by_alpha")})
    name = torch.cuda.get_device_name() if clock.cuda else platform.machine()
    about = {
        "command": " ".join(["python", *sys.argv]), "device": name, "torch": torch.__version__,
        "peak_memory_bytes": clock.peak, "parameters": sum(p.numel() for p in module.parameters()),
    }  # fmt: skip
    options.json.write_text(json.dumps(about | vars(options) | {"results": out}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
