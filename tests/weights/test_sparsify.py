"""Sparsity: the exact number of entries, the right ones, and nothing else touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sharpscope.errors import ConfigError, NonFiniteWeights, PairMismatch
from sharpscope.layers import Layer
from sharpscope.weights.sparsify import keep_masks, sparsify

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
    with pytest.raises(ConfigError, match="'score' needs a tensor of scores"):
        sparsify(ONE, ZERO, [LAYER], 0.5, select="score")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="target delta"):
        sparsify(ONE, None, [LAYER], 0.5)
    with pytest.raises(ConfigError, match=r"Did you mean 'visual\.proj'"):
        sparsify(ONE, ZERO, ["visual.prj"], 0.5)
    with pytest.raises(PairMismatch, match="theta_0"):
        sparsify(ONE, ZERO | {W: torch.ones(2)}, [LAYER], 0.5)
    with pytest.raises(NonFiniteWeights, match="NaN"):
        sparsify(ONE | {B: torch.full((11,), float("nan"))}, ZERO, [LAYER], 0.5, select="magnitude")


def test_scores_decide_what_is_kept() -> None:
    scores = {W: torch.arange(35.0).reshape(7, 5), B: torch.full((11,), -1.0)}
    out = sparsify(ONE, ZERO, [LAYER], 10 / SIZE, select="score", scores=scores)
    assert torch.equal(out[W] == ONE[W], scores[W] >= 25) and torch.equal(out[B], ZERO[B])
    with pytest.raises(ConfigError, match=f"scores: none for '{B}'"):
        sparsify(ONE, ZERO, [LAYER], 0.5, select="score", scores={W: scores[W]})
    with pytest.raises(PairMismatch, match="has shape"):
        sparsify(ONE, ZERO, [LAYER], 0.5, select="score", scores=scores | {B: torch.zeros(3)})
    with pytest.raises(NonFiniteWeights, match="NaN"):
        sparsify(ONE, ZERO, [LAYER], 0.5, select="score", scores=scores | {B: torch.full((11,), torch.nan)})


@pytest.mark.parametrize("target", ["delta", "weight"])
def test_rescaling_divides_what_is_kept_by_the_density(target: Any) -> None:
    plain = sparsify(ONE, ZERO, [LAYER], 0.25, target, seed=3)
    scaled = sparsify(ONE, ZERO, [LAYER], 0.25, target, seed=3, rescale=True)
    origin = _flat(ZERO) if target == "delta" else torch.zeros(SIZE)
    torch.testing.assert_close(_flat(scaled) - origin, 4 * (_flat(plain) - origin))
    whole = sparsify(ONE, ZERO, [LAYER], 1.0, target, rescale=True)
    assert all(whole[n] is ONE[n] for n in ONE)
    none = sparsify(ONE, ZERO, [LAYER], 0.0, target, rescale=True)
    assert torch.equal(_flat(none), origin)
