"""The situation ``none``: only the two checkpoints are known. No alpha is advised; the results of published paths are
reported."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib import resources

import pandas as pd

from sharpscope.findings.advising.along import AlongPath, Row, new_row, noted

__all__ = [
    "LossAtHalf",
    "PublishedFacts",
    "Tuning",
    "published_facts",
    "published_paths",
    "published_rows",
    "published_sentences",
]

SHIFTS = ("imagenet-v2", "imagenet-r", "imagenet-sketch")
SOURCE = "github.com/RohanSubramani/beyond-wise-ft"


@dataclass(frozen=True)
class Tuning:
    """What is known of a pair's fine-tuning: its learning rate (NaN: unknown) and whether only the head moved."""

    learning_rate: float = math.nan
    head_only: bool | None = None


@dataclass(frozen=True)
class LossAtHalf:
    """What ``paths`` paths, of learning rates ``lr_low`` to ``lr_high``, lose at alpha .5 against their best alpha."""

    paths: int
    lr_low: float
    lr_high: float
    least: float
    most: float


@dataclass(frozen=True)
class PublishedFacts:
    """What the published paths did, by what was tuned: losses are accuracies, means over three natural shifts.

    ``calm``: end-to-end paths with a better point than zero-shot; ``failing``: those on which zero-shot is best;
    ``head_only``: paths of which only the head was trained.
    """

    paths: int
    most_on_one_model: int
    calm: LossAtHalf
    failing: LossAtHalf
    head_only: LossAtHalf


def published_paths() -> pd.DataFrame:
    """The published accuracies, a row for each path and alpha, as ``findings/published/README.md`` describes them.

    Columns: pair, model, lr, epochs, wd, batch_size, freeze_encoder (bool: only the head was trained), alpha (0 is the
    zero-shot model), and the accuracies in [0, 1] on imagenet and on the shifts imagenet-v2, imagenet-r and
    imagenet-sketch.

    Source: RohanSubramani/beyond-wise-ft, https://github.com/RohanSubramani/beyond-wise-ft (Subramani 2022, GitHub).
    """
    with resources.files("sharpscope.findings").joinpath("published/wiseft_paths.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file, dtype=str)  # parsed below: read_csv's own parser may be off in the last digit
    numbers = table.drop(columns=["pair", "model", "freeze_encoder"]).astype(float)
    return table.assign(**numbers, freeze_encoder=table["freeze_encoder"] == "True")


@functools.cache
def published_facts() -> PublishedFacts:
    """The facts, computed from ``published_paths``.

    Source: RohanSubramani/beyond-wise-ft, https://github.com/RohanSubramani/beyond-wise-ft (Subramani 2022, GitHub).
    """
    sorts: dict[str, list[tuple[float, float]]] = {"calm": [], "failing": [], "head_only": []}
    models: dict[str, int] = {}
    for _, rows in published_paths().groupby("pair", sort=False):
        mean = {float(r["alpha"]): sum(float(r[s]) for s in SHIFTS) / len(SHIFTS) for _, r in rows.iterrows()}
        first, best = rows.iloc[0], max(mean, key=lambda a: mean[a])
        sort = "head_only" if first["freeze_encoder"] else "failing" if best == 0 else "calm"
        sorts[sort].append((float(first["lr"]), mean[best] - mean[0.5]))
        models[first["model"]] = models.get(first["model"], 0) + 1
    losses = {
        sort: LossAtHalf(
            len(v), min(lr for lr, _ in v), max(lr for lr, _ in v), min(x for _, x in v), max(x for _, x in v)
        )
        for sort, v in sorts.items()
    }
    return PublishedFacts(sum(models.values()), max(models.values()), **losses)


def published_sentences(facts: PublishedFacts | None = None) -> tuple[str, ...]:
    """What the published paths did, in sentences whose numbers come from the file."""
    facts = facts or published_facts()
    calm, failing, head = facts.calm, facts.failing, facts.head_only
    return (
        f"{facts.paths} published paths of real CLIP models ({facts.most_on_one_model} of one model, {SOURCE}), mean "
        f"of {len(SHIFTS)} natural shifts of ImageNet, at alpha 0.5 against each path's own best alpha",
        f"of {calm.paths + failing.paths} end-to-end paths, the {calm.paths} with learning rate <= {calm.lr_high:g} "
        f"lose at most {100 * calm.most:.1f} points, and the {failing.paths} with learning rate >= {failing.lr_low:g} "
        f"lose {100 * failing.least:.0f} to {100 * failing.most:.0f} points, with zero-shot as their best point",
        f"the {head.paths} paths of a tuned head alone lose at most {100 * head.most:.1f} points at any learning rate "
        f"up to {head.lr_high:g}",
    )


def warning(tuning: Tuning, facts: PublishedFacts | None = None) -> str:
    """A warning where an end-to-end tuning had a learning rate at which published paths fail; empty otherwise.

    Where it is not known whether more than the head was tuned, the warning says so.
    """
    facts = facts or published_facts()
    rate = tuning.learning_rate
    if tuning.head_only or not math.isfinite(rate) or rate <= facts.calm.lr_high:
        return ""
    tuned = "end to end " if tuning.head_only is False else ""
    unknown = "" if tuned else " (unless its head alone was tuned, which is not known)"
    failing = (
        f"published paths of {facts.failing.lr_low:g} and more fail at alpha 0.5"
        if rate >= facts.failing.lr_low
        else f"there is no published path between {facts.calm.lr_high:g} and {facts.failing.lr_low:g}"
    )
    return f"WARNING: this pair was tuned {tuned}with learning rate {rate:g}, and {failing}{unknown}"


def published_rows(path: AlongPath, tuning: Tuning) -> list[Row]:
    """One row without alpha: what is known, with a warning where this pair's learning rate is high."""
    rate = "" if math.isfinite(tuning.learning_rate) else "this pair's learning rate is not known"
    note = noted(
        "no alpha is advised: nothing is known of this pair's OOD accuracy",
        warning(tuning),
        rate,
        *published_sentences(),
    )
    return [new_row(path, "none", "published", "", math.nan, note)]
