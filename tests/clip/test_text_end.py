"""A causal text tower reads nothing behind the end of a text, and is not asked to."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sharpscope.clip.model import ClipModel

L, END = 24, 49
TEXT = {"context_length": L, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}


def tower(kind: str) -> nn.Module:
    """A tiny open_clip model in float64, built as its config says."""
    torch.manual_seed(0)
    if kind == "plain":
        return open_clip.CLIP(12, VISION, TEXT).double().eval()
    more: dict[str, Any] = {
        "custom": {}, "eos": {"pool_type": "eos", "eos_id": END}, "both ways": {"no_causal_mask": True},
        "last": {"pool_type": "last"}, "class token": {"embed_cls": True},
    }[kind]  # fmt: skip
    return open_clip.CustomTextCLIP(12, VISION, {**TEXT, **more}).double().eval()


def texts() -> Tensor:
    """Five texts of 2 to 6 tokens, behind which stands padding."""
    tokens = torch.zeros(5, L, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    for i, row in enumerate(tokens):
        row[: i + 2] = torch.randint(1, END, (i + 2,), generator=generator)
        row[i + 2] = END
    return tokens


def cost(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["plain", "custom", "eos", "both ways", "last", "class token"])
def test_features_and_gradients_are_those_of_open_clip(kind: str) -> None:
    module = tower(kind)
    model = ClipModel.from_module(module)
    theta = {k: v.requires_grad_(v.is_floating_point()) for k, v in model.theta_of(module).items()}
    ours, theirs = model.encode_text(theta, texts()), module.encode_text(texts(), normalize=True)
    torch.testing.assert_close(ours, theirs)
    parameters = dict(module.named_parameters())
    names = [n for n in model.text_names if n in parameters and n in theta]
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = torch.autograd.grad((ours * weights).sum(), [theta[n] for n in names])
    wanted = torch.autograd.grad((theirs * weights).sum(), [parameters[n] for n in names])
    for name, a, b in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("kind", "less"),
    [("plain", True), ("custom", True), ("eos", True), ("both ways", False), ("last", False), ("class token", False)],
)
def test_causal_towers_compute_what_is_read_and_others_everything(kind: str, less: bool) -> None:
    module = tower(kind)
    model = ClipModel.from_module(module)
    theta = model.theta_of(module)
    ours, theirs = cost(lambda: model.encode_text(theta, texts())), cost(lambda: module.encode_text(texts()))
    assert ours < 0.4 * theirs if less else ours == theirs


def test_embeddings_in_place_of_tokens_are_cut_alike() -> None:
    module = tower("plain")
    model = ClipModel.from_module(module)
    theta, tokens = model.theta_of(module), texts()
    plain = model.embed_tokens(theta, tokens)
    torch.testing.assert_close(model.encode_embedded(theta, tokens, plain), model.encode_text(theta, tokens))


def test_a_model_that_overrides_what_a_text_means_is_left_alone() -> None:
    class Mean(open_clip.CLIP):
        def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
            return self.ln_final(self.token_embedding(text) + self.positional_embedding).mean(1)

    torch.manual_seed(0)
    module = Mean(12, VISION, TEXT).double().eval()
    model = ClipModel.from_module(module)
    ours = model.encode_text(model.theta_of(module), texts(), normalize=False)
    torch.testing.assert_close(ours, module.encode_text(texts()))
