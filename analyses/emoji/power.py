"""What the emoji study can tell, by simulation before any pair is trained: python analyses/emoji/power.py

The settings are those of design.py. A learning rate that acts nonlinearly drives sharpness, distance, ID accuracy and
gain; what else drives sharpness and gain has the correlation ``r``, which is the partial correlation. Printed is how
often each rule of protocol.md says what it says. About five minutes; the last output is in power.log.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from design import HELD_OUT, TRAINING, Trial, trials

from sharpscope.findings.design import Design
from sharpscope.findings.partial import partial_correlation
from sharpscope.scores import wilson

RUNS: Final = 300
REPLICATES: Final = 199
MARGIN: Final = 0.2


def settings(bases: tuple[int, ...], times: int = 1) -> tuple[Design, np.ndarray]:
    """The design of the study's settings without replicates, and the log learning rates scaled to [0, 1].

    ``times``: how many such studies there are, with as many more settings on the same bases.
    """
    own: list[tuple[int, int, Trial]] = [
        (k, base, t) for k in range(times) for base in bases for t in trials(base) if t.seed == 0
    ]
    names = tuple(f"{k}-{t.name}" for k, _, t in own)
    numbers = {
        "learning_rate": np.array([t.settings["lr"] for *_, t in own]),
        "steps": np.array([float(t.settings["steps"]) for *_, t in own]),
        "augment": np.array([float(t.augment) for *_, t in own]),
    }
    rate = np.log(numbers["learning_rate"])
    return Design(names, tuple(f"base{b}" for _, b, _ in own), names, numbers, additive=True), (
        rate - rate.min()
    ) / np.ptp(rate)


def simulated(design: Design, rate: np.ndarray, r: float, level: float, rng: np.random.Generator) -> tuple[float, ...]:
    """(estimate, low, high, p) of the partial correlation in one simulated study."""
    n = len(rate)
    base = np.unique(design.base, return_inverse=True)[1]
    own, other = rng.normal(size=(2, n))
    x = np.exp(3 * rate) / 8 + 0.3 * own + rng.normal(size=5)[base]
    y = 1 - 8 * np.maximum(rate - 0.5, 0) ** 2 + 0.3 * (r * own + np.sqrt(1 - r**2) * other) + rng.normal(size=5)[base]
    given = design.covariates | {
        "distance": rate + 0.15 * rng.normal(size=n),
        "id_accuracy": 1 - 8 * (rate - 0.5) ** 2 + 0.3 * rng.normal(size=n),
    }
    found = partial_correlation(
        x[None], y, design, given, keys=design.keys(REPLICATES, rng), rng=rng, level=level, outcome="gain"
    )
    return float(found.estimate[0]), float(found.low[0]), float(found.high[0]), float(found.p[0])


def main() -> None:
    rng = np.random.default_rng(15)
    training, held_out = settings(TRAINING), settings(HELD_OUT)
    print(
        f"{len(training[1])} pairs in the training bases, {len(held_out[1])} in the held-out ones, {RUNS} simulations"
    )
    for r in (0.0, 0.2, 0.3, 0.4, 0.5):
        first = [simulated(*training, r, 0.90, rng) for _ in range(RUNS)]
        second = [simulated(*held_out, r, 0.90, rng) for _ in range(RUNS)]
        alone = [p <= 0.05 for *_, p in first]
        again = [p <= 0.10 and e * f > 0 for (e, *_), (f, _, _, p) in zip(first, second, strict=True)]
        report(f"partial {r}: p <= .05 in the training bases", alone)
        report(f"partial {r}: p <= .025 in the training bases", [p <= 0.025 for *_, p in first])
        report(
            f"partial {r}: holds (p <= .05, and held-out bases agree)",
            [a and b for a, b in zip(alone, again, strict=True)],
        )
        report(
            f"partial {r}: absent (90 % interval within +-{MARGIN})", [max(-lo, hi) < MARGIN for _, lo, hi, _ in first]
        )
    for bases, times in itertools.product([TRAINING], (2, 3)):
        many = settings(bases, times)
        found = [simulated(*many, 0.0, 0.90, rng) for _ in range(RUNS)]
        report(f"partial 0, {len(many[1])} pairs: absent", [max(-lo, hi) < MARGIN for _, lo, hi, _ in found])


def report(what: str, said: list[bool]) -> None:
    low, high = wilson(sum(said), len(said))
    print(f"{what:70s} {sum(said) / len(said):.2f} [{low:.2f}, {high:.2f}]", flush=True)


if __name__ == "__main__":
    main()
