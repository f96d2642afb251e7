"""The paths that can be chosen by name: exact ends, hand values, invariances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sharpscope.errors import ConfigError
from sharpscope.layers import split_layers
from sharpscope.vocabulary import PATHS
from sharpscope.weights.choices import chosen_path
from sharpscope.weights.monosoup import monosoup_edit
from sharpscope.weights.path import InterpolationPath

BIAS, CONV, VAR = "visual.bn1.bias", "visual.conv1.weight", "visual.bn1.running_var"
PROJ, DEEP = "visual.proj", "visual.transformer.resblocks.0.mlp.c_fc.weight"


def _theta(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {CONV: (6, 3, 2, 2), "visual.bn1.weight": (6,), BIAS: (6,), DEEP: (9, 7), PROJ: (8, 5), "logit_scale": ()}
    return {n: torch.randn(s, generator=g) for n, s in shapes.items()} | {VAR: torch.rand(6, generator=g)}


ZERO, ONE = _theta(0), _theta(1)
MOVING = [n for n in ZERO if n != VAR]
LAYERS = split_layers({n: t.shape for n, t in ZERO.items() if n != VAR}, "module")
FISHERS = tuple({n: torch.rand_like(t) for n, t in theta.items()} for theta in (ZERO, ONE))


def _path(kind: str, zero: dict[str, Tensor] = ZERO, one: dict[str, Tensor] = ONE, **options: object):
    fishers = FISHERS if kind == "fisher" else None
    plain = InterpolationPath(zero, one, extrapolate=bool(options.pop("extrapolate", False)))
    return chosen_path(kind, plain, LAYERS, fishers=fishers, **options)  # type: ignore[arg-type]


def _bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) and torch.equal(a[n].signbit(), b[n].signbit()) for n in a)


@pytest.mark.parametrize("kind", PATHS)
def test_the_ends_are_what_the_vocabulary_says_bit_for_bit(kind: str) -> None:
    path = _path(kind)
    assert _bits(path.at(0.0), ZERO)
    assert _bits(path.at(1.0), ONE) == PATHS[kind].ends_at_theta_1  # type: ignore[index]
    d_0, d_1 = path.distance(0.5)
    assert d_0 > 0 and d_1 > 0 and path.distance(0.0)[0] == path.distance(1.0)[1] == 0


@pytest.mark.parametrize("kind", PATHS)
def test_points_outside_the_ends_where_the_vocabulary_has_them(kind: str) -> None:
    path = _path(kind, extrapolate=True)
    if PATHS[kind].extrapolates:  # type: ignore[index]
        torch.testing.assert_close(path.at(1.5)[PROJ], ZERO[PROJ] + 1.5 * (path.at(1.0)[PROJ] - ZERO[PROJ]))
    else:
        with pytest.raises(ConfigError, match="outside"):
            path.at(1.5)


def test_ties_keeps_the_largest_changes_of_the_whole_model_and_they_are_theta_1s() -> None:
    end = _path("ties", density=0.25).at(1.0)
    change = torch.cat([(ONE[n] - ZERO[n]).abs().flatten() for n in MOVING])
    kept = torch.cat([(end[n] != ZERO[n]).flatten() for n in MOVING])
    assert int(kept.sum()) == round(0.25 * len(change))
    assert change[kept].min() > change[~kept].max()
    assert all(torch.equal(end[n][end[n] != ZERO[n]], ONE[n][end[n] != ZERO[n]]) for n in MOVING if n != "logit_scale")
    assert torch.equal(end[VAR], ONE[VAR])  # running statistics are no part of the change that is thinned
    assert _bits(_path("ties", density=1.0).at(1.0), ONE)


def test_dare_keeps_a_seeded_part_of_every_tensor_and_divides_it_by_the_density() -> None:
    end = _path("dare", density=0.5, seed=4).at(1.0)
    for name in (CONV, DEEP, PROJ):
        kept = end[name] != ZERO[name]
        assert int(kept.sum()) == round(0.5 * kept.numel())
        torch.testing.assert_close((end[name] - ZERO[name])[kept], 2 * (ONE[name] - ZERO[name])[kept])
    assert _bits(_path("dare", density=0.5, seed=4).at(1.0), end)
    assert not _bits(_path("dare", density=0.5, seed=5).at(1.0), end)
    assert _bits(_path("dare", density=1.0).at(1.0), ONE)


def test_random_takes_more_and_more_entries_of_theta_1() -> None:
    path = _path("random", seed=1)
    taken = [torch.cat([(path.at(a)[n] == ONE[n]).flatten() for n in MOVING]) for a in (0.0, 0.25, 0.5, 1.0)]
    assert all(bool((b | ~a).all()) for a, b in itertools.pairwise(taken))
    assert not taken[0].any() and taken[-1].all()
    wide = {PROJ: torch.zeros(400, 100)}, {PROJ: torch.ones(400, 100)}
    share = float(chosen_path("random", InterpolationPath(*wide), ()).at(0.3)[PROJ].mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 40_000)
    assert torch.equal(path.at(0.25)[VAR], InterpolationPath(ZERO, ONE).at(0.25)[VAR])


def test_settings_and_names_that_do_not_belong_to_a_path_are_refused() -> None:
    for kind in ("linear", "lines", "fisher", "monosoup", "random"):
        with pytest.raises(ConfigError, match="density: has no effect without the path ties or dare"):
            _path(kind, density=0.5)
    for density in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match="outside"):
            _path("ties", density=density)
    with pytest.raises(ConfigError, match="needs the Fisher information of both ends"):
        chosen_path("fisher", InterpolationPath(ZERO, ONE), ())
    with pytest.raises(ConfigError, match="'monosop' is none of .* Did you mean 'monosoup'?"):
        _path("monosop")


# ------------------------------------------------------------------ MonoSoup
def _with_spectrum(sigma: list[float], seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0] for n in (6, 5))
    return u[:, : len(sigma)] @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ v[: len(sigma)]


def test_monosoup_reweights_singular_values_by_the_published_rule() -> None:
    """sigma = (8, 2, 1, 0.5): shares 16/23, 4/23, 2/23, 1/23, so that exp(H) = 2.43 and k = 3."""
    sigma = [8.0, 2.0, 1.0, 0.5]
    entropy = -sum(s / 11.5 * math.log(s / 11.5) for s in sigma)
    assert math.ceil(math.exp(entropy)) == 3
    rho, inside = (0.5 / 8) ** 2, 69 / 69.25
    low = rho + (1 - rho) * math.sqrt(1 - inside)
    zero = _with_spectrum([3.0, 2.0], 1)
    for seed in range(3):  # whatever the directions
        found = torch.linalg.svdvals(monosoup_edit(zero, zero + _with_spectrum(sigma, seed)) - zero)
        expected = [(1 - low) * s for s in sigma[:3]] + [low * sigma[3], 0.0]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_monosoup_keeps_a_flat_spectrum_vectors_and_what_hardly_moved() -> None:
    zero = _with_spectrum([1.0, 1.0], 2)
    flat = zero + _with_spectrum([0.7] * 5, 3)
    torch.testing.assert_close(monosoup_edit(zero, flat), flat)
    assert monosoup_edit(zero[0], flat[0]) is not None and torch.equal(monosoup_edit(zero[0], flat[0]), flat[0])
    near = zero + 1e-8 * _with_spectrum([5.0, 1.0], 4)
    assert torch.equal(monosoup_edit(zero, near), near) and torch.equal(monosoup_edit(zero, zero), zero)
    kernel = (flat.reshape(6, 5, 1, 1), zero.reshape(6, 5, 1, 1))
    torch.testing.assert_close(monosoup_edit(kernel[1], kernel[0])[:, :, 0, 0], monosoup_edit(zero, flat))


# ------------------------------------------------------------------ an alpha for every layer
def test_layers_at_alphas_of_their_own() -> None:
    path = InterpolationPath(ZERO, ONE)
    assert _bits(path.at_layers(dict.fromkeys(MOVING, 0.3), 0.3), path.at(0.3))
    theta = path.at_layers({PROJ: 0.0, "visual.bn1.weight": 1.0}, 0.5)
    assert torch.equal(theta[PROJ], ZERO[PROJ]) and torch.equal(theta[CONV], path.at(0.5)[CONV])
    assert torch.equal(theta[VAR], ONE[VAR])  # goes with its weight
    with pytest.raises(ConfigError, match="no tensor of this path"):
        path.at_layers({"visual.pro": 0.1}, 0.5)
    with pytest.raises(ConfigError, match="outside"):
        path.at_layers({PROJ: 1.5}, 0.5)
