"""Learnt prompts: context vectors in the place of a template's words, in front of the class name.

Their tensors are called ``prompt_learner.*`` in theta, as in the files of CoOp and its descendants.
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
"""The context vectors [M, W]."""
ATTENTION = tuple(f"{PREFIX}attn.{part}" for part in ("q", "k", "v", "out"))
"""ContCoOp's attention layer, four matrices [W, W]."""


@dataclass(frozen=True)
class Prompts:
    """The token sequences ``[start][context x M] name . [end]`` of all classes.

    ``tokens`` [C, L]: with M placeholders where the context goes; ``first``: where it starts; ``length``: M;
    ``names`` bool [C, L]: the places of each class name's tokens. Source: Zhou et al. 2022 (CoOp, 2109.01134), one
    context for all classes, the name at the end.
    """

    tokens: Tensor
    first: int
    length: int
    names: Tensor

    @classmethod
    def of(cls, model: ClipModel, classnames: Sequence[str], length: int) -> Prompts:
        """Prompts of ``length`` context vectors; raises ConfigError where a name and they exceed the text tower."""
        if not classnames or length < 1:
            raise ConfigError("prompts: need at least one class name and one context vector.")
        words = [name.replace("_", " ") for name in classnames]
        plain, first = model.tokenize([f"{w}." for w in words]), _first(model)
        if (plain[:, -length:] != model.tokenize(["a"])[0, -1]).any():  # not all padding: the end would be cut off
            longest = max(words, key=len)
            raise ConfigError(
                f"prompts: {length} context vectors and a name like '{shown(longest)}' exceed the text tower's "
                f"{plain.shape[1]} tokens."
            )
        # any word may hold the place of the context: the name's own first one is neither padding nor an end
        places = plain[:, first : first + 1].expand(-1, length)
        tokens = torch.cat([plain[:, :first], places, plain[:, first:]], dim=1)[:, : plain.shape[1]]
        column = torch.arange(plain.shape[1])
        ends = torch.tensor([_shared(plain[i], model.tokenize([w])[0]) for i, w in enumerate(words)])
        names = (column >= first + length) & (column < ends[:, None] + length)
        return cls(tokens, first, length, names)

    def embedded(self, model: ClipModel, theta: Mapping[str, Tensor], context: Tensor) -> Tensor:
        """Token embeddings [C, L, W] with ``context`` ([M, W], or [C, M, W] for one of each class) in its place."""
        plain = model.embed_tokens(theta, self.tokens)
        context = context.expand(len(plain), -1, -1)
        return torch.cat([plain[:, : self.first], context, plain[:, self.first + self.length :]], dim=1)

    def class_vectors(self, model: ClipModel, theta: Mapping[str, Tensor]) -> Tensor:
        """Class vectors [C, D], unit rows, of the prompt module in ``theta`` on the text tower in ``theta``.

        CoOp's context as it is; with :data:`ATTENTION` in ``theta``, ContCoOp's (:func:`conditioned`).
        """
        context = theta[CTX]
        if ATTENTION[0] in theta:
            names = model.embed_tokens(theta, self.tokens)
            context = conditioned(context, names, self.names.to(names.device), *(theta[n] for n in ATTENTION))
        return model.encode_embedded(theta, self.tokens, self.embedded(model, theta, context))


def holds_prompts(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's file holds learnt prompts, which are no part of a CLIP and so not among its tensors."""
    return any(name.rpartition(".")[2] == "ctx" for name in checkpoint.facts.get("dropped", ()))


@torch.no_grad()
def prompted_vectors(
    model: ClipModel, theta: Mapping[str, Tensor], prompts: Mapping[str, Tensor], classnames: Sequence[str], source: str
) -> Tensor:
    """Class vectors [C, D] of the learnt ``prompts`` before ``classnames``, on the text tower in ``theta``.

    Raises PairMismatch, naming ``source``, where the context has not the width of the text tower, or has vectors of its
    own for each of another number of classes.
    """
    context = prompts[CTX]
    width = model.embed_tokens(theta, torch.zeros(1, 1, dtype=torch.long, device=context.device)).shape[-1]
    if context.shape[-1] != width:
        raise PairMismatch(
            f"{shown(source, 200)}: its context has vectors of {context.shape[-1]} numbers, the text tower of "
            f"'{shown(model.name)}' {width}."
        )
    if context.ndim == 3 and len(context) != len(classnames):
        raise PairMismatch(
            f"{shown(source, 200)}: learnt a context of its own for each of {len(context)} classes, which says nothing "
            f"of {len(classnames)} others.\nRemedy: the class names that it was trained on (--classnames FILE)."
        )
    learnt = Prompts.of(model, classnames, context.shape[-2])
    return learnt.class_vectors(model, {**theta, **prompts})


def conditioned(context: Tensor, names: Tensor, mask: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Tensor:
    """Class-conditioned context ``v_c = v + softmax(n(v) q (n(E_c) k)^T / sqrt W) n(E_c) v out``: [C, M, W].

    context [M, W] or [C, M, W]; names [C, L, W] token embeddings, of which ``mask`` [C, L] marks the class name E_c; q,
    k, v, out [W, W]; n: layer norm without parameters. Source: Wang et al. 2024 (ContCoOp, 2412.20895) puts one
    attention layer between the learnt context and the class embeddings; the direction, one head, the residual and the
    norms are ours.
    """
    width = context.shape[-1:]
    words = F.layer_norm(names, width)
    scores = (F.layer_norm(context, width) @ q) @ (words @ k).transpose(1, 2) / width[0] ** 0.5
    weights = scores.masked_fill(~mask[:, None, :], -torch.inf).softmax(dim=-1)
    return context + weights @ (words @ v) @ out


def initial_context(
    model: ClipModel, theta: Mapping[str, Tensor], words: str, length: int | None = None, seed: int = 0
) -> Tensor:
    """The embeddings of ``words``; with ``length``, that many vectors from N(0, .02^2) instead: [M, W]."""
    if length is not None:
        width = model.embed_tokens(theta, torch.zeros(1, 1, dtype=torch.long)).shape[-1]
        generator = torch.Generator().manual_seed(derive(seed, "context"))
        return 0.02 * torch.randn(length, width, generator=generator)
    first = _first(model)
    plain, dotted = model.tokenize([words, f"{words}."])
    return model.embed_tokens(theta, plain[None, first : _shared(plain, dotted)])[0].detach().clone()


def class_drift(vectors: Tensor, zero_shot: Tensor) -> Tensor:
    """``1 - mean_c cos(g_c, g_c^0)``, in [0, 2]; half the mean squared distance of unit rows.

    vectors, zero_shot [C, D]. Source: Yao et al. 2023 (KgCoOp, 2303.13283), Li et al. 2024 (CLIPFit, 2409.16718).
    """
    return 1 - F.cosine_similarity(vectors, zero_shot, dim=1).mean()


def _first(model: ClipModel) -> int:
    """How many special tokens precede a text: what two texts of different words have in common."""
    return _shared(*model.tokenize(["a", "the"]))


def _shared(a: Tensor, b: Tensor) -> int:
    """Length of the common beginning of two token sequences."""
    return int((a != b).int().argmax())
