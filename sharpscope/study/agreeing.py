"""A point of the path compared with both ends, in the same pass over the test sets that gives its accuracies."""

from __future__ import annotations

from typing import Any

from sharpscope.clip.accuracy import answers
from sharpscope.clip.agreement import Agreed, Outputs, Seen, compare, margin, overrides
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.metrics import Answers
from sharpscope.seeds import derive
from sharpscope.study.context import Context
from sharpscope.weights.theta import Theta

__all__ = ["agreeing"]

_ENDS = {"zeroshot": 0.0, "finetuned": 1.0}
"""The words of the column ``against`` for the ends of the path -> their alpha."""
Row = dict[str, Any]


def agreeing(context: Context, alpha: float, theta: Theta) -> tuple[dict[str, Answers], list[Row]]:
    """(answers on every test set, rows of the agreement table) of theta(alpha)."""
    config, ends, given, rows = context.config, context.ends, {}, []
    for spec, dataset in context.datasets.items():
        seen = Seen()
        given[spec] = answers(
            context.pair.classifier, theta, dataset, config.batch_size, context.device,
            cache=context.features, seen=seen,
        )  # fmt: skip
        outputs = seen.outputs(ends.energies(alpha, theta))
        if alpha in _ENDS.values():
            ends.keep(alpha, dataset, outputs)
        for against, found in _compared(context, dataset, outputs, given[spec]).items():
            rows += [one.row(context.pair.name, alpha, spec, measure, against) for measure, one in found.items()]
    return given, rows


def _compared(context: Context, dataset: Dataset, point: Outputs, given: Answers) -> dict[str, dict[str, Agreed]]:
    """Against -> measure -> number."""
    level, seed = context.config.level, derive(context.config.seed, "agreement", "cka", dataset.name)
    ends = {name: context.ends.at(alpha, dataset) for name, alpha in _ENDS.items()}
    found = {name: compare(end, point, given.labels, level=level, seed=seed) for name, end in ends.items()}
    return found | {
        "ends": overrides(ends["zeroshot"], ends["finetuned"], point, level),
        "": {"margin": margin(point, level)},
    }
