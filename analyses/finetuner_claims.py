"""The direction of each claim of the methods' papers, tested on the pairs of finetuners.py, which imports this file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
from scipy import stats

__all__ = ["claims", "interval"]

ID_MARGIN = 0.02
"""Claims of "no less ID accuracy" hold if the interval of the difference lies above minus this fraction."""
Table = pd.DataFrame


@dataclass(frozen=True)
class Claim:
    """``quantity``: per seed, a difference that the paper says is positive; ``guard``: one that has to stay near 0."""

    paper: str
    says: str
    needs: tuple[str, ...]
    quantity: Callable[[Table], pd.Series]
    guard: Callable[[Table], pd.Series] | None = None


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
          minus(of("wise-ft", "id_half"), of("wise-ft", "id"))),
    more_ood("Lipsum-FT (2404.00860)", "more OOD than plain fine-tuning, no less ID", "lipsum-ft", "wise-ft"),
    Claim("CLIPFit (2409.16718)", "gains over zero-shot where it was tuned", ("clipfit",),
          minus(of("clipfit", "id"), of("clipfit", "id_zeroshot"))),
    Claim("CLIPFit (2409.16718)", "keeps what it was not tuned on: OOD no less than zero-shot", ("clipfit",),
          minus(of("clipfit", "ood"), of("clipfit", "ood_zeroshot"))),
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


def interval(values: pd.Series, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's interval of its expectation over seeds; infinite for fewer than two."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def claims(table: Table) -> Table:
    """Each claim with its estimate, interval and verdict: holds here | does not hold here | cannot be told."""
    return pd.DataFrame(_rows(table))


def _rows(table: Table) -> Iterator[dict[str, object]]:
    for claim in CLAIMS:
        if not set(claim.needs) <= set(table["method"]):
            continue
        values = claim.quantity(table).dropna()
        mean, low, high = interval(values)
        guarded = {"id_difference": math.nan, "id_ci_low": math.nan, "id_ci_high": math.nan}
        costs_nothing = True
        if claim.guard is not None:
            guarded = dict(zip(guarded, interval(claim.guard(table).dropna()), strict=True))
            costs_nothing = guarded["id_ci_low"] > -ID_MARGIN
        told = "holds here" if low > 0 and costs_nothing else "does not hold here" if high < 0 else "cannot be told"
        yield {
            "paper": claim.paper, "claim": claim.says, "estimate": mean, "ci_low": low, "ci_high": high,
            "n": len(values), **guarded, "verdict": told,
        }  # fmt: skip
