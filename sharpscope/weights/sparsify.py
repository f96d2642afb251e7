"""Undo part of the change: layers, density, target and select -> theta.

The repair that Abdollahpoorrostam 2024 (arXiv 2410.16476) claims for straggler layers, with the controls it needs. The
paper says only "randomly set part of the straggler layers' weights to zero"; everything else here is our reading, and
an option.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from sharpscope.errors import ConfigError, NonFiniteWeights, PairMismatch, did_you_mean, listing, shown
from sharpscope.layers import Layer, is_buffer
from sharpscope.seeds import derive

__all__ = ["Rescale", "Select", "Target", "keep_masks", "kept_entries", "matched_control", "sparsify"]

Target = Literal["delta", "weight"]
Select = Literal["random", "magnitude", "score"]
Rescale = Literal["none", "dare"]

TRIALS = 64
"""Random draws among which the control closest in size is taken."""


def sparsify(
    theta: Mapping[str, torch.Tensor],
    theta_0: Mapping[str, torch.Tensor] | None,
    layers: Iterable[Layer | str],
    density: float,
    target: Target = "delta",
    select: Select = "random",
    rescale: Rescale = "none",
    seed: int = 0,
    scores: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """theta with only a fraction ``density`` of each layer's entries kept; new dictionary, untouched tensors shared.

    target ``delta``: a dropped entry returns to theta_0; ``weight``: it becomes 0 (theta_0 may then be None).
    select ``random``: a seeded choice (the same for every theta, growing with the density); ``magnitude``: the largest
    |theta - theta_0| (``weight``: the largest |theta|); ``score``: the largest ``scores`` (name -> tensor, e.g.
    Fisher). rescale ``dare``: what is kept of the delta (the weight) is divided by the density (Yu et al. 2024, DARE,
    arXiv 2311.03099).

    Exactly round(density * size) entries are kept of every layer, jointly over its floating parameters; buffers are
    left alone. A plain name counts as a layer of its own. density 1 gives theta itself bit for bit; delta with density
    0 gives theta_0 in those layers. Ties go to the earlier entry.

    Raises ConfigError (density outside [0, 1], unknown option or tensor), PairMismatch (shapes), NonFiniteWeights (NaN
    scores).

    Sources: Abdollahpoorrostam 2024, arXiv 2410.16476 (the claim); Yu et al. 2024, arXiv 2311.03099 (delta, rescaling).
    """
    _check_option("target", target, Target)
    _check_option("select", select, Select)
    _check_option("rescale", rescale, Rescale)
    result = dict(theta)
    if target == "delta" and theta_0 is None:
        raise ConfigError("theta_0: target delta needs the weights that dropped entries return to.")
    origin = theta_0 if target == "delta" else None
    for layer in layers:
        names = _parameters(layer, theta)
        keep = keep_masks(layer, theta, density, origin=origin, select=select, seed=seed, scores=scores)
        for name in names:
            result[name] = _masked(theta[name], None if origin is None else origin[name], keep[name], density, rescale)
    return result


def keep_masks(
    layer: Layer | str,
    theta: Mapping[str, torch.Tensor],
    density: float,
    *,
    origin: Mapping[str, torch.Tensor] | None = None,
    select: Select = "random",
    seed: int = 0,
    scores: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Boolean masks of what ``sparsify`` keeps of one layer; ``origin``: what magnitudes are measured from."""
    if not 0 <= density <= 1:
        raise ConfigError(f"density: {density} is outside [0, 1]; it is the fraction of entries KEPT.")
    names = _parameters(layer, theta)
    sizes = [theta[n].numel() for n in names]
    _check_shapes(names, theta, origin)
    count = round(density * sum(sizes))
    if count in (0, sum(sizes)):
        flat = torch.full((sum(sizes),), count > 0)
    elif select == "random":
        label = layer.name if isinstance(layer, Layer) else layer
        generator = torch.Generator().manual_seed(derive(seed, "sparsify", label))
        flat = torch.randperm(sum(sizes), generator=generator) < count
    else:
        flat = _largest(torch.cat([_score(n, theta, origin, select, scores).reshape(-1) for n in names]), count)
    parts = flat.split(sizes)
    return {n: part.reshape(theta[n].shape).to(theta[n].device) for n, part in zip(names, parts, strict=True)}


def kept_entries(layers: Iterable[Layer], density: float) -> tuple[int, int]:
    """``(entries kept, entries in all)`` of ``layers`` at ``density``."""
    sizes = [layer.num_params for layer in layers]
    return sum(round(density * s) for s in sizes), sum(sizes)


def matched_control(chosen: Iterable[Layer], all_layers: Sequence[Layer], seed: int) -> tuple[Layer, ...]:
    """Random layers, none of them ``chosen``, with about as many parameters: the control beside every repair.

    The closest in size of 64 random draws without replacement (each: layers in random order, taken while they bring the
    total nearer). In the order of ``all_layers``; empty when nothing was chosen or nothing else is left. Pass the
    moving
    layers: a frozen one is no control.
    """
    chosen = tuple(chosen)
    taken = {layer.name for layer in chosen}
    others = [layer for layer in all_layers if layer.name not in taken]
    wanted = sum(layer.num_params for layer in chosen)
    if not chosen or not others:
        return ()
    generator = torch.Generator().manual_seed(derive(seed, "control", *sorted(taken)))
    best: tuple[float, list[int]] = (math.inf, [])
    for _ in range(TRIALS):
        total, picked = 0, []
        for i in torch.randperm(len(others), generator=generator).tolist():
            if abs(total + others[i].num_params - wanted) < abs(total - wanted):
                total += others[i].num_params
                picked.append(i)
        best = min(best, (abs(total - wanted), picked), key=lambda b: b[0]) if picked else best
    if not best[1]:  # every other layer is more than twice as large: the smallest of them is the nearest
        best = (0, [min(range(len(others)), key=lambda i: others[i].num_params)])
    return tuple(others[i] for i in sorted(best[1]))


def _masked(
    value: torch.Tensor, origin: torch.Tensor | None, keep: torch.Tensor, density: float, rescale: Rescale
) -> torch.Tensor:
    if density == 1:
        return value
    dropped = torch.zeros_like(value) if origin is None else origin.detach().to(value.dtype)
    kept = dropped + (value - dropped) / density if rescale == "dare" and density > 0 else value
    return torch.where(keep, kept, dropped)


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of exactly ``count`` largest scores; among equal ones at the edge the earlier are kept."""
    edge = scores.kthvalue(len(scores) - count + 1).values
    keep = scores > edge
    ties = (scores == edge).nonzero().reshape(-1)
    keep[ties[: count - int(keep.sum())]] = True
    return keep


def _score(
    name: str,
    theta: Mapping[str, torch.Tensor],
    origin: Mapping[str, torch.Tensor] | None,
    select: Select,
    scores: Mapping[str, torch.Tensor] | None,
) -> torch.Tensor:
    if select == "score":
        if scores is None or name not in scores:
            raise ConfigError(f"scores: select 'score' needs a tensor of scores for '{shown(name)}'.")
        value = scores[name].detach()
        if value.shape != theta[name].shape:
            raise PairMismatch(
                f"scores: '{shown(name)}' has shape {list(value.shape)}, the weights {list(theta[name].shape)}."
            )
    else:
        value = theta[name].detach()
        value = (value if origin is None else value - origin[name].detach().to(value.dtype)).abs()
    if bool(value.isnan().any()):
        raise NonFiniteWeights(f"'{shown(name)}': NaN among the values that decide what is kept.")
    return value


def _parameters(layer: Layer | str, theta: Mapping[str, torch.Tensor]) -> list[str]:
    names = layer.params if isinstance(layer, Layer) else (layer,)
    unknown = [n for n in names if n not in theta]
    if unknown:
        raise ConfigError(f"layers: no tensor is called {listing(unknown)}.{did_you_mean(unknown[0], theta)}")
    return [n for n in names if theta[n].is_floating_point() and not is_buffer(n)]


def _check_shapes(
    names: Iterable[str], theta: Mapping[str, torch.Tensor], origin: Mapping[str, torch.Tensor] | None
) -> None:
    for name in names:
        if origin is not None and (name not in origin or origin[name].shape != theta[name].shape):
            raise PairMismatch(
                f"theta_0: '{shown(name)}' is missing or has another shape than theta's {list(theta[name].shape)}."
            )


def _check_option(name: str, value: str, kind: Any) -> None:
    known = get_args(kind)
    if value not in known:
        raise ConfigError(f"{name}: '{shown(value)}' is none of {', '.join(known)}.{did_you_mean(str(value), known)}")
