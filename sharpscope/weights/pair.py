"""Two sets of weights that belong together: checked once, before anything is interpolated."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from sharpscope.card import card
from sharpscope.errors import IdenticalPair, PairMismatch, shown
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT, TOWERS, is_buffer, is_derived, place, tower_of
from sharpscope.weights.checkpoint import Checkpoint, Weights, as_theta
from sharpscope.weights.compare import check_finite, check_fit, common_ties, describe, l2_distance
from sharpscope.weights.theta import Theta

__all__ = ["Pair", "alike_heads", "check_pair"]


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """Two sets of weights that fit each other: theta_0 (zero-shot) and theta_1 (fine-tuned).

    ``zeroshot``, ``finetuned``: the checkpoints they came from (None for plain dictionaries). ``moving``: floating
    parameters that differ, tied tensors once. ``facts``: promoted ({"float16+float32": number of tensors}), rounded
    (tower -> number of tensors that are equal within the rounding of half precision; they do not move, and both ends
    get the more exact one), filled (tower -> number of tensors taken from theta_0), head_in (both, zeroshot, finetuned,
    none), dropped (constants only one of the two holds), tied, moving_towers, num_moving (elements), distance (l2 over
    the moving parameters).
    """

    zeroshot: Checkpoint | None
    finetuned: Checkpoint | None
    theta_0: Theta
    theta_1: Theta
    moving: tuple[str, ...]
    facts: dict[str, Any]

    def __repr__(self) -> str:
        f = self.facts
        return (
            f"Pair({describe(self.theta_0)}; {len(self.moving)} of {len(self.theta_0)} tensors move, "
            f"{f['num_moving']:,} parameters in {'+'.join(f['moving_towers']) or 'no tower'}, "
            f"distance {f['distance']:.4g})"
        )

    def _repr_html_(self) -> str:
        f = self.facts
        facts = {
            "model": describe(self.theta_0), "tensors": len(self.theta_0), "moving tensors": len(self.moving),
            "moving parameters": f["num_moving"], "moving towers": "+".join(f["moving_towers"]) or "none",
            "distance": float(f["distance"]),
        }  # fmt: skip
        return card("Pair of checkpoints", facts)


def alike_heads(first: Checkpoint, second: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints, their heads brought to one kind so that they can be interpolated; the logits do not change.

    A head without the scale baked in becomes ``exp(logit_scale) * weight`` if the other has it baked in (theta_0's
    scale if its own file has none); a head without a bias gets zeros if the other has one. If one has no
    head, both stay as they are. Raises PairMismatch if only one of the heads takes unit features, or if their classes
    differ.
    """
    heads = first.facts.get("head"), second.facts.get("head")
    if heads[0] is None or heads[1] is None:
        return first, second
    both = f"{_label(first, '')} and {_label(second, '')}"
    if heads[0]["normalize"] != heads[1]["normalize"]:
        raise PairMismatch(f"{both}: only one of the two heads takes features of unit length.")
    if heads[0]["classnames"] and heads[1]["classnames"] and heads[0]["classnames"] != heads[1]["classnames"]:
        raise PairMismatch(f"{both}: their heads have different classes, or the same classes in another order.")
    baked = heads[0]["scale_baked"] or heads[1]["scale_baked"]
    bias = next((e.tensors[HEAD_BIAS] for e in (first, second) if HEAD_BIAS in e.tensors), None)
    scale = first.tensors.get("logit_scale")
    return _with_head_like(first, baked, bias, scale), _with_head_like(second, baked, bias, scale)


def _with_head_like(
    end: Checkpoint, baked: bool, bias: torch.Tensor | None, otherwise: torch.Tensor | None
) -> Checkpoint:
    """``end`` with its head's scale baked in if ``baked``, and with a bias if there is ``bias``."""
    head, tensors = end.facts["head"], dict(end.tensors)
    if baked and not head["scale_baked"]:
        scale = tensors.get("logit_scale", otherwise)
        if scale is None:
            raise PairMismatch(f"{_label(end, '')}: its head needs a logit_scale, which neither file has.")
        weight = tensors[HEAD_WEIGHT]
        wide = torch.promote_types(weight.dtype, torch.float32)
        tensors[HEAD_WEIGHT] = (weight.double() * scale.double().exp()).to(wide)
    if bias is not None and HEAD_BIAS not in tensors:
        tensors[HEAD_BIAS] = torch.zeros_like(bias)
    return dataclasses.replace(end, tensors=tensors, facts={**end.facts, "head": {**head, "scale_baked": baked}})


def check_pair(theta_0: Weights, theta_1: Weights, *, parameter_names: Collection[str] | None = None) -> Pair:
    """Check that two sets of weights fit each other and can be interpolated; inputs are not modified.

    Keys and shapes have to agree. A fine-tuned file without the text tower (WiSE-FT keeps only leftovers of it) or
    without ``logit_scale`` gets those from theta_0, recorded in ``facts``; nothing else is ever filled. Where dtypes
    differ, both are promoted to the wider one. A head may be in one of the two only: attach the other before taking the
    path. A tensor that equals theta_0's rounded to half precision did not move and becomes theta_0's. Where theta_0 is
    the rounded end, a tower did not move only if that holds for all its matrices and for whatever else differs, because
    a single tensor may really move by less than float16 resolves. ``parameter_names``: the model's parameters; without
    it, buffers are recognised by their names.

    Raises PairMismatch, NonFiniteWeights, IdenticalPair (nothing floating differs: nothing to interpolate).
    """
    name_0, name_1 = _label(theta_0, "theta_0"), _label(theta_1, "theta_1")
    zero, one = as_theta(theta_0, name_0), as_theta(theta_1, name_1)
    dropped = sorted(n for n in {*zero, *one} if is_derived(n) and (n not in zero or n not in one))
    zero, one = ({n: t for n, t in theta.items() if n not in dropped} for theta in (zero, one))
    head = _head_of(zero, one)
    filled = _fill(zero, one)
    one = {n: one.get(n, t) for n, t in zero.items() if n in one or n in filled} | one  # in theta_0's order
    alone = {n for n in {*zero, *one} if tower_of(n) == "head"} if head in ("zeroshot", "finetuned") else set()
    check_fit(zero, one, name_0, name_1, alone=alone)
    promoted = _promote(zero, one, name_0, name_1)
    check_finite(zero, name_0)
    check_finite(one, name_1)
    rounded = _unrounded(zero, one)
    shared = [n for n in zero if n in one and zero[n].is_floating_point()]
    differing = [n for n in shared if not torch.equal(zero[n], one[n])]
    if not differing and not alone:
        within = " within the rounding of half precision" if rounded else ""
        raise IdenticalPair(f"{name_0} and {name_1} hold the same weights{within}: there is nothing to interpolate.")
    ties = common_ties(zero, one)
    moving = tuple(n for n in differing if n not in ties and _is_parameter(n, parameter_names))
    towers = {tower_of(n) for n in moving}
    facts = {
        "promoted": promoted,
        "rounded": rounded,
        "filled": dict(sorted(Counter(tower_of(n) for n in filled).items())),
        "head_in": head,
        "dropped": dropped,
        "tied": ties,
        "moving_towers": [t for t in TOWERS if t in towers],
        "num_moving": sum(zero[n].numel() for n in moving),
        "distance": l2_distance(zero, one, moving),
    }
    ends = [s if isinstance(s, Checkpoint) else None for s in (theta_0, theta_1)]
    return Pair(ends[0], ends[1], zero, one, moving, facts)


def _label(source: Weights, otherwise: str) -> str:
    return shown(source.source, 200) if isinstance(source, Checkpoint) else otherwise


def _is_parameter(name: str, parameter_names: Collection[str] | None) -> bool:
    return not is_buffer(name) if parameter_names is None or tower_of(name) == "head" else name in parameter_names


def _head_of(zero: Theta, one: Theta) -> str:
    first, second = (any(tower_of(n) == "head" for n in theta) for theta in (zero, one))
    if first and second:
        return "both"
    return "zeroshot" if first else "finetuned" if second else "none"


def _fill(zero: Theta, one: Theta) -> set[str]:
    """Names that the fine-tuned weights may take from theta_0: those of a text tower or a logit scale that is gone."""
    filled = {n for n in zero if tower_of(n) == "scale" and n not in one}
    text = [n for n in zero if tower_of(n) == "text"]
    left = [n for n in one if tower_of(n) == "text"]
    if any(place(n).block is not None for n in left):
        return filled
    # WiSE-FT deletes the transformer alone; what it leaves never got a gradient, so it has to equal theta_0's
    if all(n in zero and _same(zero[n], one[n]) for n in left):
        filled |= {n for n in text if n not in one}
    return filled


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal at the narrower of the two dtypes: OpenAI's files are float16, what was tuned from them float32."""
    dtype = a.dtype if a.element_size() <= b.element_size() else b.dtype
    return a.shape == b.shape and torch.equal(a.to(dtype), b.to(dtype))


def _unrounded(zero: Theta, one: Theta) -> dict[str, int]:
    """Give both ends the more exact of two tensors of which one is the other in half precision; how many, by tower."""
    floating = [n for n in zero if n in one and zero[n].is_floating_point()]
    differing = [n for n in floating if not torch.equal(zero[n], one[n])]
    done: Counter[str] = Counter()
    for name in (n for n in differing if _rounds_to(zero[n], one[n])):
        one[name] = zero[name]
        done[tower_of(name)] += 1
    for tower in ("image", "text"):
        own = [n for n in differing if tower_of(n) == tower and one[n] is not zero[n]]
        matrices = {n for n in floating if tower_of(n) == tower and zero[n].ndim > 1}
        if matrices and matrices <= {*own} and all(_rounds_to(one[n], zero[n]) for n in own):
            zero |= {n: one[n] for n in own}
            done[tower] += len(own)
    return dict(sorted(done.items()))


def _rounds_to(exact: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether ``other`` is ``exact`` rounded to float16 or bfloat16 (to float32, where both are float64 now)."""
    narrow = (torch.float16, torch.bfloat16, *((torch.float32,) if exact.dtype == torch.float64 else ()))
    return any(torch.equal(exact.to(t).to(exact.dtype), other) for t in narrow)


def _widened(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _promote(zero: Theta, one: Theta, name_0: str, name_1: str) -> dict[str, int]:
    """Promote differing dtypes to the wider one, in place in both dictionaries; {both dtypes: number of tensors}."""
    done: Counter[str] = Counter()
    for name in [n for n in zero if n in one and zero[n].dtype != one[n].dtype]:
        kinds = sorted(str(t[name].dtype).removeprefix("torch.") for t in (zero, one))
        if zero[name].is_floating_point() != one[name].is_floating_point():
            raise PairMismatch(f"'{shown(name)}' is {zero[name].dtype} in {name_0} but {one[name].dtype} in {name_1}.")
        zero[name], one[name] = _widened(zero[name], one[name])
        done["+".join(kinds)] += 1
    return dict(sorted(done.items()))
