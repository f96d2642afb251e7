"""Chosen layers against other and random layers, on made pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sharpscope.findings.design import independent
from sharpscope.findings.layercontrast import RANDOM_SETS, ChosenLayers, contrast_rows
from sharpscope.vocabulary import CONTRASTS

PAIRS, LAYERS = 40, 48
NAMES = CONTRASTS["stragglers"]


def rows(values: np.ndarray, chosen: np.ndarray, y: np.ndarray, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    design = independent([f"p{i}" for i in range(values.shape[1])])
    keys = design.keys(199, np.random.default_rng(seed))
    given = {"learning_rate": np.random.default_rng(9).normal(size=values.shape[1])}
    layers = ChosenLayers(values, chosen, "sum")
    first, second = contrast_rows(NAMES, layers, y, design, given, keys=keys, seeds=(1, 2))
    assert (first["layer"], second["layer"]) == (NAMES.others, NAMES.random)
    return first, second


def only(layer: int) -> np.ndarray:
    chosen = np.zeros((LAYERS, PAIRS), dtype=bool)
    chosen[layer] = True
    return chosen


def made(rng: np.random.Generator, common: float) -> tuple[np.ndarray, np.ndarray]:
    """Sharpness [L, n] of which a share is common to all layers, and an outcome that follows layer 0."""
    values = np.exp(common * rng.normal(size=PAIRS) + 0.3 * rng.normal(size=(LAYERS, PAIRS)))
    return values, np.log(values[0]) + 0.05 * rng.normal(size=PAIRS)


def test_a_layer_that_alone_tells_the_outcome_stands_out() -> None:
    values, y = made(np.random.default_rng(0), common=0.0)
    first, second = rows(values, only(0), y)
    assert first["ci_low"] > 0.2 and first["p_value"] < 0.05 and first["given"] == "learning_rate"
    assert second["p_value"] == pytest.approx(1 / LAYERS, abs=0.03) and second["estimate"] > 0.5


def test_layers_that_share_what_they_tell_are_no_better_than_others() -> None:
    """Whole, stragglers and others correlate alike: the audit's .903, .903, .915."""
    rng = np.random.default_rng(1)
    values = np.exp(rng.normal(size=PAIRS) + 0.1 * rng.normal(size=(LAYERS, PAIRS)))
    y = np.log(values.sum(axis=0)) + 0.3 * rng.normal(size=PAIRS)
    chosen = np.zeros((LAYERS, PAIRS), dtype=bool)
    chosen[:4] = True
    first, second = rows(values, chosen, y)
    assert first["ci_low"] < 0 and abs(first["estimate"]) < 0.1 and second["p_value"] > 0.05


def test_what_orders_the_pairs_alike_has_no_interval() -> None:
    """All layers are multiples of one: no resample tells the chosen from the others, which makes nothing certain."""
    size = np.exp(np.random.default_rng(7).normal(size=PAIRS))
    values = np.arange(1.0, LAYERS + 1)[:, None] * size
    first, _ = rows(values, only(0), np.log(size) + np.random.default_rng(8).normal(size=PAIRS))
    assert first["estimate"] == 0 and np.isnan(first["ci_low"]) and "rank the pairs in the same order" in first["note"]


def test_the_sign_of_the_relation_does_not_matter() -> None:
    values, y = made(np.random.default_rng(0), common=0.0)
    for ours, theirs in zip(rows(values, only(0), y), rows(values, only(0), -y), strict=True):
        assert ours["estimate"] == pytest.approx(theirs["estimate"]) and ours["p_value"] == pytest.approx(
            theirs["p_value"]
        )


def test_the_order_of_layers_and_the_scale_of_all_do_not_matter() -> None:
    values, y = made(np.random.default_rng(2), common=0.3)
    order = np.random.default_rng(3).permutation(LAYERS)
    ours, theirs = rows(values, only(0), y)[0], rows(7 * values[order], only(0)[order], y)[0]
    assert all(ours[c] == pytest.approx(theirs[c]) for c in ("estimate", "ci_low", "ci_high", "p_value"))


def test_pairs_without_stragglers_are_left_out_and_counted() -> None:
    values, y = made(np.random.default_rng(4), common=0.0)
    chosen = only(0)
    chosen[:, :10] = False
    first, second = rows(values, chosen, y)
    assert first["n"] == PAIRS - 10 and second["status"] == "ok"
    nobody = rows(values, np.zeros_like(chosen), y)
    assert all(r["status"] == "undefined" and f"in {PAIRS} of {PAIRS} pairs" in r["note"] for r in nobody)
    assert all(np.isnan(r["estimate"]) for r in nobody)


def test_every_layer_chosen_leaves_nothing_to_compare_with() -> None:
    values, y = made(np.random.default_rng(5), common=0.0)
    first, _ = rows(values, np.ones((LAYERS, PAIRS), dtype=bool), y)
    assert first["status"] == "undefined"


def test_random_sets_are_as_many_as_it_says() -> None:
    values, y = made(np.random.default_rng(6), common=0.0)
    assert f"of {RANDOM_SETS} random sets" in rows(values, only(0), y)[1]["note"]
