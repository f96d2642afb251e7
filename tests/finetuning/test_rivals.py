"""The rivals of holding layers back: distillation, CAR-FT, LDIFS, TPGM, and the intervention on curvature, SAM."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.activations import image_blocks, recording
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import Fitted, fit
from sharpscope.finetuning.method import Batch, Method, Task
from sharpscope.finetuning.methods.car_ft import CarFT, context_vectors
from sharpscope.finetuning.methods.distillation import Distillation, divergence
from sharpscope.finetuning.methods.ldifs import Ldifs, feature_distance, quarters
from sharpscope.finetuning.methods.sam import ASAM, SAM, uphill
from sharpscope.finetuning.methods.tpgm import KEPT, RADII, TPGM, Balls, row_norms
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.finetuning.statefile import Progress, StateFile
from sharpscope.finetuning.trainer import Recipe, train

STEPS: dict[str, Any] = {"batch_size": 4, "steps": 4, "lr": 0.01, "warmup": 0.0}


def small(kind: type[Method], **changes: Any) -> Method:
    return kind(**{**STEPS, **changes})


@pytest.fixture
def batch(examples: TensorExamples) -> Batch:
    return Batch(examples.images[:4], examples.labels[:4], step=1, progress=0.25, seed=5)


def pushed(theta: dict[str, Tensor], by: float = 0.05) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(9)
    return {k: v + by * torch.randn(v.shape, generator=g) if v.is_floating_point() else v for k, v in theta.items()}


def same(a: Fitted, b: Fitted) -> bool:
    return a.losses == b.losses and all(torch.equal(a.theta[k], b.theta[k]) for k in b.theta)


# ---------------------------------------------------------------- SAM and ASAM
@pytest.mark.parametrize("kind", [SAM, ASAM])
@pytest.mark.parametrize("more", [{}, {"accumulate": 3}, {"optimizer": "sgd", "clip_norm": None}])
def test_with_rho_0_it_is_the_plain_training_bit_for_bit(
    kind: type[SAM], more: dict[str, Any], task: Task, examples: TensorExamples
) -> None:
    plain = fit(small(WiseFT, **more), task, examples)
    assert same(fit(small(kind, rho=0.0, **more), task, examples), plain)
    assert not same(fit(small(kind, rho=0.5, **more), task, examples), plain)


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_step_on_a_quadratic_in_closed_form(adaptive: bool) -> None:
    """L(w) = w' H w / 2: the step is - lr H (w + rho T^2 H w / ||T H w||)."""
    h, w, rho, eta, lr = torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([3.0, -1.0]), 0.3, 0.1, 0.05

    def scale(leaf: Tensor) -> Tensor:
        return leaf.detach().abs() + eta

    recipe = Recipe(lr=lr, steps=1, weight_decay=0.0, clip_norm=None, optimizer="sgd", momentum=0.0)
    done = train(
        {"w": w}, ["w"], lambda t, s: t["w"] @ h @ t["w"] / 2, recipe,
        ascent=lambda leaves: uphill(leaves, rho, scale if adaptive else None),
    )  # fmt: skip
    t = torch.diag(w.abs() + eta) if adaptive else torch.eye(2)
    g = h @ w
    expected = w - lr * h @ (w + rho * t @ t @ g / (t @ g).norm())
    torch.testing.assert_close(done.theta["w"], expected)
    assert done.losses == (pytest.approx(float(w @ h @ w / 2)),)  # of the weights, not of the point uphill


def test_the_point_uphill_lies_on_the_sphere_and_the_way_back_is_exact(task: Task) -> None:
    leaves = {k: v.clone().requires_grad_() for k, v in task.theta_0.items() if v.is_floating_point()}
    before = {k: v.detach().clone() for k, v in leaves.items()}
    for k, leaf in list(leaves.items())[1:]:  # the first one has no gradient and stays
        leaf.grad = pushed({k: leaf.detach()})[k]
    with uphill(leaves, 0.7):
        moved = [leaves[k].detach() - before[k] for k in leaves]
        assert float(torch.stack([m.norm() for m in moved]).norm()) == pytest.approx(0.7, rel=1e-5)
        assert not moved[0].any()
    assert all(torch.equal(leaves[k], before[k]) for k in leaves)


def test_asam_does_not_notice_how_a_function_is_parametrised() -> None:
    """w -> c w with the loss f(w / c): without eta the point uphill is the same function (Kwon et al., theorem 1)."""
    c, w = torch.tensor([10.0, 0.2, 3.0]), torch.tensor([0.5, -2.0, 1.0])

    def point(scaled: bool) -> Tensor:
        leaf = (w * c if scaled else w).clone().requires_grad_()
        ((leaf / c if scaled else leaf) ** 3).sum().backward()
        with uphill({"w": leaf}, 0.4, lambda v: v.detach().abs()):
            return leaf.detach() / c if scaled else leaf.detach().clone()

    torch.testing.assert_close(point(True), point(False))


@pytest.mark.parametrize("bad", [math.inf, math.nan, 0.0])
def test_without_a_direction_nothing_moves(bad: float) -> None:
    leaf = torch.ones(2, requires_grad=True)
    leaf.grad = torch.full((2,), bad)
    with uphill({"w": leaf}, 1.0):
        assert leaf.tolist() == [1.0, 1.0]
    with uphill({"w": torch.ones(2, requires_grad=True)}, 1.0):
        pass


def test_sam_ends_flatter_than_plain_training() -> None:
    """L = (1 + 25 x^2) y^2 / 2: all points with y = 0 are minima, of curvature 1 + 25 x^2."""

    def loss(t: dict[str, Tensor], step: int) -> Tensor:
        x, y = t["w"]
        return (1 + 25 * x**2) * y**2 / 2

    recipe = Recipe(lr=0.01, steps=300, weight_decay=0.0, clip_norm=None, optimizer="sgd", momentum=0.0)
    start = {"w": torch.tensor([1.0, 0.2])}
    plain = train(start, ["w"], loss, recipe).theta["w"]
    flat = train(start, ["w"], loss, recipe, ascent=lambda leaves: uphill(leaves, 0.2)).theta["w"]
    assert 1 + 25 * float(flat[0]) ** 2 < (1 + 25 * float(plain[0]) ** 2) / 2


@pytest.mark.parametrize(
    ("kind", "bad", "says"),
    [
        (SAM, {"rho": -1.0}, "sam: rho needs a number of at least 0"),
        (ASAM, {"eta": -1.0}, "asam: eta"),
        (Distillation, {"temperature": 0.0}, "kd: temperature needs a number above 0"),
        (TPGM, {"held_out": 1.0}, "tpgm: held_out needs a number between 0 and 1"),
        (TPGM, {"radius_steps": 0}, "tpgm: radius_steps must be at least 1"),
    ],
)
def test_settings_without_meaning_are_refused(kind: Any, bad: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kind(**bad)


# ---------------------------------------------------------------- distillation and CAR-FT
def test_divergence_by_hand() -> None:
    logits_0, logits = torch.log(torch.tensor([[3.0, 1.0], [1.0, 1.0]])), torch.zeros(2, 2)
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(divergence(logits, logits_0)) == pytest.approx(kl / 2, rel=1e-5)


def test_distillation_from_its_pieces(task: Task, batch: Batch) -> None:
    prepared = small(Distillation, strength=0.7, temperature=2.0).prepare(task)
    theta = pushed(prepared.theta)
    z, z_0 = prepared.logits(theta, batch.images), prepared.logits(prepared.theta, batch.images)
    p, q = (z_0 / 2).softmax(1), (z / 2).softmax(1)
    losses = prepared.losses(theta, batch)
    torch.testing.assert_close(losses.fit, F.cross_entropy(z, batch.labels))
    torch.testing.assert_close(losses.penalty, 0.7 * 4 * (p * (p / q).log()).sum(1).mean())


def test_car_ft_from_its_pieces(task: Task, batch: Batch) -> None:
    contexts = ("a photo of a {}", "a dark {}", "a {} on grass")
    prepared = small(CarFT, strength=0.7, contexts=contexts).prepare(task)
    model, rows = task.model, []
    for text in contexts:
        features = model.encode_text(task.theta_0, model.tokenize([text.format(c) for c in task.classnames]))
        rows.append(F.normalize(features.mean(0), dim=0))
    vectors = context_vectors(task, contexts)
    torch.testing.assert_close(vectors, torch.stack(rows))
    theta = pushed(prepared.theta)
    scale = task.theta_0["logit_scale"].exp()
    p, q = ((scale * model.encode_image(t, batch.images) @ vectors.T).softmax(1) for t in (task.theta_0, theta))
    losses = prepared.losses(theta, batch)
    torch.testing.assert_close(losses.penalty, 0.7 * (p * (p / q).log()).sum(1).mean())
    torch.testing.assert_close(losses.fit, F.cross_entropy(prepared.logits(theta, batch.images), batch.labels))


def test_one_context_is_refused_and_one_template_is_not_a_context(task: Task) -> None:
    with pytest.raises(ConfigError, match="car-ft: contexts needs at least two texts"):
        CarFT(batch_size=4, contexts=("a {}",)).prepare(task)
    one = dataclasses.replace(task, templates=("a photo of a {}.",))
    theta = CarFT(batch_size=4).prepare(one)
    assert float(theta.losses(pushed(theta.theta), Batch(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))).penalty) > 0


# ---------------------------------------------------------------- LDIFS
def test_feature_distance_by_hand() -> None:
    """Two tokens of width 1 and one image: (3, 4) becomes (.6, .8), (0, 5) becomes (0, 1)."""
    found, found_0 = torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[0.0], [5.0]]])
    gap = (0.36 + 0.04) / 2
    assert float(feature_distance([found], [found_0])) == pytest.approx(gap, rel=1e-5)
    assert float(feature_distance([found, found], [found_0, found])) == pytest.approx(gap / 2, rel=1e-5)
    assert float(feature_distance([2 * found], [found])) == pytest.approx(0, abs=1e-12)  # a longer one is no change


def test_quarters_of_the_blocks() -> None:
    assert quarters([str(i) for i in range(1, 13)]) == ("3", "6", "9", "12")
    assert quarters(["1", "2"]) == ("1", "2") and quarters(["1"]) == ("1",)


@pytest.mark.parametrize("kind", ["vit", "resnet", "customtext"])
def test_the_recorded_activations_are_the_blocks_own(kind: str, tiny_thetas: Any) -> None:
    model, theta = tiny_thetas[kind]
    blocks = image_blocks(model)
    images = torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    with recording(model, blocks[0], blocks) as seen:
        model.encode_image(theta, images)
    assert len(seen) == len(blocks) + 1 and all(len(x) == 2 for x in seen)
    again = list(seen)
    with torch.no_grad():
        model.encode_image(theta, images)  # outside: nothing is recorded
    assert all(a is b for a, b in zip(again, seen, strict=True))


def test_ldifs_pulls_back_exactly_the_tensors_before_the_last_block(task: Task, batch: Batch) -> None:
    prepared = small(Ldifs, strength=2.0).prepare(task)
    theta = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in pushed(prepared.theta).items()}
    losses = prepared.losses(theta, batch)
    assert losses.penalty is not None and float(losses.penalty.detach()) > 0
    names = prepared.stages[0].trained
    gradients = torch.autograd.grad(losses.penalty, [theta[n] for n in names], allow_unused=True)
    still = {n for n, g in zip(names, gradients, strict=True) if g is None or not g.any()}
    assert still == {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj", "head.weight", "head.bias"}


def test_a_tower_without_blocks_is_refused(tiny_model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model, "image_names", ("visual.proj",))
    with pytest.raises(ConfigError, match="its image tower has no blocks"):
        image_blocks(tiny_model)


# ---------------------------------------------------------------- TPGM
def test_projection_by_hand() -> None:
    start = {"a": torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "b": torch.tensor([2.0])}
    theta = {"a": torch.tensor([[4.0, 5.0], [0.0, 0.0]]), "b": torch.tensor([3.0])}
    out = Balls(start, ("a", "b"), "l2").projected(theta, torch.tensor([2.5, 7.0]))
    torch.testing.assert_close(out["a"], torch.tensor([[2.5, 3.0], [0.0, 0.0]]))  # half of (3, 4), whose norm is 5
    assert torch.equal(out["b"], theta["b"])  # inside its ball
    rows = Balls(start, ("a", "b"), "mars").projected(theta, torch.tensor([3.5, 0.5]))
    torch.testing.assert_close(rows["a"], torch.tensor([[2.5, 3.0], [0.0, 0.0]]))  # half of a row whose norm is 7
    torch.testing.assert_close(rows["b"], torch.tensor([2.5]))
    assert row_norms(torch.tensor(-2.0), "mars") == 2 and row_norms(torch.tensor([1.0, -2.0]), "mars").tolist() == [3.0]


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_the_result_lies_on_every_tensors_segment(norm: str, task: Task, examples: TensorExamples) -> None:
    method = small(TPGM, radius_steps=5, norm=norm)
    fitted = fit(method, task, examples)
    plain = fit(small(WiseFT), dataclasses.replace(task, n=11), _kept(task, examples))
    start, told = fitted.prepared.theta, json.loads(fitted.exported.metadata[KEPT])
    for name in plain.prepared.stages[0].trained:
        assert torch.equal(fitted.theta[name], plain.theta[name])  # the first stage is WiSE-FT on the kept examples
        whole, kept = (t[name] - start[name] for t in (plain.theta, fitted.exported.tensors))
        if norm == "l2":
            share = float(kept.norm() / whole.norm())
            assert 0 <= share <= 1 + 1e-6 and share == pytest.approx(told[name], abs=1e-4)
            torch.testing.assert_close(kept, share * whole, rtol=1e-3, atol=1e-6)
        else:
            assert bool((row_norms(kept, "mars") <= row_norms(whole, "mars") + 1e-6).all())
    assert len(fitted.losses) == 4 + 5 and RADII not in fitted.exported.tensors


def _kept(task: Task, examples: TensorExamples) -> TensorExamples:
    rows = torch.randperm(12, generator=task.generator("parts"))[:11]
    return TensorExamples(examples.images[rows], examples.labels[rows])


def test_radii_start_at_half_the_movement_and_move_by_the_rate(task: Task, examples: TensorExamples) -> None:
    """Adam's first step has the length of the rate; a radius never leaves (0, the whole movement]."""
    fitted = fit(small(TPGM, radius_steps=1, radius_lr=1e-3, lr=0.1), task, examples)
    stage = fitted.prepared.stages[1]
    names = fitted.prepared.stages[0].trained
    sizes = torch.stack([(fitted.theta[n] - fitted.prepared.theta[n]).norm() for n in names])
    steps = fitted.theta[RADII] - sizes / 2
    assert stage.trained == (RADII,) and stage.part == (11 / 12, 1.0)
    torch.testing.assert_close(steps.abs()[sizes > 0.01], torch.full_like(steps, 1e-3)[sizes > 0.01], rtol=0.01, atol=0)
    far = fit(small(TPGM, radius_steps=3, radius_lr=50.0), task, examples)
    sizes = torch.stack([(far.theta[n] - far.prepared.theta[n]).norm() for n in names])
    assert bool((far.theta[RADII] > 0).all()) and bool((far.theta[RADII] <= sizes.clamp(min=1e-8)).all())


def test_the_gradient_of_a_radius_is_a_finite_difference(task: Task, batch: Batch) -> None:
    prepared = small(TPGM).prepare(task)
    double = {k: v.double() if v.is_floating_point() else v for k, v in pushed(prepared.theta).items()}
    prepared = small(TPGM).prepare(dataclasses.replace(task, theta_0={
        k: v.double() if v.is_floating_point() else v for k, v in task.theta_0.items()
    }))  # fmt: skip
    batch = dataclasses.replace(batch, images=batch.images.double())
    double[RADII] = prepared.stages[1].begin(double)[RADII]  # type: ignore[misc]
    leaf = double[RADII].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prepared.losses({**double, RADII: leaf}, batch).total, leaf)
    for i in (0, 7, len(leaf) - 1):
        step = torch.zeros_like(leaf)
        step[i] = 1e-6
        up, down = (float(prepared.losses({**double, RADII: double[RADII] + s * step}, batch).total) for s in (1, -1))
        assert float(gradient[i]) == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-9)


def test_tpgm_killed_while_learning_radii_goes_on_bit_for_bit(
    task: Task, examples: TensorExamples, tmp_path: Path
) -> None:
    method = small(TPGM, radius_steps=5)
    whole = fit(method, task, examples)

    class Stopping(StateFile):
        def save(self, at: Progress) -> None:
            super().save(at)
            if at.stage == 1 and at.state is not None and at.state.step == 3:
                raise KeyboardInterrupt

    file = StateFile(tmp_path / "state.safetensors", {})
    with pytest.raises(KeyboardInterrupt):
        fit(method, task, examples, state_file=Stopping(file.path, {}), every=1)
    assert same(fit(method, task, examples, state_file=file, every=1), whole)


def test_the_parts_of_the_examples_do_not_overlap(task: Task, examples: TensorExamples) -> None:
    seen: list[list[int]] = []

    class Watching(TensorExamples):
        def batch(self, indices: Tensor, seed: int) -> Any:
            seen.append(indices.tolist())
            return super().batch(indices, seed)

    fit(small(TPGM, held_out=0.25, radius_steps=4, steps=6), task, Watching(examples.images, examples.labels))
    weights, radii = {i for row in seen[:6] for i in row}, {i for row in seen[6:] for i in row}
    assert not weights & radii and len(weights) <= 9 and radii and len(radii) <= 3
    with pytest.raises(ConfigError, match=r"held_out 0.01 of 12 examples leaves one part empty"):
        small(TPGM, held_out=0.01).prepare(task)
