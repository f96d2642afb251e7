"""Scales of gains and learning rates, which the figures of many pairs share."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure

from sharpscope.present.style import plain_log

__all__ = ["gain_axis", "rate_bar", "rates_of"]


def gain_axis(ax: Axes, gains: np.ndarray) -> None:
    """Scale the y axis to ``gains`` in points; where they fall over four times as deep as any rises, it is bent."""
    lowest, highest = float(np.nanmin(gains)), max(float(np.nanmax(gains)), 0.5)
    if lowest < -4 * highest:
        ax.set_yscale("asinh", linear_width=highest / 2)
        ticks = [t for t in (-80, -40, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20) if 1.1 * lowest <= t <= 1.2 * highest]
        ax.set_yticks(ticks, [f"{t:+g}".replace("+0", "0").replace("-", "−") for t in ticks])
        ax.minorticks_off()
    ax.set_ylim(1.1 * min(lowest, -0.5), 1.2 * highest)


def rates_of(pairs: pd.DataFrame) -> tuple[Colormap, LogNorm]:
    """Colours of the column learning_rate: the darker, the larger; the lightest colours are not used."""
    rates = pairs["learning_rate"].astype(float)
    low, high = float(rates.min()), float(rates.max())
    return colormaps["plasma_r"], LogNorm(low / (high / low) ** 0.12 if high > low else low / 2, max(high, low * 1.01))


def rate_bar(figure: Figure, axes: np.ndarray, colours: Colormap, norm: LogNorm) -> None:
    """The key of learning rates, a bar right of all panels."""
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, location="right", aspect=40, pad=0.02)
    plain_log(bar.ax.yaxis, 6)
    bar.outline.set_visible(False)
    bar.set_label("learning rate")
