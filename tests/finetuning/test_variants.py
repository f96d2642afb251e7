"""Laws of the variants of methods: other texts, other distances, other regularisers, another start."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpscope.clip.head import zero_shot_head
from sharpscope.clip.prompts import class_drift
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.method import Batch, Method, Task
from sharpscope.finetuning.methods.clipfit import CLIPFit, mean_norm
from sharpscope.finetuning.methods.contrastive import class_captions
from sharpscope.finetuning.methods.distillation import divergence
from sharpscope.finetuning.methods.l2_sp import L2SP, absolute_distance
from sharpscope.finetuning.methods.linear_probe import LinearProbe
from sharpscope.finetuning.methods.lipsum_ft import LipsumFT, energy_gap
from sharpscope.finetuning.methods.lp_ft import LpFT
from sharpscope.finetuning.methods.starft import BACKGROUNDS, StarFT, alignment
from sharpscope.finetuning.registry import configured
from sharpscope.weights.theta import Theta


def small(method: Method, **changes: Any) -> Method:
    return dataclasses.replace(
        method, **{"batch_size": 4, "steps": 4, "lr": 0.01, "warmup": 0.0, "warmup_epochs": 0.0, **changes}
    )


@pytest.fixture
def batch(examples: TensorExamples) -> Batch:
    return Batch(examples.images[:4], examples.labels[:4], step=1, progress=0.25, seed=5, epoch=1)


@pytest.fixture
def moved(task: Task) -> Theta:
    """theta_0 with everything pushed a little."""
    g = torch.Generator().manual_seed(9)
    return {k: v + 0.05 * torch.randn(v.shape, generator=g) for k, v in task.theta_0.items()}


def penalty_of(method: Method, task: Task, theta: Theta, batch: Batch) -> Tensor:
    prepared = small(method).prepare(task)
    found = prepared.losses({**prepared.theta, **theta}, batch).penalty
    assert found is not None
    return found


# ---------------------------------------------------------------- Lipsum-FT: the kind of text
def gap_of(task: Task, theta: Theta, batch: Batch, texts: list[str]) -> Tensor:
    """The energy gap on ``texts``, from its pieces."""
    images, images_0 = (task.model.encode_image(t, batch.images) for t in (theta, task.theta_0))
    features = task.model.encode_text(task.theta_0, task.model.tokenize(texts))
    return energy_gap(images, images_0, features, task.theta_0["logit_scale"].exp())


def test_lipsums_templates_and_captions_are_drawn_from_their_texts(
    task: Task, batch: Batch, moved: Theta, tmp_path: Path
) -> None:
    """Where all texts are one, the draw is known; else many texts come near the mean over all of them."""
    (file := tmp_path / "captions.txt").write_text("a red moon\n")
    captions = LipsumFT(kind="captions", captions=str(file), texts=3, strength=0.7)
    torch.testing.assert_close(
        penalty_of(captions, task, moved, batch), 0.7 * gap_of(task, moved, batch, ["a red moon"])
    )
    unlike = dataclasses.replace(task, templates=("a {}", "the {} of the sea, far behind a tree"))
    first, second = ([t.replace("{}", c) for c in task.classnames] for t in unlike.templates)
    drawn = penalty_of(LipsumFT(kind="templates", texts=4000), unlike, moved, batch)
    torch.testing.assert_close(drawn, gap_of(task, moved, batch, [*first, *second]), rtol=0.03, atol=0)
    assert not torch.isclose(drawn, gap_of(task, moved, batch, first), rtol=0.06)  # so both templates were drawn
    one = dataclasses.replace(task, classnames=("star",), templates=("a {}",))
    labels = dataclasses.replace(batch, labels=torch.zeros(4, dtype=torch.long))
    found = penalty_of(LipsumFT(kind="templates", texts=2), one, moved, labels)
    torch.testing.assert_close(found, gap_of(task, moved, batch, ["a star"]))


@pytest.mark.parametrize("kind", ["random", "templates", "captions"])
def test_lipsums_penalty_is_0_at_the_start_and_new_at_every_step(
    kind: Any, task: Task, batch: Batch, moved: Theta, tmp_path: Path
) -> None:
    (file := tmp_path / "captions.txt").write_text("a red moon\na cup\na tree\nthe sea\n")
    method = LipsumFT(kind=kind, captions=str(file) if kind == "captions" else None, texts=3)
    assert float(penalty_of(method, task, {}, batch)) == 0
    first = penalty_of(method, task, moved, batch)
    assert torch.equal(first, penalty_of(method, task, moved, batch))
    others = [penalty_of(method, task, moved, dataclasses.replace(batch, step=step)) for step in (2, 3, 4)]
    assert not all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "captions"}, "kind=captions and captions=FILE belong together; got kind=captions without a file"),
        ({"captions": "x.txt"}, "belong together; got kind=random with a file"),
        ({"kind": "templates", "captions": "x.txt"}, "got kind=templates with a file"),
        ({"kind": "templates", "text_length": 4}, "text_length 4 is that of random texts"),
        ({"kind": "words"}, "kind: 'words' is none of random, templates, captions"),
        ({"texts": 0}, "texts must be at least 1, got 0"),
    ],
)
def test_lipsums_settings_that_do_nothing_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        configured("lipsum-ft", changes)


def test_a_missing_captions_file_is_told_before_training(task: Task, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="captions: cannot read"):
        small(LipsumFT(kind="captions", captions=str(tmp_path / "none.txt"))).prepare(task)


# ---------------------------------------------------------------- StarFT: which texts are compared
def test_kl_is_star_and_the_change_of_the_own_classs_texts() -> None:
    """The chain rule: KL over all texts = KL of (mass of the own class, rest) + the masses' shares of KL within."""
    g = torch.Generator().manual_seed(2)
    logits, logits_0 = (2 * torch.randn(5, 5, generator=g, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 0, 2, -1])
    own = (labels[:, None] == labels) & (labels >= 0)[:, None] | torch.eye(5, dtype=torch.bool)

    def kl(p: Tensor, p_0: Tensor) -> Tensor:
        return (p_0 * (p_0 / p).log()).sum()

    def within(part: Tensor) -> Tensor:
        pairs = zip(logits, logits_0, part, strict=True)
        return torch.stack([kl(z[m].softmax(0), z_0[m].softmax(0)) for z, z_0, m in pairs])

    mass, mass_0 = ((z.softmax(1) * own).sum(1) for z in (logits, logits_0))
    split = torch.stack(
        [kl(torch.stack([m, 1 - m]), torch.stack([n, 1 - n])) for m, n in zip(mass, mass_0, strict=True)]
    )
    torch.testing.assert_close(alignment(logits, logits_0, labels), within(~own).mean())
    whole = split + mass_0 * within(own) + (1 - mass_0) * within(~own)
    torch.testing.assert_close(divergence(logits, logits_0), whole.mean())


@pytest.mark.parametrize("base", ["contrastive", "cross_entropy"])
def test_starfts_kl_compares_all_spurious_texts_of_the_batch(base: Any, task: Task, batch: Batch, moved: Theta) -> None:
    method = StarFT(base=base, strength=0.8, falls="steps", spurious_type="kl")
    odd = class_captions(task, BACKGROUNDS)(batch)
    images, images_0 = (task.model.encode_image(t, batch.images) for t in (moved, task.theta_0))
    texts, texts_0 = (task.model.encode_text(t, odd) for t in (moved, task.theta_0))
    scale_0 = task.theta_0["logit_scale"].exp()
    p, p_0 = ((scale_0 * f @ t.T).softmax(1) for f, t in ((images, texts), (images_0, texts_0)))
    by_hand = 0.8 * (1 - 0.25) * (p_0 * (p_0 / p).log()).sum(1).mean()
    torch.testing.assert_close(penalty_of(method, task, moved, batch), by_hand, rtol=1e-4, atol=1e-6)
    assert float(penalty_of(method, task, {}, batch)) == pytest.approx(0, abs=1e-6)
    star = penalty_of(dataclasses.replace(method, spurious_type="star"), task, moved, batch)
    assert not torch.allclose(star, by_hand, rtol=0.01)


# ---------------------------------------------------------------- CLIPFit: the distance of the class vectors
def test_mean_norm_by_hand_and_its_square_is_twice_the_cosine_distance() -> None:
    vectors, start = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(mean_norm(vectors, start, 1)) == pytest.approx((0.4 + 0.8 + 1 + 1) / 2)
    assert float(mean_norm(vectors, start, 2)) == pytest.approx((0.8**0.5 + 2**0.5) / 2)
    squares = (vectors - start).square().sum(1).mean()
    assert float(squares) == pytest.approx(2 * float(class_drift(vectors, start)))


@pytest.mark.parametrize("distance", ["cosine", "l1", "l2", "kl"])
def test_every_distance_is_0_at_the_start_with_a_finite_gradient(
    distance: Any, task: Task, batch: Batch, moved: Theta
) -> None:
    method = CLIPFit(distance=distance, strength=3.0)
    names = small(method).prepare(task).stages[0].trained
    leaves = {n: task.theta_0[n].clone().requires_grad_() for n in names}
    start = penalty_of(method, task, leaves, batch)
    assert float(start.detach()) == pytest.approx(0, abs=1e-5)
    gradients = torch.autograd.grad(start, list(leaves.values()), allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)
    # the penalty pulls at the text tower alone, whatever the distance
    assert {n for n, g in zip(names, gradients, strict=True) if g is not None} == {
        n for n in names if not n.startswith("visual.")
    }
    vectors, vectors_0 = (zero_shot_head(task.model, t, task.classnames, task.templates) for t in (moved, task.theta_0))
    scaled = moved["logit_scale"].exp() * task.model.encode_image(moved, batch.images)
    p, p_0 = ((scaled @ g.T).softmax(1) for g in (vectors, vectors_0))
    by_hand = {
        "cosine": 1 - (vectors * vectors_0).sum(1).mean(), "l1": (vectors - vectors_0).abs().sum(1).mean(),
        "l2": (vectors - vectors_0).norm(dim=1).mean(), "kl": (p_0 * (p_0 / p).log()).sum(1).mean(),
    }[distance]  # fmt: skip
    torch.testing.assert_close(penalty_of(method, task, moved, batch), 3 * by_hand, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- other regularisers, and another start of the head
def test_absolute_distance_by_hand() -> None:
    theta, start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor(5.0)}, {"a": torch.zeros(2), "b": torch.ones(())}
    assert float(absolute_distance(theta, start, ("a", "b"))) == 7
    assert float(absolute_distance(theta, start, ("a",))) == 3


@pytest.mark.parametrize(("distance", "factor"), [("l2", 0.15 * 0.01), ("l1", 0.3 * 0.1)])
def test_l2_sp_on_the_head_alone(distance: Any, factor: float, task: Task, batch: Batch) -> None:
    """A head whose every weight went .1 away: strength / 2 * .1^2, or strength * .1, for each."""
    method = small(L2SP(strength=0.3, distance=distance, scope="head"))
    prepared = method.prepare(task)
    assert prepared.stages[0].trained == ("head.weight",)
    head = prepared.theta["head.weight"]
    penalty = prepared.losses({**prepared.theta, "head.weight": head + 0.1}, batch).penalty
    assert penalty is not None and float(penalty) == pytest.approx(factor * head.numel(), rel=1e-4)
    assert float(penalty_of(method, task, {}, batch)) == 0


def test_l1_sp_pulls_at_the_tower_too(task: Task, batch: Batch, moved: Theta) -> None:
    tower = sum(float((moved[n] - task.theta_0[n]).abs().sum()) for n in moved if n.startswith("visual."))
    penalty = penalty_of(L2SP(strength=0.3, distance="l1"), task, moved, batch)
    assert float(penalty) == pytest.approx(0.3 * tower, rel=1e-4)


def test_a_linear_probes_l1_is_of_its_weights_and_0_is_no_penalty(task: Task, batch: Batch) -> None:
    plain, held = (small(LinearProbe(l1=l1)).prepare(task) for l1 in (0.0, 0.2))
    theta = {**held.theta, "head.bias": held.theta["head.bias"] + 7}
    penalty = held.losses(theta, batch).penalty
    assert penalty is not None
    assert float(penalty) == pytest.approx(0.2 * float(theta["head.weight"].abs().sum()), rel=1e-5)
    assert plain.losses(theta, batch).penalty is None
    with pytest.raises(ConfigError, match="l1 cannot be negative"):
        LinearProbe(l1=-1.0)


@pytest.mark.parametrize("kind", [LinearProbe, LpFT])
def test_a_random_head_is_torchs_and_the_same_classifier_baked_or_not(kind: Any, task: Task, batch: Batch) -> None:
    many = dataclasses.replace(task, classnames=tuple(f"class {i}" for i in range(400)))
    baked, outside = (
        small(kind(head_start="random", scale_baked=scale_baked)).prepare(many) for scale_baked in (True, False)
    )
    weight = baked.theta["head.weight"]
    bound = weight.shape[1] ** -0.5
    assert float(weight.abs().max()) <= bound and float(weight.mean()) == pytest.approx(0, abs=0.05 * bound)
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.03)  # uniform in +-bound
    assert not baked.theta["head.bias"].any()
    torch.testing.assert_close(baked.logits(baked.theta, batch.images), outside.logits(outside.theta, batch.images))
    again, other = (small(kind(head_start="random")).prepare(dataclasses.replace(many, seed=s)).theta for s in (3, 4))
    assert torch.equal(again["head.weight"], weight) and not torch.equal(other["head.weight"], weight)
    own = dataclasses.replace(task, theta_0={**task.theta_0, "head.weight": torch.ones(3, weight.shape[1]),
                                             "head.bias": torch.ones(3)})  # fmt: skip
    drawn = small(kind(head_start="random")).prepare(own).theta
    assert float(drawn["head.weight"].max()) < 1 and not drawn["head.bias"].any()  # whatever theta_0 brings
