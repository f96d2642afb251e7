"""A pair ready for work: what its ends and its model may be given as."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch

from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import checkpoint_stem, load_pair, resolve_checkpoint
from sharpscope.errors import ConfigError
from sharpscope.miniworld import world as miniworld


def test_a_live_modules_architecture_reads_the_same_pair() -> None:
    """For towers that only the user can build: ``model`` is the ClipModel of a module."""
    config = json.loads(miniworld.config_path().read_text())["model_cfg"]
    known = ClipModel.load("mini")
    model = ClipModel.from_module(open_clip.CLIP(**config), name="mine", tokenizer=known.tokenize)
    how = {"classnames": miniworld.CLASSES, "templates": miniworld.TEMPLATES}
    live = load_pair("mini:zeroshot", "mini:success", model=model, **how)  # type: ignore[arg-type]
    named = load_pair("mini:zeroshot", "mini:success", model="mini")
    assert live.model is model and live.facts["model"] == "mine"
    assert live.moving == named.moving and [x.name for x in live.layers()] == [x.name for x in named.layers()]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theta = live.path().at(0.5)
    assert torch.equal(live.classifier.logits(theta, images), named.classifier.logits(named.path().at(0.5), images))


def test_the_model_says_what_is_a_parameter(tiny_model: ClipModel) -> None:
    """Not the tensor's name: a parameter that is called like a running statistic counts among what moves."""
    module = open_clip.CLIP(**tiny_model.config)
    module.visual.running_mean = torch.nn.Parameter(torch.ones(3))
    model = ClipModel.from_module(module, tokenizer=tiny_model.tokenize)
    zero = ClipModel.theta_of(module)
    one = {**zero, "visual.running_mean": torch.zeros(3), "visual.proj": zero["visual.proj"] + 1}
    pair = load_pair(zero, one, model=model, classnames=("a", "b"))
    assert pair.facts["num_moving"] == 3 + zero["visual.proj"].numel() and pair.facts["head_only"] is False


@pytest.mark.parametrize("given", ["a/b.pt", Path("a/b.pt"), "./b.pt", "hf-hub:who/what", "local-dir:folder"])
def test_what_is_no_checkpoint_of_the_world_stays_as_the_user_wrote_it(given: str | Path) -> None:
    assert resolve_checkpoint(given) is given


def test_checkpoints_of_the_world_are_files_and_have_names() -> None:
    assert resolve_checkpoint("mini:success") == miniworld.checkpoint_path("success")
    with pytest.raises(ConfigError, match="Did you mean 'success'"):
        resolve_checkpoint("mini:sucess")
    assert [checkpoint_stem(x) for x in ("mini:success", "runs/a/tuned.pt", Path("b.safetensors"))] == [
        "success", "tuned", "b",
    ]  # fmt: skip
