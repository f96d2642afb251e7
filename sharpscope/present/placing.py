"""Texts beside points, where they cover nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes

from sharpscope.present.canvas import figure_of

__all__ = ["place_labels"]

_LABEL_SIZE: Final = 6.0
"""The size in points of texts next to marks."""


def place_labels(
    ax: Axes,
    at: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    avoid: Sequence[tuple[float, float]] = (),
) -> None:
    """Write ``texts`` next to the points ``at`` where they cover nothing; a text without a free place is left out.

    Points are in data units. The limits of the axes must be final.
    """
    figure = figure_of(ax)
    figure.draw_without_rendering()  # the layout determines the positions of points
    unit = figure.dpi / 72.0
    frame = ax.get_window_extent()
    place = ax.transData.transform
    blocked = [(x - 2 * unit, y - 2 * unit, x + 2 * unit, y + 2 * unit) for x, y in (place(p) for p in [*at, *avoid])]
    for point, text, colour in zip(at, texts, colours, strict=True):
        x, y = place(point)
        wide, high = 0.62 * _LABEL_SIZE * len(text) * unit, 1.1 * _LABEL_SIZE * unit
        for distance in (4.0, 7.0, 11.0):
            gap = distance * unit
            spots = [
                (sx * (gap + (wide / 2 if sx else 0)), sy * (gap + (high / 2 if sy else 0)))
                for sx, sy in ((0, 1), (0, -1), (1, 0), (-1, 0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))
            ]
            free = next(
                (s for s in spots if _is_free((x + s[0], y + s[1]), (wide, high), frame.extents, blocked)), None
            )
            if free is None:
                continue
            cx, cy = x + free[0], y + free[1]
            blocked.append((cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2))
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": _LABEL_SIZE,
                "color": colour,
                "annotation_clip": False,
            }
            ax.annotate(text, point, (free[0] / unit, free[1] / unit), textcoords="offset points", **style)
            break


def _is_free(
    centre: tuple[float, float], box: tuple[float, float], frame: Sequence[float], blocked: Sequence[tuple[float, ...]]
) -> bool:
    left, right = centre[0] - box[0] / 2, centre[0] + box[0] / 2
    low, high = centre[1] - box[1] / 2, centre[1] + box[1] / 2
    if left < frame[0] or right > frame[2] or low < frame[1] or high > frame[3]:
        return False
    return not any(left < b[2] and right > b[0] and low < b[3] and high > b[1] for b in blocked)
