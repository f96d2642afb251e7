"""Null and power simulations of sharpscope's conclusions: how often each says something where nothing is, and is.

``python benchmarks/nulls.py [--only NAME ...] [--runs N] [--out FILE]`` prints, and logs to
benchmarks/results/nulls.log: name, nominal rate, measured rate, number of simulations, 95 % interval (Wilson). A row
whose interval lies above the nominal rate is marked. A simulation is a function ``rng -> bool`` (did it say so) in
``SIMULATIONS``; those of another finding are one line each there.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sharpscope.findings.design import Design, independent
from sharpscope.findings.marginal import marginal_block
from sharpscope.findings.partial import contrast, partial_correlation
from sharpscope.scores import wilson
from sharpscope.seeds import derive

LEVEL: Final = 0.05
REPLICATES: Final = 199
Study = tuple[Design, np.ndarray, np.ndarray, dict[str, np.ndarray]]
Make = Callable[[np.random.Generator], Study]


@dataclass(frozen=True)
class Simulation:
    """``says``: whether one simulated study leads to the conclusion; ``nominal``: at most how often; None: power, or a
    rate that shows what a mistake would do."""

    name: str
    says: Callable[[np.random.Generator], bool]
    nominal: float | None = LEVEL


_EFFECTS: Final[dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "rise": lambda rate: np.exp(3 * rate) / 8,
    "hump": lambda rate: 1 - 8 * (rate - 0.5) ** 2,
    "step": lambda rate: 2.0 * (rate > 0.8),
}


def driven(n: int, on_x: str, on_y: str, link: float = 0.0, bases: int = 1) -> Make:
    """n recipes whose learning rate drives sharpness and gain; ``link``: the correlation of what else drives them."""

    def make(rng: np.random.Generator) -> Study:
        rate, own, base = rng.random(n), rng.normal(size=n), np.arange(n) % bases
        x = _EFFECTS[on_x](rate) + 0.3 * own + rng.normal(size=bases)[base]
        other = link * own + math.sqrt(1 - link**2) * rng.normal(size=n)
        y = _EFFECTS[on_y](rate) + 0.3 * other + rng.normal(size=bases)[base]
        names = tuple(f"p{i}" for i in range(n))
        given = {
            "learning_rate": rate,
            "distance": rate + 0.15 * rng.normal(size=n),
            "id_accuracy": _EFFECTS["hump"](rate) + 0.3 * rng.normal(size=n),
        }
        return Design(names, tuple(f"b{i}" for i in base), names), x, y, given

    return make


def shared(settings: int, seeds: int, bases: int = 1) -> Make:
    """Settings with effects of their own on sharpness and on gain, each with ``seeds`` replicates on every base."""

    def make(rng: np.random.Generator) -> Study:
        at = np.repeat(np.tile(np.arange(settings), bases), seeds)
        base = np.repeat(np.arange(bases), settings * seeds)
        x, y = (
            rng.normal(size=settings)[at] + rng.normal(size=bases)[base] + 0.3 * rng.normal(size=len(at)) for _ in "xy"
        )
        names = tuple(f"p{i}" for i in range(len(at)))
        design = Design(names, tuple(f"b{i}" for i in base), tuple(f"s{i}" for i in at))
        return design, x, y, {"learning_rate": rng.random(len(at))}

    return make


def apart(make: Make) -> Make:
    """The same pairs, taken for independent."""

    def out(rng: np.random.Generator) -> Study:
        design, x, y, given = make(rng)
        return independent(design.pairs), x, y, given

    return out


def joint(make: Make, *only: str) -> Callable[[np.random.Generator], bool]:
    """Whether the joint partial is significant, given all covariates or ``only`` some."""

    def says(rng: np.random.Generator) -> bool:
        design, x, y, given = make(rng)
        given = {name: z for name, z in given.items() if not only or name in only}
        found = partial_correlation(x[None], y, design, given, keys=design.keys(REPLICATES, rng), rng=rng)
        return bool(found.p[0] <= LEVEL)

    return says


def given_distance(make: Make) -> Callable[[np.random.Generator], bool]:
    """Whether the partial is significant that holds fixed the distance alone."""
    return joint(make, "distance")


def misses_zero(make: Make) -> Callable[[np.random.Generator], bool]:
    """Whether the interval at .95 leaves out 0."""

    def says(rng: np.random.Generator) -> bool:
        design, x, y, given = make(rng)
        found = partial_correlation(x[None], y, design, given, keys=design.keys(REPLICATES, rng), rng=rng)
        return not found.low[0] <= 0 <= found.high[0]

    return says


def alone(make: Make) -> Callable[[np.random.Generator], bool]:
    """Whether the plain Spearman correlation is significant."""

    def says(rng: np.random.Generator) -> bool:
        design, x, y, _ = make(rng)
        block = marginal_block(x[None], y, "spearman", "gain", design, design.keys(REPLICATES, rng), rng, 1 - LEVEL)
        return bool(block.p[0] <= LEVEL)

    return says


def better(n: int, equal: bool) -> Callable[[np.random.Generator], bool]:
    """Whether a contrast prefers a column that tells, to one that tells as much or to one that tells nothing."""

    def says(rng: np.random.Generator) -> bool:
        design, own, y, given = driven(n, "rise", "rise", link=0.8)(rng)
        other = own + 0.1 * rng.normal(size=n) if equal else rng.normal(size=n)
        x = np.array([own + 0.1 * rng.normal(size=n), other])
        found = contrast(x, y, design, given, keys=design.keys(REPLICATES, rng), rng=rng)
        return bool(found.p[0] <= LEVEL)

    return says


SIMULATIONS: Final[tuple[Simulation, ...]] = (
    *(
        Simulation(f"null: learning rate drives both ({x}, {y}), {n} pairs", joint(driven(n, x, y)))
        for n in (10, 20, 60)
        for x, y in (("rise", "rise"), ("rise", "hump"), ("hump", "hump"), ("step", "step"))
    ),
    *(
        Simulation(f"the same (rise, rise), {n} pairs, no covariate", alone(driven(n, "rise", "rise")), None)
        for n in (10, 20, 60)
    ),
    *(
        Simulation(f"the same (rise, rise), {n} pairs, given distance", given_distance(driven(n, "rise", "rise")), None)
        for n in (10, 20, 60)
    ),
    Simulation("null: 30 recipes over 5 bases (rise, hump)", joint(driven(30, "rise", "hump", bases=5))),
    Simulation("null: 24 recipes over 12 bases (rise, hump)", joint(driven(24, "rise", "hump", bases=12))),
    Simulation("null: 150 recipes over 3 bases (rise, hump)", joint(driven(150, "rise", "hump", bases=3))),
    Simulation("null: 8 settings x 4 seeds", joint(shared(8, 4))),
    Simulation("the same, seeds taken for independent", joint(apart(shared(8, 4))), None),
    Simulation("null: 12 settings crossed with 5 bases", joint(shared(12, 1, 5))),
    *(Simulation(f"null: {k} clusters of {m}", joint(shared(k, m))) for k, m in ((5, 4), (6, 10))),
    *(Simulation(f"null, alone: {k} clusters of {m}", alone(shared(k, m))) for k, m in ((5, 4), (6, 10))),
    *(
        Simulation(f"null: interval leaves out 0, {n} pairs", misses_zero(driven(n, "rise", "hump")))
        for n in (10, 20, 60)
    ),
    Simulation("null: contrast of two equals, 40 pairs", better(40, equal=True)),
    *(
        Simulation(f"power: {r} beside the learning rate, {n} pairs", joint(driven(n, "rise", "hump", r)), None)
        for n, r in ((10, 0.9), (20, 0.7), (60, 0.5), (120, 0.3))
    ),
    Simulation("power: contrast with a column that tells nothing, 40 pairs", better(40, equal=False), None),
)  # fmt: skip
"""The registry: one line for each claim about a rate."""


def measured(simulation: Simulation, runs: int) -> tuple[float, float, float]:
    """(rate, low, high) over ``runs`` simulated studies."""
    rng = np.random.default_rng(derive(0, "nulls", simulation.name))
    hits = sum(simulation.says(rng) for _ in range(runs))
    low, high = wilson(hits, runs)
    return hits / runs, low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "nulls.log")
    args = parser.parse_args()
    lines = [f"{'simulation':<72} {'nominal':>7} {'rate':>6} {'runs':>5}  95 % interval"]
    print(lines[0])
    start = time.perf_counter()
    for simulation in SIMULATIONS:
        if args.only and not any(part in simulation.name for part in args.only):
            continue
        rate, low, high = measured(simulation, args.runs)
        nominal = "" if simulation.nominal is None else f"{simulation.nominal:.3f}"
        above = "  above" if simulation.nominal is not None and low > simulation.nominal else ""
        lines.append(f"{simulation.name:<72} {nominal:>7} {rate:6.3f} {args.runs:5d}  [{low:.3f}, {high:.3f}]{above}")
        print(lines[-1], flush=True)
    lines.append(f"{REPLICATES} permutations and replicates each; {time.perf_counter() - start:.0f} s")
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
