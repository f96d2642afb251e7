"""Accuracy: argmax over the right classes, intervals that cover, rows with the columns of the schema."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from sharpscope.clip.accuracy import accuracy_rows, dataset_note, mean_rows, reported
from sharpscope.clip.answering import FeatureCache, answers, answers_each, correct, logits
from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.head import Classifier
from sharpscope.clip.metrics import Answers
from sharpscope.clip.model import ClipModel
from sharpscope.errors import DatasetError, NumericalError
from sharpscope.scores import wilson
from sharpscope.tables.schema import COLUMNS

NAMES = ("cup", "key", "fish", "ring")
Theta = dict[str, torch.Tensor]


def toy(
    labels: list[int], classes: tuple[int, ...] | None = None, names: tuple[str, ...] = NAMES, **more: Any
) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3, 16, 16), dtype=np.uint8)
    mean = std = (0.5,) * 3
    return Dataset(
        "toy",
        names,
        torch.tensor(labels),
        Memory(torch.from_numpy(pixels)),
        mean=mean,
        std=std,
        classes=classes,
        **more,
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
    assert dataset_note(among) == "scored among 2 of 4 classes"
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


# ---------------------------------------------------------------------- projections
def test_three_classes_onto_two_by_hand(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    """ObjectNet's way: several classes are one target, a class without a target competes with nobody."""
    c = Classifier(tiny_model, "stored", NAMES)
    bias = torch.tensor([0.0, 3e3, 5e3, 1e6])  # of other sizes than any logit of the tiny model
    theta = {**c.attach(tiny_theta), "head.bias": bias}
    onto = toy([0, 1, 1, 0], projection=(0, 0, 1, -1), target_names=("a", "b"))
    scores, labels = logits(c, theta, onto)
    plain, _ = logits(c, theta, toy([0, 1, 2, 3]))
    assert torch.equal(scores, torch.stack([plain[:, :2].max(dim=1).values, plain[:, 2]], dim=1))
    assert labels.tolist() == [0, 1, 1, 0]
    given = answers(c, theta, onto)
    assert given.predicted.tolist() == [1, 1, 1, 1]
    assert given.correct.tolist() == [False, True, True, False]
    gap = scores[:, 1] - scores[:, 0]  # far: the softmax of two targets is 1 and exp(-gap)
    assert given.nll == pytest.approx(np.where(labels == 1, 0.0, gap.double()))
    assert given.in_top5 is None
    assert dataset_note(onto) == "scored among 2 classes, each by the largest logit of its member classes"


def test_scores_of_classes_that_the_set_cannot_hold(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c = Classifier(tiny_model, "zeroshot", NAMES)
    theta = c.attach(tiny_theta)
    scores, labels = logits(c, theta, toy([1, 2, 1], classes=(1, 2)), batch_size=2)
    plain, _ = logits(c, theta, toy([1, 2, 1]), batch_size=2)
    assert torch.equal(scores[:, 1:3], plain[:, 1:3])
    assert torch.isinf(scores[:, [0, 3]]).all()
    given = answers(c, theta, toy([1, 2, 1], classes=(1, 2)))
    assert set(given.predicted) <= {1, 2}
    two = torch.log_softmax(plain[:, 1:3].double(), dim=1)
    assert given.nll == pytest.approx(-two[range(3), labels - 1].numpy())


def test_the_region_other_is_no_region(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c = Classifier(tiny_model, "zeroshot", NAMES)
    groups = {"groups": torch.tensor([0, 1, 2, 2]), "group_names": ("Asia", "Other", "Europe")}
    dataset = toy([0, 1, 2, 3], metrics=("worst_group", "top1"), **groups)
    given = answers(c, c.attach(tiny_theta), dataset, 3)
    assert given.groups is not None
    assert given.groups.tolist() == [0, -1, 2, 2]
    hits = given.correct
    worst = given.statistic("worst_group")
    assert worst is not None
    assert worst.value() == min(float(hits[0]), float(hits[2:].mean()))
    assert reported(dataset) == ("worst_group", "top1")
    assert reported(toy([0]), ("ece", "top1")) == ("top1", "ece")


# ---------------------------------------------------------------------- features that are kept
class Counting(Classifier):
    images = 0

    def features(self, theta: Any, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return super().features(theta, images)


def test_a_tower_that_does_not_move_sees_every_image_once(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c, cache, sets = Counting(tiny_model, "stored", NAMES), FeatureCache(), [toy([0, 1, 2]), toy([3, 1])]
    theta = c.attach(tiny_theta)
    for alpha in (0.0, 0.5, 1.0):  # only the head moves
        here = {**theta, "head.weight": theta["head.weight"] * (1 - alpha) + alpha * theta["head.weight"].flip(0)}
        for dataset in sets:
            (got,) = answers_each(c, [here], dataset, 2, cache=cache)
            (wanted,) = answers_each(Classifier(tiny_model, "stored", NAMES), [here], dataset, 2)
            assert np.array_equal(got.nll, wanted.nll) and np.array_equal(got.predicted, wanted.predicted)
            assert np.array_equal(got.labels, dataset.labels.numpy())
    assert c.images == 5
    name = tiny_model.image_names[0]
    moved = {**theta, name: theta[name] * 1.5}
    (other,), (plain,) = (answers_each(c, [t], sets[0], 2, cache=k) for t, k in ((moved, cache), (theta, None)))
    assert not np.array_equal(other.nll, plain.nll)
    assert c.images == 5 + 3 + 3


def test_features_that_do_not_fit_are_computed_anew(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c, cache, dataset = Counting(tiny_model, "zeroshot", NAMES), FeatureCache(limit=100), toy([0, 1, 2])
    theta = c.attach(tiny_theta)
    first, again = (answers(c, theta, dataset, 2, cache=cache) for _ in range(2))
    assert c.images == 6
    np.testing.assert_array_equal(first.nll, again.nll)


def test_progress_counts_images(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c, seen = Classifier(tiny_model, "zeroshot", NAMES), list[int]()
    answers(c, c.attach(tiny_theta), toy([0, 1, 2, 3, 0]), 2, progress=seen.append)
    assert seen == [2, 2, 1]


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
def right(k: int, n: int) -> Answers:
    """k of n right, among two classes."""
    labels = np.zeros(n, np.int64)
    half = np.full(n, 0.5)
    return Answers(labels, (np.arange(n) >= k).astype(np.int64), half, -np.log(half))


def mean_of(counts: dict[str, Answers], level: float = 0.95) -> dict[str, Any]:
    rows = accuracy_rows("A", 0.5, "dense", counts, dict.fromkeys(counts, "ood"), level=level)
    (row,) = mean_rows(rows)
    return row


def test_rows_have_the_schemas_columns() -> None:
    given = {"mini:photo": right(30, 40), "mini:neon": right(3, 20)}
    roles, notes = {"mini:photo": "id", "mini:neon": "ood"}, {"mini:neon": "why"}
    rows = accuracy_rows("A", 0.5, "dense", given, roles, level=0.9, notes=notes)
    assert [tuple(r) for r in [*rows, *mean_rows(rows)]] == [COLUMNS["accuracy"]] * 3
    photo, neon = rows
    assert (photo["dataset"], photo["role"], photo["metric"], photo["n"], photo["note"]) == (
        "mini:photo", "id", "top1", 40, "",
    )  # fmt: skip
    assert (neon["role"], neon["estimate"], neon["note"]) == ("ood", 0.15, "why")
    assert (photo["ci_low"], photo["ci_high"]) == wilson(30, 40, 0.9)


def test_mean_is_over_sets_and_names_them() -> None:
    row = mean_of({"x": right(10, 10), "y": right(0, 90)})
    assert (row["dataset"], row["role"], row["estimate"], row["n"]) == ("x+y", "ood_mean", 0.5, 100)
    assert (row["metric"], row["primary"]) == ("top1", True)
    assert row["ci_low"] < 0.5 < row["ci_high"]
    assert mean_rows([]) == []


def test_mean_of_sets_that_go_by_different_metrics() -> None:
    given = {"wild": right(8, 10), "x": right(5, 10)}
    metrics = {"wild": ("macro_f1", "top1"), "x": ("top1", "nll")}
    rows = accuracy_rows("A", 0.5, "dense", given, dict.fromkeys(given, "ood"), metrics, bootstrap=50)
    assert [(r["dataset"], r["metric"], r["primary"]) for r in rows] == [
        ("wild", "macro_f1", True), ("wild", "top1", False), ("x", "top1", True), ("x", "nll", False),
    ]  # fmt: skip
    f1 = 2 * 8 / (10 + 8)  # one class has examples: TP 8, FN 2
    assert rows[0]["estimate"] == pytest.approx(f1)
    first, second = mean_rows(rows)
    assert (first["metric"], first["primary"]) == ("primary", True)
    assert first["estimate"] == pytest.approx((f1 + 0.5) / 2)
    assert first["note"] == "mean of macro_f1 of wild, top1 of x"
    assert (second["metric"], second["estimate"], second["primary"]) == ("top1", pytest.approx(0.65), False)
    assert rows[3]["note"] == "no interval: the bootstrap replicates do not differ"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(30, 60)), min_size=1, max_size=5))
def test_mean_interval_laws(counts: list[tuple[int, int]]) -> None:
    row, z = mean_of({f"d{i}": right(k, n) for i, (k, n) in enumerate(counts)}), 1.959963984540054
    assert 0 <= row["ci_low"] <= row["estimate"] <= row["ci_high"] <= 1
    if len(counts) == 1:
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(wilson(*counts[0]))
    big = {f"d{i}": right(1000 * k + 500 * n, 2000 * n) for i, (k, n) in enumerate(counts)}
    wide = mean_of(big)
    ps = [(h.correct.mean(), len(h)) for h in big.values()]
    stratified_normal = z * math.sqrt(sum(p * (1 - p) / n for p, n in ps)) / len(ps)
    assert wide["ci_high"] - wide["estimate"] == pytest.approx(stratified_normal, rel=0.02)
    assert wide["estimate"] - wide["ci_low"] == pytest.approx(stratified_normal, rel=0.02)


def test_mean_interval_covers_in_simulation() -> None:
    rng = np.random.default_rng(0)
    ps, ns = np.array([0.05, 0.4, 0.98]), (40, 80, 60)
    covered = 0
    for _ in range(400):
        row = mean_of({f"d{i}": right(rng.binomial(n, p), n) for i, (p, n) in enumerate(zip(ps, ns, strict=True))})
        covered += row["ci_low"] <= ps.mean() <= row["ci_high"]
    assert binomtest(covered, 400, 0.95).pvalue > 0.001
