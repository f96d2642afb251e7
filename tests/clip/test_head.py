"""Heads: open_clip's zero-shot classifier, the scale explicit in every mode, and what the loss depends on."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import DEFAULT_TEMPLATES, Classifier, default_templates, zero_shot_head
from sharpscope.clip.model import ClipModel
from sharpscope.curvature.arithmetic import second_order
from sharpscope.errors import ConfigError, PairMismatch

NAMES = tuple(f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cup", "key", "fish", "ring"))
TEMPLATES = ("a photo of a {}", "a {}", "this is a {}")
Theta = dict[str, torch.Tensor]
Thetas = dict[str, tuple[ClipModel, Theta]]


def images_for(model: ClipModel, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, *model.image_size, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------- zero-shot heads
@pytest.mark.parametrize("kind", ["vit", "customtext"])
def test_zero_shot_head_is_open_clips(kind: str, tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas[kind]
    cfg = copy.deepcopy(model.config)
    module = (open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP)(**cfg)
    module.load_state_dict(theta)
    expected = open_clip.build_zero_shot_classifier(module.eval(), model.tokenize, NAMES, TEMPLATES).T
    torch.testing.assert_close(zero_shot_head(model, theta, NAMES, TEMPLATES), expected, rtol=0, atol=1e-6)


def test_zero_shot_head_has_unit_rows_and_one_template_is_its_text_feature(
    tiny_model: ClipModel, tiny_theta: Theta
) -> None:
    head = zero_shot_head(tiny_model, tiny_theta, NAMES, TEMPLATES)
    torch.testing.assert_close(head.norm(dim=1), torch.ones(len(NAMES)))
    one = zero_shot_head(tiny_model, tiny_theta, ["cup"], ["a photo of a {}"])
    torch.testing.assert_close(one, tiny_model.encode_text(tiny_theta, tiny_model.tokenize(["a photo of a cup"])))


def test_templates_are_plain_text(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    odd = zero_shot_head(tiny_model, tiny_theta, ["{}cup{0}"], ["a {0.__class__} {}"])
    text = tiny_model.tokenize(["a {0.__class__} {}cup{0}"])
    torch.testing.assert_close(odd, tiny_model.encode_text(tiny_theta, text))


def test_many_texts_are_embedded_in_parts(
    tiny_model: ClipModel, tiny_theta: Theta, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = zero_shot_head(tiny_model, tiny_theta, NAMES, TEMPLATES)
    monkeypatch.setattr("sharpscope.clip.head._TEXTS_AT_ONCE", 5)  # parts that cut through a class's templates
    torch.testing.assert_close(zero_shot_head(tiny_model, tiny_theta, NAMES, TEMPLATES), whole, rtol=0, atol=1e-6)


def test_default_templates(tiny_model: ClipModel) -> None:
    assert default_templates(tiny_model) == DEFAULT_TEMPLATES
    mini = default_templates(ClipModel.load("mini"))
    assert len(mini) > 1
    assert all("{}" in t for t in mini)


# ---------------------------------------------------------------------- logits by hand
def test_logits_by_hand_in_every_mode(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    x, generator = images_for(tiny_model), torch.Generator().manual_seed(3)
    weight, bias = torch.randn(12, 12, generator=generator), torch.randn(12, generator=generator)
    feature = tiny_model.encode_image(tiny_theta, x, normalize=False)
    unit, s = F.normalize(feature, dim=-1), float(tiny_theta["logit_scale"].exp())
    theta = {**tiny_theta, "head.weight": weight}
    with_bias = {**theta, "head.bias": bias}
    stored = Classifier(tiny_model, "stored", NAMES)
    baked = Classifier(tiny_model, "stored", NAMES, scale_baked=True)
    raw = Classifier(tiny_model, "stored", NAMES, scale_baked=True, normalize=False)
    vectors = zero_shot_head(tiny_model, tiny_theta, NAMES, TEMPLATES)
    zeroshot, text = (Classifier(tiny_model, m, NAMES, TEMPLATES) for m in ("zeroshot", "text"))
    for got, expected in [
        (stored.logits(theta, x), s * unit @ weight.T),
        (stored.logits(with_bias, x), s * unit @ weight.T + bias),
        (baked.logits(theta, x), unit @ weight.T),
        (raw.logits(with_bias, x), feature @ weight.T + bias),
        (zeroshot.logits(zeroshot.attach(tiny_theta), x), s * unit @ vectors.T),
        (text.logits(tiny_theta, x), s * unit @ vectors.T),
    ]:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_scale_follows_theta_where_it_is_not_baked_in(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    x, louder = images_for(tiny_model), {**tiny_theta, "logit_scale": tiny_theta["logit_scale"] + 1}
    for mode in ("stored", "text"):
        c = Classifier(tiny_model, mode, NAMES, TEMPLATES)
        ratio = c.logits(c.attach(louder), x) / c.logits(c.attach(tiny_theta), x)
        torch.testing.assert_close(ratio, torch.full_like(ratio, torch.e), rtol=1e-4, atol=1e-4)
    one_element = {**tiny_theta, "logit_scale": tiny_theta["logit_scale"].reshape(1)}
    c = Classifier(tiny_model, "text", NAMES, TEMPLATES)
    assert torch.equal(c.logits(one_element, x), c.logits(tiny_theta, x))


# ---------------------------------------------------------------------- attach
def test_a_baked_head_gives_the_same_logits(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    x = images_for(tiny_model)
    plain, baked = (Classifier(tiny_model, "stored", NAMES, TEMPLATES, scale_baked=b, bias=b) for b in (False, True))
    theta = baked.attach(tiny_theta)
    torch.testing.assert_close(baked.logits(theta, x), plain.logits(plain.attach(tiny_theta), x), rtol=1e-5, atol=1e-5)
    assert torch.equal(theta["head.bias"], torch.zeros(len(NAMES)))
    assert "head.weight" not in tiny_theta


def test_zero_shot_mode_freezes_head_and_scale_of_theta_0(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    theta_1 = {k: v + 0.1 if v.is_floating_point() else v for k, v in tiny_theta.items()}
    theta_1["head.weight"] = torch.zeros(12, 12)  # a fine-tuned head that this mode must not use
    c = Classifier(tiny_model, "zeroshot", NAMES, TEMPLATES)
    attached = c.attach(theta_1, tiny_theta)
    assert torch.equal(attached["head.weight"], zero_shot_head(tiny_model, tiny_theta, NAMES, TEMPLATES))
    assert torch.equal(attached["logit_scale"], tiny_theta["logit_scale"])
    assert attached["visual.proj"] is theta_1["visual.proj"]


def test_stored_mode_keeps_its_own_head(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    own = torch.zeros(len(NAMES), 12)
    c = Classifier(tiny_model, "stored", NAMES, TEMPLATES)
    assert c.attach({**tiny_theta, "head.weight": own}, tiny_theta)["head.weight"] is own


def test_text_mode_has_no_head(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c = Classifier(tiny_model, "text", NAMES, TEMPLATES)
    assert c.attach({**tiny_theta, "head.weight": torch.zeros(2, 12)}).keys() == tiny_theta.keys()


# ---------------------------------------------------------------------- dependence on theta
def test_text_mode_is_differentiable_through_both_towers(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    theta = {k: v.double() for k, v in tiny_theta.items()}
    c, x = Classifier(tiny_model, "text", NAMES[:3], TEMPLATES), images_for(tiny_model).double()
    labels = torch.tensor([0, 1, 2])
    generator = torch.Generator().manual_seed(4)
    names = c.parameters(theta)
    direction = {k: torch.randn(theta[k].shape, generator=generator, dtype=torch.float64) for k in names}

    def loss(step: float | torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(c.logits({**theta, **{k: theta[k] + step * direction[k] for k in names}}, x), labels)

    with second_order():
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(step), step, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, step)
        h = 3e-5
        up, mid, down = (float(loss(s)) for s in (h, 0.0, -h))
    assert float(slope.detach()) == pytest.approx((up - down) / (2 * h), rel=1e-5)
    assert float(curvature) == pytest.approx((up - 2 * mid + down) / h**2, rel=1e-3)


@pytest.mark.parametrize("kind", ["vit", "resnet", "customtext"])
@pytest.mark.parametrize("mode", ["zeroshot", "stored", "text"])
def test_parameters_are_those_that_gradients_reach(kind: str, mode: str, tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas[kind]
    c = Classifier(model, mode, NAMES, TEMPLATES)
    theta = c.attach(theta)
    names = c.parameters(theta)
    assert c.reached(theta) == names
    towers = {
        "zeroshot": {k for k in model.parameter_names if k.startswith("visual.")},
        "stored": {k for k in model.parameter_names if k.startswith("visual.")} | {"head.weight", "logit_scale"},
        "text": set(model.parameter_names),
    }
    assert set(names) == towers[mode]
    assert not any("running" in k for k in names)


def test_a_baked_scale_is_no_parameter(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c = Classifier(tiny_model, "stored", NAMES, TEMPLATES, scale_baked=True, bias=True)
    names = c.parameters(c.attach(tiny_theta))
    assert "logit_scale" not in names
    assert names[-2:] == ("head.weight", "head.bias")


def test_leftovers_in_a_tower_are_not_reached(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    module = open_clip.CLIP(**tiny_model.config)
    module.visual.leftover = torch.nn.Parameter(torch.ones(3))
    model = ClipModel.from_module(module, tokenizer=tiny_model.tokenize)
    c = Classifier(model, "zeroshot", NAMES, TEMPLATES)
    theta = c.attach(ClipModel.theta_of(module))
    with torch.inference_mode():  # asked from anywhere
        assert set(c.parameters(theta)) - set(c.reached(theta)) == {"visual.leftover"}


def test_frozen_embeds_no_text_again(tiny_model: ClipModel, tiny_theta: Theta, monkeypatch: pytest.MonkeyPatch) -> None:
    c, x = Classifier(tiny_model, "text", NAMES, TEMPLATES), images_for(tiny_model)
    expected, frozen = c.logits(tiny_theta, x), c.frozen(tiny_theta)
    monkeypatch.setattr(tiny_model, "encode_text", lambda *_, **__: pytest.fail("text was embedded again"))
    assert torch.equal(c.logits(frozen, x), expected)
    assert c.frozen(frozen).keys() == frozen.keys()
    assert not any(k.startswith("head.") for k in tiny_theta)


def test_text_mode_first_used_in_inference_mode_still_has_gradients(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c, x = Classifier(tiny_model, "text", NAMES, TEMPLATES), images_for(tiny_model)
    with torch.inference_mode():
        c.logits(tiny_theta, x)
    leaf = tiny_theta["token_embedding.weight"].clone().requires_grad_()
    (g,) = torch.autograd.grad(c.logits({**tiny_theta, "token_embedding.weight": leaf}, x)[:, 0].sum(), leaf)
    assert float(g.abs().max()) > 0


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mode": "frozen"}, "none of zeroshot, stored, text"),
        ({"mode": "zeroshot", "scale_baked": True}, "stored head only"),
        ({"classnames": ()}, "class names"),
    ],
)
def test_meaningless_heads_are_config_errors(kwargs: dict[str, object], message: str, tiny_model: ClipModel) -> None:
    with pytest.raises(ConfigError, match=message):
        Classifier(tiny_model, **{"classnames": NAMES, **kwargs})  # type: ignore[arg-type]


def test_template_without_a_place_for_the_name(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    with pytest.raises(ConfigError, match=r"'a photo' has no \{\}"):
        zero_shot_head(tiny_model, tiny_theta, NAMES, ["a {}", "a photo"])
    with pytest.raises(ConfigError, match="at least one"):
        zero_shot_head(tiny_model, tiny_theta, NAMES, [])


def test_heads_that_do_not_fit_are_pair_mismatches(tiny_model: ClipModel, tiny_theta: Theta) -> None:
    c, x = Classifier(tiny_model, "stored", NAMES), images_for(tiny_model)
    with pytest.raises(PairMismatch, match=r"head\.weight"):
        c.logits(tiny_theta, x)
    for call in (c.attach, lambda t: c.logits(t, x)):
        with pytest.raises(PairMismatch, match=r"\[5, 12\].*12 class names"):
            call({**tiny_theta, "head.weight": torch.zeros(5, 12)})
    no_scale = {k: v for k, v in tiny_theta.items() if k != "logit_scale"} | {"head.weight": torch.zeros(12, 12)}
    with pytest.raises(PairMismatch, match="logit_scale"):
        c.logits(no_scale, x)
