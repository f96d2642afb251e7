"""The path: exact ends, exact arithmetic in between, inputs untouched."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sharpscope.errors import ConfigError, NonFiniteWeights, PairMismatch
from sharpscope.layers import is_buffer, split_layers
from sharpscope.weights.path import FisherPath, InterpolationPath, lines_path

BLOCK = "visual.transformer.resblocks.0."
ALPHAS = st.floats(0, 1, allow_subnormal=False)


def _theta(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "visual.conv1.weight": torch.randn(4, 3, 2, 2, generator=g).to(dtype),
        "visual.bn1.weight": torch.randn(4, generator=g).to(dtype),
        "visual.bn1.running_mean": torch.randn(4, generator=g).to(dtype),
        "visual.bn1.running_var": torch.rand(4, generator=g).to(dtype),
        "visual.bn1.num_batches_tracked": torch.tensor(10 * seed + 3),
        BLOCK + "mlp.c_fc.weight": torch.randn(8, 4, generator=g).to(dtype),
        BLOCK + "mlp.c_fc.bias": torch.randn(8, generator=g).to(dtype),
        "frozen.weight": torch.arange(3.0).to(dtype),
        "visual.transposed": torch.randn(5, 3, generator=g).to(dtype).T,
        "logit_scale": torch.randn((), generator=g).to(dtype),
    }


def _bits(t: Tensor) -> Tensor:
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(_bits(a[n]), _bits(b[n])) for n in a)


ZERO, ONE = _theta(0), _theta(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_the_ends_are_the_inputs_bit_for_bit(dtype: torch.dtype, stored: torch.dtype) -> None:
    zero, one = _theta(0, stored), _theta(1, stored)
    one["visual.conv1.weight"][0] = -0.0
    zero[BLOCK + "mlp.c_fc.weight"][0] = -0.0
    zero["frozen.weight"][0] = -0.0  # equal to the other end's 0.0, yet not the same bits
    path = InterpolationPath(zero, one, dtype)
    for alpha, end in ((0.0, zero), (1.0, one)):
        cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in end.items()}
        assert _same(path.at(alpha), cast)
    assert _same(path.theta_0, path.at(0)) and _same(path.theta_1, path.at(1))


@settings(max_examples=40, deadline=None)
@given(ALPHAS)
def test_between_the_ends_it_is_two_products_and_a_sum(alpha: float) -> None:
    theta = InterpolationPath(ZERO, ONE, torch.float64).at(alpha)
    for n, t in theta.items():
        if ZERO[n].is_floating_point():
            expected = (1 - alpha) * ZERO[n].double() + alpha * ONE[n].double()
            torch.testing.assert_close(t, expected, rtol=1e-14, atol=1e-14)
    assert theta["visual.bn1.num_batches_tracked"] == (13 if alpha == 1 else 3)


@settings(max_examples=30, deadline=None)
@given(ALPHAS)
def test_the_reversed_path_meets_itself(alpha: float) -> None:
    back = 1.0 - alpha
    there = InterpolationPath(ZERO, ONE).at(1.0 - back)
    again = InterpolationPath(ONE, ZERO).at(back)
    for n in ZERO:
        if ZERO[n].is_floating_point():
            torch.testing.assert_close(there[n], again[n], rtol=1e-6, atol=1e-6)


def test_buffers_of_floats_are_interpolated_those_of_integers_copied() -> None:
    theta = InterpolationPath(ZERO, ONE).at(0.25)
    expected = 0.75 * ZERO["visual.bn1.running_var"] + 0.25 * ONE["visual.bn1.running_var"]
    torch.testing.assert_close(theta["visual.bn1.running_var"], expected)
    assert theta["visual.bn1.num_batches_tracked"].dtype == torch.int64


def test_moving_are_the_floating_parameters_that_differ() -> None:
    path = InterpolationPath(ZERO, ONE)
    still = {"frozen.weight", "visual.bn1.running_mean", "visual.bn1.running_var", "visual.bn1.num_batches_tracked"}
    assert path.moving == tuple(n for n in ZERO if n not in still)


def test_inputs_keep_their_values_flags_and_memory() -> None:
    zero = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in ZERO.items()}
    before = copy.deepcopy(zero)
    path = InterpolationPath(zero, ONE)
    for alpha in (0.0, 0.5, 1.0):
        theta = path.at(alpha)
        for t in theta.values():
            assert not t.requires_grad
            if t.is_floating_point():
                t.requires_grad_()
    path.at_layer([BLOCK + "mlp.c_fc.weight"], 0.3, "midpoint")
    assert _same({n: t.detach() for n, t in zero.items()}, {n: t.detach() for n, t in before.items()})
    assert all(t.grad is None and t.requires_grad == before[n].requires_grad for n, t in zero.items())
    assert not path.at(0.0)["logit_scale"].requires_grad


def test_a_live_module_is_copied_and_handed_back_untouched() -> None:
    torch.manual_seed(0)
    zero = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    one = copy.deepcopy(zero)
    with torch.no_grad():
        one[0].weight.add_(1)
    state = copy.deepcopy(zero.state_dict())
    path = InterpolationPath(zero, one)
    before = path.at(0.5)
    assert path.moving == ("0.weight",)
    assert zero.training and _same(dict(zero.state_dict()), dict(state))
    with torch.no_grad():
        zero[0].weight.mul_(7)
    assert _same(path.at(0.5), before)


def test_only_what_moves_is_new_memory() -> None:
    path = InterpolationPath(ZERO, ONE)
    a, b = path.at(0.2), path.at(0.7)
    shared = {n for n in a if a[n].data_ptr() == b[n].data_ptr()}
    assert shared == {"frozen.weight", "visual.bn1.num_batches_tracked"}
    assert a["frozen.weight"].data_ptr() == ZERO["frozen.weight"].data_ptr()


@pytest.mark.parametrize(("base", "rest"), [("finetuned", 1.0), ("zeroshot", 0.0), ("midpoint", 0.5)])
def test_only_the_layer_moves_on_a_single_layer_path(base: Any, rest: float) -> None:
    path = InterpolationPath(ZERO, ONE)
    layers = split_layers({n: ZERO[n].shape for n in path.moving}, "module")
    layer = next(la for la in layers if la.name.endswith("mlp"))
    theta, whole, fixed = path.at_layer(layer, 0.3, base), path.at(0.3), path.at(rest)
    assert _same({n: theta[n] for n in layer.params}, {n: whole[n] for n in layer.params})
    others = [n for n in theta if n not in layer.params]
    assert len(layer.params) == 2 and _same({n: theta[n] for n in others}, {n: fixed[n] for n in others})
    assert _same(path.at_layer(layer, rest, base), fixed)


def test_all_layers_together_are_the_whole_path() -> None:
    path = InterpolationPath(ZERO, ONE)
    together = path.at_layer(tuple(path.moving), 0.4, "zeroshot")
    whole = path.at(0.4)
    assert _same(together, whole)


def test_running_statistics_move_with_the_weight_of_their_normalisation() -> None:
    theta = InterpolationPath(ZERO, ONE).at_layer(["visual.bn1.weight"], 0.5, "zeroshot")
    whole = InterpolationPath(ZERO, ONE).at(0.5)
    for n in ("visual.bn1.running_mean", "visual.bn1.running_var"):
        assert torch.equal(theta[n], whole[n])
    assert torch.equal(theta["visual.conv1.weight"], ZERO["visual.conv1.weight"])


@settings(max_examples=30, deadline=None)
@given(ALPHAS)
def test_distances_are_euclidean_and_add_up_along_the_path(alpha: float) -> None:
    path = InterpolationPath(ZERO, ONE, torch.float64)
    theta = path.at(alpha)
    flat = {
        k: torch.cat([t[n].double().reshape(-1) for n in path.moving])
        for k, t in (("0", ZERO), ("1", ONE), ("a", theta))
    }
    d_0, d_1 = path.distance(alpha)
    assert math.isclose(d_0, float((flat["a"] - flat["0"]).norm()), rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(d_1, float((flat["a"] - flat["1"]).norm()), rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(d_0 + d_1, path.distance(1.0)[0], rel_tol=1e-12)


def test_squared_layer_distances_sum_to_the_whole() -> None:
    path = InterpolationPath(ZERO, ONE)
    layers = split_layers({n: t.shape for n, t in ZERO.items()}, "tensor")
    total = math.fsum(path.layer_distance(la) ** 2 for la in layers)
    assert math.isclose(total, path.distance(1.0)[0] ** 2, rel_tol=1e-12)
    assert path.layer_distance("frozen.weight") == 0.0


def test_distances_keep_what_float32_would_lose() -> None:
    zero, one = {"visual.w": torch.zeros(1000)}, {"visual.w": torch.full((1000,), 1e-25)}
    assert math.isclose(InterpolationPath(zero, one).distance(1.0)[0], 1e-25 * math.sqrt(1000), rel_tol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf])
def test_alphas_outside_have_to_be_asked_for(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        InterpolationPath(ZERO, ONE).at(alpha)


def test_extrapolation_goes_on_straight() -> None:
    theta = InterpolationPath(ZERO, ONE, torch.float64, extrapolate=True).at(1.5)
    expected = -0.5 * ZERO["logit_scale"].double() + 1.5 * ONE["logit_scale"].double()
    torch.testing.assert_close(theta["logit_scale"], expected)
    with pytest.raises(ConfigError, match="finite"):
        InterpolationPath(ZERO, ONE, extrapolate=True).at(math.inf)


def test_what_does_not_fit_or_has_no_meaning_is_refused() -> None:
    path = InterpolationPath(ZERO, ONE)
    with pytest.raises(ConfigError, match="Did you mean 'midpoint'"):
        path.at_layer(["logit_scale"], 0.5, "midpont")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'logit_scale'"):
        path.at_layer(["logit_scal"], 0.5)
    with pytest.raises(ConfigError, match="float16"):
        InterpolationPath(ZERO, ONE, torch.float16)
    with pytest.raises(PairMismatch, match="only in the first: logit_scale"):
        InterpolationPath(ZERO, {n: t for n, t in ONE.items() if n != "logit_scale"})


def test_tied_tensors_stay_tied_and_count_once() -> None:
    def tie(theta: dict[str, Tensor]) -> dict[str, Tensor]:
        return theta | {"visual.twin": theta["logit_scale"]}

    path = InterpolationPath(tie(dict(ZERO)), tie(dict(ONE)))
    assert "visual.twin" not in path.moving
    theta = path.at(0.5)
    assert theta["visual.twin"] is theta["logit_scale"]
    assert path.distance(1.0) == InterpolationPath(ZERO, ONE).distance(1.0)
    moved = path.at_layer(["visual.twin"], 0.5, "zeroshot")
    assert torch.equal(moved["logit_scale"], theta["logit_scale"])


# ------------------------------------------------------------------ Fisher


def test_equal_fisher_information_is_the_straight_path() -> None:
    fisher = {n: torch.full_like(t, 3.0) for n, t in ZERO.items() if t.is_floating_point()}
    weighted = FisherPath(InterpolationPath(ZERO, ONE, torch.float64), fisher, fisher).at(0.3)
    plain = InterpolationPath(ZERO, ONE, torch.float64).at(0.3)
    for n in plain:
        torch.testing.assert_close(weighted[n], plain[n])


def test_fisher_information_weighs_elementwise_with_exact_ends_and_a_floor() -> None:
    g = torch.Generator().manual_seed(5)
    f_0, f_1 = ({n: torch.rand(t.shape, generator=g) for n, t in ZERO.items()} for _ in range(2))
    f_0["logit_scale"], f_1["logit_scale"] = torch.tensor(0.0), torch.tensor(0.0)
    path = FisherPath(InterpolationPath(ZERO, ONE, torch.float64), f_0, f_1)
    assert _same(path.at(0), InterpolationPath(ZERO, ONE, torch.float64).at(0))
    assert _same(path.at(1), InterpolationPath(ZERO, ONE, torch.float64).at(1))
    a, n = 0.3, "visual.conv1.weight"
    c_0, c_1 = 0.7 * f_0[n].double().clamp(min=1e-8), a * f_1[n].double().clamp(min=1e-8)
    expected = (c_0 * ZERO[n].double() + c_1 * ONE[n].double()) / (c_0 + c_1)
    torch.testing.assert_close(path.at(a)[n], expected)
    middle = 0.7 * ZERO["logit_scale"].double() + 0.3 * ONE["logit_scale"].double()
    torch.testing.assert_close(path.at(a)["logit_scale"], middle)  # both at the floor: equal votes
    d_0, d_1 = path.distance(a)
    assert d_0 + d_1 >= path.distance(1.0)[0] > max(d_0, d_1)


def test_fisher_information_that_does_not_fit_is_refused() -> None:
    plain = InterpolationPath(ZERO, ONE)
    fisher = {n: torch.ones_like(t) for n, t in ZERO.items() if t.is_floating_point()}
    with pytest.raises(PairMismatch, match="F1: no Fisher information for logit_scale"):
        FisherPath(plain, fisher, {n: t for n, t in fisher.items() if n != "logit_scale"})
    with pytest.raises(PairMismatch, match="differ in shape"):
        FisherPath(plain, fisher | {"logit_scale": torch.ones(2)}, fisher)
    with pytest.raises(NonFiniteWeights, match="logit_scale"):
        FisherPath(plain, fisher | {"logit_scale": torch.tensor(math.nan)}, fisher)


# ------------------------------------------------------------------ LiNeS


def _lines(zero: Any, one: Any, alpha: float, beta: float, granularity: str = "module") -> InterpolationPath:
    shapes = {n: t.shape for n, t in zero.items() if t.is_floating_point() and not is_buffer(n)}
    layers = split_layers(shapes, granularity)  # of parameters, as a pair's layers are
    return lines_path(InterpolationPath(zero, one, torch.float64), layers, alpha, beta)


@pytest.mark.parametrize("granularity", ["tensor", "module", "block"])
def test_lines_scales_the_change_with_depth(granularity: str) -> None:
    shapes = {f"visual.transformer.resblocks.{i}.ln_1.weight": (3,) for i in range(3)}
    names = ["visual.conv1.weight", *shapes, "visual.ln_post.weight", "head.weight", "logit_scale"]
    zero = {n: torch.zeros(3, 1) for n in names}
    one = {n: torch.ones(3, 1) for n in names}
    path = _lines(zero, one, 0.2, 0.8, granularity)
    for t in (0.5, 1.0):
        change = [float(path.at(t)[n][0]) for n in names]
        assert change == pytest.approx([t * x for x in (0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0)])


def test_lines_without_slope_is_the_plain_path() -> None:
    edited, plain = _lines(ZERO, ONE, 1.0, 0.0), InterpolationPath(ZERO, ONE, torch.float64)
    for alpha in (0.0, 0.3, 1.0):
        assert _same(edited.at(alpha), plain.at(alpha))


def test_the_ends_of_lines_are_exact_where_its_factor_is_0_or_1() -> None:
    stem = [f"visual.{n}" for n in ("conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.running_var")]
    blocks = [f"visual.transformer.resblocks.{i}.mlp.c_fc.weight" for i in range(3)]
    deepest = ["visual.ln_post.weight", "head.weight", "logit_scale"]
    generator = torch.Generator().manual_seed(3)
    zero, one = ({n: torch.rand(4, 2, generator=generator) for n in (*stem, *blocks, *deepest)} for _ in range(2))
    path, plain = _lines(zero, one, 0.0, 1.0), InterpolationPath(zero, one, torch.float64)
    assert _same(path.at(0.0), plain.theta_0)
    end = path.at(1.0)
    assert all(torch.equal(end[n], plain.theta_0[n]) for n in stem)  # running statistics go with the weight
    assert all(torch.equal(end[n], plain.theta_1[n]) for n in deepest)
    for i, name in enumerate(blocks):
        torch.testing.assert_close(end[name], zero[name] + (i + 1) / 4 * (one[name].double() - zero[name]))


def test_lines_keeps_tied_tensors_tied_and_the_moving_parameters() -> None:
    zero, one = ({**t, "visual.twin": t["logit_scale"]} for t in (ZERO, ONE))
    plain = InterpolationPath(zero, one, torch.float64, moving=["logit_scale"])
    layers = split_layers({n: t.shape for n, t in zero.items() if t.is_floating_point()}, "module")
    path = lines_path(plain, layers, 0.0, 1.0)
    theta = path.at(0.5)
    assert theta["visual.twin"] is theta["logit_scale"]
    assert path.moving == plain.moving == ("logit_scale",)
    with pytest.raises(ConfigError, match="outside"):
        path.at(1.5)
    stretched = lines_path(InterpolationPath(zero, one, extrapolate=True), layers, 0.0, 1.0)
    torch.testing.assert_close(stretched.at(1.5)["logit_scale"], 1.5 * ONE["logit_scale"] - 0.5 * ZERO["logit_scale"])
