"""Straggler criteria that are functions of losses, one file each: module ``NAME`` holds the function ``NAME``.

The text, the source and the bases of every criterion stand in ``vocabulary.CRITERIA``. A new criterion of the losses on
a layer's own path is one line there and one file here with the function

    def NAME(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray

It takes mean losses [..., L, A] in nats and the layer's positions [A] (0 and 1 among them) and returns scores [..., L],
larger for a layer whose own movement costs more and NaN for a layer without a score. Leading axes are bootstrap
samples.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import numpy as np

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.vocabulary import BASES, CRITERIA, Base, Criterion

__all__ = ["LossCriterion", "loss_scores", "register_criterion"]

LossCriterion = Callable[[np.ndarray, Sequence[float]], np.ndarray]
"""(losses [..., L, A], alphas [A]) -> scores [..., L]."""

_REGISTERED: dict[str, LossCriterion] = {}


def register_criterion(
    name: str, text: str, *, bases: Sequence[Base] = tuple(BASES), source: str = "ours"
) -> Callable[[LossCriterion], LossCriterion]:
    """Decorator: make a function of the losses on a layer's own path a straggler criterion like the package's own.

    >>> @register_criterion("half_way", "Loss half-way along the layer's own path.")  # doctest: +SKIP
    ... def half_way(losses, alphas):
    ...     return losses[..., len(alphas) // 2]

    Args:
        name: the criterion's name in flags and tables: letters, digits and ``_``.
        text: one sentence that says what the score means.
        bases: the positions of the other layers, as names of ``vocabulary.BASES``.
        source: authors, year and arXiv id.

    The function gets mean losses [..., L, A] in nats and the layers' positions [A] and returns scores [..., L], larger
    for a layer whose own movement costs more.

    Raises:
        ConfigError: a name that is known already or that no flag could carry, or an unknown base.
    """
    if not name.isidentifier():
        raise ConfigError(f"criterion '{shown(name, 60)}': a name is made of letters, digits and '_'.")
    if unknown := [b for b in bases if b not in BASES]:
        near = did_you_mean(str(unknown[0]), BASES)
        raise ConfigError(f"criterion '{name}': base '{shown(unknown[0], 60)}' is none of {', '.join(BASES)}.{near}")

    def register(function: LossCriterion) -> LossCriterion:
        CRITERIA.add(Criterion(name, text, source, bases=tuple(bases)))
        _REGISTERED[name] = function
        return function

    return register


def loss_scores(name: str, losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """The scores [..., L] of criterion ``name`` from ``losses`` [..., L, A] on the layers' own paths.

    Raises:
        ConfigError: the criterion's function gives an array of another shape, or the criterion is from outside and
            its code has not been loaded.
    """
    if name in CRITERIA.origins and name not in _REGISTERED:
        source = shown(CRITERIA.origins[name].source, 60)
        raise ConfigError(
            f"criterion '{name}': its code has not been loaded.\nRemedy: load it from {source} (--plugin FILE.py)."
        )
    function = _REGISTERED.get(name) or getattr(importlib.import_module(f"{__name__}.{name}"), name)
    scores = np.asarray(function(losses, alphas), dtype=float)
    if scores.shape != losses.shape[:-1]:
        raise ConfigError(
            f"criterion '{name}': for losses of shape {losses.shape} its function must return one score per layer, "
            f"shape {losses.shape[:-1]}; got shape {scores.shape}."
        )
    return scores
