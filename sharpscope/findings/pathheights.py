"""How far the loss of the whole path rises above its ends: instability and barrier, with their alphas."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sharpscope.findings.criteria.instability import instability
from sharpscope.findings.losses import above_chord
from sharpscope.tables.rows import unique_in_order

__all__ = ["path_heights"]


def path_heights(path: pd.DataFrame) -> pd.DataFrame:
    """LII and barrier of the probe loss along each pair's path (``instability``, ``barrier``), in nats.

    Args:
        path: the table ``path``.

    Returns:
        pair, lii, lii_alpha, barrier, barrier_alpha, n (the number of points in [0, 1]). A pair without a finite loss
        at both ends is left out.
    """
    rows = []
    for pair in unique_in_order(path["pair"]):
        own = path[(path["pair"] == pair) & np.isfinite(path["loss"]) & path["alpha"].between(0, 1)].sort_values(
            "alpha"
        )
        alphas, losses = own["alpha"].to_numpy(), own["loss"].to_numpy()
        if not {0.0, 1.0} <= set(alphas):
            continue
        above, _ = above_chord(losses, alphas)
        rows.append(
            {
                "pair": pair,
                "lii": float(instability(losses, alphas)),
                "lii_alpha": float(alphas[losses.argmax()]),
                "barrier": float(above.max()),
                "barrier_alpha": float(alphas[above.argmax()]),
                "n": len(own),
            }
        )
    return pd.DataFrame(rows, columns=["pair", "lii", "lii_alpha", "barrier", "barrier_alpha", "n"])
