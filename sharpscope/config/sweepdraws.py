"""Random configurations of a sweep: how often to draw, from which ranges, and by which design."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sharpscope.config.fields import check_keys, checked_fields
from sharpscope.errors import ConfigError, shown
from sharpscope.seeds import derive

__all__ = ["Choices", "Design", "Range", "drawn", "read_ranges"]

Design = Literal["random", "latin-hypercube"]
"""random: independent draws (Bergstra and Bengio 2012, JMLR 13). latin-hypercube: each range is cut into as many parts
of equal probability as there are draws, and every part holds one draw (McKay, Beckman and Conover 1979, Technometrics
21(2))."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, uniform in the number (linear) or in its logarithm (log).

    ``whole``: whole numbers from ``low`` to ``high``, both included: the floor of a number of [low, high + 1). Raises
    ConfigError for bounds in the wrong order, a log scale that does not start above 0, and whole numbers with bounds
    that are none.
    """

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"low {self.low:g} has to be below high {self.high:g}, and both finite.")
        if self.scale == "log" and self.low <= 0:
            raise ConfigError(f"low {self.low:g}: a log scale starts above 0.")
        if self.whole and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ConfigError(f"whole: true needs whole numbers for low and high, got {self.low:g} and {self.high:g}.")

    @property
    def count(self) -> float:
        """How many values there are."""
        return self.high - self.low + 1 if self.whole else math.inf

    def at(self, share: float) -> float | int:
        """The value below which a ``share`` in [0, 1) of the draws lies."""
        high = self.high + self.whole
        value = self.low * (high / self.low) ** share if self.scale == "log" else self.low + share * (high - self.low)
        value = min(max(value, self.low), self.high)  # powers round
        return math.floor(value) if self.whole else value


@dataclass(frozen=True)
class Choices:
    """Values of which each is as likely as the others."""

    values: tuple[Any, ...]

    @property
    def count(self) -> float:
        """How many values there are."""
        return len(self.values)

    def at(self, share: float) -> Any:
        """The value at a ``share`` in [0, 1) of the list."""
        return self.values[min(math.floor(share * len(self.values)), len(self.values) - 1)]  # a share may round to 1


def read_ranges(given: Mapping[str, Any]) -> dict[str, Range | Choices]:
    """``{low, high, scale, whole}`` or a list of values, by hyperparameter; raises ConfigError that names the key."""
    return {name: _read(f"ranges.{name}", value) for name, value in given.items()}


def _read(where: str, given: Any) -> Range | Choices:
    if isinstance(given, (list, tuple)) and given:
        if twice := [v for i, v in enumerate(given) if v in given[:i]]:
            raise ConfigError(f"{where}: '{shown(twice[0], 60)}' is given twice.")
        return Choices(tuple(given))
    if not isinstance(given, Mapping) or not {"low", "high"} <= set(given):
        raise ConfigError(
            f"{where}: needs a list of values, or a range such as {{low: 1.0e-5, high: 1.0e-3, scale: log}}."
        )
    check_keys(given, Range, f"{where}: ")
    try:
        return Range(**checked_fields(Range, {"scale": "linear", "whole": False, **given}))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def drawn(count: int, ranges: Mapping[str, Range | Choices], design: Design, seed: int) -> tuple[dict[str, Any], ...]:
    """``count`` configurations, no two alike: hyperparameter -> value.

    A number depends on the seed, its hyperparameter and its draw alone. So with the design random, a larger ``count``
    keeps the first configurations, and another range changes no value of the others unless it makes two alike; a Latin
    hypercube of another ``count`` is another design.

    Raises ConfigError for a count below 1, without ranges, and where there are fewer configurations than are wanted.
    """
    if count < 1 or not ranges:
        raise ConfigError("draw: needs at least 1 configuration, and ranges to draw from.")
    there = math.prod(r.count for r in ranges.values())
    if there < count:
        raise ConfigError(f"draw: ranges hold {there:g} configurations, fewer than the {count} to draw.")
    found: list[dict[str, Any]] = []
    for shares in _DESIGNS[design](count, tuple(ranges), seed):
        values = {name: ranges[name].at(share) for name, share in shares.items()}
        if values not in found:
            found.append(values)
        if len(found) == count:
            return tuple(found)
    raise ConfigError(
        f"draw: a {design} of {count} has only {len(found)} configurations that differ.\n"
        "Remedy: fewer draws, ranges of more values, or design: random, which draws again where two are alike."
    )


def _uniform(seed: int, *purpose: object) -> float:
    """A number of [0, 1) for ``purpose``."""
    return (derive(seed, "draw", *purpose) >> 10) / 2**53


def _random(count: int, names: tuple[str, ...], seed: int) -> Iterator[dict[str, float]]:
    for draw in range(1000 * count):  # ranges of next to no values would never have enough
        yield {name: _uniform(seed, name, draw) for name in names}


def _latin_hypercube(count: int, names: tuple[str, ...], seed: int) -> Iterator[dict[str, float]]:
    parts = {n: sorted(range(count), key=lambda part, n=n: derive(seed, "part", n, part)) for n in names}  # type: ignore[misc]
    for draw in range(count):
        yield {name: (parts[name][draw] + _uniform(seed, name, draw)) / count for name in names}


_DESIGNS: Final[Mapping[Design, Callable[[int, tuple[str, ...], int], Iterator[dict[str, float]]]]] = {
    "random": _random, "latin-hypercube": _latin_hypercube
}  # fmt: skip
