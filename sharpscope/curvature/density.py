"""Spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal

from sharpscope.curvature.draws import gaussian
from sharpscope.curvature.operator import Estimator, SymmetricOperator, solve
from sharpscope.curvature.trace import student
from sharpscope.machine.devices import all_finite, numbers

__all__ = ["SpectralDensity", "spectral_density", "spectral_density_steps"]

WIDTH = 0.02
"""The default standard deviation of the Gaussian that smooths a spectral density, as a share of the width of the
spectrum. A larger value blurs more."""


@dataclass(frozen=True)
class SpectralDensity:
    """Quadrature of the spectral measure: ``nodes`` (eigenvalues) and ``weights``, both [runs, steps].

    The weights of each run sum to 1. ``size``: p, the number of eigenvalues. ``num_matvecs``: the number of products
    spent. Calling the object returns the smoothed density.

    The standard errors are those over random start vectors, widened by Student's t at runs - 1 degrees of freedom, so
    that a number +- 1.96 standard errors covers 95 % also for few runs. They contain neither the error of the
    quadrature, which blurs what ``steps`` products do not resolve, nor that over other draws of images: the products
    come summed over all images, and each image's own part would take a run of its own.
    """

    nodes: np.ndarray
    weights: np.ndarray
    size: int
    num_matvecs: int

    def moment(self, k: int) -> tuple[float, float]:
        """(1/p) tr H^k and its standard error over the runs."""
        runs = (self.weights * self.nodes**k).sum(axis=1)
        return float(runs.mean()), float(_error(runs))

    def grid(self, points: int = 201) -> tuple[np.ndarray, float]:
        """(``points`` values from below the smallest to above the largest node, a suitable Gaussian width).

        The Gaussian's standard deviation is ``WIDTH`` times the width of the spectrum. Where all nodes coincide, it is
        a hundredth of their magnitude, at least 1e-12.
        """
        nodes = self.nodes[self.weights > 0]
        low, high = float(nodes.min()), float(nodes.max())
        width = WIDTH * (high - low)
        if width <= 1e-9 * max(abs(low), abs(high)):
            width = max(0.01 * abs(high), 1e-12)
        return np.linspace(low - 4 * width, high + 4 * width, points), width

    def __call__(self, x: np.ndarray, *, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Density at ``x`` smoothed by a Gaussian of sd ``width``, and its standard error over the runs."""
        kernel = np.exp(-0.5 * ((x[:, None, None] - self.nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        runs = (kernel * self.weights).sum(axis=2)
        return runs.mean(axis=1), _error(runs)


def _error(runs: np.ndarray) -> np.ndarray:
    """The standard error of the mean over the last dimension [..., runs], NaN for a single run."""
    count = runs.shape[-1]
    if count < 2:
        return np.full(runs.shape[:-1], math.nan)
    error: np.ndarray = student(count - 1) * runs.std(axis=-1, ddof=1) / math.sqrt(count)
    return error


def spectral_density(operator: SymmetricOperator, *, seed: int, steps: int = 20, runs: int = 8) -> SpectralDensity:
    """Stochastic Lanczos quadrature: phi(t) = (1/p) sum_i delta(t - lambda_i) from ``runs`` Lanczos runs of ``steps``.

    Each run starts at a random unit vector; its Ritz values are the nodes and the squared first components of the
    tridiagonal matrix's eigenvectors are the weights. This is a Gauss quadrature that is exact for polynomials up to
    degree 2 steps - 1.

    Args:
        operator: shape [p, p].
        seed: the seed of the start vectors.
        steps: the number of products in each run, >= 1; more steps resolve the spectrum more finely.
        runs: the number of runs, >= 1. Two or more give a standard error, which falls about as 1 / sqrt(runs).

    Raises NumericalError where the operator does; a product that is not finite gives NaN nodes of weight 0.

    Sources: Ghorbani, Krishnan, Xiao 2019, arXiv 1901.10159; Golub and Welsch 1969,
    https://doi.org/10.1090/S0025-5718-69-99647-1.
    """
    estimator = spectral_density_steps(
        operator.shape[0], dtype=operator.dtype, device=operator.device, seed=seed, steps=steps, runs=runs
    )
    return solve(estimator, operator)


def spectral_density_steps(
    size: int, *, dtype: torch.dtype, device: torch.device, seed: int, steps: int = 20, runs: int = 8
) -> Estimator[SpectralDensity]:
    """``spectral_density`` as a generator that yields the vectors whose products it needs (see ``operator.solve``)."""
    steps = min(steps, size)
    generator = torch.Generator().manual_seed(seed)
    nodes, weights = np.zeros((runs, steps)), np.zeros((runs, steps))
    spent = 0
    for run in range(runs):
        q = gaussian((size,), generator, device=device, dtype=dtype)
        basis = (q / q.norm())[:, None]
        alphas, betas = np.zeros(steps), np.zeros(steps)
        for i in range(steps):
            product = (yield basis[:, -1:].contiguous())[:, 0]
            spent += 1
            rest = product
            for _ in range(2):
                rest = rest - basis @ (basis.mT @ rest)
            finite, alphas[i], length, betas[i] = numbers(
                all_finite(product), basis[:, -1] @ product, product.norm(), rest.norm()
            )
            if not finite:
                return SpectralDensity(np.full((runs, steps), math.nan), np.zeros((runs, steps)), size, spent)
            if i + 1 == steps or betas[i] <= 10 * torch.finfo(dtype).eps * max(length, 1e-300):
                break
            basis = torch.cat([basis, (rest / betas[i])[:, None]], dim=1)
        used = basis.shape[1]
        values, vectors = eigh_tridiagonal(alphas[:used], betas[: used - 1])
        nodes[run, :used], weights[run, :used] = values, vectors[0] ** 2
    return SpectralDensity(nodes, weights, size, spent)
