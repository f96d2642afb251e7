"""The claims of arXiv 2410.16476 on the user's own checkpoints: holds, does not hold, or cannot be told.

No sign of the correlation is assumed: sharper models may be better (as da Silva et al. 2025 find for 72 CLIP ViT-B/32
models) or worse. "Cannot be told" is the verdict whenever the interval leaves both answers open. A correlation counts
as absent only if its whole interval lies within a stated margin of 0, never because p is large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from sharpscope.findings.design import Design
from sharpscope.findings.doubts import Doubt
from sharpscope.findings.failure import DROP
from sharpscope.findings.question import Question
from sharpscope.findings.relation import relation_rows
from sharpscope.findings.repair import Repairs
from sharpscope.findings.verdictrows import no_verdict, span, unless_doubted, verdict_row
from sharpscope.tables.rows import dense_rows, flags_of, table, unique_in_order
from sharpscope.vocabulary import CANNOT, DEFAULT_GROUP, DOES_NOT_HOLD, FLAGS, HOLDS

__all__ = ["verdicts_table"]

GAIN_MARGIN: Final = 0.01
"""A repair does not help if the whole interval of its gain in accuracy (0-1) lies below this value (our choice). With a
larger value more repairs count as no help. A failure is gone where the whole interval of what is left of it lies below
this value; with a larger value more failures count as gone."""


def verdicts_table(
    correlations: pd.DataFrame,
    failure: pd.DataFrame,
    repairs: Sequence[Repairs],
    sharpness: pd.DataFrame,
    accuracy: pd.DataFrame,
    references: pd.DataFrame | None = None,
    *,
    measure: str,
    alpha: float,
    group: str = DEFAULT_GROUP,
    design: Design | None = None,
    unknown: Mapping[str, Sequence[str]] | None = None,
    no_evidence: Mapping[str, str] | None = None,
    doubts: Sequence[Doubt] = (),
    reference_source: str = "run",
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per claim on one group of OOD sets; the claim about repairs has one row per pair.

    whole, stragglers, instability  see ``relation.relation_rows``
    repair      Only where a failure flag of accuracy is present (the probe loss of repaired models is not measured).
                The estimate is the maximum over sparsities of min(gain at equal ID accuracy, difference to the
                random-layer control), means over pairs of a random mask and a control of its own, which ``n`` counts.
                The claim holds if the interval lies above 0 and the repaired points themselves are free of every flag
                that the path has (``Repairs.flags``): F1 if their best gain over zero-shot is larger than
                -``GAIN_MARGIN``, F2 and F4 if their largest depth is smaller than ``GAIN_MARGIN``, by the whole
                interval. It does not hold if the whole interval lies below ``GAIN_MARGIN`` (the claim is one-sided, so
                the margin is (-inf, ``GAIN_MARGIN``)), or if sparsity gains and the repaired points raise one of the
                flags again: that mitigates a failure and does not repair it. With one mask there is no interval, and it
                cannot be told.
    question    see ``question.Question``, on the first two pairs of ``accuracy``

    In all other cases the verdict is "cannot be told".

    Args:
        correlations, failure, sharpness, accuracy: tables of the schema.
        repairs: ``analyse_repairs`` of every pair.
        references: ``reference_table`` of as many pairs as there are.
        measure, alpha: the primary measure and point, which were named before any result was seen.
        group: the group of OOD sets that the tables hold.
        design: bases, settings and learning rates of the pairs in ``references``.
        unknown: source (run | shipped) -> what is not known of its pairs and forbids a conclusion, each in words.
        no_evidence: pair -> why its repairs are no evidence about stragglers: no layer of it is one, so that another
            layer was made sparse, or no repair was asked for.
        doubts: what makes the numbers of the run or of a pair meaningless: claims that these enter get no verdict
            ("cannot be told", with the reason and without numbers).
        reference_source: run | shipped, the origin of ``references``.
        level: coverage of the intervals.
        bootstrap: number of permutations.
        seed: the run's seed.

    Returns:
        Table ``verdicts``; ``evidence`` is made of the numbers.

    Source: Abdollahpoorrostam 2024, arXiv 2410.16476 (the claims).
    """
    rows = relation_rows(correlations, group, measure, alpha, unknown=unknown, level=level, permutations=bootstrap)
    rows += [_repair_row(r, failure, (no_evidence or {}).get(r.pair, "")) for r in repairs]
    pairs = tuple(unique_in_order(accuracy["pair"])[:2])
    question = Question(pairs, group, measure, alpha, level, bootstrap, seed, reference_source)
    rows.append(question.row(sharpness, dense_rows(accuracy), references, design))
    return table("verdicts", [unless_doubted(row, doubts) for row in rows])


def _repair_row(repairs: Repairs, failure: pd.DataFrame, instead: str) -> dict[str, Any]:
    if instead:
        why = f"{instead.capitalize()}."
        return no_verdict(repairs.pair, "repair", repairs.group, "run", why)
    flags, absent, unknown = flags_of(failure, repairs.pair)
    state = _flags(flags, absent, unknown)
    numbers = (repairs.estimate, repairs.ci_low, repairs.ci_high)
    if not math.isfinite(repairs.estimate):
        what = "no sparse straggler variant with a random-layer control could be matched to the plain path"
        return verdict_row(repairs.pair, "repair", repairs.group, "run", CANNOT, numbers, 0, f"{state}; {what}.")
    lines = repairs.contrasts[repairs.contrasts["num_alphas"] > 0]
    best = lines[lines["name"] == repairs.best].iloc[0]
    n = int(best["num_pairs"])
    which = f"the best of {len(lines)} ways" if len(lines) > 1 else "the only way"
    masks = f"on average over {n} masks, each with control layers drawn for it" if n > 1 else "with its only mask"
    text = (
        f"{state}; {repairs.best}, {which} to make the stragglers sparse, gains "
        f"{100 * best['gain']:+.1f} points over the plain path at equal ID accuracy and "
        f"{100 * best['difference']:+.1f} points over random layers, {masks}; the smaller of the two "
        f"is {100 * repairs.estimate:+.1f} points {span(100 * repairs.ci_low, 100 * repairs.ci_high, 1)}"
    )
    verdict, end = CANNOT, ""
    if not math.isfinite(repairs.ci_low):
        end = f"; {best['note']}"
    elif not flags:
        pass
    elif not (failures := [flag for flag in flags if FLAGS[flag].of == "accuracy"]):
        end = "; OOD accuracy does not fail, and the probe loss of repaired models is not measured"
    elif repairs.ci_low > 0:
        verdict, left = _left_of(failures, repairs)
        end = f", and the whole interval lies above 0; {left}"
    elif repairs.ci_high < GAIN_MARGIN:
        verdict, end = DOES_NOT_HOLD, f", and the whole interval lies below {100 * GAIN_MARGIN:+.1f}"
    else:
        end = f", an interval that holds 0 and reaches {100 * GAIN_MARGIN:+.1f}: a gain is neither shown nor ruled out"
    return verdict_row(repairs.pair, "repair", repairs.group, "run", verdict, numbers, n, f"{text}{end}.")


def _left_of(failures: Sequence[str], repairs: Repairs) -> tuple[str, str]:
    """The verdict on a repair that gains, by what is left of the ``failures`` on the repaired points, and why."""
    again, open_, told = [], [], []
    for flag in failures:
        estimate, low, high = repairs.flags.get(flag, (math.nan, math.nan, math.nan))
        # the depth of what is left; a NEGATIVE gain over zero-shot is a failure (F1), the other flags are depths
        least, most = (-high, -low) if flag == "F1" else (low, high)
        if not least <= most:
            open_.append(flag)
        elif least > (DROP if flag == "F2" else 0):
            again.append(flag)
        elif not most < GAIN_MARGIN:
            open_.append(flag)
        told.append(f"{FLAGS[flag].estimate} ({flag}) {100 * estimate:+.1f} points {span(100 * low, 100 * high, 1)}")
    numbers = f"of the repaired points: {', '.join(told)}"
    if again:
        return DOES_NOT_HOLD, f"but the failure stays ({', '.join(again)}): it mitigates, does not repair; {numbers}"
    if open_:
        return CANNOT, f"but whether the failure is gone is not known ({', '.join(open_)}); {numbers}"
    return HOLDS, f"the failure is gone; {numbers}"


def _flags(present: Sequence[str], absent: Sequence[str], unknown: Sequence[str]) -> str:
    if present:
        return f"Failure flags {', '.join(present)} are present"
    if not absent:
        return "The failure flags are undefined or have no interval: whether there is anything to repair is not known"
    if unknown:
        return f"Failure flags {', '.join(absent)} are absent, {', '.join(unknown)} undefined or without interval"
    return "No failure flag is present: nothing to repair"
