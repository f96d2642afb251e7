"""Which units a study consists of: what is measured where, and the control layers beside every repair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpscope.config.study import StudyConfig
from sharpscope.layers import Layer, split_layers
from sharpscope.seeds import derive
from sharpscope.study.tasks import mask_seed, matched_control, measured_at, variants


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


def test_every_mask_has_a_control_set_of_its_own_as_long_as_there_are_others() -> None:
    shapes = {f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": (64, 16 + i) for i in range(6)}
    layers = split_layers(shapes, "module")
    found: list[tuple[Layer, ...]] = []
    for seed in range(5):
        found.append(matched_control(layers[:1], layers, seed, found))
    assert len(set(found)) == 5 and all(layers[0] not in one for one in found)
    off = [abs(sum(x.num_params for x in one) - layers[0].num_params) for one in found]
    assert off == sorted(off)  # each the nearest of those that are left
    assert matched_control(layers[:1], layers[:2], 0, [(layers[1],)]) == (layers[1],)  # there is no other


def test_when_all_others_are_larger_the_smallest_is_the_control() -> None:
    layers = _layers([1, 500, 300, 400])
    assert matched_control(layers[:1], layers, 0) == (layers[2],)
    assert matched_control([], layers, 0) == ()
    assert matched_control(layers, layers, 0) == ()


def _by_torch(chosen: list[Layer], layers: list[Layer], seed: int) -> tuple[Layer, ...]:
    """The control that torch's permutations gave, with which the run directories of before were computed."""
    import torch

    taken = {x.name for x in chosen}
    others, wanted = [x for x in layers if x.name not in taken], sum(x.num_params for x in chosen)
    generator = torch.Generator().manual_seed(derive(seed, "control", *sorted(taken)))
    draws = []
    for _ in range(64):
        total, picked = 0, []
        for i in torch.randperm(len(others), generator=generator).tolist():
            if abs(total + others[i].num_params - wanted) < abs(total - wanted):
                total += others[i].num_params
                picked.append(i)
        draws.append((abs(total - wanted), picked))
    return tuple(others[i] for i in sorted(min(draws, key=lambda draw: draw[0])[1]))


@pytest.mark.parametrize("seed", [0, 1, 7, 2**62 + 3])
def test_controls_are_those_that_torch_drew(seed: int) -> None:
    """A report made anew names the control layers that its run really repaired."""
    rng = np.random.default_rng(seed)
    for count in (4, 30, 300):
        layers = _layers([int(n) for n in rng.integers(1, 1000, count)])
        chosen = [layer for layer in layers if layer.num_params > 900] or layers[:1]
        assert matched_control(chosen, layers, seed) == _by_torch(chosen, layers, seed)


def test_every_mask_of_the_stragglers_has_its_own_entries_and_control_layers() -> None:
    layers = _layers([10, 10, 20, 30, 10, 20, 40, 10])
    found = variants(StudyConfig(selects=("random", "magnitude")), layers, ["layer0", "layer2"])
    names = [v.name for v in found]
    assert len(set(names)) == len(names)
    numbers = {(v.select, v.group): [] for v in found}
    for v in found:
        numbers[v.select, v.group] += [v.mask] * (v.target == "delta")
    assert numbers["random", "straggler"] == numbers["random", "random_layers"] == [1, 2, 3, 4, 5]
    assert numbers["magnitude", "straggler"] == [None] and numbers["magnitude", "random_layers"] == [1, 2, 3, 4, 5]
    assert numbers["random", "all_layers"] == [1] and numbers["magnitude", "everything"] == [None]
    ours = [v for v in found if v.kind == "straggler:delta:random:0.5"]
    assert len({mask_seed(0, "p", v) for v in ours}) == 5 and {v.layers for v in ours} == {("layer0", "layer2")}
    assert mask_seed(0, "p", ours[0]) == derive(0, "mask", "p", "straggler", "delta", "random")  # of older runs
    assert len({v.layers for v in found if v.group == "random_layers"}) > 1


def test_finite_radii_are_measured_at_three_alphas_unless_a_study_says_where() -> None:
    def where(measure: str, **settings: Any) -> list[float]:
        config = StudyConfig(**settings)
        return [a for a in config.measured_alphas if measured_at(config, measure, a)]

    assert where("sharpness_max@0.001") == [0.0, 0.5, 1.0] and where("hessian_trace") == list(StudyConfig.alphas)
    assert where("sharpness_avg", curvature_alphas=(0.1, 0.2, 0.3, 0.4)) == [0.1, 0.3, 0.4]
    assert where("sharpness_avg", perturbation_alphas=(0.2,)) == [0.2] != where("sharpness_avg", alphas=(0.2, 1.0))
