"""How far two models agree: closed forms on three images and two classes, other routes to a number, intervals."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from sharpscope.clip import agreement
from sharpscope.clip.agreement import Energies, Outputs, compare, margin, overrides
from sharpscope.finetuning.methods.lipsum_ft import energy_gap
from sharpscope.scores import wilson
from sharpscope.vocabulary import AGREEMENT

LOG3 = math.log(3)
# Three images, two classes, features in the plane. theta_0 predicts 0, 1, 0 and the point 0, 0, 1.
ZERO = Outputs(
    torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([[LOG3, 0.0], [0.0, LOG3], [LOG3, 0.0]])
)
POINT = Outputs(
    torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([[LOG3, 0.0], [LOG3, 0.0], [0.0, LOG3]])
)
LABELS = np.array([0, 1, 1])


def drawn(n: int, classes: int = 4, width: int = 5, seed: int = 0) -> tuple[Outputs, Outputs, np.ndarray]:
    """Two correlated models on ``n`` images."""
    rng = torch.Generator().manual_seed(seed)
    features, scores = (torch.randn(n, k, generator=rng, dtype=torch.float64) for k in (width, classes))
    other = Outputs(
        0.8 * features + torch.randn(n, width, generator=rng, dtype=torch.float64),
        scores + torch.randn(n, classes, generator=rng, dtype=torch.float64),
    )
    return Outputs(features, scores), other, torch.randint(0, classes, (n,), generator=rng).numpy()


def test_three_images_by_hand() -> None:
    """theta_0 is right on images 1, 2; the point on 1, 3; they agree on image 1 alone, and each predicts 0 twice."""
    found = {k: v.estimate for k, v in compare(ZERO, POINT, LABELS).items()}
    assert found["disagreement"] == pytest.approx(2 / 3)
    assert found["only_end_right"] == pytest.approx(1 / 3)
    assert found["only_point_right"] == pytest.approx(1 / 3)
    assert found["prediction_diversity"] == pytest.approx(2 / 3)
    assert found["kappa_complement"] == pytest.approx((1 - 1 / 3) / (1 - 5 / 9))
    # images 2, 3: probabilities (.75, .25) against (.25, .75): KL = .5 log 3
    assert found["kl_divergence"] == pytest.approx(2 / 3 * 0.5 * LOG3)
    assert found["logit_gap"] == pytest.approx(2 / 3 * LOG3**2)
    assert found["margin_difference"] == 0
    assert found["feature_distortion"] == pytest.approx(2 / 3 * 2)
    assert found["feature_distance"] == pytest.approx((math.sqrt(2) + math.sqrt(5)) / 3)
    assert margin(POINT).estimate == pytest.approx(LOG3)


def test_cka_of_three_images_by_hand() -> None:
    """Centred: X = (1/3)[(1,-1),(-2,2),(1,-1)] and Y = (1/3)[(1,-2),(1,-2),(-2,4)], both of rank one: the cosine of
    (1,-2,1) and (1,1,-2), squared, is (-3/6)^2 = 1/4."""
    assert compare(ZERO, POINT, LABELS)["cka_complement"].estimate == pytest.approx(1 - 1 / 4)


def test_every_measure_that_compares_is_0_for_one_and_the_same_model() -> None:
    end, _, labels = drawn(30)
    texts = Energies(torch.eye(5), 2.0)
    end = Outputs(end.features, end.scores, texts)
    twin = Outputs(end.features.clone(), end.scores.clone(), texts)
    found = compare(end, twin, labels)
    assert list(found) == [name for name, measure in AGREEMENT.items() if measure.of == "end"]
    assert all((one.estimate, one.low, one.high, one.n, one.status) == (0, 0, 0, 30, "ok") for one in found.values())


def test_the_measures_of_the_vocabulary_are_the_ones_that_are_taken() -> None:
    taken = [*compare(ZERO, POINT, LABELS), "margin", *overrides(ZERO, POINT, POINT)]
    assert sorted(taken) == sorted(AGREEMENT)


def test_kappa_is_scikit_learns() -> None:
    end, point, labels = drawn(300)
    found = compare(end, point, labels)["kappa_complement"].estimate
    assert found == pytest.approx(1 - cohen_kappa_score(end.predicted, point.predicted), abs=1e-12)


def test_cka_is_that_of_centred_gram_matrices() -> None:
    """The definition by HSIC: <K, L> / (|K| |L|) of K = H X X' H, L = H Y Y' H, [n, n] instead of [D, D]."""
    end, point, labels = drawn(40)
    h = torch.eye(40, dtype=torch.float64) - 1 / 40
    k, l = (h @ t @ t.T @ h for t in (end.features, point.features))  # noqa: E741
    expected = 1 - float((k * l).sum() / (k.norm() * l.norm()))
    assert compare(end, point, labels)["cka_complement"].estimate == pytest.approx(expected, abs=1e-12)
    turned = Outputs(3 * end.features @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q + 1, end.scores)
    assert compare(end, turned, labels)["cka_complement"].estimate == pytest.approx(0, abs=1e-12)


def test_kl_divergence_and_energy_gap_by_torch_and_by_the_training_penalty() -> None:
    """KL by torch's own function; the gap is twice Lipsum-FT's penalty, which has 1/(2M) in place of the mean."""
    end, point, labels = drawn(50)
    texts = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    end, point = (Outputs(o.features, o.scores, Energies(texts, 3.0)) for o in (end, point))
    found = compare(end, point, labels)
    kl = torch.nn.functional.kl_div(
        point.scores.log_softmax(1), end.scores.log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert found["kl_divergence"].estimate == pytest.approx(float(kl))
    unit = [torch.nn.functional.normalize(o.features, dim=1) for o in (point, end)]
    penalty = energy_gap(*unit, texts, torch.tensor(3.0, dtype=torch.float64))
    assert found["energy_gap"].estimate == pytest.approx(2 * float(penalty))


def test_diversity_is_the_sum_of_what_only_one_gets_right() -> None:
    found = {k: v.estimate for k, v in compare(*drawn(200)).items()}
    assert found["prediction_diversity"] == pytest.approx(found["only_end_right"] + found["only_point_right"])
    assert 0 < found["prediction_diversity"] < found["disagreement"]


def test_who_overrides_whom() -> None:
    """Ends predict (0, 1, 0, 1) and (0, 0, 1, 0); the point agrees with theta_0 on one of their three differences."""
    zero, one, point = (
        Outputs(torch.zeros(4, 1), torch.nn.functional.one_hot(torch.tensor(p), 3).float())
        for p in ([0, 1, 0, 1], [0, 0, 1, 0], [2, 1, 1, 2])
    )
    found = overrides(zero, one, point)
    assert [found[k].estimate for k in ("zeroshot_overrides", "zeroshot_overridden")] == pytest.approx([1 / 3, 1 / 3])
    assert {v.n for v in found.values()} == {3}
    assert overrides(zero, one, zero)["zeroshot_overrides"].estimate == 1
    assert overrides(zero, zero, one)["zeroshot_overrides"].status == "undefined"


def test_classes_that_do_not_compete_change_nothing() -> None:
    end, point, labels = drawn(60)
    absent = torch.full((60, 2), -math.inf, dtype=torch.float64)
    wider = [Outputs(o.features, torch.cat([o.scores, absent], 1)) for o in (end, point)]
    kept = {name: one for name, one in compare(end, point, labels).items() if one.status == "ok"}
    assert len(kept) == 11
    assert {name: compare(*wider, labels)[name] for name in kept} == kept


def test_what_has_no_meaning_is_undefined_and_says_why() -> None:
    end, point, labels = drawn(20)
    found = compare(end, point, labels)["energy_gap"]
    assert (found.status, math.isnan(found.estimate)) == ("undefined", True) and "text tower" in found.note
    flat = Outputs(torch.ones(20, 5), torch.tensor([[1.0, 0.0]]).repeat(20, 1))
    other = Outputs(end.features, torch.tensor([[2.0, 0.0]]).repeat(20, 1))
    found = compare(flat, other, labels)
    assert found["kappa_complement"].status == found["cka_complement"].status == "undefined"
    lone = Outputs(end.features, torch.zeros(20, 1))
    assert margin(lone).status == "undefined"


def test_the_standard_errors_are_the_jackknifes() -> None:
    """By influence values and by leaving out one image at a time: equal up to 1/n. The two marginals differ."""
    end, point, labels = drawn(150)
    point = Outputs(point.features, point.scores + torch.tensor([2.0, 0.5, 0.0, -1.0], dtype=torch.float64))
    found, left_out = compare(end, point, labels), []
    for i in range(150):
        at = np.delete(np.arange(150), i)
        fewer = [Outputs(o.features[at], o.scores[at]) for o in (end, point)]
        left_out.append({k: v.estimate for k, v in compare(*fewer, labels[at]).items()})
    for name in ("kappa_complement", "cka_complement", "kl_divergence", "feature_distortion", "logit_gap"):
        stderr = (found[name].high - found[name].low) / 2 / NormalDist().inv_cdf(0.975)
        jackknife = 149 / math.sqrt(150) * np.std([r[name] for r in left_out], ddof=1)
        assert stderr == pytest.approx(jackknife, rel=0.03), name


def test_shares_have_wilsons_interval_and_a_wider_level_a_wider_one() -> None:
    end, point, labels = drawn(100)
    found = compare(end, point, labels)["disagreement"]
    assert (found.low, found.high) == wilson(round(100 * found.estimate), 100)
    for name, narrow in compare(end, point, labels, level=0.5).items():
        wide = compare(end, point, labels, level=0.95)[name]
        assert name == "energy_gap" or wide.low < narrow.low < narrow.high < wide.high


def test_of_a_large_set_cka_takes_a_seeded_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    end, point, labels = drawn(60)
    monkeypatch.setattr(agreement, "CKA_IMAGES", 25)
    one, again, other = (compare(end, point, labels, seed=s)["cka_complement"] for s in (1, 1, 2))
    assert one == again != other and one.n == 25
