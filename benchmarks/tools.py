"""Each tool's Hessian-vector product over some of a tower's parameters, as its users would write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from curvlinops import HessianLinearOperator
from hessian_eigenthings import HessianOperator, supervised_loss
from pyhessian import hessian
from pyhessian.utils import hessian_vector_product
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from work import Work, columns

from sharpscope.curvature.hvp import HessianEngine

__all__ = ["TOOLS", "Product"]

Product = Callable[[Tensor], Tensor]
"""v [p] -> H v [p]; curvlinops also takes [p, 8]."""


def double_backward(work: Work, names: Sequence[str]) -> Product:
    """A masked product with the whole Hessian, computed anew each time, as a script without any library does it."""
    parameters = dict(work.module.named_parameters())
    shapes = {n: p.shape for n, p in parameters.items()}

    def product(v: Tensor) -> Tensor:
        loss = F.cross_entropy(work.module(work.images), work.labels)
        grads = dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values()), create_graph=True), strict=True)
        )
        parts = dict(zip(names, columns(v, names, shapes), strict=True))
        full = [parts.get(n, torch.zeros_like(p)) for n, p in parameters.items()]
        out = dict(
            zip(parameters, torch.autograd.grad(list(grads.values()), list(parameters.values()), full), strict=True)
        )
        return torch.cat([out[n].reshape(-1) for n in names])

    return product


def jvp_of_grad(work: Work, names: Sequence[str]) -> Product:
    """torch.func.jvp(torch.func.grad) with the other parameters constant."""
    theta = work.theta
    point = {n: theta[n] for n in names}
    gradient = torch.func.grad(lambda part: work.batch_loss(0, {**theta, **part}))

    def product(v: Tensor) -> Tensor:
        parts = columns(v, names, {n: t.shape for n, t in theta.items()})
        _, out = torch.func.jvp(gradient, (point,), (dict(zip(names, parts, strict=True)),))
        return torch.cat([out[n].reshape(-1) for n in names])

    return product


def pyhessian(work: Work, names: Sequence[str]) -> Product:
    """PyHessian on one batch (it keeps that gradient's graph), every other parameter frozen."""
    for n, p in work.module.named_parameters():
        p.requires_grad_(n in set(names))
        p.grad = None
    try:
        tool = hessian(work.module, nn.CrossEntropyLoss(), data=(work.images, work.labels), cuda=False)
    finally:
        for p in work.module.parameters():
            p.requires_grad_(True)
            p.grad = None
    order = [n for n, _ in work.module.named_parameters() if n in set(names)]
    shapes = {n: p.shape for n, p in work.module.named_parameters()}

    def product(v: Tensor) -> Tensor:
        parts = dict(zip(names, columns(v, names, shapes), strict=True))
        out = hessian_vector_product(tool.gradsH, tool.params, [parts[n] for n in order])
        found = dict(zip(order, out, strict=True))
        return torch.cat([found[n].reshape(-1) for n in names])

    return product


def eigenthings_operator(work: Work, names: Sequence[str]) -> HessianOperator:
    wanted = set(names)
    return HessianOperator(
        work.module,
        [(work.images, work.labels)],
        supervised_loss(nn.CrossEntropyLoss()),
        param_filter=lambda n, p: n in wanted,
    )


def eigenthings(work: Work, names: Sequence[str]) -> Product:
    """hessian-eigenthings' operator with a parameter filter."""
    operator = eigenthings_operator(work, names)
    order = [n for n, _ in work.module.named_parameters() if n in set(names)]
    shapes = {n: p.shape for n, p in work.module.named_parameters()}

    def product(v: Tensor) -> Tensor:
        parts = dict(zip(names, columns(v, names, shapes), strict=True))
        out = operator.matvec(torch.cat([parts[n].reshape(-1) for n in order]))
        found = dict(zip(order, columns(out, order, shapes), strict=True))
        return torch.cat([found[n].reshape(-1) for n in names])

    return product


def curvlinops(work: Work, names: Sequence[str]) -> Product:
    """curvlinops' Hessian over a subset of the parameters; several columns at once cost less per column."""
    parameters = dict(work.module.named_parameters())
    operator = HessianLinearOperator(
        work.module,
        nn.CrossEntropyLoss(),
        [parameters[n] for n in names],
        [(work.images, work.labels)],
        check_deterministic=False,
    )
    return lambda v: (operator @ v).detach()


def sharpscope(work: Work, names: Sequence[str]) -> Product:
    """The kept-graph engine for these parameters alone (the benchmark's sweeps share one graph instead)."""
    engine = HessianEngine(work, work.theta, {"layer": names})
    return engine.operator("layer").matvec


TOOLS: dict[str, Callable[[Work, Sequence[str]], Product]] = {
    "sharpscope": sharpscope,
    "plain double backward": double_backward,
    "jvp(grad)": jvp_of_grad,
    "PyHessian": pyhessian,
    "hessian-eigenthings": eigenthings,
    "curvlinops": curvlinops,
}
