"""The work to measure: open_clip vision towers with a linear head, their loss, and a path between two trainings."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.curvature.arithmetic import second_order
from sharpscope.layers import Layer, split_layers
from sharpscope.miniworld import world as miniworld

__all__ = ["Tower", "Work", "peak_mib", "seconds", "trained_path"]


class Tower(nn.Module):
    """An open_clip ViT with a linear head on unit features, as the peers get it."""

    def __init__(self, *, width: int, blocks: int, head_width: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            self.visual = open_clip.CLIP(
                embed_dim=width,
                vision_cfg={
                    "image_size": 32, "patch_size": 8, "width": width, "layers": blocks, "head_width": head_width,
                },
                text_cfg={"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1},
            ).visual  # fmt: skip
            self.register_buffer("classes", F.normalize(torch.randn(classes, width), dim=1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return 10 * F.normalize(self.visual(images), dim=-1) @ self.classes.mT


@dataclass
class Work:
    """One batch, its loss, and the tower's layers at block granularity; an objective for ``HessianEngine``."""

    module: Tower
    images: Tensor
    labels: Tensor
    weights: tuple[float, ...] = (1.0,)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return (len(self.labels),)

    @classmethod
    def make(cls, *, width: int, blocks: int, head_width: int, images: int = 64) -> Work:
        data = load_dataset("mini:photo", model=None, split="train", limit=images)
        x, y = next(iter(data.batches(images)))
        return cls(Tower(width=width, blocks=blocks, head_width=head_width, classes=len(miniworld.CLASSES)), x, y)

    @property
    def theta(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.module.named_parameters()}

    @property
    def layers(self) -> tuple[Layer, ...]:
        return split_layers({n: p.shape for n, p in self.module.named_parameters()}, "block")

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(self.module, dict(theta), (self.images,))

    def batch_labels(self, i: int) -> Tensor:
        return self.labels

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.labels)

    def gradient_seconds(self, repeats: int) -> float:
        """ONE gradient of the loss for all parameters, the unit of every figure: by the faster attention kernel."""
        parameters = list(self.module.parameters())

        def gradient() -> None:
            torch.autograd.grad(F.cross_entropy(self.module(self.images), self.labels), parameters)

        plain = seconds(gradient, repeats)
        with second_order():
            return min(plain, seconds(gradient, repeats))


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Processor seconds of one call: the smallest of ``repeats``, because the machine may be shared."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def peak_mib() -> float:
    """This process' peak memory (Linux). getrusage would not do: there a child starts with its parent's peak."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def trained_path(work: Work, *, steps: int = 60) -> Callable[[float], dict[str, Tensor]]:
    """theta(alpha) between a tower trained on other images and the one fine-tuned from it on the work's own."""
    other = load_dataset("mini:sketch", model=None, split="train", limit=128)
    x, y = next(iter(other.batches(128)))
    ends = []
    for images, labels, rate in ((x, y, 1e-3), (work.images, work.labels, 5e-4)):
        optimizer = torch.optim.AdamW(work.module.parameters(), lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(work.module(images), labels).backward()
            optimizer.step()
        ends.append(work.theta)
    work.module.zero_grad()
    return lambda alpha: {n: (1 - alpha) * ends[0][n] + alpha * ends[1][n] for n in ends[0]}


def load(work: Work, theta: Mapping[str, Tensor]) -> None:
    """Put theta into the module that the peers see."""
    with torch.no_grad():
        for n, p in work.module.named_parameters():
            p.copy_(theta[n])


def quiet() -> None:
    """Peers warn about backward(create_graph=True) and deprecated calls of their own."""
    warnings.simplefilter("ignore")


def crash_as_shipped(call: Callable[[], object]) -> str:
    """The error of a peer with open_clip's default attention kernels; empty if it runs."""
    try:
        call()
    except Exception as error:
        return f"as shipped on open_clip: {type(error).__name__}: {str(error).splitlines()[0][:90]}; run with sdpa MATH"
    return ""


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def columns(vectors: Tensor, names: Sequence[str], shapes: Mapping[str, torch.Size]) -> list[Tensor]:
    """[p] or [p, k] as tensors of the parameters' shapes (with k last)."""
    sizes = [shapes[n].numel() for n in names]
    tail = vectors.shape[1:]
    return [part.reshape(*shapes[n], *tail) for part, n in zip(vectors.split(sizes), names, strict=True)]
