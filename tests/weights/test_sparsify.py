"""Sparsity: the exact number of entries, the right ones, and nothing else touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sharpscope.errors import ConfigError, NonFiniteWeights, PairMismatch
from sharpscope.layers import Layer, split_layers
from sharpscope.weights.sparsify import keep_masks, matched_control, sparsify

W, B, OTHER = "visual.bn1.weight", "visual.bn1.bias", "visual.proj"
STATISTICS, COUNT = "visual.bn1.running_var", "visual.bn1.num_batches_tracked"


def _theta(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    theta = {W: torch.randn(7, 5, generator=g), B: torch.randn(11, generator=g), OTHER: torch.randn(4, generator=g)}
    return theta | {STATISTICS: torch.rand(5, generator=g), COUNT: torch.tensor(seed)}


ZERO, ONE = _theta(0), _theta(1)
LAYER = Layer("visual.bn1", (W, B, STATISTICS, COUNT), "image", 0, "norm", 51)
SIZE = 46
DENSITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
SELECTS = st.sampled_from(["random", "magnitude"])


def _flat(theta: dict[str, Tensor]) -> Tensor:
    return torch.cat([theta[W].reshape(-1), theta[B].reshape(-1)])


@settings(max_examples=80, deadline=None)
@given(DENSITIES, SELECTS, st.sampled_from(["delta", "weight"]), st.integers(0, 5))
def test_exactly_the_rounded_number_of_entries_is_kept(density: float, select: Any, target: Any, seed: int) -> None:
    out = sparsify(ONE, ZERO, [LAYER], density, target, select, seed=seed)
    kept = _flat(out) == _flat(ONE)
    dropped = _flat(out) == (_flat(ZERO) if target == "delta" else 0)
    assert int(kept.sum()) == round(density * SIZE)
    assert bool((kept ^ dropped).all())
    assert all(out[n] is ONE[n] for n in (OTHER, STATISTICS, COUNT))


@pytest.mark.parametrize("target", ["delta", "weight"])
@pytest.mark.parametrize("select", ["random", "magnitude"])
def test_density_1_is_the_identity_bit_for_bit(select: Any, target: Any) -> None:
    out = sparsify(ONE, ZERO, [LAYER], 1.0, target, select)
    assert all(out[n] is ONE[n] for n in ONE) and out is not ONE


@pytest.mark.parametrize("select", ["random", "magnitude"])
def test_density_0_is_theta_0_or_nothing(select: Any) -> None:
    out = sparsify(ONE, ZERO, [LAYER], 0.0, "delta", select)
    assert torch.equal(_flat(out), _flat(ZERO)) and out[OTHER] is ONE[OTHER]
    out = sparsify(ONE, None, [LAYER], 0.0, "weight", select)
    assert not _flat(out).any()


@settings(max_examples=40, deadline=None)
@given(DENSITIES)
def test_magnitude_keeps_the_largest_over_the_whole_layer(density: float) -> None:
    """numpy's stable sort is the witness, ties to the earlier entry."""
    coarse = {n: (t * 2).round() / 2 if t.is_floating_point() else t for n, t in ONE.items()}
    for target, size in (("delta", (_flat(coarse) - _flat(ZERO)).abs()), ("weight", _flat(coarse).abs())):
        out = sparsify(coarse, ZERO, [LAYER], density, target, "magnitude")  # type: ignore[arg-type]
        best = (-size.numpy()).argsort(kind="stable")[: round(density * SIZE)]
        expected = _flat(ZERO).clone() if target == "delta" else torch.zeros(SIZE)
        expected[best] = _flat(coarse)[best]
        assert torch.equal(_flat(out), expected)


def test_random_masks_depend_on_seed_and_layer_only_and_grow_with_the_density() -> None:
    def mask(density: float, seed: int = 0, theta: dict[str, Tensor] = ONE, layer: Layer = LAYER) -> Tensor:
        return _flat(keep_masks(layer, theta, density, seed=seed))

    assert torch.equal(mask(0.5), mask(0.5, theta=ZERO))
    assert not torch.equal(mask(0.5), mask(0.5, seed=1))
    assert not torch.equal(mask(0.5), mask(0.5, layer=Layer("other", LAYER.params, "image", 0, "norm", 51)))
    assert bool((mask(0.3) <= mask(0.5)).all() and (mask(0.5) <= mask(0.9)).all())


def test_random_masks_are_uniform_over_the_entries() -> None:
    hits = torch.stack([_flat(keep_masks(LAYER, ONE, 0.5, seed=s)) for s in range(400)]).double().mean(0)
    assert float((hits - 0.5).abs().max()) < 4.5 * 0.5 / 20


def test_layers_are_masked_on_their_own_and_inputs_stay() -> None:
    before = {n: t.clone() for n, t in ONE.items()}
    out = sparsify(ONE, ZERO, [LAYER, OTHER], 0.5, "weight")
    assert int((out[OTHER] != 0).sum()) == 2 and int((_flat(out) != 0).sum()) == 23
    assert all(torch.equal(ONE[n], before[n]) for n in ONE)


def test_half_precision_and_odd_strides_are_fine() -> None:
    zero, one = ({"visual.w": t[W].T.half()} for t in (ZERO, ONE))
    out = sparsify(one, zero, ["visual.w"], 0.4, "delta", "magnitude")["visual.w"]
    assert out.dtype == torch.float16 and int((out == one["visual.w"]).sum()) == 14
    mixed = sparsify({"visual.w": one["visual.w"].float()}, zero, ["visual.w"], 0.4)["visual.w"]
    assert mixed.dtype == torch.float32


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan")])
def test_densities_outside_are_refused(density: float) -> None:
    with pytest.raises(ConfigError, match="KEPT"):
        sparsify(ONE, ZERO, [LAYER], density)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'delta'"):
        sparsify(ONE, ZERO, [LAYER], 0.5, "delt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'random'"):
        sparsify(ONE, ZERO, [LAYER], 0.5, select="randum")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'score' is none of random, magnitude"):
        sparsify(ONE, ZERO, [LAYER], 0.5, select="score")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="target delta"):
        sparsify(ONE, None, [LAYER], 0.5)
    with pytest.raises(ConfigError, match=r"Did you mean 'visual\.proj'"):
        sparsify(ONE, ZERO, ["visual.prj"], 0.5)
    with pytest.raises(PairMismatch, match="theta_0"):
        sparsify(ONE, ZERO | {W: torch.ones(2)}, [LAYER], 0.5)
    with pytest.raises(NonFiniteWeights, match="NaN"):
        sparsify(ONE | {B: torch.full((11,), float("nan"))}, ZERO, [LAYER], 0.5, select="magnitude")


# ------------------------------------------------------------------ controls


def _layers(sizes: list[int]) -> list[Layer]:
    return [Layer(f"layer{i}", (f"p{i}",), "image", i, "other", n) for i, n in enumerate(sizes)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=20), st.integers(0, 3), st.data())
def test_controls_are_other_layers_nearer_in_size_than_any_single_one(sizes: list[int], seed: int, data: Any) -> None:
    layers = _layers(sizes)
    chosen = [la for la in layers if data.draw(st.booleans())]
    control = matched_control(chosen, layers, seed)
    others = [la for la in layers if la not in chosen]
    assert control == matched_control(reversed(chosen), layers, seed)
    assert not set(control) & set(chosen)
    assert [la for la in layers if la in control] == list(control)
    assert bool(control) == bool(chosen and others)
    if control:
        wanted = sum(la.num_params for la in chosen)
        off = abs(sum(la.num_params for la in control) - wanted)
        # adding or removing any one layer brings no draw nearer, so the total is off by less than its largest layer
        assert (
            off <= max(wanted, *(la.num_params for la in others))
            and off <= abs(min(others, key=lambda la: la.num_params).num_params - wanted)
        ) or sum(la.num_params for la in others) <= wanted


def test_controls_of_a_vit_match_in_size_and_vary_with_the_seed() -> None:
    shapes = {f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": (64, 16) for i in range(12)}
    shapes |= {f"visual.transformer.resblocks.{i}.ln_1.weight": (16,) for i in range(12)}
    layers = split_layers(shapes, "module")
    chosen = [la for la in layers if la.depth in (1, 2)]
    controls = {matched_control(chosen, layers, seed) for seed in range(8)}
    assert len(controls) > 4
    wanted = sum(la.num_params for la in chosen)
    assert all(sum(la.num_params for la in c) == wanted for c in controls)


def test_when_all_others_are_larger_the_smallest_is_the_control() -> None:
    layers = _layers([1, 500, 300, 400])
    assert matched_control(layers[:1], layers, 0) == (layers[2],)
    assert matched_control([], layers, 0) == ()
    assert matched_control(layers, layers, 0) == ()
