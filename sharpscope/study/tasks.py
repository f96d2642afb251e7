"""The units of work that make up a study: their keys, chunks of alphas, and repairs with their controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

import numpy as np

from sharpscope.config.study import StudyConfig
from sharpscope.layers import Layer
from sharpscope.seeds import derive
from sharpscope.vocabulary import MEASURES, Group, Select, Target, draws_masks

__all__ = [
    "CHUNK", "SPLIT", "Family", "Task", "Variant", "density_alphas", "image_key", "looked_at", "mask_seed",
    "matched_control", "measured_at", "perturbation_alphas", "plan_curvature", "roles", "variants",
]  # fmt: skip

CHUNK = 6
"""The number of neighbouring alphas in one unit of curvature work. Inside a unit Lanczos starts from the neighbour's
vectors; a killed run loses at most one unit."""

_TRIALS: Final = 64
"""The number of random sets of layers that are drawn; the set with the nearest number of parameters is the control. A
larger value finds a closer match."""


@dataclass(frozen=True)
class Variant:
    """One repair of the path: the layers that are made sparse, the share of entries they keep, and their role.

    ``group`` is straggler | random_layers (as many parameters in random other layers) | all_layers (as many dropped
    entries, spread over every layer) | everything (every layer at the same density). ``density`` is the density asked
    for, ``kept`` the density of these layers and ``kept_fraction`` that of the whole model. ``mask`` is the number of
    the random draw (of the mask, and of random layers), None where nothing is drawn.
    """

    group: Group
    layers: tuple[str, ...]
    target: Target
    select: Select
    density: float
    kept: float
    kept_fraction: float
    mask: int | None

    @property
    def kind(self) -> str:
        """The name that all masks of this repair have in common."""
        kind = f"{self.target}:{self.select}:{self.density:g}"
        return f"straggler:{kind}" if self.group == "straggler" else f"control:{self.group}:{kind}"

    @property
    def name(self) -> str:
        return self.kind if self.mask is None else f"{self.kind}#{self.mask}"


def roles(config: StudyConfig) -> dict[str, str]:
    """Test set spec -> id | ood, ID sets first."""
    return dict.fromkeys(config.id, "id") | dict.fromkeys(config.ood_groups, "ood")


def plan_curvature(alphas: Sequence[float]) -> list[str]:
    """The alphas of each curvature unit as ``FIRST..LAST``."""
    chunks = [alphas[i : i + CHUNK] for i in range(0, len(alphas), CHUNK)]
    return [f"{c[0]!r}..{c[-1]!r}" for c in chunks]


def image_key(measure: str, alpha: float) -> str:
    """The array of a curvature unit that holds what each probe image adds to the layers' estimates, [L, n]."""
    return f"images:{measure}:{alpha!r}"


def looked_at(alphas: tuple[float, ...], chosen: tuple[float, ...] | None) -> tuple[float, ...]:
    """The ``chosen`` alphas; for None the first, the middle and the last of ``alphas``, each once."""
    return tuple(dict.fromkeys((alphas[0], alphas[len(alphas) // 2], alphas[-1]))) if chosen is None else chosen


def density_alphas(config: StudyConfig) -> tuple[float, ...]:
    """The alphas at which the spectral density is measured."""
    return looked_at(config.measured_alphas, config.density_alphas) if config.density_layers else ()


def measured_at(config: StudyConfig, measure: str, alpha: float) -> bool:
    """Whether ``measure`` is taken at ``alpha``, one of the alphas at which sharpness is measured."""
    return MEASURES[measure].taken_at == "alphas" or alpha in perturbation_alphas(config)


def perturbation_alphas(config: StudyConfig) -> tuple[float, ...]:
    """The alphas at which the measures of finite radius are taken."""
    return looked_at(config.measured_alphas, config.perturbation_alphas)


# ---------------------------------------------------------------------- repair
def variants(
    config: StudyConfig, layers: Sequence[Layer], chosen: Iterable[str], frozen: Iterable[str] = ()
) -> list[Variant]:
    """Every repair of the chosen layers with its controls; empty when no layer is chosen.

    ``frozen`` names the layers whose delta is zero (most layers, where only norms or a head moved). They are never used
    as a control. Stragglers have ``config.masks`` random masks, and each of these has random layers of its own. The
    controls on all layers are drawn once, since no verdict rests on them.
    """
    names, still = set(chosen), set(frozen)
    straggler = [x for x in layers if x.name in names]
    if not straggler:
        return []
    moving = [x for x in layers if x.name not in still]
    masks = range(1, config.masks + 1)
    controls: list[tuple[Layer, ...]] = []
    for i in masks:
        controls.append(matched_control(straggler, moving, derive(config.seed, "control", *_later(i)), controls))
    groups: dict[Group, list[Sequence[Layer]]] = {
        "straggler": [straggler] * len(masks),
        "random_layers": list(controls),
        "all_layers": [moving],
        "everything": [moving],
    }
    total = sum(x.num_params for x in layers)
    share = sum(x.num_params for x in straggler) / sum(x.num_params for x in moving)
    out = []
    for target, select, density in product(config.targets, config.selects, config.densities):
        for group, draws in groups.items():
            kept = 1 - share * (1 - density) if group == "all_layers" else density
            drawn = group == "random_layers" or draws_masks(select, density)
            for i, members in enumerate(draws if drawn else draws[:1], 1):
                dropped = sum(x.num_params for x in members) * (1 - kept)
                if members and (group == "straggler" or list(members) != straggler):  # none where nothing else moves
                    layer_names, number = tuple(x.name for x in members), i if drawn else None
                    out.append(Variant(group, layer_names, target, select, density, kept, 1 - dropped / total, number))
    return out


def mask_seed(seed: int, pair: str, variant: Variant) -> int:
    """The seed of the entries that ``variant`` keeps; targets, choices and numbers have masks of their own."""
    return derive(seed, "mask", pair, variant.group, variant.target, variant.select, *_later(variant.mask))


def _later(mask: int | None) -> tuple[int, ...]:
    """What tells a mask's seed from the first one's, which is that of runs from before masks were numbered."""
    return () if mask in (None, 1) else (mask,)


def matched_control(
    chosen: Iterable[Layer],
    all_layers: Sequence[Layer],
    seed: int,
    unlike: Iterable[tuple[Layer, ...]] = (),
) -> tuple[Layer, ...]:
    """Random layers with about as many parameters as ``chosen`` and none of its layers: the control of a repair.

    In each of 64 trials the other layers are put in random order, and a layer is taken if it brings the total number of
    parameters nearer to that of ``chosen``. The trial with the nearest total wins. The result is in the order of
    ``all_layers``; it is empty when ``chosen`` is empty or no other layer is left. Pass only layers that move, since
    sparsity does nothing to a frozen one. Sets in ``unlike`` are taken only if no trial finds another.
    """
    chosen = tuple(chosen)
    taken = {layer.name for layer in chosen}
    others = [layer for layer in all_layers if layer.name not in taken]
    wanted = sum(layer.num_params for layer in chosen)
    if not chosen or not others:
        return ()
    generator = np.random.RandomState(derive(seed, "control", *sorted(taken)) & 0xFFFFFFFF)
    used = {frozenset(layer.name for layer in known) for known in unlike}
    best: tuple[int, list[int]] | None = None
    for _ in range(_TRIALS):
        total, picked = 0, []
        for i in _random_order(len(others), generator):
            if abs(total + others[i].num_params - wanted) < abs(total - wanted):
                total += others[i].num_params
                picked.append(i)
        if frozenset(others[i].name for i in picked) in used:
            continue
        if picked and (best is None or abs(total - wanted) < best[0]):
            best = abs(total - wanted), picked
    if best is None and used:
        return matched_control(chosen, all_layers, seed)
    if best is None:  # every other layer is more than twice as large, so the smallest is the nearest
        return (min(others, key=lambda layer: layer.num_params),)
    return tuple(others[i] for i in sorted(best[1]))


def _random_order(count: int, generator: np.random.RandomState) -> list[int]:
    """0 ... ``count`` - 1 in random order, equal to torch.randperm with the same seed but without torch.

    Both draw 32-bit words from MT19937 (Matsumoto and Nishimura 1998) and exchange place i with place i + word mod
    (count - i). Run directories whose controls were drawn by torch therefore keep the same controls.
    """
    words = generator.randint(0, 1 << 32, size=max(count - 1, 0), dtype=np.uint32)
    order = list(range(count))
    for i, word in enumerate(words.tolist()):
        j = i + word % (count - i)
        order[i], order[j] = order[j], order[i]
    return order


SPLIT: Final = ("curvature", "eigenvectors", "layers", "noise")
"""The kinds of units that the ranks of torchrun measure together with ``split_units``: all units that use the probe set
only. Units that evaluate test images are distributed among the ranks as without it."""

Family = Literal["path", "repair", "upgraded"]
"""The kinds of points of weight space that one pass over the test images can serve together."""

_FAMILIES: Final[dict[str, Family]] = {
    "path": "path", "pathvariant": "path", "repair": "repair", "upgraded": "upgraded",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One unit to compute: ``kind/pair/what`` and, for repairs, the variant."""

    key: str
    variant: Variant | None = None

    @property
    def family(self) -> Family | None:
        """The family of the point that this unit evaluates; None for a unit that is none of a point's evaluation."""
        return _FAMILIES.get(self.kind)

    @property
    def kind(self) -> str:
        return self.key.split("/")[0]

    @property
    def splits(self) -> bool:
        """Whether ranks can measure this unit together."""
        return self.kind in SPLIT

    @property
    def pair(self) -> str:
        return self.key.split("/")[1]
