"""The diagonal of the Fisher information: closed forms, every gradient by hand, and what the engine's trace says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature import diagonal_fisher, fisher_trace
from sharpscope.curvature.fisher import FEW_CLASSES


@dataclass
class Classification:
    """Cross-entropy of a module over ragged batches."""

    net: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]

    @property
    def batch_sizes(self) -> list[int]:
        return [len(y) for _, y in self.batches]

    @property
    def weights(self) -> list[float]:
        return [k / sum(self.batch_sizes) for k in self.batch_sizes]

    @property
    def batch_size(self) -> int:
        return max(self.batch_sizes)

    def rebatched(self, size: int) -> Classification:
        return Classification(
            self.net, [p for x, y in self.batches for p in zip(x.split(size), y.split(size), strict=True)]
        )

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(self.net, dict(theta), (self.batches[i][0],))

    def batch_labels(self, i: int) -> Tensor:
        return self.batches[i][1]

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.batches[i][1])


def problem(net: nn.Module, classes: int, n: int = 7) -> tuple[Classification, dict[str, Tensor]]:
    net = net.double()
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 4, generator=g, dtype=torch.float64), torch.randint(0, classes, (n,), generator=g)
    theta = {name: torch.randn(p.shape, generator=g, dtype=torch.float64) for name, p in net.named_parameters()}
    return Classification(net, [(x[:5], y[:5]), (x[5:], y[5:])]), theta


def test_logistic_regression_in_closed_form() -> None:
    """diag F of logits W x + b: for W_ci the mean of p_c (1 - p_c) x_i^2, for b_c that of p_c (1 - p_c)."""
    objective, theta = problem(nn.Linear(4, 3), 3)
    found = diagonal_fisher(objective, theta, ["weight", "bias"])
    x = torch.cat([x for x, _ in objective.batches])
    p = (x @ theta["weight"].T + theta["bias"]).softmax(1)
    variance = p * (1 - p)
    torch.testing.assert_close(found.values["weight"], (variance.T @ x.square() / len(x)).float())
    torch.testing.assert_close(found.values["bias"], variance.mean(0).float())
    assert found.exact and found.n == 7


def test_it_is_the_expected_square_of_every_gradient_and_sums_to_the_engines_trace() -> None:
    objective, theta = problem(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)), 3)
    names = list(theta)
    found = diagonal_fisher(objective, theta, names)
    by_hand = {n: torch.zeros_like(t) for n, t in theta.items()}
    each = []
    for x in torch.cat([x for x, _ in objective.batches]):
        leaves = {n: t.clone().requires_grad_() for n, t in theta.items()}
        log_p = torch.func.functional_call(objective.net, leaves, (x[None],)).log_softmax(1)[0]
        p = log_p.detach().exp()
        total = 0.0
        for c in range(3):
            grads = torch.autograd.grad(log_p[c], list(leaves.values()), retain_graph=True)
            for n, g in zip(names, grads, strict=True):
                by_hand[n] += p[c] * g.square() / 7
                total += float(p[c] * g.square().sum())
        each.append(total)
    for n in names:
        torch.testing.assert_close(found.values[n], by_hand[n].float())
    trace = fisher_trace(objective, theta, {"all": names}, seed=0, rtol=0.01)["all"]
    assert found.trace == pytest.approx(trace.estimate, rel=1e-6)
    assert found.stderr == pytest.approx(float(torch.tensor(each, dtype=torch.float64).std()) / 7**0.5)


def test_with_many_classes_signs_give_the_same_diagonal_on_average() -> None:
    """Mean over 300 seeds within five standard errors of the closed form, entry by entry."""
    classes = FEW_CLASSES + 1
    objective, theta = problem(nn.Linear(4, classes), classes, n=3)
    objective = Classification(objective.net, [(torch.ones(2, 4, dtype=torch.float64), torch.tensor([0, 1]))])
    runs = [diagonal_fisher(objective, theta, ["weight"], seed=s) for s in range(300)]
    assert not any(r.exact for r in runs)
    drawn = torch.stack([r.values["weight"] for r in runs]).double()
    p = (torch.ones(1, 4, dtype=torch.float64) @ theta["weight"].T + theta["bias"]).softmax(1)[0]
    exact = (p * (1 - p))[:, None].expand(classes, 4)
    error = drawn.std(0) / 300**0.5
    assert bool(((drawn.mean(0) - exact).abs() <= 5 * error + 1e-9).all())


def test_a_parameter_that_the_logits_do_not_depend_on_has_none() -> None:
    objective, theta = problem(nn.Linear(4, 3), 3)
    found = diagonal_fisher(objective, {**theta, "unused": torch.ones(2)}, ["weight", "unused"])
    assert not found.values["unused"].any() and found.values["weight"].all()
