"""Eigenvalues followed along a path: the same as from scratch, for fewer products."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.eigen import RitzSpace, lanczos
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.operator import DenseOperator, FunctionOperator
from sharpscope.curvature.tracking import _Known, tracked
from sharpscope.layers import split_layers

SIZE = 300


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turning(t: float, *, sign: float = 1.0) -> DenseOperator:
    """A spectrum as of a network's Hessian: outliers, a bulk around zero, a crowded lower edge; its basis turns."""
    values = torch.cat(
        [
            torch.tensor([20.0, 14.0, 9.0, 7.0, 5.0, 4.0, 3.0], dtype=torch.float64) * (1 + 0.3 * t),
            torch.linspace(-1.3, 1.3, SIZE - 9, dtype=torch.float64),
            torch.tensor([-1.6 + 0.1 * t, -1.45 + 0.1 * t], dtype=torch.float64),
        ]
    )
    q = torch.linalg.qr(draw(SIZE, SIZE)).Q
    skew = draw(SIZE, SIZE, seed=1) / math.sqrt(SIZE)
    turn = torch.linalg.matrix_exp(0.3 * t * (skew - skew.mT))
    basis = turn @ q
    return DenseOperator(sign * (basis * values) @ basis.mT)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_followed_ends_are_those_of_the_dense_matrix(sign: float) -> None:
    space = None
    spent = {"followed": 0, "afresh": 0}
    for t in np.linspace(0, 1, 6):
        operator = turning(float(t), sign=sign)
        truth = torch.linalg.eigvalsh(operator.matrix)
        if space is not None:
            found = tracked(operator, space, seed=0, rtol=0.01)
            spent["followed"] += found.largest.num_matvecs
            spent["afresh"] += lanczos(operator, seed=0, rtol=0.01).largest.num_matvecs
            assert found.largest.converged and found.smallest.converged
            radius = truth.abs().max().item()
            for end, exact in ((found.largest, truth[-1].item()), (found.smallest, truth[0].item())):
                assert abs(end.value - exact) <= 0.01 * max(abs(exact), 0.1 * radius)
                again = operator.matrix @ end.vector - end.value * end.vector
                assert end.residual == pytest.approx(again.norm().item(), rel=1e-6)
                assert end.vector.norm().item() == pytest.approx(1.0, rel=1e-12)
        else:
            found = lanczos(operator, seed=0, rtol=0.01)
        space = found.space
    assert spent["followed"] < 0.7 * spent["afresh"]


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_the_neighbours_pairs_precondition(rtol: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plain residual as the next direction, from the same spaces and by the same stop."""

    def spent() -> int:
        space, total = lanczos(turning(0.0), seed=0, rtol=rtol).space, 0
        for t in (0.2, 0.4, 0.6):
            found = tracked(turning(t), space, seed=0, rtol=rtol)
            total, space = total + found.smallest.num_matvecs, found.space
        return total

    preconditioned = spent()
    plain = lambda self, value, shares, rest: rest + torch.from_numpy(shares).to(rest) @ self.vectors  # noqa: E731
    monkeypatch.setattr(_Known, "precondition", plain)
    assert preconditioned < 0.9 * spent()


def test_to_a_tight_tolerance_it_agrees_with_scipy() -> None:
    space = lanczos(turning(0.0), seed=0, rtol=0.01).space
    operator = turning(0.2)
    low, high = sla.eigsh(operator.matrix.numpy(), k=2, which="BE", return_eigenvectors=False)
    found = tracked(operator, space, seed=0, rtol=1e-9, max_matvecs=250)
    assert found.smallest.value == pytest.approx(low, rel=1e-8)
    assert found.largest.value == pytest.approx(high, rel=1e-8)


def test_a_vector_that_was_overtaken_is_not_followed_on() -> None:
    """The neighbour's top vector is an eigenvector here too, with a residual of zero: only not the outermost."""
    operator = turning(0.0)
    eigenvalues, vectors = torch.linalg.eigh(operator.matrix)
    space = RitzSpace(vectors[:, [0, -2]].mT, np.array([-1.6, 20.0]), vectors[:, :0].mT, np.array([]))
    found = tracked(operator, space, seed=0, rtol=0.01)
    assert found.largest.value == pytest.approx(eigenvalues[-1].item(), rel=0.01)


def test_only_the_ends_that_are_asked_for() -> None:
    operator = turning(0.1)
    space = lanczos(turning(0.0), seed=0, rtol=0.01).space
    both = tracked(operator, space, seed=0)
    top = tracked(operator, space, seed=0, ends=["largest"])
    pair = tracked(operator, space, seed=0, ends=["largest", "dominant"])
    assert top.largest.num_matvecs == pair.largest.num_matvecs < both.largest.num_matvecs
    assert pair.dominant is pair.largest and top.largest.converged and not top.smallest.converged
    flipped = DenseOperator(-operator.matrix)
    other = lanczos(DenseOperator(-turning(0.0).matrix), seed=0, rtol=0.01).space
    dominant = tracked(flipped, other, seed=0, ends=["dominant"])
    assert dominant.dominant is dominant.smallest
    assert dominant.dominant.value == pytest.approx(-top.largest.value, rel=1e-6)
    assert dominant.dominant.num_matvecs == top.largest.num_matvecs


def test_where_it_is_open_which_end_is_dominant_both_are_resolved() -> None:
    outer = torch.tensor([10.0, 9.0, -9.0, -10.3], dtype=torch.float64)
    values = torch.cat([outer, torch.linspace(-2, 2, 196, dtype=torch.float64)])
    q = torch.linalg.qr(draw(200, 200)).Q
    operator = DenseOperator((q * values) @ q.mT)
    near = DenseOperator((q * torch.where(values < -10, -9.8, values)) @ q.mT)
    space = lanczos(near, seed=0, rtol=0.01).space
    found = tracked(operator, space, seed=0, rtol=0.01, ends=["dominant"])
    assert found.dominant.value == pytest.approx(-10.3, rel=0.01)
    assert found.largest.value == pytest.approx(10.0, rel=0.01)


def test_the_error_holds_for_certain_where_every_other_vector_is_known() -> None:
    """|theta - lambda| <= sum_k min(|c_k|, c_k^2 / |theta_k - theta|): Temple's inequality, component by component."""
    eigenvalues, vectors = torch.linalg.eigh(turning(0.0).matrix)
    known = _Known(eigenvalues[1:].numpy(), vectors[:, 1:].mT)
    for seed, noise in enumerate((1e-3, 1e-2, 0.1)):
        x = F.normalize(vectors[:, 0] + noise * F.normalize(draw(SIZE, seed=seed), dim=0), dim=0)
        hx = vectors @ (eigenvalues * (vectors.mT @ x))
        theta = (x @ hx).item()
        shares, rest, _ = known.split((hx - theta * x)[None])
        error = known.error(theta, shares[0], rest.norm().item())
        assert abs(theta - eigenvalues[0].item()) <= error < (hx - theta * x).norm().item() + rest.norm().item()


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0, -1.0], [5.0, -5.0]])
def test_small_zero_and_repeated_spectra(values: list[float]) -> None:
    q = torch.linalg.qr(draw(len(values), len(values))).Q
    operator = DenseOperator((q * torch.tensor(values, dtype=torch.float64)) @ q.mT)
    space = lanczos(operator, seed=0).space
    found = tracked(operator, space, seed=0, rtol=1e-6)
    assert found.largest.value == pytest.approx(max(values), abs=1e-6)
    assert found.smallest.value == pytest.approx(min(values), abs=1e-6)
    assert found.largest.converged and found.smallest.converged
    assert found.largest.num_matvecs <= len(values)


def test_spent_products_are_said() -> None:
    space = lanczos(turning(0.0), seed=0, rtol=0.01).space
    found = tracked(turning(0.6), space, seed=0, rtol=1e-10, max_matvecs=5)
    assert found.largest.num_matvecs == 5 and not found.largest.converged and not found.smallest.converged


def test_products_that_are_not_finite_give_no_number_and_no_space() -> None:
    space = lanczos(turning(0.0), seed=0, rtol=0.01).space
    broken = FunctionOperator(lambda v: torch.full_like(v, math.nan), SIZE)
    found = tracked(broken, space, seed=0)
    assert math.isnan(found.largest.value) and not found.largest.converged and found.space is None


def test_measures_hand_the_space_from_point_to_point() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(6, 16)
            self.b = torch.nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    net = Net().double()
    x, y = draw(40, 6), torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
    ends = [{n: 0.8 * draw(*p.shape, seed=s) for n, p in net.named_parameters()} for s in (2, 3)]

    class Loss:
        weights = (1.0,)

        def batch_loss(self, i: int, theta: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(net, dict(theta), (x,)), y)

    layers = split_layers({n: t.shape for n, t in ends[0].items()}, "module")
    settings = MeasureSettings(rtol=0.01, max_matvecs=200)
    warm = None
    for alpha in (0.4, 0.45, 0.5):
        theta = {n: (1 - alpha) * ends[0][n] + alpha * ends[1][n] for n in ends[0]}
        followed = measure_layers(Loss(), theta, layers, ["lambda_max", "lambda_min"], settings, warm=warm)
        afresh = measure_layers(Loss(), theta, layers, ["lambda_max", "lambda_min"], settings)
        assert set(followed.warm) == {"(all)", "a", "b"}
        radius = max(abs(row["estimate"]) for row in afresh.rows)
        for one, other in zip(followed.rows, afresh.rows, strict=True):
            assert one["converged"] and other["converged"]
            assert one["estimate"] == pytest.approx(other["estimate"], abs=0.02 * radius)
        warm = followed.warm
