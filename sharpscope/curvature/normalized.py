"""The loss of normalised logits, which does not change when the logits are rescaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError
from sharpscope.machine.team import team_of

__all__ = ["with_normalized_logits"]


@runtime_checkable
class _Normalizable(Protocol):
    def normalized(self) -> Objective: ...


class _Normalized:
    """The mean cross-entropy of an objective's logits f after f <- (f - mean f) / ||f - mean f||."""

    def __init__(self, objective: Any) -> None:
        self._objective = objective
        self.weights: Sequence[float] = objective.weights
        self.team = team_of(objective)

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        logits = self._objective.batch_logits(i, theta)
        logits = F.normalize(logits - logits.mean(dim=1, keepdim=True), dim=1)
        return F.cross_entropy(logits, self._objective.batch_labels(i))


def with_normalized_logits(objective: Objective) -> Objective:
    """The same examples with the cross-entropy of their normalised logits as the loss.

    Raises ConfigError for an objective without logits and labels.

    Source: Andriushchenko et al. 2023, arXiv 2302.07011.
    """
    if isinstance(objective, _Normalizable):
        return objective.normalized()
    if not (hasattr(objective, "batch_logits") and hasattr(objective, "batch_labels")):
        raise ConfigError("normalize_logits: this loss provides no logits and labels that could be normalised.")
    return _Normalized(objective)
