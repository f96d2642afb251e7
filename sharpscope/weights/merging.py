"""Several sets of weights of one architecture merged into one: soups, Model Stock, TIES, DARE.

Everything is computed in float64 and cast back, so that merging equal float32 weights gives these weights bit for bit,
and a mean of float32 weights is the same bits in any order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sharpscope.errors import ConfigError
from sharpscope.layers import Layer
from sharpscope.vocabulary import ALL
from sharpscope.weights.compare import check_fit
from sharpscope.weights.sparsify import sparsify
from sharpscope.weights.theta import Theta

__all__ = [
    "Mean", "Step", "dare_edit", "dare_merge", "greedy_soup", "model_stock", "stock_ratio", "ties_edit", "ties_merge",
]  # fmt: skip

Weights = Mapping[str, torch.Tensor]


class Mean:
    """The mean of sets of weights that are given one after the other: one sum is kept, whatever their number.

    Floating tensors are averaged, running statistics included; all others (counts) are the first set's.

    Raises PairMismatch for a set with other names or shapes than the first.
    Source: Wortsman et al. 2022, arXiv 2203.05482 (uniform soup).
    """

    def __init__(self, thetas: Iterable[Weights] = ()) -> None:
        self.count = 0
        self._first: Weights = {}
        self._sum: Theta = {}
        for theta in thetas:
            self.add(theta)

    def add(self, theta: Weights) -> None:
        """Add one set of weights. Raises PairMismatch as the class does."""
        if not self.count:
            self._first = theta
            self._sum = {n: t.double().clone() for n, t in theta.items() if t.is_floating_point()}
        else:
            check_fit(self._first, theta, "the first set of weights", "another")
            for name, total in self._sum.items():
                total += theta[name].double()
        self.count += 1

    def with_one_more(self, theta: Weights) -> Theta:
        """The mean if ``theta`` were added, which it is not."""
        if self.count:
            check_fit(self._first, theta, "the first set of weights", "another")
        total = {n: self._sum[n] + t.double() if self.count else t.double() for n, t in theta.items() if n in self._sum}
        return self._divided(total or {n: t.double() for n, t in theta.items()}, self._first or theta, self.count + 1)

    def theta(self) -> Theta:
        """The mean of all that was added. Raises ConfigError where nothing was."""
        if not self.count:
            raise ConfigError("merge: there are no weights to average.")
        return self._divided(self._sum, self._first, self.count)

    @staticmethod
    def _divided(total: Weights, first: Weights, count: int) -> Theta:
        return {n: (total[n] / count).to(t.dtype) if t.is_floating_point() else t for n, t in first.items()}


# ---------------------------------------------------------------------- greedy soup
@dataclass(frozen=True)
class Step:
    """One candidate of a greedy soup: its own held-out accuracy, that of the soup with it, and whether it was kept."""

    name: str
    alone: float
    with_it: float
    kept: bool


def greedy_soup(
    alone: Mapping[str, float], theta_of: Callable[[str], Weights], accuracy: Callable[[Weights], float]
) -> tuple[Theta, list[Step]]:
    """The greedy soup: candidates from the best to the worst, each kept if the mean with it is not less accurate.

    Args:
        alone: name -> held-out accuracy of every candidate. Of equal ones the earlier comes first.
        theta_of: the weights of a candidate; called once for each.
        accuracy: the held-out accuracy of a set of weights; called once for each candidate but the best.

    Returns the soup and every step, in the order in which the candidates were tried.

    Raises ConfigError without candidates, PairMismatch for weights that do not fit each other.
    Source: Wortsman et al. 2022, arXiv 2203.05482, recipe 1.
    """
    soup, steps, reached = Mean(), list[Step](), 0.0
    for name in sorted(alone, key=lambda n: -alone[n]):
        theta = theta_of(name)
        with_it = accuracy(soup.with_one_more(theta)) if steps else alone[name]
        kept = not steps or with_it >= reached
        steps.append(Step(name, alone[name], with_it, kept))
        if kept:
            soup.add(theta)
            reached = with_it
    return soup.theta(), steps


# ---------------------------------------------------------------------- Model Stock
def stock_ratio(deltas: Sequence[torch.Tensor]) -> float:
    """Model Stock's share t of the mean against theta_0: t = k c / (1 + (k - 1) c), in [0, 1].

    c is the mean cosine between two of the k changes ``deltas``. Orthogonal changes give 0, equal ones 1. The geometry
    behind the formula has c >= 0, so that a negative c counts as 0; so does the cosine of a change that is 0.

    Raises ConfigError for fewer than two changes.
    Source: Jang et al. 2024, arXiv 2403.19522 (for k = 2: 2 c / (1 + c)).
    """
    if len(deltas) < 2:
        raise ConfigError("model-stock: needs at least two fine-tuned sets of weights.")
    flat = [d.double().flatten() for d in deltas]
    k, cosines = len(deltas), [_cosine(a, b) for a, b in itertools.combinations(flat, 2)]
    cosine = max(sum(cosines) / len(cosines), 0.0)
    return k * cosine / (1 + (k - 1) * cosine)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    lengths = (a @ a) * (b @ b)  # sqrt(x x) is x exactly: equal changes have the cosine 1
    return float(a @ b / lengths.sqrt()) if float(lengths) > 0 else 0.0


def model_stock(thetas: Sequence[Weights], theta_0: Weights, moving: Collection[str]) -> tuple[Theta, dict[str, float]]:
    """(Model Stock's merge: theta_0 + t (mean - theta_0) with one t for each tensor of ``moving``, the t by name).

    Tensors with equal changes are the mean bit for bit, those with orthogonal changes theta_0's. All others (running
    statistics) are averaged.

    Raises ConfigError as ``stock_ratio`` does, PairMismatch for weights that do not fit each other.
    Source: Jang et al. 2024, arXiv 2403.19522.
    """
    mean = Mean(thetas).theta()
    ratios = {}
    for name in moving:
        zero = theta_0[name].double()
        ratios[name] = t = stock_ratio([theta[name].double() - zero for theta in thetas])
        if t < 1:
            mean[name] = torch.lerp(zero, mean[name].double(), t).to(mean[name].dtype)
    return mean, ratios


# ---------------------------------------------------------------------- TIES and DARE
def ties_edit(theta: Weights, theta_0: Weights, moving: Collection[str], density: float) -> Theta:
    """theta with only the largest changes from theta_0 kept: a fraction ``density`` of the ``moving`` entries, jointly.

    Source: Yadav et al. 2023, arXiv 2306.01708 (trim, with the largest 20 %).
    """
    whole = Layer(ALL, tuple(moving), "image", 0, "other", sum(theta[n].numel() for n in moving))
    return sparsify(theta, theta_0, [whole], density, "delta", "magnitude")


def dare_edit(theta: Weights, theta_0: Weights, moving: Collection[str], density: float, seed: int) -> Theta:
    """theta with a random fraction ``density`` of every tensor's changes kept and divided by the density.

    The number of kept entries is fixed: density times the tensor's entries, rounded. (The paper drops each entry
    independently.) A tensor of so few entries that this is 0, such as the logit scale, returns to theta_0.

    Source: Yu et al. 2024, arXiv 2311.03099 (drop and rescale).
    """
    return sparsify(theta, theta_0, list(moving), density, "delta", "random", seed, rescale=True)


def ties_merge(
    thetas: Sequence[Weights], theta_0: Weights, moving: Collection[str], density: float = 0.2, scale: float = 1.0
) -> Theta:
    """TIES: the changes are trimmed, a sign is elected for every entry, and the changes of that sign are averaged.

    The elected sign is that of the sum of the trimmed changes; where the sum is 0, it is the sign of most entries. The
    mean is over the changes that are not 0 and have the elected sign. The result is theta_0 + ``scale`` times it.

    Raises ConfigError for a density outside of [0, 1], PairMismatch for weights that do not fit each other.
    Source: Yadav et al. 2023, arXiv 2306.01708 (density .2, scale 1).
    """
    merged = Mean(thetas).theta()
    trimmed = [ties_edit(theta, theta_0, moving, density) for theta in thetas]
    changes = {n: torch.stack([t[n].double() - theta_0[n].double() for t in trimmed]) for n in moving}
    majority = sum(float(c.sum(0).sign().sum()) for c in changes.values())
    for name, change in changes.items():
        sign = change.sum(0).sign()
        sign[sign == 0] = 1.0 if majority >= 0 else -1.0
        agreeing = torch.where(change * sign > 0, change, 0.0)
        mean = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
        merged[name] = (theta_0[name].double() + scale * mean).to(theta_0[name].dtype)
    return merged


def dare_merge(
    thetas: Sequence[Weights],
    theta_0: Weights,
    moving: Collection[str],
    density: float = 0.1,
    scale: float = 1.0,
    seed: int = 0,
) -> Theta:
    """DARE: the mean of the changes, each with a random part dropped and the rest rescaled.

    The result is theta_0 + ``scale`` * mean_k d_k / ``density`` over the entries kept of each change d_k; the choice
    differs between the changes. With density 1 and scale 1 it is the uniform soup; scale k gives the sum of the changes
    (task arithmetic).

    Raises ConfigError for a density outside of [0, 1], PairMismatch for weights that do not fit each other.
    Source: Yu et al. 2024, arXiv 2311.03099.
    """
    merged = Mean(thetas).theta()
    edits = [dare_edit(theta, theta_0, moving, density, seed + k) for k, theta in enumerate(thetas)]
    for name in moving:
        zero = theta_0[name].double()
        total = functools.reduce(torch.add, (edit[name].double() - zero for edit in edits))
        merged[name] = (zero + scale * total / len(edits)).to(theta_0[name].dtype)
    return merged
