"""Pairs that are compared with each other, and what comparing them gives: correlations, and the points behind them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sharpscope.findings.correlation import pair_correlations
from sharpscope.findings.design import Design
from sharpscope.findings.pathcosts import path_costs
from sharpscope.findings.residuals import residual_table
from sharpscope.tables.rows import covariates
from sharpscope.vocabulary import PRIMARY

__all__ = ["Population"]


@dataclass(frozen=True)
class Population:
    """The tables of several pairs, and what is known of how the pairs were made."""

    source: str
    """run | shipped."""
    sharpness: pd.DataFrame
    accuracy: pd.DataFrame
    path: pd.DataFrame
    design: Design
    primary: tuple[str, float]
    """The measure and the alpha that were named before looking."""
    named: str = ""
    """What the notes of the primary correlations say of how these were named."""
    stragglers: Mapping[str, Collection[str]] | None = None
    """Pair -> the layers that the deciding criterion chooses."""
    by_instability: Mapping[str, Collection[str]] | None = None
    layer_losses: pd.DataFrame | None = None
    """The stragglers table, for what single layers cost in loss."""
    alphas: Sequence[float] | None = None
    """The alphas at which pairs are compared; None: all that all pairs have."""

    def correlations(self, *, seed: int, bootstrap: int, level: float) -> pd.DataFrame:
        """The table ``correlations`` across the pairs (``findings.pair_correlations``)."""
        found = pair_correlations(
            self.sharpness,
            self.accuracy,
            covariates(self.accuracy, self.path),
            source=self.source,
            design=self.design,
            primary=self.primary,
            stragglers=self.stragglers,
            by_instability=self.by_instability,
            costs=path_costs(self.path, self.layer_losses),
            alphas=self.alphas,
            seed=seed,
            bootstrap=bootstrap,
            level=level,
        )
        if self.named:
            primary = found["family"] == PRIMARY
            found.loc[primary, "note"] = ["; ".join(filter(None, (n, self.named))) for n in found.loc[primary, "note"]]
        return found

    def residuals(self, correlations: pd.DataFrame) -> pd.DataFrame:
        """The table ``residuals`` (``findings.residual_table``) behind ``correlations``."""
        measured = covariates(self.accuracy, self.path)
        return residual_table(
            correlations, self.sharpness, self.accuracy, measured, source=self.source, design=self.design
        )
