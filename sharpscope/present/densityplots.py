"""The figure of spectral densities: the distribution of the eigenvalues of each layer's Hessian along the path."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.layers import layer_key
from sharpscope.present.alphas import alpha_is, in_order_of_alpha
from sharpscope.present.style import COLOURS, INK, key, label, new_figure, short_layer, styled
from sharpscope.tables.rows import unique_in_order

__all__ = ["spectral_density"]

_LAYERS = 8
_DEPTH = 1e-5
"""Densities below this share of a panel's highest value are not shown."""


@styled
def spectral_density(density: pd.DataFrame) -> Figure:
    """Density of eigenvalues by layer (rows) and pair (columns), with one line per alpha, on a logarithmic scale.

    The bands are one standard error over random start vectors wide on each side; they do not contain the choice of
    images. At most eight layers are shown, in forward order.

    >>> shown = sharpscope.plot.spectral_density(run.density)

    Raises:
        NoData: the table has no finite density.
    """
    table = density[np.isfinite(density["density"])]
    if not len(table):
        raise NoData("spectral_density: the density table is empty.")
    layers = sorted(table["layer"].unique(), key=layer_key)[:_LAYERS]
    pairs = unique_in_order(table["pair"])[:3]
    alphas = sorted(table["alpha"].unique())
    colours = {a: COLOURS[i % len(COLOURS)] for i, a in enumerate(alphas)}
    figure = new_figure(1.25 * len(layers) + 0.6)
    axes = figure.subplots(len(layers), len(pairs), squeeze=False)
    for i, layer in enumerate(layers):
        for j, pair in enumerate(pairs):
            ax = axes[i, j]
            own = table[(table["layer"] == layer) & (table["pair"] == pair)]
            top = float(own["density"].max()) if len(own) else 1.0
            floor = top * _DEPTH
            for alpha, line in own.groupby("alpha"):
                line = line.sort_values("value")
                x, y = line["value"], line["density"].clip(lower=floor)
                error = line["stderr"].fillna(0.0)
                low, high = (line["density"] - error).clip(lower=floor), (line["density"] + error).clip(lower=floor)
                ax.plot(x, y, color=colours[alpha], lw=0.9)
                ax.fill_between(x, low, high, color=colours[alpha], alpha=0.2, lw=0)
            ax.set_yscale("log")
            ax.set_ylim(floor, 3 * top)
            ax.axvline(0, color=INK["grey"], lw=0.5, zorder=0)
            ax.set_title(f"{label(pair, 20)}: {short_layer(layer)}", fontsize=7)
            if i + 1 == len(layers):
                ax.set_xlabel("eigenvalue")
        axes[i, 0].set_ylabel("density")
    key(figure, [Line2D([], [], color=colours[a], label=alpha_is(a)) for a in in_order_of_alpha(alphas)])
    return figure
