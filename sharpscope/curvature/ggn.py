"""The positive part of the curvature of a cross-entropy loss: generalised Gauss-Newton and Fisher, per layer.

H = G + R with G = sum_j w_j J_j' (diag(p_j) - p_j p_j') J_j, where J_j is the Jacobian of the logits of example j. G is
positive semidefinite, so that its trace has a logarithm, which the trace of an indefinite Hessian may not have. R =
sum_jc w_j (p_jc - y_jc) d^2 f_jc is the part that comes from the curvature of the logits f themselves. For a softmax, G
equals the Fisher information, the mean outer product of the gradient over labels drawn from p (Martens 2020, arXiv
1412.1193).

``GaussNewton``, ``Fisher`` and ``Residual`` are losses whose Hessian, AT the point where they are evaluated, is G, the
Fisher information or R. ``hvp.HessianEngine`` turns them into one operator per layer, which every estimator takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sharpscope.curvature.double_backward import ThirdDerivative
from sharpscope.curvature.draws import rademacher
from sharpscope.curvature.graphs import watched
from sharpscope.curvature.members import Members
from sharpscope.curvature.needed import needed
from sharpscope.curvature.operator import Divisible, Objective
from sharpscope.curvature.per_example import Tap, stands_alone
from sharpscope.curvature.trace import ENOUGH, Pooled, TraceEstimate, pooled
from sharpscope.machine.devices import onto
from sharpscope.machine.team import Team, team_of
from sharpscope.seeds import derive

__all__ = [
    "ClassificationObjective",
    "Fisher",
    "GaussNewton",
    "Residual",
    "class_cotangent",
    "fisher_trace",
    "ggn_trace",
    "is_cross_entropy",
    "sign_cotangents",
]

EXACT_COST = 3
"""One backward pass over batches of a single example costs at least this many backward passes over whole batches. The
exact trace is computed where it costs less than sampling; a larger value samples longer."""
FEW = 4
"""With at most this many classes, the exact sum over classes is always computed where the examples can be separated,
because sampling would cost as much. A larger value computes more traces exactly."""


class ClassificationObjective(Objective, Protocol):
    """A mean cross-entropy that provides its logits: an ``Objective`` with ``batch_logits`` and ``batch_labels``.

    If it also has ``batch_sizes``, the number of examples in every batch, trace estimators can separate examples.
    """

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """The logits of batch i, [n_i, C]."""
        ...

    def batch_labels(self, i: int) -> Tensor:
        """The classes of batch i, int64 [n_i]."""
        ...


# ------------------------------------------------------------------ as operators
@dataclass(frozen=True)
class _OfLogits:
    """A loss that is computed from the logits of ``objective`` and has the same batches."""

    objective: ClassificationObjective
    team: Team = field(init=False, repr=False, compare=False)
    """The team of processes among which the batches are divided (``machine.team``); the same as that of the
    objective."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "team", team_of(self.objective))

    @property
    def weights(self) -> Sequence[float]:
        """The batches' shares of the examples, equal to the objective's."""
        return self.objective.weights

    @property
    def batch_sizes(self) -> Sequence[int]:
        """The number of examples in every batch, equal to the objective's."""
        sizes: Sequence[int] = self.objective.batch_sizes  # type: ignore[attr-defined]  # where it knows them
        return sizes


@dataclass(frozen=True)
class GaussNewton(_OfLogits):
    """1/2 mean_j d_j' (diag(p_j) - p_j p_j') d_j with d = f(theta) - f. Its value is 0, its Hessian is G.

    f and p are the logits and their softmax at the current theta, held constant.

    G = 1/n sum_j J_j' (diag(p_j) - p_j p_j') J_j, J_j [C, p] the Jacobian of example j's logits and p_j its softmax:
    the generalised Gauss-Newton matrix of the cross-entropy, positive semidefinite.
    ``HessianEngine(GaussNewton(objective), ...)`` makes it an operator for each layer.

    Sources: Schraudolph 2002, https://doi.org/10.1162/08997660260028683; Martens 2020, arXiv 1412.1193.
    """

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """The quadratic form of batch i at ``theta``, a scalar of value 0 whose Hessian is the batch's part of G."""
        logits = self.objective.batch_logits(i, theta)
        p, d = logits.detach().softmax(1), logits - logits.detach()
        return ((p * d * d).sum() - (p * d).sum(1).square().sum()) / (2 * len(p))


@dataclass(frozen=True)
class Fisher(_OfLogits):
    """1/2 mean_js ((p_j - e_js)' d_j)^2, where e_js are the one-hot codes of ``samples`` labels drawn from p_j.

    d is that of ``GaussNewton``. The Hessian is a Monte Carlo estimate of the Fisher information, whose mean over seeds
    is G; more ``samples`` make it less noisy, and with ``samples`` None the Hessian is G itself. ``empirical``: use the
    examples' own labels instead of drawn ones. The result then does not estimate the Fisher information, except at a
    perfect fit.

    Sources: Martens 2020, arXiv 1412.1193; Kunstner, Balles, Hennig 2019, arXiv 1905.12558 (empirical).
    """

    samples: int | None = None
    seed: int = 0
    empirical: bool = False

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """The quadratic form of batch i at ``theta``, a scalar of value 0 whose Hessian is the batch's part."""
        if self.samples is None and not self.empirical:
            return GaussNewton(self.objective).batch_loss(i, theta)
        logits = self.objective.batch_logits(i, theta)
        p, d = logits.detach().softmax(1), logits - logits.detach()
        if self.empirical:
            drawn = self.objective.batch_labels(i)[:, None]
        else:
            drawn = _labels(p, self.samples or 1, torch.Generator().manual_seed(derive(self.seed, "fisher", i)))
        slopes = (p * d).sum(1, keepdim=True) - d.gather(1, drawn)
        return slopes.square().mean() / 2


@dataclass(frozen=True)
class Residual(_OfLogits):
    """mean_j (p_j - y_j)' f_j(theta) with p constant: its gradient is that of the loss, its Hessian is R = H - G.

    R is the part that comes from the curvature of the logits, 1/n sum_jc (p_jc - y_jc) d^2 f_jc; it vanishes at a
    perfect fit.

    Sources: Schraudolph 2002, https://doi.org/10.1162/08997660260028683; Martens 2020, arXiv 1412.1193.
    """

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """The mean of batch i at ``theta``, a scalar; its gradient is the loss's, its Hessian the batch's part of R."""
        logits = self.objective.batch_logits(i, theta)
        labels = self.objective.batch_labels(i)[:, None]
        p = logits.detach().softmax(1)
        return ((p * logits).sum() - logits.gather(1, labels).sum()) / len(p)


def is_cross_entropy(objective: ClassificationObjective, theta: Mapping[str, Tensor]) -> bool:
    """Whether the first batch's loss is the mean cross-entropy of its logits, up to rounding; H = G + R requires it."""
    with torch.no_grad():
        loss, logits = objective.batch_loss(0, theta).double(), objective.batch_logits(0, theta).double()
        own = torch.nn.functional.cross_entropy(logits, objective.batch_labels(0))
    return bool(torch.isclose(loss, own, rtol=1e-3, atol=1e-5))


# ------------------------------------------------------------------ traces
def ggn_trace(
    objective: ClassificationObjective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    *,
    seed: int,
    rtol: float = 0.05,
    max_probes: int = 100,
    pilot: int = 2,
) -> dict[str, TraceEstimate]:
    """tr G_ll for every block l; all blocks share the same backward passes.

    tr G_ll = sum_j w_j sum_c ||J_jl' b_jc||^2 with b_jc the columns of B_j, B_j B_j' = diag(p_j) - p_j p_j'. The inner
    sum equals E ||J_jl' B_j e||^2 for random signs e. One backward pass of <logits, cotangents> gives the squared norm
    s_j of EVERY example's gradient, from the taps where parameters enter the forward pass (see
    ``curvature.per_example``), without forming a gradient. The cotangents are:

    - all C columns of B_j, one after the other, for up to ``FEW`` classes, or where this costs at most twice the passes
      that the tolerance needs. The trace then is exact;
    - otherwise B_j e with independent signs for each example. The estimate is sum_j w_j mean_k s_jk over the probes k,
      first ``pilot`` of them, then as many as the block that needs most. Its error accounts for examples and probes
      (see ``trace.pooled``).

    For parameters without a tap, or whose taps mix examples, the squared norm of the whole batch's gradient is used.
    Its cross terms between examples have mean 0 and add noise. If the objective is ``Divisible`` and it is cheaper than
    sampling (``EXACT_COST``), these parameters are computed exactly, example by example.

    Args:
        objective: a mean cross-entropy with logits [n_i, C] and labels [n_i] of every batch.
        theta: named tensors.
        blocks: layer name -> parameter names.
        seed: the seed of the signs.
        rtol: relative tolerance, > 0. Half the tolerance costs about four times the passes.
        max_probes: the largest number of backward passes over the data.
        pilot: the number of probes before the first check of the error, >= 2.

    Returns layer -> estimate; ``num_matvecs`` counts backward passes over the data, and ``converged`` is stderr <=
    rtol * estimate.

    Sources: Schraudolph 2002, https://doi.org/10.1162/08997660260028683; Hutchinson 1990; Goodfellow 2015, arXiv
    1510.01799; Li et al. 2022, arXiv 2110.05679.
    """
    return _square_trace(objective, theta, blocks, sign_cotangents, seed, rtol, max_probes, pilot)


def fisher_trace(
    objective: ClassificationObjective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    *,
    seed: int,
    rtol: float = 0.05,
    max_probes: int = 100,
    pilot: int = 2,
) -> dict[str, TraceEstimate]:
    """The trace of the Fisher information E_{y ~ p}[g g'] of every block, from labels y drawn at random.

    With u_j = J_j'(p_j - e_y), the trace of example j's block l is E_{y ~ p} ||u_jl||^2. Where the model is confident,
    unlikely labels hold nearly all of this sum, and a few labels drawn from p agree on a number that is far too small.
    Labels are therefore drawn from q_y, which is proportional to p_y ||p - e_y||^2, and ||u||^2 is multiplied by
    p_y / q_y. The mean stays the same, and all cotangents of the logits have the length sqrt(1 - ||p||^2) and a random
    sign, which makes the terms between examples vanish on average. For a
    softmax tr F = tr G, so that ``ggn_trace`` and this function estimate the same number; stopping rule, exact
    computation for few classes, arguments and result are those of ``ggn_trace``. ``seed`` is the seed of the labels.

    Sources: Amari 1998, https://doi.org/10.1162/089976698300017746; Kunstner, Balles, Hennig 2019, arXiv 1905.12558.
    """
    return _square_trace(objective, theta, blocks, _scores, seed, rtol, max_probes, pilot)


T = TypeVar("T")
Draw = Callable[[Tensor, torch.Generator], Tensor]
"""A function of the rows p of a batch and a generator. How much it draws depends on the shape of p alone."""


def sign_cotangents(p: Tensor, generator: torch.Generator) -> Tensor:
    """B e for every row p: B B' = diag(p) - p p', and e are random signs."""
    root = p.sqrt() * rademacher(p.shape, generator, device=p.device, dtype=p.dtype)
    return root - p * root.sum(1, keepdim=True)


def _scores(p: Tensor, generator: torch.Generator) -> Tensor:
    """+- sqrt(p_y / q_y) (p - e_y) for a y drawn from q_y = p_y ||p - e_y||^2 / (1 - ||p||^2), row by row."""
    square = p.double().square().sum(1, keepdim=True)
    lengths = (1 - 2 * p + square).clamp_(min=0)  # ||p - e_y||^2 of every y
    drawn = _labels(p * lengths, 1, generator)
    length = lengths.gather(1, drawn)
    scale = torch.where(length > 0, ((1 - square).clamp(min=0) / length).sqrt(), 0.0)
    # Under q the cotangents do not have mean 0; random signs give them that, so that examples in one sum do not mix.
    scale = scale * rademacher(scale.shape, generator, device=scale.device, dtype=scale.dtype)
    return p.scatter_add(1, drawn, -torch.ones_like(p[:, :1])) * scale.to(p)


def _labels(p: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[n, count] classes drawn from the rows of p, by the inverse of their distribution function."""
    u = onto(torch.rand(len(p), count, generator=generator, dtype=torch.float64), p.device)
    cumulative = p.double().cumsum(1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:]).clamp_(max=p.shape[1] - 1)


def class_cotangent(p: Tensor, c: int) -> Tensor:
    """Column c of B, sqrt(p_c) (e_c - p), for every row p."""
    column = -p
    column[:, c] += 1
    return column * p[:, c : c + 1].sqrt()


def _square_trace(
    objective: ClassificationObjective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    draw: Draw,
    seed: int,
    rtol: float,
    max_probes: int,
    pilot: int,
) -> dict[str, TraceEstimate]:
    squares = _Squares(objective, theta, blocks)
    generator = torch.Generator().manual_seed(seed)
    if squares.own_open and squares.classes <= min(FEW, max_probes):
        squares.settle_own()
    if squares.own_open or squares.rest_open:
        squares.sample(max(pilot, 2), draw, generator)
    while True:
        looks = squares.looks()
        more = max(_probes(value, look, squares.count, rtol) for value, look in looks) - squares.count
        more = min(more, max_probes - squares.spent)
        if more <= 0:
            break
        affordable = squares.classes <= max_probes - squares.spent
        if squares.own_open and 2 * more > squares.classes and affordable:  # exactness is worth twice the passes
            squares.settle_own()
        elif not squares.own_open and squares.divisible and more > EXACT_COST * squares.classes:
            squares.settle_rest()
        else:
            squares.sample(more, draw, generator)
    return {
        block: TraceEstimate(value, look.stderr, _within(value, look, rtol), squares.spent, contributions=parts)
        for block, (value, look), parts in zip(blocks, looks, squares.contributions(), strict=True)
    }


def _within(value: float, look: Pooled, rtol: float) -> bool:
    return math.isfinite(value) and look.stderr <= rtol * value and look.freedom >= ENOUGH


def _probes(value: float, look: Pooled, count: int, rtol: float) -> int:
    """The number of probes that bring a block's error down to rtol, predicted from the first ``count`` probes."""
    if not math.isfinite(value) or _within(value, look, rtol):
        return count
    needed = look.needed((rtol * value) ** 2)
    return max(math.ceil(min(needed, math.inf if look.freedom >= ENOUGH else 2 * count, 10**9)), count + 1)


class _Squares:
    """||J_j' c_j||^2 of every block for cotangents c of the logits, either sampled or summed over all columns of B.

    There are two kinds of parameters. Those with a tap that separates the examples ("own") have one square per example,
    ``[blocks, n]`` for a batch. The others ("rest") have only ||sum_j J_j' c_j||^2 of the whole batch, ``[blocks]``.
    ``own_open``, ``rest_open``: whether that kind is still sampled, not yet exact. ``spent``: the number of backward
    passes over the data so far; ``count`` of them were samples.
    """

    def __init__(
        self,
        objective: ClassificationObjective,
        theta: Mapping[str, Tensor],
        blocks: Mapping[str, Sequence[str]],
    ) -> None:
        self.divisible, self.team = isinstance(objective, Divisible), team_of(objective)
        self.names = list(dict.fromkeys(n for block in blocks.values() for n in block))
        self.params = {n: theta[n].detach().clone().requires_grad_() for n in self.names}
        self.theta = {**theta, **self.params}
        self.objective = needed(objective, self.theta)
        self.device = next(iter(self.params.values())).device
        self.members = Members(blocks.values(), self.names, self.device)
        self._settled: dict[int, Tensor] = {}  # of a batch: [blocks, n] of what is known without an error
        self.count = self.spent = 0
        self._samples: list[tuple[Tensor, Tensor, list[str]]] = []  # per batch: own, rest, names of the rest
        self._entered: set[str] = set()  # the parameters of the rest on which the loss depends
        self._alone: dict[int, frozenset[str]] = {}
        self._tapped = True
        logits, taps, rest = self._forward(0)
        self._tapped = self.own_open = bool(taps)
        self.classes, self.rest_open = logits.shape[1], bool(rest)

    # ------------------------------------------------------------------ passes over the data
    def sample(self, count: int, draw: Draw, generator: torch.Generator) -> None:
        """Take ``count`` more probes, all probes of one batch before the next batch (one forward pass per batch)."""

        def probe(i: int) -> tuple[Tensor, Tensor, list[str]]:
            logits, taps, rest = self._forward(i)
            p = logits.detach().softmax(1)
            taps = taps if self.own_open else []
            pairs = [self._squares(logits, taps, rest, draw(p, generator), last=k + 1 == count) for k in range(count)]
            weight = self.objective.weights[i] / len(p)
            # one copy for both kinds: the squares of the rest are one more column
            both = torch.stack([torch.cat([a, b[:, None]], 1) for a, b in pairs], -1).cpu() * weight
            own, together = both[:, :-1], both[:, -1]
            return own if self.own_open else own[:, :0], together, rest

        def skip(i: int) -> None:
            sizes: Sequence[int] = self.objective.batch_sizes  # type: ignore[attr-defined]  # a team's loss knows them
            for _ in range(count):
                draw(torch.full((sizes[i], self.classes), 1 / self.classes), generator)

        new = self._each("probes", probe, skip)
        if self.count:
            new = [
                (torch.cat([before[0], own], -1), torch.cat([before[1], together], -1), rest)
                for before, (own, together, rest) in zip(self._samples, new, strict=True)
            ]
        self._samples = new
        self.count, self.spent = self.count + count, self.spent + count

    def settle_own(self) -> None:
        """Compute sum_jc w_j ||J_j' b_jc||^2 exactly for the "own" parameters, with one backward pass per class."""

        def settle(i: int) -> tuple[Tensor, bool]:
            logits, taps, rest = self._forward(i)
            p = logits.detach().softmax(1)
            total = self._settled_so_far(i, len(p))
            for c in range(self.classes):
                own, _ = self._squares(logits, taps, [], class_cotangent(p, c), last=c + 1 == self.classes)
                total += own * (self.objective.weights[i] / len(p))
            return total.cpu(), bool(rest)

        for i, (total, rest) in enumerate(self._each("squares", settle)):
            self._settled[i] = total
            self.rest_open |= rest
        self._samples = [(own[:, :0], rest, names) for own, rest, names in self._samples]
        self.own_open, self.spent = False, self.spent + self.classes

    def settle_rest(self) -> None:
        """Compute the same sum exactly for the "rest" parameters, from batches of one example."""
        singles: ClassificationObjective = self.objective.rebatched(1)  # type: ignore[attr-defined]
        sizes = [round(batch * len(singles.weights)) for batch in self.objective.weights]
        starts = [0, *itertools.accumulate(sizes)]

        def settle(i: int) -> Tensor | None:
            rest = self._samples[i][2]
            total = self._settled_so_far(i, sizes[i])
            for j in range(starts[i], starts[i + 1] if rest else starts[i]):
                logits = singles.batch_logits(j, self.theta)
                p = logits.detach().softmax(1)
                for row, c in itertools.product(range(len(p)), range(self.classes)):
                    alone = torch.zeros_like(p)
                    alone[row] = class_cotangent(p, c)[row]
                    _, square = self._squares(logits, [], rest, alone, last=False)
                    total[:, j - starts[i]] += square * (singles.weights[j] / len(p))
            return total.cpu() if rest else None

        for i, total in enumerate(self._each("squares", settle)):
            if total is not None:
                self._settled[i] = total
        self._samples = [(own, torch.zeros_like(rest), []) for own, rest, _ in self._samples]
        self.rest_open, self.spent = False, self.spent + self.classes

    def _each(self, what: str, work: Callable[[int], T], skip: Callable[[int], object] = lambda i: None) -> list[T]:
        """``Team.each`` over all batches. All processes also learn on which parameters the loss was seen to depend in
        any of them."""
        found = self.team.each(what, len(self.objective.weights), lambda i: (work(i), frozenset(self._entered)), skip)
        self._entered.update(*(entered for _, entered in found))
        return [one for one, _ in found]

    def _settled_so_far(self, i: int, n: int) -> Tensor:
        """A copy, on the device, of the exactly known part of the traces of the n examples of batch i, [blocks, n]."""
        if i not in self._settled:
            return torch.zeros(len(self.members), n, dtype=torch.float64, device=self.device)
        return onto(self._settled[i].clone(), self.device)

    def looks(self) -> list[tuple[float, Pooled]]:
        """(estimate, its sampled part with the error) of every block."""
        known = [float(sum(float(part[b].sum()) for part in self._settled.values())) for b in range(len(self.members))]
        if not self.count:
            return [(value, pooled(torch.zeros(0, 2))) for value in known]
        out = []
        for b, value in enumerate(known):
            look = pooled(torch.cat([self._rows(b, *sample) for sample in self._samples]))
            out.append((value + look.mean, look))
        return out

    def _rows(self, b: int, own: Tensor, together: Tensor, rest: Sequence[str]) -> Tensor:
        """The sampled independent parts of block b in one batch, [units, count]; no units where all is exact."""
        if together[b].any():  # own and rest squares share their cotangents, so that together they are one part
            return own[b].sum(0, keepdim=True) + together[b]
        unseen = any(self.members.holds(b, name) for name in self._entered.intersection(rest))
        return together[b : b + 1] if unseen and not own.shape[1] else own[b]

    def contributions(self) -> list[tuple[Tensor, ...]]:
        """What the examples add to every block: one tensor per batch, [n], or [1] where its rest is sampled."""
        out = []
        for b in range(len(self.members)):
            parts = []
            for i in range(len(self.objective.weights)):
                part = self._settled[i][b] if i in self._settled else torch.zeros(1, dtype=torch.float64)
                if self.count:
                    own, together, _ = self._samples[i]
                    part = part + own[b].mean(-1) if own.shape[1] else part
                    part = (part.sum() + together[b].mean()).view(1) if together[b].any() else part
                parts.append(part)
            out.append(tuple(parts))
        return out

    # ------------------------------------------------------------------ one batch
    def _watched(self, i: int) -> tuple[Tensor, tuple[Tap, ...]]:
        sizes: Sequence[int] | None = getattr(self.objective, "batch_sizes", None)
        size = None if sizes is None else sizes[i]
        try:
            logits, places = watched(self.objective.batch_logits, i, self.theta, self.params, size, analytic=True)
        except ThirdDerivative:
            logits, places = watched(self.objective.batch_logits, i, self.theta, self.params, size, analytic=False)
        return logits, places if len(logits) == size else ()

    def _forward(self, i: int) -> tuple[Tensor, list[Tap], list[str]]:
        """The logits of batch i, the taps that separate its examples, and the names of all other parameters."""
        logits, places = self._watched(i)
        if i not in self._alone:
            self._alone[i] = _alone(logits, places) if len(logits) > 1 else frozenset(self.names)
        alone = self._alone[i]
        taps = [tap for tap in places if self._tapped and alone.issuperset(tap.names)]
        tapped = {name for tap in taps for name in tap.names}
        return logits, taps, [name for name in self.names if name not in tapped]

    def _squares(
        self, logits: Tensor, taps: Sequence[Tap], rest: Sequence[str], cotangent: Tensor, *, last: bool
    ) -> tuple[Tensor, Tensor]:
        """The squares of the own parameters [blocks, n] and of the rest [blocks], float64 on the device."""
        blocks, zeros = len(self.members), partial(torch.zeros, dtype=torch.float64, device=logits.device)
        own, together = zeros(blocks, len(logits)), zeros(blocks)
        inputs = [*(tap.y for tap in taps), *(self.params[name] for name in rest)]
        if not inputs:
            return own, together
        grads = torch.autograd.grad(logits, inputs, cotangent, retain_graph=not last, allow_unused=True)
        found: dict[str, Tensor] = {}
        for tap, g in zip(taps, grads, strict=False):
            if g is not None:
                found |= tap.squares(g.to(self.params[tap.names[0]].dtype), frozenset(tap.names))
        if found:
            own = self.members.sums(found)
        sums = {name: g for name, g in zip(rest, grads[len(taps) :], strict=True) if g is not None}
        self._entered |= sums.keys()
        if sums:
            norms = {n: torch.linalg.vector_norm(g, dtype=torch.float64).square() for n, g in sums.items()}
            together = self.members.sums(norms)
        return own, together


def _alone(logits: Tensor, places: Sequence[Tap]) -> frozenset[str]:
    """The parameters at whose places an example's logits depend on its own row only (``per_example.stands_alone``).

    Asked in every batch: batch norm in training mode, logits between examples, a text tower or tokens in the first
    dimension all show. An example that is its batch sees no other.
    """
    if not places:
        return frozenset()
    generator = torch.Generator().manual_seed(0)

    def draw(t: Tensor) -> Tensor:
        return onto(torch.randn(t.shape, generator=generator), t.device).to(t.dtype)

    alone = stands_alone([logits], [tap.y for tap in places], draw, len(logits))
    return frozenset(name for tap, own in zip(places, alone, strict=True) if own for name in tap.names)
