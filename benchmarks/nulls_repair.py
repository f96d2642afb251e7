"""How often the verdict on repairs is wrong: simulated masks on simulated images, where the truth is known.

    OMP_NUM_THREADS=1 python benchmarks/nulls_repair.py

Each simulated study has stragglers with ``masks`` random masks and as many control sets, two targets, one ID set and
one OOD set. A mask moves the OOD accuracy of its model by a normal number of its own, as real masks do (over seeds the
gain of the embedded world's failing pair goes from -16 to -4 points). An interval at 0.95 may be wrong in 2.5 % of the
studies on each side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import special

from sharpscope.findings.repair import Repairs, Variant, analyse_repairs

__all__ = ["CASES", "Case", "rate", "simulated"]

_GRID = (0.0, 0.5, 1.0)
_ROLES = {"id": "id", "ood": "ood"}
_PLAIN = {"id": (0.5, 0.7, 0.9), "ood": (0.45, 0.5, 0.45)}
_TARGETS = ("delta", "weight")
MARGIN = 0.01
"""``findings.verdicts.GAIN_MARGIN``, below which a gain counts as none."""


@dataclass(frozen=True)
class Case:
    """A truth: mean gains of stragglers and of random layers, and the spread of both from mask to mask, in accuracy."""

    name: str
    stragglers: float
    controls: float
    spread: float
    wrong: Callable[[Repairs], bool]
    """Whether a study's interval says what is not so (or, for power, whether it says what is so)."""
    masks: int = 5


def _holds(repairs: Repairs) -> bool:
    return repairs.ci_low > 0


def _absent(repairs: Repairs) -> bool:
    return repairs.ci_high < MARGIN


CASES = (
    Case("null: stragglers gain as much as controls, masks differ by 5 points: holds", 0.08, 0.08, 0.05, _holds),
    Case("null: stragglers gain as much as controls, masks differ by 15 points: holds", 0.08, 0.08, 0.15, _holds),
    Case("null: stragglers gain as much as controls, masks do not differ: holds", 0.08, 0.08, 0.0, _holds),
    Case("null: nothing gains, masks differ by 5 points: holds", 0.0, 0.0, 0.05, _holds),
    Case("null: the same with 2 masks: holds", 0.08, 0.08, 0.05, _holds, masks=2),
    Case("a gain of 1 point, masks differ by 5 points: does not hold", 0.01, -0.2, 0.05, _absent),
    Case("a gain of 1 point, masks do not differ: does not hold", 0.01, -0.2, 0.0, _absent),
    Case("power: a gain of 15 points, masks differ by 3 points: holds", 0.15, 0.0, 0.03, _holds),
    Case("power: stragglers lose 10 points, masks differ by 3 points: does not hold", -0.1, 0.0, 0.03, _absent),
)


def simulated(case: Case, seed: int, images: int = 300, bootstrap: int = 60) -> Repairs:
    """The analysis of one study in which ``case`` is the truth.

    An image has a difficulty that all models share in part, so that their answers depend on each other.
    """
    rng = np.random.default_rng(seed)
    skill = {role: rng.normal(size=images) for role in _ROLES}

    def answers(role: str, accuracy: Iterable[float]) -> np.ndarray:
        levels = np.clip(np.array(list(accuracy)), 0.01, 0.99)
        own = rng.normal(size=(len(levels), images))
        return (0.8 * skill[role] + 0.6 * own) < special.ndtri(levels)[:, None]

    plain = {role: answers(role, levels) for role, levels in _PLAIN.items()}
    variants = []
    for target in _TARGETS:
        for control, gain in (("none", case.stragglers), ("random_layers", case.controls)):
            for mask in range(1, case.masks + 1):
                level = _PLAIN["ood"][1] + gain + case.spread * rng.normal()
                correct = {"id": answers("id", [_PLAIN["id"][1]]), "ood": answers("ood", [level])}
                name = f"{control}:{target}:random:0.5"
                variants.append(
                    Variant(name, (f"l{mask}",), target, "random", 0.5, 0.5, control, (0.5,), correct, mask)
                )
    return analyse_repairs("p", _GRID, plain, _ROLES, variants, bootstrap=bootstrap, seed=seed)


def rate(case: Case, studies: int, **options: int) -> float:
    """The share of ``studies`` simulated studies in which ``case.wrong`` is so."""
    return sum(case.wrong(simulated(case, seed, **options)) for seed in range(studies)) / studies


def main(studies: int = 1000, cases: Iterable[Case] = CASES) -> None:
    for case in cases:
        print(f"{100 * rate(case, studies):5.1f} % of {studies}  {case.name}", flush=True)


if __name__ == "__main__":
    main()
