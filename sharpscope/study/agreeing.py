"""Points of the path compared with both ends, in the same pass over the test sets that gives their accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sharpscope.clip.agreement import Agreed, Energies, Outputs, Seen, compare, margin, overrides
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.metrics import Answers
from sharpscope.seeds import derive
from sharpscope.study.context import Context
from sharpscope.weights.theta import Theta

__all__ = ["Comparison", "End"]

_ENDS = {"zeroshot": 0.0, "finetuned": 1.0}
"""The entries of the column ``against`` that name an end of the path -> the alpha of that end."""
Row = dict[str, Any]


@dataclass(frozen=True)
class End:
    """An end of the path that joins a pass only because points are compared with it."""

    alpha: float
    theta: Theta


@dataclass(frozen=True)
class Comparison:
    """The rows of the agreement table for points that share a pass with each other, and with ends that are missing."""

    context: Context

    def missing(self, alphas: Sequence[float]) -> list[End]:
        """The ends whose outputs are neither kept nor made by points at ``alphas``; none without such points."""
        context = self.context
        return [
            End(a, context.pair.classifier.frozen(context.theta(a)))
            for a in _ENDS.values()
            if alphas and a not in alphas and not all(context.ends.has(a, d) for d in context.datasets.values())
        ]

    def start(self, count: int) -> list[Seen]:
        """The object that collects the outputs of ``count`` models on one data set."""
        return [Seen() for _ in range(count)]

    def rows(
        self,
        spec: str,
        dataset: Dataset,
        points: Sequence[tuple[float, Energies | None, Answers] | None],
        ends: Sequence[End],
        seen: Sequence[Seen],
    ) -> list[list[Row]]:
        """The rows of every point on ``dataset``, the set ``spec``; none for a point that is None (not on the path).

        ``seen`` holds the outputs of the points, then those of the ``ends``.
        """
        kept, context = self.context.ends, self.context
        outputs = [None if p is None else s.outputs(p[1]) for p, s in zip(points, seen, strict=False)]
        at = {p[0]: o for p, o in zip(points, outputs, strict=True) if p is not None and o is not None}
        at |= {e.alpha: s.outputs(kept.energies(e.alpha)) for e, s in zip(ends, seen[len(points) :], strict=True)}
        for alpha in _ENDS.values():
            if alpha in at:
                kept.keep(alpha, dataset, at[alpha])
        both = {name: at[a] if a in at else kept.at(a, dataset) for name, a in _ENDS.items()} if at else {}
        found: list[list[Row]] = []
        for point, own in zip(points, outputs, strict=True):
            rows: list[Row] = []
            if point is not None and own is not None:
                for against, numbers in self._compared(dataset, both, own, point[2]).items():
                    rows += [
                        one.row(context.pair.name, point[0], spec, measure, against) for measure, one in numbers.items()
                    ]
            found.append(rows)
        return found

    def _compared(
        self, dataset: Dataset, ends: dict[str, Outputs], point: Outputs, given: Answers
    ) -> dict[str, dict[str, Agreed]]:
        """Against -> measure -> number."""
        config = self.context.config
        seed = derive(config.seed, "agreement", "cka", dataset.name)
        found = {name: compare(end, point, given.labels, level=config.level, seed=seed) for name, end in ends.items()}
        return found | {
            "ends": overrides(ends["zeroshot"], ends["finetuned"], point, config.level),
            "": {"margin": margin(point, config.level)},
        }
