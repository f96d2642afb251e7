"""What this machine offers, and whether Hessian-vector products on it are right. It is the first thing to run when
numbers look wrong."""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import torch
from packaging.requirements import Requirement
from torch import Tensor

from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.pair import load_pair, pick_device
from sharpscope.clip.probe import Probe
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.machine.cores import cores, threads
from sharpscope.machine.devices import free_bytes, name_of
from sharpscope.vocabulary import Device, __version__
from sharpscope.weights.theta import on_device

__all__ = ["Finding", "doctor"]

_DEVELOPERS: Final = frozenset({"test", "docs", "bench"})
"""The extras of those who work on sharpscope itself."""
_STEP: Final = 1e-4
"""Step of the finite differences, as a share of the layer's norm."""
_LIMIT: Final = 1e-5
"""The largest relative error of a float64 product against finite differences that counts as right; 1e-7 is usual."""


@dataclass(frozen=True)
class Finding:
    """One line of what was found. ``wrong``: whether results on this machine cannot be trusted because of it."""

    what: str
    said: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{'WRONG  ' if self.wrong else ''}{self.what}: {self.said}"


def doctor(device: Device = "auto") -> tuple[Finding, ...]:
    """Versions, processors, memory, and a product with the Hessian against finite differences. Takes some seconds.

    The product is that of the first block of the embedded world's image tower on 8 images in float64: with the written
    second derivatives, with torch's own, and as the difference quotient (g(theta + h v) - g(theta - h v)) / 2h of
    gradients, whose error falls as h^2.

    Args:
        device: auto | cpu | cuda, where the product is computed.

    Raises ConfigError for a device that is not there.
    """
    place = pick_device(device)
    return (*_software(), *_hardware(place), *_product(place))


def _software() -> Iterator[Finding]:
    yield Finding("sharpscope", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    needed, optional = _packages()
    for name in needed:
        found = _version(name)
        yield Finding(name, found or "is not installed, and sharpscope needs it", wrong=found is None)
    extras = [f"{name} {version}" for name in optional if (version := _version(name))]
    yield Finding("optional packages", ", ".join(extras) or "none")


def _packages() -> tuple[list[str], list[str]]:
    """The packages that sharpscope requires, and those of its extras for users, as its own metadata name them."""
    try:
        lines = metadata.requires("sharpscope") or []
    except metadata.PackageNotFoundError:  # run from its folder
        return [], []
    required = [Requirement(line) for line in lines]

    def asked(*extras: str) -> list[str]:
        return [r.name for r in required if r.marker is None or any(r.marker.evaluate({"extra": x}) for x in extras)]

    extras = set(metadata.metadata("sharpscope").get_all("Provides-Extra") or ()) - _DEVELOPERS
    needed = asked("")
    return needed, [name for name in dict.fromkeys(asked(*sorted(extras))) if name not in needed]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _hardware(place: torch.device) -> Iterator[Finding]:
    cpu = torch.device("cpu")
    yield Finding("processor", f"{cores()} cores for this process, of which a run with one job uses {threads()}")
    yield Finding("memory", f"{_gib(free_bytes(cpu))} free")
    yield Finding("disk", f"{_gib(shutil.disk_usage(Path.cwd()).free)} free in this folder")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.device("cuda", i)
            total = torch.cuda.get_device_properties(gpu).total_memory
            yield Finding(f"GPU {i}", f"{name_of(gpu)}, {_gib(free_bytes(gpu))} of {_gib(total)} free")
    else:
        built = torch.version.cuda
        yield Finding(
            "GPU", f"none that torch can use (torch is built {f'for CUDA {built}' if built else 'without CUDA'})"
        )
    yield Finding("device", f"'auto' computes on {pick_device('auto').type}; the check below on {place.type}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _product(place: torch.device) -> Iterator[Finding]:
    pair = load_pair("mini:zeroshot", "mini:success", model="mini")
    data = load_dataset("mini:photo", model=pair.model, split="train", limit=64)
    probe = Probe(pair.classifier, data, size=8, batch_size=8, device=place, dtype=torch.float64)
    layer = next(x for x in pair.layers("block") if x.tower == "image" and x.depth == 1)
    theta = on_device(pair.path(torch.float64).at(0.5), place)
    blocks = {layer.name: layer.params}
    with second_order():
        written, torchs = (HessianEngine(probe, theta, blocks, analytic=a, use="products") for a in (True, False))
        v = torch.randn(
            written.blocks[layer.name].size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        v = (v / v.norm()).to(place)
        one, other = (engine.products({layer.name: v[:, None]})[layer.name][:, 0] for engine in (written, torchs))
        spec = written.blocks[layer.name]
        h = _STEP * float(spec.join([theta[n] for n in layer.params]).norm())
        moved = zip(layer.params, spec.split(v), strict=True)
        step = {n: h * part for n, part in moved}
        ahead, behind = (
            HessianEngine(probe, theta | {n: theta[n] + sign * d for n, d in step.items()}, blocks, use="products")
            for sign in (1, -1)
        )
        quotient = (ahead.gradient(layer.name) - behind.gradient(layer.name)) / (2 * h)
    yield _compared("product with the Hessian", one, quotient, "from finite differences of gradients")
    yield _compared("written second derivatives", one, other, "from torch's own")


def _compared(what: str, one: Tensor, other: Tensor, named: str) -> Finding:
    error = float((one - other).norm() / other.norm())
    right = math.isfinite(error) and error <= _LIMIT
    said = f"{error:.1e} (relative, float64) {named}"
    wrong = f"{said}; at most {_LIMIT:g} is expected. Do not trust curvature that is measured on this machine"
    return Finding(what, said if right else wrong, not right)
