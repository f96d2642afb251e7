"""How often the straggler criterion ``change:M`` names a layer where nothing happens, and how often it finds one.

    python benchmarks/nulls_stragglers.py [--simulations 1000] [--layers 8 24 100]

A simulated path has L layers whose sharpness at theta_0 is spread over several orders of magnitude. Under the null
every layer changes like the others, by a common curve over alpha, plus a change of its own (normal, or Student's t) and
the error over draws of images. Rates are of paths on which any layer is named; they are to be at most 5 %. Beside them
stands the rate of ``share:M`` with mad:2, the default before. Power is the rate at which the layer whose sharpness
rises by a factor, relative to the others, is named.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sharpscope.findings.relativechange import changes_of
from sharpscope.findings.selection import select
from sharpscope.findings.sharpness import SharpnessGrid
from sharpscope.findings.sharpness_criteria import sharpness_scores

__all__ = ["World", "named", "rates"]

CHANCE = 0.05


@dataclass(frozen=True)
class World:
    """What a simulated path is like; every quantity is in units of log sharpness.

    ``spread``: standard deviation of the layers' own changes at the end of the path. ``tail``: degrees of freedom of
    their Student t; 0 for a normal. ``error``: standard deviation over draws of ``images`` images of one estimate,
    where ``shared`` of the images' deviation (a correlation) is the same at every alpha. ``uneven``: standard deviation
    of the logarithm of the error over layers. ``rise``: factor by which the first layer rises beyond the others.
    ``larger``: factor by which the first layer is larger than the others at every alpha. ``paired``: whether it is
    known what each image adds.
    """

    layers: int = 24
    alphas: tuple[float, ...] = (0.0, 0.3, 0.5, 1.0)
    spread: float = 0.3
    tail: int = 0
    error: float = 0.2
    uneven: float = 0.5
    shared: float = 0.7
    images: int = 64
    rise: float = 1.0
    larger: float = 1.0
    paired: bool = True

    def grid(self, rng: np.random.Generator) -> SharpnessGrid:
        """One simulated path; what each image adds is drawn, and its mean is the estimate."""
        at, shape = np.asarray(self.alphas), (self.layers, len(self.alphas), self.images)
        own = rng.standard_t(self.tail, self.layers) if self.tail else rng.standard_normal(self.layers)
        if self.tail:
            own *= math.sqrt((self.tail - 2) / self.tail)
        levels = rng.normal(0, 2, self.layers)
        levels[0] += math.log(self.larger)
        slope = self.spread * own
        slope[0] += math.log(self.rise)
        truth = np.exp(levels[:, None] + rng.normal(0, 1) * np.sin(2 * at) + slope[:, None] * np.minimum(2 * at, 1))
        each = self.error * math.sqrt(self.images) * np.exp(self.uneven * rng.standard_normal(self.layers))
        common = rng.standard_gamma(1.0, (self.layers, 1, self.images)) - 1
        alone = rng.standard_gamma(1.0, shape) - 1
        noise = math.sqrt(self.shared) * common + math.sqrt(1 - self.shared) * alone
        parts = truth[..., None] * (1 + each[:, None, None] * noise) / self.images
        estimate = parts.sum(-1)
        error = np.sqrt(self.images / (self.images - 1) * ((parts - parts.mean(-1, keepdims=True)) ** 2).sum(-1))
        whole = estimate.sum(0)
        return SharpnessGrid(
            measure="hessian_trace", layers=tuple(f"l{i}" for i in range(self.layers)), alphas=self.alphas,
            estimate=estimate, error=0.5 * error, images=error, share=estimate / whole, num_params=np.ones(self.layers),
            whole=whole, unconverged=np.zeros(shape[:2], bool), frozen=frozenset(),
            parts=parts if self.paired else None,
        )  # fmt: skip


def named(grid: SharpnessGrid, rng: np.random.Generator, chance: float = CHANCE) -> np.ndarray:
    """Which layers [L] the criterion change names."""
    changes = changes_of(grid, np.ones(len(grid.layers), bool), 1, rng)
    assert changes is not None
    return changes.calibrated(chance, rng)[1].mask


def rates(world: World, simulations: int, seed: int = 0) -> tuple[float, float, float]:
    """(any layer named, the first layer named, any layer named by share with mad:2) over simulated paths."""
    rng = np.random.default_rng(seed)
    found = np.zeros(3)
    for _ in range(simulations):
        grid = world.grid(rng)
        mask = named(grid, rng)
        shares = select(sharpness_scores(grid.values("share", False), "mad:2"), "abs:2").mask
        found += mask.any(), mask[0], shares.any()
    return tuple(found / simulations)  # type: ignore[return-value]


def worlds() -> Iterator[tuple[str, World]]:
    """The nulls, then the paths on which the first layer is large, or rises."""
    for layers in (8, 24, 100):
        yield f"null, L = {layers}, own changes normal", World(layers)
        yield f"null, L = {layers}, own changes t(7)", World(layers, tail=7)
        yield f"null, L = {layers}, no changes of their own", World(layers, spread=0.0)
        yield f"null, L = {layers}, errors of 50 %", World(layers, error=0.5, uneven=0.3)
        yield f"first layer 1,000 times as large, L = {layers}", World(layers, larger=1000)
        yield f"first layer rises 4 times, L = {layers}", World(layers, rise=4, spread=0.2, uneven=0.2)
    yield "null, L = 24, images not told apart", World(paired=False)
    yield "null, L = 24, 11 alphas", World(alphas=tuple(round(0.1 * i, 1) for i in range(11)))
    yield "null, L = 24, own changes t(4)", World(tail=4)
    yield "first layer rises 10 times, L = 24", World(rise=10, spread=0.2, uneven=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 24, 100])
    args = parser.parse_args()
    count = args.simulations
    print(f"{count} simulated paths each; familywise error {CHANCE:.0%}; numbers in %")
    print(f"{'path':<58}{'any':>7}{'first':>7}{'share, mad:2':>14}")
    for text, world in worlds():
        if world.layers not in args.layers:
            continue
        any_layer, first, before = rates(world, count)
        print(f"{text:<58}{100 * any_layer:>7.1f}{100 * first:>7.1f}{100 * before:>14.1f}", flush=True)


if __name__ == "__main__":
    main()
