"""Wrappers and prefixes: stripped from all keys or not at all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sharpscope.errors import CheckpointError, listing
from sharpscope.layers import is_buffer, is_derived, tower_of
from sharpscope.weights.naming import normalise, unwrap

BODY = ("visual.conv1.weight", "visual.proj", "transformer.resblocks.0.ln_1.weight", "logit_scale")
STATE = {"visual.proj": torch.ones(2)}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "module.model.",
     "model._orig_mod.", "image_encoder.model.", "module.image_encoder.model.", "clip.", "module.net.clip_model.",
     "base_model.model.clip.", "backbone.0."],
)  # fmt: skip
def test_every_prefix_leads_to_the_same_names(prefix: str) -> None:
    """Whatever a wrapper class calls the CLIP; the names below it are open_clip's, whoever wrote them."""
    names = normalise([prefix + n for n in BODY], "f")
    assert list(names.renamed.values()) == list(BODY)
    assert (names.naming, names.prefix) == ("open_clip", prefix)


@pytest.mark.parametrize("head", ["classification_head.", "head."])
@pytest.mark.parametrize("prefix", ["model.", "image_encoder.model.", "", "clip."])
def test_the_head_stands_beside_the_prefixed_encoder(prefix: str, head: str) -> None:
    keys = [*(prefix + n for n in BODY), head + "weight", head + "bias"]
    renamed = normalise(keys, "f").renamed
    assert renamed[head + "weight"] == "head.weight"
    assert renamed[head + "bias"] == "head.bias"
    launched = normalise(["module." + k for k in keys], "f").renamed
    assert list(launched.values()) == list(renamed.values())


@given(st.sampled_from(["module.", "_orig_mod.", "model.", "image_encoder.model.", "clip."]), st.integers(1, 3))
def test_a_prefix_on_only_some_keys_is_refused_and_the_odd_ones_named(prefix: str, count: int) -> None:
    keys = [prefix + n if i < count else n for i, n in enumerate(BODY)]
    with pytest.raises(CheckpointError, match="logit_scale") as error:
        normalise(keys, "file.pt")
    assert prefix in str(error.value) and f"{count} of {len(BODY)}" in str(error.value)


def test_a_head_without_the_launcher_prefix_that_all_others_carry_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        normalise(["module.visual.proj", "head.weight"], "f")


def test_openai_constants_are_dropped_by_name() -> None:
    names = normalise([*BODY, "input_resolution", "context_length", "vocab_size"], "f")
    assert names.dropped == ("input_resolution", "context_length", "vocab_size")
    assert set(names.renamed.values()) == set(BODY)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("vision_model.encoder.unknown.weight", "Hugging Face"),
        ("prompt_learner.ctx", "prompts"),
        ("ctx", "prompts"),
        ("image_adapter.fc.weight", "Dassl"),
        ("head.scale", "linear head"),
        ("classification_head.normalize", "linear head"),
    ],
)
def test_foreign_names_are_refused_by_what_they_are(key: str, word: str) -> None:
    known = {"Dassl": ["text_encoder.ln_final.weight"], "Hugging Face": ["vision_model.embeddings.class_embedding"]}
    with pytest.raises(CheckpointError, match=word):
        normalise([key, *known.get(word, [])], "f")


def test_two_keys_for_one_tensor_are_refused() -> None:
    with pytest.raises(CheckpointError, match="same tensor"):
        normalise(["model.visual.proj", "head.weight", "classification_head.weight"], "f")


@pytest.mark.parametrize(
    "path", [(), ("state_dict",), ("model",), ("model_state_dict",), ("module",), ("model", "state_dict")]
)
def test_wrappers_are_opened_and_their_neighbours_recorded(path: tuple[str, ...]) -> None:
    content: dict[str, object] = dict(STATE)
    for key in reversed(path):
        content = {"epoch": 3, "optimizer": {"lr": 1.0}, "step": torch.tensor(4), key: content}
    found = unwrap(content, "f")
    assert found.state == STATE
    assert found.path == path
    assert found.ignored == ("epoch", "optimizer", "step") * len(path)


def test_a_wrapper_word_that_holds_no_tensors_is_not_the_wrapper() -> None:
    assert unwrap({"model": {"name": "ViT-B-32"}, "state_dict": STATE}, "f").path == ("state_dict",)


def test_a_dictionary_that_holds_itself_ends() -> None:
    loop: dict[str, object] = {"visual.proj": torch.ones(1)}
    loop["model"] = loop
    with pytest.raises(CheckpointError, match="deeply"):
        unwrap(loop, "f")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([1, 2], "list"),
        (torch.ones(2), "Tensor"),
        (torch.nn.Linear(2, 2), "whole module"),
        ({}, "empty dictionary"),
        ({"epoch": 3, "args": {}}, "holds no tensors"),
        ({"visual.proj": torch.ones(2), 3: torch.ones(2)}, "key 3 is a int"),
        ({"visual.proj": torch.ones(2), "epoch": 3}, "'epoch' is a int"),
        ({"state_dict": STATE, "model": STATE}, "several"),
    ],
)
def test_what_holds_no_state_dict_is_refused(content: object, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        unwrap(content, "f")


def test_towers_and_buffers_are_told_by_name() -> None:
    assert [tower_of(n) for n in ("visual.trunk.head.weight", "head.weight", "text.ln_final.bias", "cls_emb")] == [
        "image",
        "head",
        "text",
        "text",
    ]
    assert is_buffer("visual.bn1.running_mean") and not is_derived("visual.bn1.running_mean")
    assert is_derived("attn_mask") and is_buffer("text.attn_mask")
    assert not is_buffer("visual.bn1.weight")


def test_a_listing_names_ten_and_escapes() -> None:
    text = listing([f"k\x1b[31m{i}" for i in range(13)])
    assert "\x1b" not in text and text.endswith(" and 3 more") and text.count("k\\x1b") == 10
