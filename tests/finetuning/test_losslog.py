"""Every method's loss against a computation by hand, and what each paper says about its parts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import zero_shot_head
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.method import Batch, Method, Task
from sharpscope.finetuning.methods.contrastive import class_captions, contrastive_loss, encode_distinct
from sharpscope.finetuning.methods.flyp import Flyp
from sharpscope.finetuning.methods.l2_sp import L2SP, squared_distance
from sharpscope.finetuning.methods.linear_probe import LinearProbe
from sharpscope.finetuning.methods.lipsum_ft import LipsumFT, energy_gap, random_texts
from sharpscope.finetuning.methods.lp_ft import LpFT
from sharpscope.finetuning.methods.starft import BACKGROUNDS, StarFT, alignment
from sharpscope.finetuning.methods.wise_ft import WiseFT

IMAGES = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
IMAGES_0 = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
TEXTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]])


def small(method: Method, **changes: Any) -> Method:
    return dataclasses.replace(method, **{"batch_size": 4, "steps": 4, "lr": 0.01, "warmup": 0.0, **changes})


@pytest.fixture
def batch(examples: TensorExamples) -> Batch:
    return Batch(examples.images[:4], examples.labels[:4], step=1, progress=0.25, seed=5, epoch=1)


@pytest.fixture
def moved(task: Task) -> dict[str, torch.Tensor]:
    """theta_0 with everything pushed a little."""
    g = torch.Generator().manual_seed(9)
    push = {k: 0.05 * torch.randn(v.shape, generator=g) for k, v in task.theta_0.items() if v.is_floating_point()}
    return {k: v + push[k] if k in push else v for k, v in task.theta_0.items()}


# ---------------------------------------------------------------- by hand
def test_energy_gap_of_two_images_and_three_texts() -> None:
    # s <f, g>: rows (2, 0, 1.2), (1.2, 1.6, -.56); of theta_0: (1.6, 1.2, 0), (0, 2, -1.6)
    squares = (0.4**2 + 1.2**2 + 1.2**2, 1.2**2 + 0.4**2 + (-0.56 + 1.6) ** 2)
    expected = (squares[0] + squares[1]) / 2 / (2 * 3)
    assert float(energy_gap(IMAGES, IMAGES_0, TEXTS, torch.tensor(2.0))) == pytest.approx(expected, rel=1e-5)
    assert float(energy_gap(IMAGES, IMAGES, TEXTS, torch.tensor(2.0))) == 0


def test_alignment_of_three_images_of_two_classes() -> None:
    """Images 0 and 2 share a class: each sees one text of the other class only (KL 0), image 1 sees two."""
    logits_0 = torch.tensor([[9.0, 1.0, 9.0], [0.0, 9.0, math.log(3)], [9.0, 2.0, 9.0]])
    logits = torch.tensor([[3.0, 5.0, 1.0], [0.0, 2.0, 0.0], [4.0, 7.0, 1.0]])
    labels = torch.tensor([0, 1, 0])
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert float(alignment(logits, logits_0, labels)) == pytest.approx(kl / 3, rel=1e-5)
    assert float(alignment(logits_0, logits_0, labels)) == pytest.approx(0, abs=1e-7)


def test_alignment_without_classes_masks_an_images_own_text_alone() -> None:
    logits_0, logits = torch.zeros(3, 3), torch.tensor([[5.0, 0.0, math.log(4)], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    kl = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    assert float(alignment(logits, logits_0, torch.full((3,), -1))) == pytest.approx(kl / 3, rel=1e-5)
    assert float(alignment(logits, logits_0, torch.zeros(3, dtype=torch.long))) == pytest.approx(0, abs=1e-7)


def test_squared_distance() -> None:
    theta, start = (
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(5.0)},
        {"a": torch.zeros(2), "b": torch.tensor(2.0)},
    )
    assert float(squared_distance(theta, start, ("a", "b"))) == 14
    assert float(squared_distance(theta, start, ("a",))) == 5


# ---------------------------------------------------------------- the methods' losses from the pieces
@pytest.mark.parametrize("baked", [True, False])
@pytest.mark.parametrize("kind", [WiseFT, LinearProbe, LpFT, L2SP])
def test_classification_starts_at_the_zero_shot_classifier(kind: Any, baked: bool, task: Task, batch: Batch) -> None:
    prepared = small(kind(scale_baked=baked)).prepare(task)
    scale = task.theta_0["logit_scale"].exp()
    vectors = zero_shot_head(task.model, task.theta_0, task.classnames, task.templates)
    by_hand = scale * task.model.encode_image(task.theta_0, batch.images) @ vectors.T
    losses = prepared.losses(prepared.theta, batch)
    torch.testing.assert_close(losses.logits, by_hand)
    torch.testing.assert_close(losses.fit, F.cross_entropy(by_hand, batch.labels))
    torch.testing.assert_close(prepared.theta["head.weight"], scale * vectors if baked else vectors)
    export = prepared.export(prepared.theta)
    assert export.metadata["sharpscope.head.scale_baked"] == ("true" if baked else "false")


def test_l2_sp_pulls_at_tower_and_head(task: Task, batch: Batch, moved: dict[str, torch.Tensor]) -> None:
    prepared = small(L2SP(strength=0.3)).prepare(task)
    theta = {**moved, "head.weight": prepared.theta["head.weight"] + 0.1}
    penalty = prepared.losses(theta, batch).penalty
    tower = sum(float((moved[k] - task.theta_0[k]).square().sum()) for k in moved if k.startswith("visual."))
    assert float(penalty) == pytest.approx(0.15 * (tower + 0.01 * theta["head.weight"].numel()), rel=1e-4)


def test_lipsum_ft_from_its_pieces(task: Task, batch: Batch, moved: dict[str, torch.Tensor]) -> None:
    method = small(LipsumFT(strength=0.7, texts=5, text_length=3))
    prepared = method.prepare(task)
    model, scale = task.model, task.theta_0["logit_scale"].exp()
    head = prepared.theta["head.weight"]
    torch.testing.assert_close(head.norm(dim=1), torch.ones(len(head)))  # unit rows: the scale is NOT baked in
    theta = {**moved, "head.weight": head + 0.1}
    tokens = random_texts(model, 5, 3, batch.generator("texts"))
    f, f_0 = model.encode_image(moved, batch.images), model.encode_image(task.theta_0, batch.images)
    texts = model.encode_text(task.theta_0, tokens)  # the FROZEN text tower, whatever theta's is
    gap = ((scale * f @ texts.T - scale * f_0 @ texts.T) ** 2).sum(1).mean() / 10
    losses = prepared.losses(theta, batch)
    torch.testing.assert_close(losses.penalty, 0.7 * gap)
    torch.testing.assert_close(losses.fit, F.cross_entropy(scale * f @ (head + 0.1).T, batch.labels))


def test_flyp_from_its_pieces(task: Task, batch: Batch, moved: dict[str, torch.Tensor]) -> None:
    prepared, draw = small(Flyp()).prepare(task), class_captions(task)
    images, texts = task.model.encode_image(moved, batch.images), task.model.encode_text(moved, draw(batch))
    expected = contrastive_loss(images, texts, moved["logit_scale"].exp())
    torch.testing.assert_close(prepared.losses(moved, batch).total, expected)
    tokens = task.model.tokenize(["a red star", "a cup", "the moon", "a tree"])
    own = contrastive_loss(images, task.model.encode_text(moved, tokens), moved["logit_scale"].exp())
    torch.testing.assert_close(prepared.losses(moved, dataclasses.replace(batch, tokens=tokens)).total, own)


@pytest.mark.parametrize("base", ["contrastive", "cross_entropy"])
def test_starft_from_its_pieces(base: Any, task: Task, batch: Batch, moved: dict[str, torch.Tensor]) -> None:
    prepared = small(StarFT(base=base, strength=0.8), steps=12).prepare(task)  # four epochs of three steps
    by_step = small(StarFT(base=base, strength=0.8, falls="steps")).prepare(task)
    theta = {**prepared.theta, **moved}
    if base == "cross_entropy":
        theta["head.bias"] = torch.tensor([0.3, -0.1, 0.2])
    odd = class_captions(task, BACKGROUNDS)(batch)
    images, images_0 = (task.model.encode_image(t, batch.images) for t in (moved, task.theta_0))
    texts, texts_0 = (task.model.encode_text(t, odd) for t in (moved, task.theta_0))
    scale_0 = task.theta_0["logit_scale"].exp()
    kl = alignment(scale_0 * images @ texts.T, scale_0 * images_0 @ texts_0.T, batch.labels)
    losses = prepared.losses(theta, batch)
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(losses.penalty, 0.8 * (1 - 2 / 4) * kl, **close)  # in the second epoch of four
    torch.testing.assert_close(by_step.losses(theta, batch).penalty, 0.8 * (1 - 0.25) * kl, **close)
    last = prepared.losses(theta, dataclasses.replace(batch, epoch=3)).penalty
    assert last is not None and float(last) == 0  # as in the authors' code
    other = small(Flyp() if base == "contrastive" else WiseFT()).prepare(task)
    torch.testing.assert_close(losses.fit, other.losses(theta, batch).fit)


# ---------------------------------------------------------------- what moves
def test_the_parameters_that_move_are_the_papers(task: Task) -> None:
    tower = {n for n in task.model.parameter_names if n.startswith("visual.")}
    everything = set(task.model.parameter_names)

    def moves(method: Method) -> list[set[str]]:
        return [set(stage.trained) for stage in small(method).prepare(task).stages]

    head = {"head.weight", "head.bias"}
    assert moves(LipsumFT()) == moves(L2SP()) == moves(WiseFT(head_bias=False)) == [tower | {"head.weight"}]
    assert moves(WiseFT()) == [tower | head] and moves(WiseFT(scope="head")) == moves(LinearProbe()) == [head]
    assert moves(LpFT()) == [head, tower | head]
    assert moves(Flyp()) == moves(StarFT()) == [everything]
    assert moves(StarFT(base="cross_entropy")) == [everything - {"logit_scale"} | head]


def test_lp_ft_leaves_the_tower_alone_until_the_head_is_done(task: Task, examples: TensorExamples) -> None:
    method = small(LpFT(probe_share=0.75, probe_lr=0.5))
    stages = method.prepare(task).stages
    assert [s.recipe.steps for s in stages] == [3, 1] and [s.recipe.lr for s in stages] == [0.5, 0.01]
    probe = fit(small(LinearProbe(), lr=0.5, steps=3), task, examples)
    both = fit(method, task, examples)
    assert both.losses[:3] == probe.losses  # the first stage IS the linear probe


# ---------------------------------------------------------------- what is drawn
def test_random_texts_are_start_tokens_end(tiny_model: ClipModel) -> None:
    start, end = (int(t) for t in tiny_model.tokenize([""])[0, :2])
    tokens = random_texts(tiny_model, 4000, 8, torch.Generator().manual_seed(0))
    assert tokens.shape == (4000, 16)
    assert bool((tokens[:, 0] == start).all()) and bool((tokens[:, 9] == end).all()) and not tokens[:, 10:].any()
    middle = tokens[:, 1:9]
    assert int(middle.min()) >= 0 and int(middle.max()) < start
    counts = torch.bincount(middle.flatten(), minlength=start).double()
    expected = middle.numel() / start
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - (start - 1)) < 5 * math.sqrt(2 * (start - 1))  # uniform over the vocabulary
    assert torch.equal(tokens.argmax(1), torch.full((4000,), 9))  # where CLIP's text tower looks
    with pytest.raises(ConfigError, match="text_length 15 does not fit a context of 16"):
        random_texts(tiny_model, 1, 15, torch.Generator())


def test_every_step_draws_texts_of_its_own(task: Task, batch: Batch, moved: dict[str, torch.Tensor]) -> None:
    prepared = small(LipsumFT(texts=3)).prepare(task)
    theta = {**moved, "head.weight": prepared.theta["head.weight"]}
    first = prepared.losses(theta, batch).penalty
    other = prepared.losses(theta, dataclasses.replace(batch, step=2)).penalty
    assert first is not None and other is not None and not torch.equal(first, other)


def test_captions_name_the_examples_class_in_any_template(task: Task) -> None:
    labels = torch.arange(300) % 3
    drawn = class_captions(task)(Batch(torch.zeros(300), labels, seed=1))
    known = {tuple(task.model.tokenize([t.replace("{}", c)])[0].tolist()): (i, t)
             for i, c in enumerate(task.classnames) for t in task.templates}  # fmt: skip
    found = [known[tuple(row.tolist())] for row in drawn]
    assert [c for c, _ in found] == labels.tolist()
    share = sum(t == task.templates[0] for _, t in found) / 300
    assert abs(share - 0.5) < 0.15


def test_equal_texts_are_encoded_once_and_give_equal_features(task: Task) -> None:
    tokens = task.model.tokenize(["a star", "a cup", "a star"])
    torch.testing.assert_close(
        encode_distinct(task.model, task.theta_0, tokens), task.model.encode_text(task.theta_0, tokens)
    )
