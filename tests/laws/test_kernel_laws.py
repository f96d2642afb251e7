"""Written-out second derivatives are those of torch's own operations: value, gradient and Hessian, to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.double_backward import analytic_kernels
from sharpscope.curvature.hvp import HessianEngine


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def causal(n: int) -> Tensor:
    return torch.full((n, n), float("-inf"), dtype=torch.float64).triu_(1)


def attend(mask: Tensor | None) -> Callable[..., Tensor]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def heads(mask: Tensor | None) -> Callable[..., Tensor]:
    def call(x: Tensor, w: Tensor, b: Tensor, out: Tensor, c: Tensor) -> Tensor:
        module = nn.MultiheadAttention(6, 2, batch_first=True).double().eval()
        named = {"in_proj_weight": w, "in_proj_bias": b, "out_proj.weight": out, "out_proj.bias": c}
        return torch.func.functional_call(module, named, (x, x, x), {"need_weights": False, "attn_mask": mask})[0]

    return call


CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "gelu": (F.gelu, [(4, 7)]),
    "silu": (F.silu, [(4, 7)]),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (5,), w, b, 1e-2), [(3, 4, 5), (5,), (5,)]),
    "patches": (lambda x, w, b: F.conv2d(x, w, b, stride=2), [(2, 3, 5, 6), (4, 3, 2, 2), (4,)]),
    "attention": (attend(None), [(2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 5)]),
    "causal attention": (attend(causal(4)), [(2, 3, 4, 5)] * 3),
    "masked attention": (attend(draw(2, 1, 4, 4, seed=9)), [(2, 3, 4, 5)] * 3),
    "heads": (heads(None), [(3, 4, 6), (18, 6), (18,), (6, 6), (6,)]),
    "causal heads": (heads(causal(4)), [(3, 4, 6), (18, 6), (18,), (6, 6), (6,)]),
}


@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_hessian_are_torchs_own(name: str) -> None:
    function, shapes = CASES[name]
    inputs = [draw(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    directions = [draw(*s, seed=20 + i) for i, s in enumerate(shapes)]
    found, nodes = [], []
    for analytic in (False, True):
        with sdpa_kernel(SDPBackend.MATH):
            if analytic:
                with analytic_kernels():
                    out = function(*inputs)
            else:
                out = function(*inputs)
            nodes.append(out)
            loss = (out**2 * draw(*out.shape, seed=50)).sum()  # not linear: the gradient's own gradient counts
            grads = torch.autograd.grad(loss, inputs, create_graph=True)
            # every block by itself as well: cotangents that are not there must be left out, not taken as anything
            blocks = [
                torch.autograd.grad(g, inputs, d, retain_graph=True, materialize_grads=True)
                for g, d in zip(grads, directions, strict=True)
            ]
            whole = torch.autograd.grad(grads, inputs, directions)
        found.append([out, *grads, *(b for block in blocks for b in block), *whole])
    assert type(nodes[0].grad_fn) is not type(nodes[1].grad_fn) or name in ("patches", "heads", "causal heads")
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * float(theirs.detach().abs().max()) + 1e-14)


def test_calls_that_are_not_covered_run_torchs_own_operation() -> None:
    x, w = draw(2, 3, 4, 4), draw(6, 3, 3, 3)
    with analytic_kernels():
        assert torch.equal(F.conv2d(x, w, padding=1), torch.ops.aten.conv2d(x, w, None, [1, 1], [1, 1]))
        torch.testing.assert_close(F.gelu(x, approximate="tanh"), torch.ops.aten.gelu(x, approximate="tanh"))
        torch.testing.assert_close(F.layer_norm(x, (4, 4)), torch.layer_norm(x, (4, 4)))
        half = F.gelu(x.to(torch.bfloat16).requires_grad_())
        assert type(half.grad_fn).__name__ == "GeluBackward0"
        slopes = torch.func.vmap(torch.func.grad(F.gelu))(x.flatten())  # torch.func's transforms have no rule for ours
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(slopes.view_as(x), torch.autograd.grad(F.gelu(leaf).sum(), leaf)[0])


class GradientPenalty:
    """A loss with a gradient inside: its Hessian needs third derivatives."""

    weights = (1.0,)

    def batch_loss(self, i: int, theta: dict[str, Tensor]) -> Tensor:
        out = F.gelu(draw(5, 3) @ theta["w"]).sum()
        (g,) = torch.autograd.grad(out, theta["w"], create_graph=True)
        return (g**2).sum()


def test_a_loss_with_a_gradient_inside_falls_back_to_torchs_own_derivatives() -> None:
    theta = {"w": draw(3, seed=4)}
    v = draw(3, seed=5)
    products = []
    for analytic in (True, False):
        engine = HessianEngine(GradientPenalty(), theta, {"w": ["w"]}, analytic=analytic)
        products.append(engine.operator("w").matvec(v))
        assert not engine.analytic
    torch.testing.assert_close(products[0], products[1], rtol=1e-12, atol=1e-12)
    assert products[0].norm() > 0.1  # a graph cut by torch's once_differentiable would give zero here


def test_engine_gives_the_same_products_either_way_and_leaves_no_mode_behind() -> None:
    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True).double().eval()
    x = draw(4, 5, 8)

    class Objective:
        weights = (1.0,)

        def batch_loss(self, i: int, theta: dict[str, Tensor]) -> Tensor:
            return (torch.func.functional_call(net, theta, (x,)) ** 3).mean()

    theta = {n: p.detach() + 0.1 for n, p in net.named_parameters()}
    with second_order():
        engines = [HessianEngine(Objective(), theta, {"all": list(theta)}, analytic=a) for a in (True, False)]
        v = draw(engines[0].blocks["all"].size)
        ours, theirs = (e.operator("all").matvec(v) for e in engines)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert type(F.gelu(x.requires_grad_()).grad_fn).__name__ == "GeluBackward0"


def test_a_scale_of_zero_is_a_scale() -> None:
    q = draw(2, 3, 5, 4)
    with analytic_kernels():
        ours = F.scaled_dot_product_attention(q, q, q, scale=0.0)
    torch.testing.assert_close(ours, q.mean(2, keepdim=True).expand_as(q))
