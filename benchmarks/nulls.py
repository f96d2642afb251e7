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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from sharpscope.findings.design import Design, independent
from sharpscope.findings.marginal import marginal_block
from sharpscope.findings.partial import contrast, partial_correlation
from sharpscope.findings.relation import relation_verdict
from sharpscope.findings.reliability import SamplingError, answer_error
from sharpscope.scores import wilson
from sharpscope.seeds import derive
from sharpscope.vocabulary import DOES_NOT_HOLD, HOLDS

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


Conclude = Callable[[np.random.Generator], tuple[Study, dict[str, SamplingError]]]


def exact(make: Make) -> Conclude:
    """The studies of ``make``, their accuracies measured without error."""
    return lambda rng: (make(rng), {})


def unaware(make: Conclude) -> Conclude:
    """The same studies judged by additive covariates, as if every accuracy were exact."""

    def out(rng: np.random.Generator) -> tuple[Study, dict[str, SamplingError]]:
        (design, *numbers), _ = make(rng)
        return (replace(design, additive=True), *numbers), {}  # type: ignore[return-value]

    return out


def concludes(make: Conclude, verdict: str = HOLDS) -> Callable[[np.random.Generator], bool]:
    """Whether the claim about the whole model gets ``verdict``."""

    def says(rng: np.random.Generator) -> bool:
        (design, x, y, given), errors = make(rng)
        keys = design.keys(REPLICATES, rng)
        found = partial_correlation(x[None], y, design, given, keys=keys, rng=rng, outcome="gain", errors=errors)
        row = {"status": "ok" if np.isfinite(found.estimate[0]) else "undefined", "n_effective": found.n_effective[0]}
        row |= {"ci_low": found.low[0], "ci_high": found.high[0], "q_value": found.p[0], "doubt": found.doubt[0]}
        return relation_verdict(pd.Series(row)) == verdict

    return says


def _on_bases(
    n: int, bases: int, effect: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray], noise: float
) -> Make:
    """n recipes of which ``effect`` (rate, base) drives sharpness and gain, and ID accuracy tells nothing."""

    def make(rng: np.random.Generator) -> Study:
        rate, base, names = rng.random(n), np.arange(n) % bases, tuple(f"p{i}" for i in range(n))
        f = effect(rate, base, rng)
        given = {
            "learning_rate": rate,
            "distance": rate + 0.15 * rng.normal(size=n),
            "id_accuracy": rng.normal(size=n),
        }
        x, y = (f + noise * rng.normal(size=n) for _ in "xy")
        return Design(names, tuple(f"b{i}" for i in base), names), x, y, given

    return make


def breaking(n: int, bases: int, spread: float) -> Make:
    """Each base breaks beyond a learning rate of its own: .6 with a standard deviation of ``spread``."""

    def effect(rate: np.ndarray, base: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return -1.0 * (rate > 0.6 + spread * rng.normal(size=bases)[base])

    return _on_bases(n, bases, effect, 0.2)


def own_best(n: int, bases: int) -> Make:
    """Each base has a best learning rate of its own, from .25 to .75."""
    return _on_bases(n, bases, lambda rate, base, _: -4 * (rate - np.linspace(0.25, 0.75, bases)[base]) ** 2, 0.15)


def opposite(n: int, bases: int) -> Make:
    """A larger learning rate raises both on every second base, and lowers both on the others."""
    return _on_bases(n, bases, lambda rate, base, _: np.where(base % 2, -rate, rate), 0.15)


def both_large(n: int) -> Make:
    """Sharpness and gain jump where learning rate and number of steps are both large."""

    def make(rng: np.random.Generator) -> Study:
        rate, steps, names = rng.random(n), rng.random(n), tuple(f"p{i}" for i in range(n))
        f = 1.0 * ((rate > 0.5) & (steps > 0.5))
        given = {"learning_rate": rate, "distance": rate + steps + 0.3 * rng.normal(size=n), "steps": steps}
        given["id_accuracy"] = rng.normal(size=n)
        return Design(names, ("",) * n, names), f + 0.2 * rng.normal(size=n), -f + 0.2 * rng.normal(size=n), given

    return make


def _free(n: int, rng: np.random.Generator) -> tuple[Design, dict[str, np.ndarray]]:
    """n recipes on one base and covariates that drive nothing."""
    names, rate = tuple(f"p{i}" for i in range(n)), rng.random(n)
    given = {"learning_rate": rate, "distance": rate + 0.15 * rng.normal(size=n), "id_accuracy": rng.normal(size=n)}
    return Design(names, ("",) * n, names), given


def on_images(n: int, images: int, mean: float) -> Conclude:
    """A hidden part of the recipe makes models sharper and moves the answer to each image, by ``mean`` on average."""

    def make(rng: np.random.Generator) -> tuple[Study, dict[str, SamplingError]]:
        (design, given), hidden = _free(n, rng), rng.normal(size=n)
        push, start = mean + 0.5 * rng.normal(size=images), rng.normal(size=images)
        right = start + hidden[:, None] * push + 0.1 * rng.normal(size=(n, images)) > 0
        answers = {
            p: ((0.0, 0.5), {"set": np.stack([start > 0, own])}) for p, own in zip(design.pairs, right, strict=True)
        }
        error = answer_error(answers, design.pairs, ["set"], 0.5, gain=True)
        assert error is not None
        gain = right.mean(axis=1) - (start > 0).mean()
        return (design, hidden + 0.2 * rng.normal(size=n), gain, given), {"gain": error}

    return make


def unreliable(n: int, link: float, share: float) -> Conclude:
    """A correlation of ``link`` with a gain of which ``share`` of the variance is no sampling error."""

    def make(rng: np.random.Generator) -> tuple[Study, dict[str, SamplingError]]:
        (design, given), x, error = _free(n, rng), rng.normal(size=n), 1 / share - 1
        gain = link * x + math.sqrt(1 - link**2) * rng.normal(size=n) + math.sqrt(error) * rng.normal(size=n)
        return (design, x, gain, given), {"gain": SamplingError(error * np.eye(n), paired=True)}

    return make


def inexact_id(n: int, share: float, link: float = 0.0) -> Conclude:
    """True ID accuracy explains half of sharpness and of gain; ``share`` of the variance of the measured one is true.
    ``link``: the correlation of what else drives the two."""

    def make(rng: np.random.Generator) -> tuple[Study, dict[str, SamplingError]]:
        (design, given), true, own = _free(n, rng), rng.normal(size=n), rng.normal(size=n)
        error = 1 / share - 1
        given["id_accuracy"] = true + math.sqrt(error) * rng.normal(size=n)
        other = link * own + math.sqrt(1 - link**2) * rng.normal(size=n)
        x, y = (math.sqrt(0.5) * (true + rest) for rest in (own, other))
        return (design, x, y, given), {"id_accuracy": SamplingError(error * np.eye(n), paired=True)}

    return make


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


_BY_BASE: Final[dict[str, Make]] = {
    **{f"each base breaks at its own rate (sd {s}), 90 over 3": breaking(90, 3, s) for s in (0.05, 0.1, 0.2)},
    "each base breaks at its own rate (sd 0.1), 120 over 6": breaking(120, 6, 0.1),
    "each base breaks at its own rate (sd 0.1), 90 over 9": breaking(90, 9, 0.1),
    "each base has its own best rate, 72 over 6": own_best(72, 6),
    "each base has its own best rate, 60 over 3": own_best(60, 3),
    "opposite slopes, 60 over 2": opposite(60, 2),
    "opposite slopes, 60 over 6": opposite(60, 6),
    "rate and steps both large, 60 pairs": both_large(60),
    "rate and steps both large, 120 pairs": both_large(120),
}
_INEXACT: Final[dict[str, Conclude]] = {
    "effect 0 over images, 30 pairs, 200 images": on_images(30, 200, 0.0),
    "effect 0 over images, 30 pairs, 1000 images": on_images(30, 1000, 0.0),
    "ID accuracy with reliability .8, 60 pairs": inexact_id(60, 0.8),
    "ID accuracy with reliability .8, 120 pairs": inexact_id(120, 0.8),
    "ID accuracy with reliability .95, 120 pairs": inexact_id(120, 0.95),
}
_POWER: Final[dict[str, Conclude]] = {
    **{
        f"{r} beside the learning rate, {n} over {b}": exact(driven(n, "rise", "hump", r, b))
        for n, b, r in ((30, 5, 0.7), (60, 3, 0.5), (72, 6, 0.5), (150, 3, 0.3), (24, 12, 0.9))
    },
    "an effect on images of .1, 30 pairs, 1000 images": on_images(30, 1000, 0.1),
    "0.4, reliability of the gain .9, 150 pairs": unreliable(150, 0.4, 0.9),
    "0.5, ID accuracy with reliability .8, 60 pairs": inexact_id(60, 0.8, 0.5),
    "0.5, ID accuracy with reliability .95, 60 pairs": inexact_id(60, 0.95, 0.5),
}
_EVERY: Final = {name: exact(make) for name, make in _BY_BASE.items()} | _INEXACT

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
    *(Simulation(f"null, holds: {name}", concludes(make)) for name, make in _EVERY.items()),
    *(Simulation(f"additive, exact, holds: {name}", concludes(unaware(make)), None) for name, make in _EVERY.items()),
    *(
        Simulation(f"{said}, does not hold: {r}, reliability {s}, 150 pairs", concludes(how(made), DOES_NOT_HOLD), at)
        for r, s, made in ((r, s, unreliable(150, r, s)) for r, s in ((0.4, 0.28), (0.6, 0.1)))
        for said, how, at in (("false", lambda make: make, LEVEL), ("additive, exact, false", unaware, None))
    ),
    *(Simulation(f"power, holds: {name}", concludes(make), None) for name, make in _POWER.items()),
    *(Simulation(f"additive, exact, power: {name}", concludes(unaware(make)), None) for name, make in _POWER.items()),
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
    lines = [f"{'simulation':<80} {'nominal':>7} {'rate':>6} {'runs':>5}  95 % interval"]
    print(lines[0])
    start = time.perf_counter()
    for simulation in SIMULATIONS:
        if args.only and not any(part in simulation.name for part in args.only):
            continue
        rate, low, high = measured(simulation, args.runs)
        nominal = "" if simulation.nominal is None else f"{simulation.nominal:.3f}"
        above = "  above" if simulation.nominal is not None and low > simulation.nominal else ""
        lines.append(f"{simulation.name:<80} {nominal:>7} {rate:6.3f} {args.runs:5d}  [{low:.3f}, {high:.3f}]{above}")
        print(lines[-1], flush=True)
    lines.append(f"{REPLICATES} permutations and replicates each; {time.perf_counter() - start:.0f} s")
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
