"""The direction of each claim of the methods' papers, tested on the pairs of finetuners.py, which imports this file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from scipy import stats

__all__ = ["claims", "interval"]

ID_MARGIN = 0.02
"""Claims of "no less ID accuracy" hold if the interval of the difference lies above minus this fraction."""
MARGIN = 0.01
"""Claims of "more" do not hold if the whole interval of the difference lies below this fraction (our choice)."""
Table = pd.DataFrame


class Estimate(NamedTuple):
    """A mean, its interval, and the two-sided p-value of its being 0."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Claim:
    """``quantity``: per seed, a difference that the paper says is positive; ``guard``: one that has to stay near 0."""

    paper: str
    says: str
    needs: tuple[str, ...]
    quantity: Callable[[Table], pd.Series]
    guard: Callable[[Table], pd.Series] | None = None
    no_less: bool = False
    """Whether the paper says that the quantity is no less than 0, rather than that it is more."""


def of(method: str, column: str) -> Callable[[Table], pd.Series]:
    """One column of one method, a value for each seed."""
    return lambda table: table[table["method"] == method].set_index("seed")[column]


def minus(first: Callable[[Table], pd.Series], second: Callable[[Table], pd.Series]) -> Callable[[Table], pd.Series]:
    return lambda table: first(table) - second(table)


def against(method: str, other: str, column: str) -> Callable[[Table], pd.Series]:
    """``column`` of one method minus the other's, with the same seed."""
    return minus(of(method, column), of(other, column))


def more_ood(paper: str, says: str, method: str, other: str) -> Claim:
    """``method`` ends with more OOD accuracy than ``other`` at no less ID accuracy."""
    return Claim(paper, says, (method, other), against(method, other, "ood"), against(method, other, "id"))


CLAIMS = (
    Claim("WiSE-FT (2109.01903)", "the middle of the path has more OOD accuracy than the fine-tuned end", ("wise-ft",),
          minus(of("wise-ft", "ood_half"), of("wise-ft", "ood"))),
    Claim("WiSE-FT (2109.01903)", "the middle of the path has more OOD accuracy than zero-shot", ("wise-ft",),
          minus(of("wise-ft", "ood_half"), of("wise-ft", "ood_zeroshot"))),
    Claim("WiSE-FT (2109.01903)", "and no less ID accuracy than the fine-tuned end", ("wise-ft",),
          minus(of("wise-ft", "id_half"), of("wise-ft", "id")), no_less=True),
    more_ood("Lipsum-FT (2404.00860)", "more OOD than plain fine-tuning, no less ID", "lipsum-ft", "wise-ft"),
    Claim("CLIPFit (2409.16718)", "gains over zero-shot where it was tuned", ("clipfit",),
          minus(of("clipfit", "id"), of("clipfit", "id_zeroshot"))),
    Claim("CLIPFit (2409.16718)", "keeps what it was not tuned on: OOD no less than zero-shot", ("clipfit",),
          minus(of("clipfit", "ood"), of("clipfit", "ood_zeroshot")), no_less=True),
    Claim("ContCoOp (2412.20895)", "carried to an upgraded backbone, more accurate there than a plain context (CoOp)",
          ("contcoop", "coop"), against("contcoop", "coop", "id_upgraded")),
    Claim("ContCoOp (2412.20895)", "carried to an upgraded backbone, more accurate there than KgCoOp",
          ("contcoop", "kgcoop"), against("contcoop", "kgcoop", "id_upgraded")),
    Claim("VRF (2411.06966)", "more OOD accuracy than the plain ensemble of outputs", ("wise-ft",),
          minus(of("wise-ft", "ood_vrf"), of("wise-ft", "ood_ose")),
          minus(of("wise-ft", "id_vrf"), of("wise-ft", "id_ose"))),
    more_ood("StarFT (2505.13232)", "more OOD than its base FLYP, no less ID", "starft", "flyp"),
    more_ood("FLYP (2212.00638)", "more OOD than fine-tuning by cross-entropy, no less ID", "flyp", "wise-ft"),
    more_ood("R-Adapter (2408.05749)", "more OOD than plain fine-tuning, no less ID", "r-adapter", "wise-ft"),
    more_ood("LP-FT (2202.10054)", "more OOD than plain fine-tuning, no less ID", "lp-ft", "wise-ft"),
    Claim("LP-FT (2202.10054)", "a linear probe keeps more OOD than plain fine-tuning", ("linear-probe", "wise-ft"),
          against("linear-probe", "wise-ft", "ood")),
)  # fmt: skip


def interval(values: pd.Series, images: float = 0.0, level: float = 0.95) -> Estimate:
    """Mean over seeds, with Student's interval of its expectation over other seeds and other draws of the test images.

    The variance is s^2 / n + ``images``^2: of n seeds, and of the mean over draws of images (a standard deviation).
    Its degrees of freedom are Welch and Satterthwaite's, (s^2 / n + images^2)^2 / ((s^2 / n)^2 / (n - 1)). With fewer
    than two seeds the interval is infinite and p is 1.

    Source: Satterthwaite 1946, https://doi.org/10.2307/3002019.
    """
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Estimate(mean, -math.inf, math.inf, 1.0)
    of_seeds = float(values.var(ddof=1)) / n
    total = of_seeds + images**2
    if total == 0:
        return Estimate(mean, mean, mean, float(mean == 0))
    df = total**2 / (of_seeds**2 / (n - 1)) if of_seeds > 0 else math.inf
    half = float(stats.t.ppf((1 + level) / 2, df)) * math.sqrt(total)
    p = 2 * float(stats.t.sf(abs(mean) / math.sqrt(total), df))
    return Estimate(mean, mean - half, mean + half, p)


def claims(table: Table, draws: Sequence[Table] = ()) -> Table:
    """Each claim with its estimate, interval and verdict: holds here | does not hold here | cannot be told.

    A claim holds if its p-value, corrected for the number of claims (Holm), is at most .05 and nothing that it promises
    to keep is lost. It does not hold if its whole interval lies below ``MARGIN``, so that what it says is at most that,
    or if the whole interval of what it promises to keep lies below minus ``ID_MARGIN``. A claim of "no less" holds if
    its interval lies above minus ``ID_MARGIN``, and does not hold if it lies below 0 after the same correction.

    Args:
        table: one row for each method and seed.
        draws: the same table over other draws of the test images (``finetuner_images.resampled``); without them the
            interval covers other seeds only.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    known = [claim for claim in CLAIMS if set(claim.needs) <= set(table["method"])]
    found = [_judged(claim.quantity, table, draws) for claim in known]
    corrected = _holm([one.p for one in found])
    return pd.DataFrame(list(map(_row, known, found, corrected, [table] * len(known), [draws] * len(known))))


def _judged(quantity: Callable[[Table], pd.Series], table: Table, draws: Sequence[Table]) -> Estimate:
    again = [float(quantity(draw).dropna().mean()) for draw in draws]
    return interval(quantity(table).dropna(), float(pd.Series(again).std(ddof=1)) if len(again) > 1 else 0.0)


def _holm(p: Sequence[float]) -> list[float]:
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, largest = [1.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p[i] * (len(p) - rank)))
        out[i] = largest
    return out


def _row(claim: Claim, found: Estimate, corrected: float, table: Table, draws: Sequence[Table]) -> dict[str, object]:
    guarded = {"id_difference": math.nan, "id_ci_low": math.nan, "id_ci_high": math.nan}
    costs_nothing, costs = True, False
    if claim.guard is not None:
        kept = _judged(claim.guard, table, draws)
        guarded = {"id_difference": kept.mean, "id_ci_low": kept.low, "id_ci_high": kept.high}
        costs_nothing, costs = kept.low > -ID_MARGIN, kept.high < -ID_MARGIN
    sure = corrected <= 0.05
    if claim.no_less:
        holds, fails = found.low > -ID_MARGIN, found.high < 0 and sure
    else:
        holds, fails = found.mean > 0 and sure and costs_nothing, found.high < MARGIN or costs
    told = "holds here" if holds else "does not hold here" if fails else "cannot be told"
    return {
        "paper": claim.paper, "claim": claim.says, "estimate": found.mean, "ci_low": found.low, "ci_high": found.high,
        "n": len(claim.quantity(table).dropna()), "p_value": found.p, "p_holm": corrected, **guarded, "verdict": told,
    }  # fmt: skip
