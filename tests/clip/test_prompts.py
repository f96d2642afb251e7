"""Laws of learnt prompts: they start as the words they replace, and ContCoOp attends to the class name alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import zero_shot_head
from sharpscope.clip.model import ClipModel
from sharpscope.clip.prompts import (
    ATTENTION,
    CTX,
    Prompts,
    class_drift,
    conditioned,
    initial_context,
    prompted_vectors,
)
from sharpscope.errors import ConfigError
from sharpscope.vocabulary import ClassPosition

Thetas = dict[str, tuple[ClipModel, dict[str, torch.Tensor]]]
NAMES = ("star", "sea_horse", "key")


@pytest.mark.parametrize("kind", ["vit", "customtext"])
def test_the_context_of_words_gives_the_prompt_of_these_words(kind: str, tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas[kind]
    context = initial_context(model, theta, "a photo of a")
    prompts = Prompts.of(model, NAMES, len(context))
    written = model.tokenize(["a photo of a star.", "a photo of a sea horse.", "a photo of a key."])
    expected = model.encode_text(theta, written)
    torch.testing.assert_close(prompts.class_vectors(model, {**theta, CTX: context}), expected)
    # another context, word by word the embeddings of another template
    other = initial_context(model, theta, "a sketch of the")
    written = model.tokenize([f"a sketch of the {n.replace('_', ' ')}." for n in NAMES])
    assert len(other) == len(context) == 4
    torch.testing.assert_close(
        prompts.class_vectors(model, {**theta, CTX: other}), model.encode_text(theta, written), rtol=1e-4, atol=1e-5
    )


def test_the_marked_tokens_are_the_class_names(tiny_thetas: Thetas) -> None:
    model, _ = tiny_thetas["vit"]
    prompts = Prompts.of(model, NAMES, 3)
    for row, marked, name in zip(prompts.tokens, prompts.names, NAMES, strict=True):
        plain = model.tokenize([name.replace("_", " ")])[0]
        count = int(plain.argmax()) - 1  # between start and end
        assert row[marked].tolist() == plain[1 : 1 + count].tolist()
    assert prompts.names.sum(1).tolist() != [1, 1, 1]  # a name of several tokens is among them


def test_random_context_is_a_function_of_the_seed(tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["vit"]
    first, again, other = (initial_context(model, theta, "a", 6, seed) for seed in (0, 0, 1))
    assert first.shape == (6, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_prompt_that_does_not_fit_is_refused(tiny_thetas: Thetas) -> None:
    model, _ = tiny_thetas["vit"]
    Prompts.of(model, ["key"], 12)  # start, 12, key, ., end: 16 tokens
    with pytest.raises(ConfigError, match="13 context vectors and a name like 'key' exceed the text tower's 16 tokens"):
        Prompts.of(model, ["key"], 13)
    with pytest.raises(ConfigError, match="at least one class name and one context vector"):
        Prompts.of(model, ["key"], 0)


# ---------------------------------------------------------------------- ContCoOp's attention
def attention_by_hand(context: Any, words: Any, q: Any, k: Any, v: Any, out: Any) -> torch.Tensor:
    """One class: context [M, W], words [n, W] of its name; sums written out."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean()
        return centred / torch.sqrt((centred**2).mean() + 1e-5)

    rows = []
    for one in context:
        scores = [math.exp(float((norm(one) @ q) @ (norm(w) @ k)) / math.sqrt(len(one))) for w in words]
        mixed = sum(s / sum(scores) * (norm(w) @ v) for s, w in zip(scores, words, strict=True))
        rows.append(one + mixed @ out)
    return torch.stack(rows)


def test_attention_equals_the_sums_written_out() -> None:
    draw = torch.Generator().manual_seed(0)
    context, names = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in ((2, 3), (2, 5, 3)))
    parts = [torch.randn(3, 3, generator=draw, dtype=torch.float64) for _ in range(4)]
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 0, 0]]).bool()
    found = conditioned(context, names, mask, *parts)
    for i in range(2):
        torch.testing.assert_close(found[i], attention_by_hand(context, names[i, mask[i]], *parts))
    assert not torch.allclose(found[0], found[1])  # conditioned on the class
    names[~mask] = 99.0  # what is no class name does not count
    assert torch.equal(conditioned(context, names, mask, *parts), found)
    assert torch.equal(
        conditioned(context, names, mask, *parts[:3], torch.zeros_like(parts[3])), context.expand(2, -1, -1)
    )


def test_the_same_module_makes_another_context_of_another_backbone(tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["vit"]
    draw = torch.Generator().manual_seed(0)
    module = {CTX: initial_context(model, theta, "a photo of a")}
    module |= {n: torch.randn(16, 16, generator=draw) for n in ATTENTION}
    prompts = Prompts.of(model, NAMES, 4)
    attended = prompts.class_vectors(model, {**theta, **module})
    plain = prompts.class_vectors(model, {**theta, CTX: module[CTX]})
    assert not torch.allclose(attended, plain, atol=1e-3)
    assert torch.allclose(attended.norm(dim=1), torch.ones(3))
    # only the embedding of "key" differs: of the classes, "key" alone hears of it
    token = int(model.tokenize(["key"])[0, 1])
    changed = dict(theta)
    changed["token_embedding.weight"] = theta["token_embedding.weight"].clone()
    changed["token_embedding.weight"][token] += torch.randn(16, generator=draw)
    moved = prompts.class_vectors(model, {**changed, **module})
    assert torch.equal(moved[:2], attended[:2])
    assert not torch.allclose(moved[2], attended[2], atol=1e-3)


# ---------------------------------------------------------------------- the penalty
def test_class_drift_by_hand() -> None:
    start = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    now = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8]])
    assert float(class_drift(now, start)) == pytest.approx(1 - (1 + 0.6) / 2)
    assert float(class_drift(start, start)) == 0
    assert float(class_drift(now, start)) == pytest.approx(float((now - start).square().sum(1).mean()) / 2)
    assert float(class_drift(F.normalize(now), -now)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("position", "template"), [("end", "a photo {}."), ("middle", "a {} photo."), ("front", "{} a photo.")]
)
@pytest.mark.parametrize("kind", ["vit", "customtext"])
def test_the_class_name_stands_where_it_is_said_to_stand(
    kind: str, position: ClassPosition, template: str, tiny_thetas: Thetas
) -> None:
    model, theta = tiny_thetas[kind]
    context = initial_context(model, theta, "a photo")
    assert len(context) == 2
    found = prompted_vectors(model, theta, {CTX: context}, NAMES, "x", position)
    spoken = [n.replace("_", " ") for n in NAMES]
    torch.testing.assert_close(found, zero_shot_head(model, theta, spoken, [template]))
