"""The notebook route: any loss of any module, three lines, next to other libraries' answers."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.errors import ConfigError
from sharpscope.notebook import layer_curvature


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(F.gelu(self.first(x)))))


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


@pytest.fixture
def problem() -> tuple[Net, list[tuple[Tensor, Tensor]]]:
    gen = torch.Generator().manual_seed(0)
    net = Net().double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=gen, dtype=torch.float64))
    x = torch.randn(20, 4, generator=gen, dtype=torch.float64)
    y = torch.randint(0, 3, (20,), generator=gen)
    return net, [(x[:16], y[:16]), (x[16:], y[16:])]  # ragged: 16 and 4


def dense(net: Net, batches: list[tuple[Tensor, Tensor]], names: list[str]) -> Tensor:
    """The block by double backward of the mean over all examples."""
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    params = [dict(net.named_parameters())[n] for n in names]
    net.eval()
    grads = torch.autograd.grad(loss(net, whole), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = [torch.autograd.grad(g, params, retain_graph=True) for g in flat]
    return torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows])


LAYERS = {"first": ["first.weight", "first.bias"], "norm": ["norm.weight", "norm.bias"]}


def test_table_is_right_for_ragged_batches_and_hands_the_module_back_untouched(problem) -> None:
    net, batches = problem
    net.train()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    table = layer_curvature(net, loss, batches, rtol=1e-6, max_matvecs=200, granularity="module")
    assert net.training and all(torch.equal(before[n], p) and p.grad is None for n, p in net.named_parameters())
    for layer, names in LAYERS.items():
        truth = torch.linalg.eigvalsh(dense(net, batches, names))
        rows = table[table.layer == layer].set_index("measure")
        assert rows.loc["hessian_trace", "estimate"] == pytest.approx(truth.sum().item(), rel=1e-8)
        assert rows.loc["hessian_trace", "stderr"] == 0  # fewer parameters than products: exact
        assert rows.loc["lambda_max", "estimate"] == pytest.approx(truth[-1].item(), rel=1e-6)
        assert rows.loc["lambda_min", "estimate"] == pytest.approx(truth[0].item(), rel=1e-6)


def test_agrees_with_scipys_eigsh(problem) -> None:
    net, batches = problem
    names = [n for n, _ in net.named_parameters()]
    matrix = dense(net, batches, names).numpy()
    low, high = np.sort(sla.eigsh(matrix, k=2, which="BE", return_eigenvectors=False))
    table = layer_curvature(net, loss, batches, rtol=1e-8, max_matvecs=300).set_index(["layer", "measure"])
    assert table.loc[("(all)", "lambda_max"), "estimate"] == pytest.approx(high, rel=1e-7)
    assert table.loc[("(all)", "lambda_min"), "estimate"] == pytest.approx(low, rel=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_hessian_eigenthings(problem) -> None:
    peer = pytest.importorskip("hessian_eigenthings")
    net, batches = problem
    net.eval()
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]  # it averages ragged batches equally
    operator = peer.HessianOperator(net, whole, loss, param_filter=peer.match_names("first.*"))
    top = peer.lanczos(operator, k=1, max_iter=29, which="LA", seed=0)
    rows = layer_curvature(net, loss, batches, rtol=1e-7, max_matvecs=100).set_index(["layer", "measure"])
    assert rows.loc[("first", "lambda_max"), "estimate"] == pytest.approx(float(top.eigenvalues[0]), rel=1e-6)


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "hutchpp"])
def test_every_trace_method_states_an_interval_that_holds(problem, method: str) -> None:
    net, batches = problem
    names = [n for n, _ in net.named_parameters()]
    truth = float(dense(net, batches, names).trace())
    measures = ("hessian_trace", "weighted_trace")
    table = layer_curvature(
        net, loss, batches, measures=measures, trace_method=method, rtol=0.02, max_matvecs=40, seed=1
    ).set_index(["layer", "measure"])
    row = table.loc[("(all)", "hessian_trace")]
    assert row["stderr"] > 0 and abs(row["estimate"] - truth) <= 4 * row["stderr"] and row["num_matvecs"] <= 40
    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    weighted = float((flat**2 * dense(net, batches, names).diagonal()).sum())
    row = table.loc[("(all)", "weighted_trace")]
    assert abs(row["estimate"] - weighted) <= 4 * row["stderr"]


def test_an_unknown_trace_method_is_refused_by_name(problem) -> None:
    net, batches = problem
    with pytest.raises(
        ConfigError, match=r"trace_method: 'xtrac' is none of per_example, controlled, hutchinson, xtrace, hutchpp"
    ):
        layer_curvature(net, loss, batches, trace_method="xtrac")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rtol": 5}, "^rtol: 5 .* a fraction below 1.\nRemedy: rtol 0.05 for 5 %"),
        ({"rtol": 1.0}, "^rtol: 1 .* a fraction below 1"),
        ({"rtol": 0.0}, "^rtol: needs a positive number"),
        ({"rho_l2": -1.0}, "^rho_l2: needs a positive number"),
        ({"density_runs": 0}, "^density_runs: needs a whole number of at least 1"),
        ({"max_matvecs": 0}, "^max_matvecs: needs a whole number of at least 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused_as_on_the_command_line(problem, option, message: str) -> None:
    net, batches = problem
    with pytest.raises(ConfigError, match=message):
        layer_curvature(net, loss, batches, **option)
    with pytest.raises(ConfigError, match=message):
        MeasureSettings(**option)
