"""Learnt prompts: context vectors that replace the words of a template in front of the class name.

In theta their tensors are called ``prompt_learner.*``, as in the files of CoOp and its descendants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, PairMismatch, shown
from sharpscope.seeds import derive
from sharpscope.vocabulary import ClassPosition
from sharpscope.weights.checkpoint import Checkpoint
from sharpscope.weights.prompts import PROMPTS

__all__ = [
    "ATTENTION",
    "CTX",
    "PREFIX",
    "Prompts",
    "class_drift",
    "conditioned",
    "holds_prompts",
    "initial_context",
    "prompted_vectors",
]

PREFIX = PROMPTS
CTX = f"{PREFIX}ctx"
"""The name of the context vectors [M, W] in theta."""
ATTENTION = tuple(f"{PREFIX}attn.{part}" for part in ("q", "k", "v", "out"))
"""The names of ContCoOp's attention layer in theta, four matrices [W, W]."""


@dataclass(frozen=True)
class Prompts:
    """The token sequences ``[start][context x M] name . [end]`` of all classes.

    ``tokens`` [C, L]: token ids, with M placeholders for the context. ``first``: the position of the first context
    vector. ``length``: M. ``names`` bool [C, L]: the positions of each class name's tokens. ``position``: where the
    class name stands when the sequences are embedded: behind the context (end), before it (front), or between its
    first M // 2 vectors and the others (middle); the end token is at the same place in all three. Source: Zhou et al.
    2022 (CoOp, 2109.01134).
    """

    tokens: Tensor
    first: int
    length: int
    names: Tensor
    position: ClassPosition = "end"

    @classmethod
    def of(cls, model: ClipModel, classnames: Sequence[str], length: int, position: ClassPosition = "end") -> Prompts:
        """Prompts with ``length`` context vectors; raises ConfigError where they are too long for the text tower."""
        if not classnames or length < 1:
            raise ConfigError("prompts: need at least one class name and one context vector.")
        words = [name.replace("_", " ") for name in classnames]
        plain, first = model.tokenize([f"{w}." for w in words]), _first(model)
        if (plain[:, -length:] != model.tokenize(["a"])[0, -1]).any():  # not padding: the end would be cut off
            longest = max(words, key=len)
            raise ConfigError(
                f"prompts: {length} context vectors and a name like '{shown(longest)}' exceed the text tower's "
                f"{plain.shape[1]} tokens."
            )
        # Any word can be the placeholder. It is the name's first token, which is neither padding nor an end token.
        places = plain[:, first : first + 1].expand(-1, length)
        tokens = torch.cat([plain[:, :first], places, plain[:, first:]], dim=1)[:, : plain.shape[1]]
        column = torch.arange(plain.shape[1])
        ends = torch.tensor([_shared(plain[i], model.tokenize([w])[0]) for i, w in enumerate(words)])
        names = (column >= first + length) & (column < ends[:, None] + length)
        return cls(tokens, first, length, names, position)

    def embedded(self, model: ClipModel, theta: Mapping[str, Tensor], context: Tensor) -> Tensor:
        """Token embeddings [C, L, W] with ``context`` inserted: [M, W] for all classes, or [C, M, W] per class."""
        plain = model.embed_tokens(theta, self.tokens)
        context = context.expand(len(plain), -1, -1)
        whole = torch.cat([plain[:, : self.first], context, plain[:, self.first + self.length :]], dim=1)
        if self.position == "end":
            return whole
        return torch.stack([row[order] for row, order in zip(whole, self._orders(), strict=True)])

    def _orders(self) -> list[list[int]]:
        """For each class, which place of the sequence with the name at the end each place of the sequence gets."""
        before = 0 if self.position == "front" else self.length // 2  # context vectors before the name
        count, behind = self.tokens.shape[1], self.first + self.length
        orders = []
        for length in self.names.sum(dim=1).tolist():
            name = range(behind, behind + length)
            split = self.first + before
            orders.append([*range(split), *name, *range(split, behind), *range(behind + length, count)])
        return orders

    def class_vectors(self, model: ClipModel, theta: Mapping[str, Tensor]) -> Tensor:
        """Class vectors [C, D], unit rows, from the learnt prompts and the text tower in ``theta``.

        The context is CoOp's, :data:`CTX`, or with :data:`ATTENTION` in ``theta`` ContCoOp's (:func:`conditioned`).
        """
        context = theta[CTX]
        if ATTENTION[0] in theta:
            names = model.embed_tokens(theta, self.tokens)
            context = conditioned(context, names, self.names.to(names.device), *(theta[n] for n in ATTENTION))
        return model.encode_embedded(theta, self.tokens, self.embedded(model, theta, context))


def holds_prompts(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's file holds learnt prompts, which ``read_checkpoint`` does not keep as tensors."""
    return any(name.rpartition(".")[2] == "ctx" for name in checkpoint.facts.get("dropped", ()))


@torch.no_grad()
def prompted_vectors(
    model: ClipModel,
    theta: Mapping[str, Tensor],
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    source: str,
    position: ClassPosition | None = None,
) -> Tensor:
    """Class vectors [C, D] of the learnt ``prompts`` with ``classnames``, on the text tower in ``theta``.

    ``position``: where the class name stands in each prompt; None: behind the context.

    Raises PairMismatch, naming ``source``, where the context vectors do not have the width of the text tower, or where
    there is a separate context for each of a different number of classes.
    """
    context = prompts[CTX]
    width = model.embed_tokens(theta, torch.zeros(1, 1, dtype=torch.long, device=context.device)).shape[-1]
    if context.shape[-1] != width:
        raise PairMismatch(
            f"{shown(source, 200)}: the context vectors have {context.shape[-1]} entries, but the text tower of "
            f"'{shown(model.name)}' needs {width}."
        )
    if context.ndim == 3 and len(context) != len(classnames):
        raise PairMismatch(
            f"{shown(source, 200)}: the prompts have a separate context for each of {len(context)} classes, so they "
            f"cannot be used for {len(classnames)} class names.\n"
            "Remedy: the class names that the prompts were trained on (--classnames FILE)."
        )
    learnt = Prompts.of(model, classnames, context.shape[-2], position or "end")
    return learnt.class_vectors(model, {**theta, **prompts})


def conditioned(context: Tensor, names: Tensor, mask: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
    """Class-conditioned context ``v_c = v + softmax(n(v) q (n(E_c) k)^T / sqrt W) n(E_c) v out``: [C, M, W].

    In the formula, n is layer norm without parameters. ``context``: [M, W] or [C, M, W], the first two v's. ``names``:
    token embeddings [C, L, W], of which ``mask`` [C, L] marks the class name's, E_c. ``q``, ``k``, ``v``, ``out``: the
    matrices [W, W]. Source: Wang et al. 2024 (ContCoOp, 2412.20895), who put one attention layer between the learnt
    context and the class embeddings. The direction of the attention, the single head, the residual connection and the
    norms are our choices.
    """
    width = context.shape[-1:]
    words = F.layer_norm(names, width)
    scores = (F.layer_norm(context, width) @ q) @ (words @ k).transpose(1, 2) / width[0] ** 0.5
    weights = scores.masked_fill(~mask[:, None, :], -torch.inf).softmax(dim=-1)
    return context + weights @ (words @ v) @ out


def initial_context(
    model: ClipModel, theta: Mapping[str, Tensor], words: str, length: int | None = None, seed: int = 0
) -> Tensor:
    """The embeddings [M, W] of ``words``; with ``length``, that many random vectors from N(0, .02^2) instead."""
    if length is not None:
        width = model.embed_tokens(theta, torch.zeros(1, 1, dtype=torch.long)).shape[-1]
        generator = torch.Generator().manual_seed(derive(seed, "context"))
        return 0.02 * torch.randn(length, width, generator=generator)
    first = _first(model)
    plain, dotted = model.tokenize([words, f"{words}."])
    return model.embed_tokens(theta, plain[None, first : _shared(plain, dotted)])[0].detach().clone()


def class_drift(vectors: Tensor, zero_shot: Tensor) -> Tensor:
    """``1 - mean_c cos(g_c, g_c^0)``, in [0, 2]; for unit rows this is half the mean squared distance.

    ``vectors``, ``zero_shot``: the class vectors g and g^0, [C, D]. Source: Yao et al. 2023 (KgCoOp, 2303.13283), Li et
    al. 2024 (CLIPFit, 2409.16718).
    """
    return 1 - F.cosine_similarity(vectors, zero_shot, dim=1).mean()


def _first(model: ClipModel) -> int:
    """The number of special tokens that precede a text, which is the common beginning of two different texts."""
    return _shared(*model.tokenize(["a", "the"]))


def _shared(a: Tensor, b: Tensor) -> int:
    """Length of the common beginning of two token sequences."""
    return int((a != b).int().argmax())
