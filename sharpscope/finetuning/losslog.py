"""The losses of a training, which stay on the device until something asks for them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from sharpscope.errors import NumericalError
from sharpscope.machine.devices import numbers

__all__ = ["READ_EVERY", "LossLog"]

READ_EVERY = 20
"""The number of losses that wait on a GPU before they are read together. With more of them the host waits less often,
and a training that diverges ends later, with the same message."""


class LossLog:
    """The losses of the steps so far, ``total`` of them to come; ``rate`` is what the error advises to lower."""

    def __init__(self, known: Iterable[float], total: int, rate: float) -> None:
        self._known, self._total, self._rate = list(known), total, rate
        self._waiting: list[tuple[int, Tensor, bool]] = []

    def add(self, step: int, loss: Tensor, *, counts: bool = True) -> None:
        """Take the loss of a step, a tensor of no dimension; ``counts``: whether it is among those that are returned.

        On the CPU it is looked at immediately. Raises what ``read`` raises.
        """
        self._waiting.append((step, loss, counts))
        if loss.device.type == "cpu" or len(self._waiting) >= READ_EVERY:
            self.read()

    @property
    def waiting(self) -> bool:
        """Whether a loss has not been looked at yet."""
        return bool(self._waiting)

    def read(self) -> list[float]:
        """The losses of all steps so far; raises NumericalError for the first that is not finite, with its step."""
        waiting, self._waiting = self._waiting, []
        values = numbers(*(loss for _, loss, _ in waiting)) if waiting else []
        for value, (step, _, counts) in zip(values, waiting, strict=True):
            if not math.isfinite(value):
                raise NumericalError(
                    f"finetune: loss is {value} at step {step} of {self._total}; lower lr ({self._rate:g})."
                )
            if counts:
                self._known.append(value)
        return self._known
