"""The part of a trace that comes through the embeddings: tr J'MJ, with M the loss's curvature in each embedding.

For rows z_j that a network computes and a head that turns z_j into the loss l_j, the chain rule splits the Hessian of
the mean loss into

    H = 1/n sum_j J_j' M_j J_j + R,    M_j = d^2 l_j / dz_j^2,    R = 1/n sum_jk (dl_j / dz_jk) d^2 z_jk.

The head of a CLIP normalises z, multiplies with class vectors and takes the cross-entropy. M holds all of these; split
at the logits (``ggn``), G lacks the curvature of the normalisation, which is the largest part of H - G. M_j is a small
matrix [e, e], indefinite in general, and tr J'MJ = sum_k mu_k ||J' e_k||^2 with its eigenpairs takes one backward pass
from z for each k, for all layers and examples at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sharpscope.curvature.double_backward import ThirdDerivative
from sharpscope.curvature.draws import rademacher, skip_words, words_for
from sharpscope.curvature.graphs import graph_bytes, kept_of, watched
from sharpscope.curvature.members import Members
from sharpscope.curvature.needed import needed
from sharpscope.curvature.operator import Objective
from sharpscope.curvature.per_example import Tap
from sharpscope.curvature.tangents import Embedding, tangents_of
from sharpscope.curvature.tape import Tape
from sharpscope.curvature.trace import ENOUGH, Pooled, TraceEstimate, pooled
from sharpscope.errors import NumericalError
from sharpscope.machine.team import team_of
from sharpscope.vocabulary import ALL

__all__ = ["SMALL", "embedding_trace"]

SMALL = 128
"""The Hessian is always split at an embedding of at most this many numbers. At a larger embedding it is split only
where the eigenvectors of M_j cost less than a gradient of the network, as they do for a CLIP; otherwise it is split at
the logits."""
EIGEN = 20
"""The cost of M_j and its eigenvectors in multiplications, divided by e^3: LAPACK's operation count plus the columns of
M_j."""
GRADIENT = 3
"""The cost of a gradient in multiplications, divided by that of the forward pass."""
CHUNK = 16
"""The number of examples whose eigenvectors are computed in one call. Small enough that the temporary copies never
amount to a second copy of all M_j."""
PILOT = 2
"""The number of pairs of passes after which the error is estimated for the first time."""


def embedding_trace(
    objective: Objective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    *,
    seed: int,
    rtol: float = 0.05,
    max_probes: int = 100,
    memory: int | None = None,
) -> dict[str, TraceEstimate] | None:
    """tr 1/n sum_j J_jl' M_j J_jl of every block l whose parameters enter before the embedding; None if there is none.

    The leading eigenvectors of every M_j, by |mu|, take a backward pass each, which gives the squared norm of every
    example's gradient (see ``per_example.Tap.squares``). The others are sampled by pairs of passes: with E_j the part
    of M_j that they make up, a = |E_j|^(1/2) s and b = sign(E_j) |E_j|^(1/2) s for random signs s of each example,
    E <J'a, J'b> = tr J'E_j J. As functions of a matrix, a and b do not depend on the basis that a library finds where
    eigenvalues coincide, as most of them do behind a normalisation. As many are taken one by one as make the whole
    cheapest (``_leading``), and as many pairs as the block that needs most asks for. Where it costs less to take all
    eigenvectors one by one, they are, and the trace is exact.

    All blocks share the passes, so that their errors are not independent; that of their sum is stated with it.

    Args:
        objective: a mean loss that knows its ``batch_sizes``.
        theta: named tensors.
        blocks: layer name -> parameter names.
        seed: the seed of the signs.
        rtol: relative tolerance of this part, > 0.
        max_probes: the largest number of backward passes over the data.
        memory: bytes that forward passes may take which are kept from one round of backward passes to the next; None:
            all are kept. The others run again in every round, with the same results. A kept one takes the memory of its
            autograd graph and of e^2 numbers an example.

    Returns block -> estimate for the blocks before the embedding, and their sum under ``ALL``; ``num_matvecs`` counts
    backward passes over the data. None where the operations of the forward pass do not show rows z [n, e] that a block
    enters before, where e is too large for the network (``SMALL``), or where ``max_probes`` does not suffice.

    Raises NumericalError where an M_j is not finite.

    Source: Schraudolph 2002, https://doi.org/10.1162/08997660260028683 (the split, at any layer of the network).
    """
    sizes: Sequence[int] | None = getattr(objective, "batch_sizes", None)
    if sizes is None or max_probes <= 2 * PILOT:
        return None
    work = _Passes(objective, theta, blocks, sizes, memory)
    try:
        if not work.open():
            return None
    except ThirdDerivative:
        return None
    generator = torch.Generator().manual_seed(seed)
    work.lead(max_probes, rtol)
    while work.remaining:
        looks = work.looks() if work.pairs else []
        pairs = PILOT if not looks else max(_pairs(value, look, work.pairs, rtol) for value, look in looks) - work.pairs
        pairs = min(pairs, (max_probes - work.spent) // 2)
        if pairs <= 0:
            break
        if 2 * pairs >= work.remaining and work.remaining <= max_probes - work.spent:
            work.finish()
        else:
            work.sample(pairs, generator)
    return {
        block: TraceEstimate(
            value, look.stderr, look.stderr <= rtol * abs(value), work.spent, contributions=work.contributions(b)
        )
        for b, (block, (value, look)) in enumerate(zip(work.blocks, work.looks(), strict=True))
    }


def _pairs(value: float, look: Pooled, count: int, rtol: float) -> int:
    """The number of pairs that bring a block's error down to rtol, predicted from the first ``count``."""
    if not math.isfinite(value) or (look.stderr <= rtol * abs(value) and look.freedom >= ENOUGH):
        return count
    return max(math.ceil(min(look.needed((rtol * value) ** 2), 10**9)), count + 1)


def _leading(mu: Tensor, weight: float, rtol: float) -> int:
    """How many eigenvectors to take one by one, from all |mu| [n, e] of one batch in falling order: the cheapest way.

    A pair of passes along the e - k others varies by about (sum of their |mu|)^2 an example, if the gradients along
    them are of one size. With k passes one by one, max(PILOT, variance / (rtol sum |mu|)^2) pairs follow, or none for
    k = e. ``weight``: the batch's share of the examples.
    """
    rest = torch.cat([mu.new_zeros(len(mu), 1), mu.flip(1).cumsum(1)], 1).flip(1).double()  # [n, e + 1], of k = 0 to e
    variance = weight * rest.square().sum(0) / rest[:, 0].sum().square()
    pairs = (variance / rtol**2).clamp(min=PILOT)
    pairs[-1] = 0
    return int((torch.arange(len(pairs), device=mu.device) + 2 * pairs).argmin())


_Prepared = tuple[Tensor, tuple[Tap, ...], Tensor, Tensor]
"""A batch's z [n, e] with the graph of its forward pass, its taps, and every M_j's eigenpairs: [n, e], [n, e, e]."""


class _Passes:
    """Backward passes from the embeddings. ``remaining``: the eigenvectors that are not taken one by one."""

    def __init__(
        self,
        objective: Objective,
        theta: Mapping[str, Tensor],
        blocks: Mapping[str, Sequence[str]],
        sizes: Sequence[int],
        memory: int | None,
    ) -> None:
        self.memory, self.keep = memory, 0
        self.sizes, self.blocks, self.team = sizes, dict(blocks), team_of(objective)
        names = dict.fromkeys(n for block in blocks.values() for n in block)
        self.params = {n: theta[n].detach().clone().requires_grad_() for n in names}
        self.theta = {**theta, **self.params}
        self.objective = needed(objective, self.theta)
        self.taken = self.remaining = self.pairs = self.spent = 0
        self._known: list[Tensor] = []  # per batch [blocks, n]
        self._samples: list[Tensor] = []  # per batch [blocks, n, pairs]
        self._kept: dict[int, _Prepared] = {}

    def open(self) -> bool:
        """Whether the Hessian can be split at an embedding; ``blocks`` are then those whose parameters enter before
        it."""
        split = self._split(0)
        if split is None or not self._affordable(split):
            return False
        before = {x: block for x, block in self.blocks.items() if x != ALL and split.names.issuperset(block)}
        self.blocks = {ALL: [n for block in before.values() for n in block], **before}
        self.width = self.remaining = split.z.shape[1]
        names = [n for tap in split.taps for n in tap.names]
        self.device, count = split.z.device, len(self.blocks)
        self.members = Members(self.blocks.values(), names, self.device)
        self._known = [torch.zeros(count, n, dtype=torch.float64, device=self.device) for n in self.sizes]
        self._samples = [torch.zeros(count, n, 0, dtype=torch.float64, device=self.device) for n in self.sizes]
        if before:
            matrices = split.z.numel() * split.z.shape[1] * split.z.element_size()
            graph = graph_bytes([split.z, *(tap.y for tap in split.taps)], self.theta.values())
            self.keep = kept_of(self.team.most(len(self.sizes)), graph + matrices, self.memory)
            if self.keep and 0 in self.team.own(len(self.sizes)):
                self._kept[0] = self._eigenpairs(split)
        return bool(before)

    def _affordable(self, split: Embedding) -> bool:
        """Whether the eigenvectors of one example's M_j cost less than the gradient of its loss."""
        n, e = split.z.shape
        names = [(tap.y.numel() // n, self.params[name]) for tap in split.taps for name in tap.names]
        forward = sum(outputs * p.numel() // len(p) for outputs, p in names if p.ndim > 1)
        return e <= SMALL or EIGEN * e**3 <= GRADIENT * forward

    def _split(self, i: int) -> Embedding | None:
        tape, n = Tape(), self.sizes[i]
        loss, places = watched(self.objective.batch_loss, i, self.theta, self.params, n, True, tape)
        tangents = tangents_of(tape, loss, places, n)
        return None if tangents is None else tangents.embedding

    # ------------------------------------------------------------------ passes over the data
    def lead(self, most: int, rtol: float) -> None:
        """Take the leading eigenvectors of every example one by one; ``most`` passes have to suffice for all."""

        def leading() -> int:  # the first batch decides for all
            return _leading(self._prepared(0)[2].abs(), self.objective.weights[0], rtol)

        count = min(self.team.first("the leading eigenvectors", leading), most - 2 * PILOT)
        self._take(count if count + 2 * PILOT < self.remaining else self.remaining)

    def finish(self) -> None:
        """Take all other eigenvectors one by one, instead of the samples."""
        self._take(self.remaining)
        self._samples, self.pairs = [s[..., :0] for s in self._samples], 0

    def _take(self, count: int) -> None:
        def take(i: int) -> Tensor:
            z, taps, mu, vectors = self._prepared(i)
            known = self._known[i].clone()
            for k in range(self.taken, self.taken + count):
                g = self._back(z, taps, vectors[:, :, k])
                known += self.objective.weights[i] * mu[:, k] * self._inner(taps, g, g)
            return known

        if count:
            known = self.team.each("eigenvectors", len(self.sizes), take)
            self._known = [x.to(self.device) for x in known]
        self.spent, self.taken, self.remaining = self.spent + count, self.taken + count, self.remaining - count

    def sample(self, pairs: int, generator: torch.Generator) -> None:
        """Take ``pairs`` pairs of passes along random combinations of the other eigenvectors."""

        def probe(i: int) -> Tensor:
            z, taps, mu, vectors = self._prepared(i)
            mu, vectors = mu[:, self.taken :], vectors[:, :, self.taken :]
            found = []
            for _ in range(pairs):
                signs = rademacher((*z.shape, 1), generator, device=mu.device, dtype=mu.dtype)
                c = mu.abs().sqrt().unsqueeze(-1) * torch.bmm(vectors.mT, signs)
                a, b = (
                    self._back(z, taps, torch.bmm(vectors, x).squeeze(-1)) for x in (c, c * mu.sign().unsqueeze(-1))
                )
                found.append(self.objective.weights[i] * self._inner(taps, a, b))
            return torch.stack(found, -1)

        def skip(i: int) -> None:
            skip_words(pairs * words_for(self.sizes[i] * self.width), generator)

        new = self.team.each("pairs of passes", len(self.sizes), probe, skip)
        self._samples = [
            torch.cat([before, more.to(before.device)], -1) for before, more in zip(self._samples, new, strict=True)
        ]
        self.pairs, self.spent = self.pairs + pairs, self.spent + 2 * pairs

    def _prepared(self, i: int) -> _Prepared:
        """What backward passes of batch i start from, kept if there is room for it."""
        if i in self._kept:
            return self._kept[i]
        split = self._split(i)
        assert split is not None
        found = self._eigenpairs(split)
        if len(self._kept) < self.keep:
            self._kept[i] = found
        return found

    def _eigenpairs(self, split: Embedding) -> _Prepared:
        """The largest eigenvalues in magnitude come first."""
        vectors = split.curvature()
        if not torch.isfinite(vectors).all():
            raise NumericalError("The curvature of the loss in the embeddings is not finite.")
        mu = vectors.new_empty(vectors.shape[:2])
        for values, part in zip(mu.split(CHUNK), vectors.split(CHUNK), strict=True):
            found, own = torch.linalg.eigh(part)
            order = found.abs().argsort(1, descending=True)
            values.copy_(found.gather(1, order))
            part.copy_(own.gather(2, order.unsqueeze(1).expand_as(own)))
        return split.z, split.taps, mu, vectors

    def _back(self, z: Tensor, taps: Sequence[Tap], cotangent: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(
            z, [tap.y for tap in taps], cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    def _inner(self, taps: Sequence[Tap], a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """<J'a, J'b> of every block and example, float64 [blocks, n]."""
        found: dict[str, Tensor] = {}
        for tap, left, right in zip(taps, a, b, strict=True):
            found |= tap.inner(left, right, frozenset(tap.names))
        return self.members.sums(found)

    # ------------------------------------------------------------------ what was found
    def looks(self) -> list[tuple[float, Pooled]]:
        """(estimate, its sampled part with the error) of every block."""
        known_of, samples = ([t.cpu() for t in part] for part in (self._known, self._samples))
        out = []
        for b in range(len(self.blocks)):
            known = float(sum(float(k[b].sum()) for k in known_of))
            look = pooled(torch.cat([s[b] for s in samples])) if self.pairs else pooled(torch.zeros(0, 2))
            out.append((known + look.mean, look))
        return out

    def contributions(self, b: int) -> tuple[Tensor, ...]:
        """What the examples add to a block's trace, one tensor per batch."""
        return tuple(
            (k[b] + (s[b].mean(-1) if self.pairs else 0)).cpu() for k, s in zip(self._known, self._samples, strict=True)
        )
