"""What makes every number of a study, or of one pair, meaningless, read off the numbers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from sharpscope.findings.frames import Answered, alpha_index, check_correct
from sharpscope.scores import Predictions
from sharpscope.vocabulary import PAIRS

__all__ = ["Doubt", "path_doubt", "swap_doubt"]


@dataclass(frozen=True)
class Doubt:
    """Why no verdict is given: on every claim where ``pair`` is ``(pairs)``, else on all that the pair enters."""

    pair: str
    reason: str
    """The cause in a few words, for tables."""
    text: str
    """What a reader must know, and the remedy: for the terminal and the top of the report."""


def path_doubt(alphas: Sequence[float]) -> Doubt | None:
    """The doubt about a path without both of its ends, on which no failure can be seen; else None."""
    missing = [f"{end:g}" for end in (0.0, 1.0) if alpha_index(alphas, end) is None]
    if not missing:
        return None
    given = " ".join(f"{a:g}" for a in alphas)
    wanted = " ".join(f"{a:g}" for a in sorted({0.0, *alphas, 1.0}))
    return Doubt(
        PAIRS,
        f"the path has no point at alpha {' and '.join(missing)}",
        f"The path has no point at alpha {' and '.join(missing)} (alphas: {given}). The failure flags are undefined "
        f"and no verdict is given. Remedy: --alphas {wanted}.",
    )


def swap_doubt(
    pair: str, alphas: Sequence[float], correct: Mapping[str, Answered], roles: Mapping[str, str], level: float
) -> Doubt | None:
    """The doubt about a pair whose ID accuracy falls from alpha 0 to alpha 1: its ends look swapped; else None.

    Of the b + c images of all ID sets that only one end gets right, b are the zero-shot end's. If both ends were
    equally good, b would be binomial with probability 1/2; the fall counts where P(B >= b) <= (1 - level) / 2 and the
    mean accuracy over the sets is lower at alpha 1. The test is exact, so that a handful of images raises no doubt.

    Args:
        pair: name of the pair.
        alphas: [A] increasing.
        correct: data set -> bool [A, n], the same examples at every alpha; or predictions and their metric.
        roles: data set -> "id" | "ood".
        level: coverage of the study's intervals.

    Raises:
        ConfigError: shapes or roles that do not fit.

    Source: McNemar 1947, Psychometrika 12 (the test of two proportions on the same examples).
    """
    start, end = alpha_index(alphas, 0.0), alpha_index(alphas, 1.0)
    sets = [_right(values) for values in check_correct(alphas, correct, roles)["id"].values()]
    if start is None or end is None or not sets:
        return None
    first, last = (float(np.mean([right[i].mean() for right in sets])) for i in (start, end))
    lost = sum(int((right[start] & ~right[end]).sum()) for right in sets)
    won = sum(int((~right[start] & right[end]).sum()) for right in sets)
    if last >= first or float(special.bdtrc(lost - 1, lost + won, 0.5)) > (1 - level) / 2:
        return None
    return Doubt(
        pair,
        "the two ends look swapped",
        f"{pair}: the two ends look swapped. ID accuracy falls from {first:.1%} at alpha 0 (zero-shot) to {last:.1%} "
        "at alpha 1 (fine-tuned), and no verdict is given. Remedy: exchange --zeroshot and --finetuned; or, if they "
        "are right, give --id test sets of the task that was fine-tuned on.",
    )


def _right(values: Answered) -> np.ndarray:
    """bool [A, n]: which examples are right."""
    return values.predicted == values.labels if isinstance(values, Predictions) else values
