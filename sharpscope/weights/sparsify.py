"""Undo part of the change: layers, density, target and select -> theta.

The repair that Abdollahpoorrostam 2024 (arXiv 2410.16476) claims for straggler layers, with the controls it needs. The
paper says only "randomly set part of the straggler layers' weights to zero"; everything else here is our reading, and
an option.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch

from sharpscope.errors import ConfigError, NonFiniteWeights, PairMismatch, did_you_mean, listing, shown
from sharpscope.layers import Layer, is_buffer
from sharpscope.seeds import derive
from sharpscope.vocabulary import SelectOrScore, Target

__all__ = ["keep_masks", "sparsify"]


def sparsify(
    theta: Mapping[str, torch.Tensor],
    theta_0: Mapping[str, torch.Tensor] | None,
    layers: Iterable[Layer | str],
    density: float,
    target: Target = "delta",
    select: SelectOrScore = "random",
    seed: int = 0,
    *,
    rescale: bool = False,
    scores: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """theta with only a fraction ``density`` of each layer's entries kept; new dictionary, untouched tensors shared.

    target ``delta``: a dropped entry returns to theta_0; ``weight``: it becomes 0 (theta_0 may then be None).
    select ``random``: a seeded choice (the same for every theta, growing with the density); ``magnitude``: the largest
    |theta - theta_0| (``weight``: the largest |theta|); ``score``: the largest ``scores`` (name -> tensor of the
    weight's shape, such as Fisher information). ``rescale``: what is kept of the delta (``weight``: of the weight) is
    divided by the density, as in DARE, so that the expected change stays the same under a random choice.

    Exactly round(density * size) entries are kept of every layer, jointly over its floating parameters; buffers are
    left alone. A plain name counts as a layer of its own. density 1 gives theta itself bit for bit; delta with density
    0 gives theta_0 in those layers. Ties go to the earlier entry.

    Raises ConfigError (density outside [0, 1], unknown option or tensor, a tensor without scores), PairMismatch
    (shapes), NonFiniteWeights (NaN where magnitudes or scores decide what is kept).

    Source: Abdollahpoorrostam 2024, arXiv 2410.16476 (the claim); Yu et al. 2024, arXiv 2311.03099 (sparse deltas,
    rescaling).
    """
    _check_option("target", target, Target)
    _check_option("select", select, SelectOrScore)
    result = dict(theta)
    if target == "delta" and theta_0 is None:
        raise ConfigError("theta_0: target delta needs the weights that dropped entries return to.")
    origin = theta_0 if target == "delta" else None
    for layer in layers:
        names = _parameters(layer, theta)
        keep = keep_masks(layer, theta, density, origin=origin, select=select, seed=seed, scores=scores)
        for name in names:
            base = None if origin is None else origin[name]
            result[name] = _masked(theta[name], base, keep[name], density, rescale)
    return result


def keep_masks(
    layer: Layer | str,
    theta: Mapping[str, torch.Tensor],
    density: float,
    *,
    origin: Mapping[str, torch.Tensor] | None = None,
    select: SelectOrScore = "random",
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
        taken = scores if select == "score" else None
        if select == "score" and scores is None:
            raise ConfigError("scores: select 'score' needs a tensor of scores for every tensor that is made sparse.")
        values = [_magnitude(n, theta, origin) if taken is None else _score(n, theta, taken) for n in names]
        flat = _largest(torch.cat([v.reshape(-1) for v in values]), count)
    parts = flat.split(sizes)
    return {n: part.reshape(theta[n].shape).to(theta[n].device) for n, part in zip(names, parts, strict=True)}


def _masked(
    value: torch.Tensor, origin: torch.Tensor | None, keep: torch.Tensor, density: float, rescale: bool
) -> torch.Tensor:
    if density == 1:
        return value
    dropped = torch.zeros_like(value) if origin is None else origin.detach().to(value.dtype)
    kept = dropped + (value - dropped) / density if rescale and density > 0 else value
    return torch.where(keep, kept, dropped)


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of exactly ``count`` largest values; among equal ones at the edge the earlier are kept."""
    edge = values.kthvalue(len(values) - count + 1).values
    keep = values > edge
    ties = (values == edge).nonzero().reshape(-1)
    keep[ties[: count - int(keep.sum())]] = True
    return keep


def _magnitude(name: str, theta: Mapping[str, torch.Tensor], origin: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
    """|theta - origin| of one tensor, |theta| without an origin."""
    value = theta[name].detach()
    value = (value if origin is None else value - origin[name].detach().to(value.dtype)).abs()
    return _comparable(name, value)


def _score(name: str, theta: Mapping[str, torch.Tensor], scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The scores of one tensor's entries."""
    if name not in scores:
        raise ConfigError(f"scores: none for '{shown(name)}'.{did_you_mean(name, scores)}")
    if scores[name].shape != theta[name].shape:
        raise PairMismatch(
            f"scores: '{shown(name)}' has shape {list(scores[name].shape)}, the weights {list(theta[name].shape)}."
        )
    return _comparable(name, scores[name].detach().float())


def _comparable(name: str, value: torch.Tensor) -> torch.Tensor:
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
