"""Straggler criteria that are functions of losses, one file each: module ``NAME`` holds the function ``NAME``.

What is known of every criterion (its text, its source, the bases on which it is taken) stands in
``vocabulary.CRITERIA``. A new criterion of the losses on a layer's own path is one line there and one file here with

    def NAME(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray

from mean losses [..., L, A] in nats and the layer's positions [A] (0 and 1 among them) to scores [..., L], larger for
a layer whose own movement costs more; NaN where a layer has none. Leading axes are bootstrap samples.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import numpy as np

from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import CRITERIA, Criterion

__all__ = ["LossCriterion", "loss_scores", "register"]

LossCriterion = Callable[[np.ndarray, Sequence[float]], np.ndarray]
"""(losses [..., L, A], alphas [A]) -> scores [..., L]."""

_REGISTERED: dict[str, LossCriterion] = {}


def register(criterion: Criterion, function: LossCriterion) -> None:
    """Make a criterion from outside the package known: it is then a choice like the package's own.

    Args:
        criterion: its name, text, source and bases; it has to be a function of the losses on the layer's own path.
        function: ``(losses [..., L, A], alphas [A]) -> scores [..., L]``.

    Raises:
        ConfigError: a criterion of this name is known, the name is no plain word, or it is no function of path losses.
    """
    if not criterion.name.isidentifier():
        raise ConfigError(f"criterion '{shown(criterion.name, 60)}': a name is made of letters, digits and '_'.")
    if criterion.of != "path":
        raise ConfigError(
            f"criterion '{criterion.name}': of has to be 'path', got '{criterion.of}'; criteria of noise or of a "
            "measure cannot be added from outside."
        )
    CRITERIA.add(criterion)
    _REGISTERED[criterion.name] = function


def loss_scores(name: str, losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """The scores [..., L] of criterion ``name`` from ``losses`` [..., L, A] on the layers' own paths.

    Raises:
        ConfigError: the criterion's function gives an array of another shape, or the criterion is from outside and
            its code has not been loaded.
    """
    if name in CRITERIA.origins and name not in _REGISTERED:
        source = shown(CRITERIA.origins[name].source, 60)
        raise ConfigError(
            f"criterion '{name}': its code is not here.\nRemedy: load it from {source} (--plugin FILE.py)."
        )
    function = _REGISTERED.get(name) or getattr(importlib.import_module(f"{__name__}.{name}"), name)
    scores = np.asarray(function(losses, alphas), dtype=float)
    if scores.shape != losses.shape[:-1]:
        raise ConfigError(
            f"criterion '{name}': from losses {losses.shape} it has to give one score a layer, {losses.shape[:-1]}; "
            f"got {scores.shape}."
        )
    return scores
