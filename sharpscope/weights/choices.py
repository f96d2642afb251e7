"""The paths from theta_0 that a user can choose by name, each made from the straight path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.layers import Layer
from sharpscope.vocabulary import PATHS, PathName, check_path_density
from sharpscope.weights.merging import dare_edit, ties_edit
from sharpscope.weights.monosoup import monosoup_edit
from sharpscope.weights.path import FisherPath, InterpolationPath, RandomPath, lines_path, straight_to

__all__ = ["Fishers", "chosen_path"]

LINES_SCALES: Final = (0.0, 1.0)
"""LiNeS's parameters alpha and beta on the path ``lines``, the defaults of its published code. The change of the first
layer is undone and that of the last layer is kept, so that the path has no free parameter."""

Fishers = tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]
"""The diagonal Fisher information of theta_0 and of theta_1, name -> tensor."""


def chosen_path(
    kind: PathName,
    plain: InterpolationPath,
    layers: Iterable[Layer],
    *,
    density: float | None = None,
    seed: int = 0,
    fishers: Fishers | None = None,
) -> InterpolationPath:
    """The path called ``kind`` (``vocabulary.PATHS``), which starts where ``plain`` starts, bit for bit.

    linear, fisher and random end at theta_1 bit for bit; lines, ties, dare and monosoup end at their edit of theta_1,
    to which they are straight. With a single change, TIES' election of signs has nothing to decide, and its mean is of
    one value: what is left of TIES is its trimming.

    ``layers``: all layers, for lines. ``density``: the fraction of the change's entries that ties and dare keep; None:
    as their papers recommend. ``seed``: the seed of dare's and random's choice. ``fishers``: for fisher.

    Raises ConfigError for an unknown kind, a density outside of (0, 1] or one for a path that keeps everything, and for
    fisher without ``fishers``; the errors of ``FisherPath``.

    Source: Wortsman et al. 2022, arXiv 2109.01903; the functions for the single paths name theirs.
    """
    if kind not in PATHS:
        raise ConfigError(f"path: '{shown(kind)}' is none of {', '.join(PATHS)}.{did_you_mean(str(kind), PATHS)}")
    check_path_density(density, (kind,), "path density")
    kept = PATHS[kind].density if density is None else density
    if kind == "linear":
        return plain
    if kind == "lines":
        return lines_path(plain, layers, *LINES_SCALES)
    if kind == "random":
        return RandomPath(plain, seed)
    if kind == "fisher":
        if fishers is None:
            raise ConfigError("path fisher: needs the Fisher information of both ends.")
        return FisherPath(plain, *fishers)
    zero, one = plain.at(0.0), plain.at(1.0)
    if kind == "monosoup":
        return straight_to(one | {n: monosoup_edit(zero[n], one[n]) for n in plain.moving}, plain)
    assert kept is not None
    edit = (
        ties_edit(one, zero, plain.moving, kept) if kind == "ties" else dare_edit(one, zero, plain.moving, kept, seed)
    )
    return straight_to(edit, plain)
