"""The fine-tunings of the emoji study: settings by Latin hypercube, anew for every base. protocol.md says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sharpscope.config.sweepdraws import Choices, Range, drawn

__all__ = ["BASES", "HELD_OUT", "METHODS", "TRAINING", "Trial", "trials"]

TRAINING: Final = (0, 1, 2)
"""Bases whose pairs decide a verdict first."""
HELD_OUT: Final = (3, 4)
"""Bases in which a verdict has to hold again."""
BASES: Final = (*TRAINING, *HELD_OUT)
METHODS: Final = ("wise-ft", "lp-ft", "l2-sp", "flyp", "lipsum-ft", "sam")
_PAIRS: Final = {**dict.fromkeys(TRAINING, 50), **dict.fromkeys(HELD_OUT, 40)}
_REPLICATES: Final = 8
"""Settings of every training base that are fine-tuned with a second seed."""
_STRATA: Final = ((0.15, 5e-5, 3e-4), (0.60, 3e-4, 3e-3), (0.25, 3e-3, 2e-2))
"""(share of the pairs, lowest, highest learning rate), log-uniform within each."""
_RANGES: Final = {
    "lr": Range(0.0, 1.0),
    "method": Choices(METHODS),
    "steps": Range(50, 400, "log", whole=True),
    "batch_size": Choices((32, 64, 128)),
    "weight_decay": Range(1e-3, 0.3, "log"),
    "warmup": Range(0.0, 0.2),
    "label_smoothing": Range(0.0, 0.2),
    "augment": Choices((False, True)),
}
_AUGMENTED: Final = {
    True: {"crop": [0.5, 1.0], "flip": 0.0, "jitter": [0.3, 0.3, 0.3, 0.05]},
    False: {"crop": None, "flip": 0.0, "jitter": None},
}
_OWN: Final[Mapping[str, Mapping[str, Any]]] = {
    "lp-ft": {"probe_lr": 1e-2},
    "l2-sp": {"optimizer": "adamw"},
    "lipsum-ft": {"keep_best": False, "judge_every": None, "optimizer": "adamw"},
}
"""What a method needs besides: an optimizer and a length that all have in common."""
_WITHOUT: Final = {"l2-sp": ("weight_decay",), "flyp": ("label_smoothing",)}
"""What a method does not have."""


@dataclass(frozen=True)
class Trial:
    """One fine-tuning: ``setting`` is what replicates have in common, ``settings`` what ``finetune`` is given."""

    name: str
    setting: str
    method: str
    seed: int
    augment: bool
    settings: Mapping[str, Any]


def trials(base: int) -> tuple[Trial, ...]:
    """All fine-tunings of a base: its settings with seed 0, then the first eight of a training base with seed 1."""
    values = drawn(_PAIRS[base], _RANGES, "latin-hypercube", seed=2610 + base)
    seeds = [(i, 0) for i in range(len(values))]
    if base in TRAINING:
        seeds += [(i, 1) for i in range(_REPLICATES)]
    return tuple(_trial(base, i, values[i], seed) for i, seed in seeds)


def _trial(base: int, number: int, drawn_values: Mapping[str, Any], seed: int) -> Trial:
    values = dict(drawn_values)
    method, augment, share = values.pop("method"), values.pop("augment"), values.pop("lr")
    setting = f"base{base}-{number:02d}"
    settings = {"lr": _rate(share), **values, **_AUGMENTED[augment], **_OWN.get(method, {})}
    for name in _WITHOUT.get(method, ()):
        del settings[name]
    return Trial(f"{setting}-seed{seed}", setting, method, seed, augment, settings)


def _rate(share: float) -> float:
    """The learning rate below which ``share`` of the pairs lie."""
    for part, low, high in _STRATA:
        if share < part:
            return float(low * (high / low) ** (share / part))
        share -= part
    return _STRATA[-1][2]
