"""Which units of work a study consists of: keys, chunks of alphas, repairs with their controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from sharpscope.config.study import StudyConfig
from sharpscope.layers import Layer
from sharpscope.seeds import derive
from sharpscope.vocabulary import Group, Select, Target
from sharpscope.weights.sparsify import matched_control

__all__ = ["CHUNK", "Task", "Variant", "plan_curvature", "roles", "variants"]

CHUNK = 6
"""Neighbouring alphas in one curvature unit: Lanczos starts from the neighbour's vectors inside it, and a killed run
loses no more than this."""


@dataclass(frozen=True)
class Variant:
    """One repair of the path: which layers keep which share of their entries, and as what it is judged.

    ``group``: straggler | random_layers (as many parameters in random other layers) | all_layers (as many dropped
    entries, spread over every layer) | everything (every layer at the same density). ``density`` is the one asked for,
    ``kept`` that of these layers, ``kept_fraction`` that of the whole model.
    """

    group: Group
    layers: tuple[str, ...]
    target: Target
    select: Select
    density: float
    kept: float
    kept_fraction: float

    @property
    def name(self) -> str:
        kind = f"{self.target}:{self.select}:{self.density:g}"
        return f"straggler:{kind}" if self.group == "straggler" else f"control:{self.group}:{kind}"


def roles(config: StudyConfig) -> dict[str, str]:
    """Test set spec -> id | ood, ID sets first."""
    return dict.fromkeys(config.id, "id") | dict.fromkeys(config.ood, "ood")


def plan_curvature(alphas: Sequence[float]) -> list[str]:
    """The alphas of each curvature unit as ``FIRST..LAST``."""
    chunks = [alphas[i : i + CHUNK] for i in range(0, len(alphas), CHUNK)]
    return [f"{c[0]!r}..{c[-1]!r}" for c in chunks]


# ---------------------------------------------------------------------- repair
def variants(
    config: StudyConfig, layers: Sequence[Layer], chosen: Iterable[str], frozen: Iterable[str] = ()
) -> list[Variant]:
    """Every repair of the chosen layers with its controls; empty when nothing is chosen.

    ``frozen``: layers whose delta is zero (most of them where only norms or a head moved): they are no control.
    """
    names, still = set(chosen), set(frozen)
    straggler = [x for x in layers if x.name in names]
    if not straggler:
        return []
    moving = [x for x in layers if x.name not in still]
    groups: dict[Group, Sequence[Layer]] = {
        "straggler": straggler,
        "random_layers": matched_control(straggler, moving, derive(config.seed, "control")),
        "all_layers": moving,
        "everything": moving,
    }
    total = sum(x.num_params for x in layers)
    share = sum(x.num_params for x in straggler) / sum(x.num_params for x in moving)
    out = []
    for target, select, density in product(config.targets, config.selects, config.densities):
        for group, members in groups.items():
            kept = 1 - share * (1 - density) if group == "all_layers" else density
            dropped = sum(x.num_params for x in members) * (1 - kept)
            if members and (group == "straggler" or list(members) != straggler):  # where nothing else moves: no control
                layer_names = tuple(x.name for x in members)
                out.append(Variant(group, layer_names, target, select, density, kept, 1 - dropped / total))
    return out


@dataclass(frozen=True)
class Task:
    """One unit to compute: ``kind/pair/what`` and, for repairs, the variant."""

    key: str
    variant: Variant | None = None

    @property
    def pair(self) -> str:
        return self.key.split("/")[1]
