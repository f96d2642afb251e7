"""Accuracy: argmax over the right classes, intervals that cover, rows with the columns of the schema."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from sharpscope.clip.data import Dataset, _Memory
from sharpscope.clip.evaluate import accuracy_rows, correct, dataset_note, mean_row, wilson
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.errors import DatasetError, NumericalError
from sharpscope.schema import COLUMNS

NAMES = ("cup", "key", "fish", "ring")
Theta = dict[str, torch.Tensor]


def toy(labels: list[int], classes: tuple[int, ...] | None = None, names: tuple[str, ...] = NAMES) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3, 16, 16), dtype=np.uint8)
    mean = std = (0.5,) * 3
    return Dataset(
        "toy", names, torch.tensor(labels), _Memory(torch.from_numpy(pixels)), mean=mean, std=std, classes=classes
    )


# ---------------------------------------------------------------------- correct
@pytest.mark.parametrize("mode", ["zeroshot", "stored", "text"])
def test_correct_is_argmax(mode: str, tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c = Classifier(tiny_model, mode, NAMES)  # type: ignore[arg-type]
    theta, dataset = c.attach(tiny_theta), toy([0, 1, 2, 3, 0, 1, 2, 3, 0])
    images, labels = next(dataset.batches(9))
    expected = (c.logits(theta, images).argmax(dim=1) == labels).numpy()
    assert expected.any()
    for batch_size in (1, 4, 9):
        got = correct(c, theta, dataset, batch_size, "cpu")
        assert got.dtype == np.bool_
        assert got.tolist() == expected.tolist()


def test_classes_that_the_set_cannot_hold_are_no_competitors(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c = Classifier(tiny_model, "stored", NAMES)
    bias = torch.tensor([0.0, 1e3, 2e3, 1e6])  # class 3 always wins, class 2 among (1, 2)
    theta = {**c.attach(tiny_theta), "head.bias": bias}
    assert correct(c, theta, toy([2, 2, 1])).tolist() == [False, False, False]
    among = toy([2, 2, 1], classes=(1, 2))
    assert correct(c, theta, among).tolist() == [True, True, False]
    assert dataset_note(among) == "among 2 of 4 classes"
    assert dataset_note(toy([0])) == ""


def test_logits_that_are_not_finite_are_no_accuracy(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c = Classifier(tiny_model, "stored", NAMES)
    theta = c.attach(tiny_theta)
    theta["head.weight"] = theta["head.weight"].clone()
    theta["head.weight"][0, 0] = math.nan
    with pytest.raises(NumericalError, match="toy: logits are not finite"):
        correct(c, theta, toy([0, 1]))


def test_labels_beyond_the_classifier(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c = Classifier(tiny_model, "text", NAMES[:2])
    with pytest.raises(DatasetError, match="label 3 is out of range"):
        correct(c, tiny_theta, toy([0, 3]))


# ---------------------------------------------------------------------- Wilson
@given(st.integers(1, 400), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_is_scipys(n: int, data: st.DataObject, level: float) -> None:
    k = data.draw(st.integers(0, n))
    ours = wilson(k, n, level)
    theirs = binomtest(k, n).proportion_ci(level, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours[0] <= k / n <= ours[1] <= 1
    assert ours[0] < ours[1]
    low, high = wilson(n - k, n, level)
    assert (1 - high, 1 - low) == pytest.approx(ours, abs=1e-12)


def test_wilson_covers_about_as_often_as_it_says() -> None:
    for p in (0.05, 0.5, 0.9):
        k = np.arange(101)
        inside = [low <= p <= high for low, high in (wilson(int(i), 100) for i in k)]
        assert binom.pmf(k, 100, p)[inside].sum() == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("args", [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses_nonsense(args: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="wilson"):
        wilson(*args)


# ---------------------------------------------------------------------- rows
def hits(k: int, n: int) -> np.ndarray:
    return np.arange(n) < k


def test_rows_have_the_schemas_columns() -> None:
    arrays = {"mini:photo": hits(30, 40), "mini:neon": hits(3, 20)}
    rows = accuracy_rows("A", 0.5, "dense", arrays, {"mini:photo": "id", "mini:neon": "ood"}, 0.9, {"mini:neon": "why"})
    assert [tuple(r) for r in [*rows, mean_row("A", 0.5, "dense", arrays)]] == [COLUMNS["accuracy"]] * 3
    photo, neon = rows
    assert (photo["dataset"], photo["role"], photo["metric"], photo["n"], photo["note"]) == (
        "mini:photo",
        "id",
        "top1",
        40,
        "",
    )
    assert (neon["role"], neon["estimate"], neon["note"]) == ("ood", 0.15, "why")
    assert (photo["ci_low"], photo["ci_high"]) == wilson(30, 40, 0.9)


def test_mean_is_over_sets_and_names_them() -> None:
    row = mean_row("A", 0.5, "dense", {"x": hits(10, 10), "y": hits(0, 90)})
    assert (row["dataset"], row["role"], row["estimate"], row["n"]) == ("x+y", "ood_mean", 0.5, 100)
    assert row["ci_low"] < 0.5 < row["ci_high"]
    with pytest.raises(ValueError, match="at least one"):
        mean_row("A", 0.5, "dense", {})


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(30, 60)), min_size=1, max_size=5))
def test_mean_interval_laws(counts: list[tuple[int, int]]) -> None:
    arrays = {f"d{i}": hits(k, n) for i, (k, n) in enumerate(counts)}
    row, z = mean_row("A", 0.0, "dense", arrays), 1.959963984540054
    assert 0 <= row["ci_low"] <= row["estimate"] <= row["ci_high"] <= 1
    if len(counts) == 1:
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(wilson(*counts[0]))
    big = {f"d{i}": hits(1000 * k + 500 * n, 2000 * n) for i, (k, n) in enumerate(counts)}
    wide = mean_row("A", 0.0, "dense", big)
    ps = [(h.mean(), len(h)) for h in big.values()]
    stratified_normal = z * math.sqrt(sum(p * (1 - p) / n for p, n in ps)) / len(ps)
    assert wide["ci_high"] - wide["estimate"] == pytest.approx(stratified_normal, rel=0.02)
    assert wide["estimate"] - wide["ci_low"] == pytest.approx(stratified_normal, rel=0.02)


def test_mean_interval_covers_in_simulation() -> None:
    rng = np.random.default_rng(0)
    ps, ns = np.array([0.05, 0.4, 0.98]), (40, 80, 60)
    covered = 0
    for _ in range(400):
        arrays = {f"d{i}": rng.random(n) < p for i, (p, n) in enumerate(zip(ps, ns, strict=True))}
        row = mean_row("A", 0.0, "dense", arrays)
        covered += row["ci_low"] <= ps.mean() <= row["ci_high"]
    assert binomtest(covered, 400, 0.95).pvalue > 0.001
