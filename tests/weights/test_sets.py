"""Several sets of weights in one file, and what stands around them: each is named, none is taken for another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sharpscope.clip.export import convert, interpolate
from sharpscope.clip.inspect import inspect
from sharpscope.clip.model import pretrained_tag
from sharpscope.clip.pair import load_pair
from sharpscope.errors import CheckpointError, ConfigError
from sharpscope.study.report import Run
from sharpscope.weights.checkpoint import checkpoint_of, read_checkpoint
from sharpscope.weights.naming import unwrap
from sharpscope.weights.prompts import read_prompts

from .conftest import flax_bytes

STATE = {"visual.conv1.weight": torch.ones(4, 3, 2, 2), "visual.proj": torch.ones(4, 5), "logit_scale": torch.ones(())}
OTHER = {n: t + 1 for n, t in STATE.items()}


def _saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": STATE, "state_dict_ema": OTHER}, "state_dict_ema"),
        ({"model": STATE, "model_ema": {f"module.{n}": t for n, t in OTHER.items()}}, "model_ema"),
        ({"state_dict": STATE, "ema": {"decay": 0.9, "shadow": OTHER}}, "ema.shadow"),
        ({"state_dict": STATE, "best_so_far": OTHER}, "best_so_far"),
    ],
)
def test_another_set_of_weights_is_named_and_can_be_chosen(tmp_path: Path, content: Any, said: str) -> None:
    path = _saved({**content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, tmp_path / "a.pt")
    read = read_checkpoint(path)
    assert read.facts["others"] == [said] and torch.equal(read.tensors["visual.proj"], STATE["visual.proj"])
    assert f"also holds    {said}:" in inspect(path) and "also holds" in inspect(path, weights=said)
    chosen = read_checkpoint(path, weights=said)
    assert chosen.facts["wrapper"] == said and torch.equal(chosen.tensors["visual.proj"], OTHER["visual.proj"])
    convert(path, tmp_path / "b.safetensors", weights=said)
    assert torch.equal(read_checkpoint(tmp_path / "b.safetensors").tensors["visual.proj"], OTHER["visual.proj"])
    with pytest.raises(CheckpointError, match="has no 'elsewhere'"):
        read_checkpoint(path, weights="elsewhere")


def test_neighbours_that_are_no_weights_are_not_called_so(tmp_path: Path) -> None:
    beside = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "rng": torch.ones(9), "args": {"lr": 1}}
    beside |= {"class_vectors": {"weight": torch.ones(2, 2)}, "losses": [1.0, 2.0]}
    assert read_checkpoint(_saved({"state_dict": STATE, **beside}, tmp_path / "a.pt")).facts["others"] == []


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "swa_state_dict", "teacher"])
def test_a_set_that_is_alone_is_read_whatever_its_key(tmp_path: Path, key: str) -> None:
    path = _saved({key: STATE, "epoch": 3, "args": {"lr": 1}}, tmp_path / "a.pt")
    assert torch.equal(read_checkpoint(path).tensors["visual.proj"], STATE["visual.proj"])
    with pytest.raises(CheckpointError, match="several candidates[^~]*--weights"):
        read_checkpoint(_saved({"student": STATE, "teacher": OTHER}, tmp_path / "b.pt"))


def test_an_averaged_model_is_read(tmp_path: Path, tiny_thetas: Any) -> None:
    module = nn.Module()
    module.add_module("visual", nn.Linear(3, 3))
    averaged = torch.optim.swa_utils.AveragedModel(module)
    for content in (averaged.state_dict(), averaged, {"state_dict": averaged.state_dict()}):
        read = read_checkpoint(_saved(content, tmp_path / "a.pt"))
        assert {*read.tensors} == {"visual.weight", "visual.bias"} and read.facts["dropped"] == ["n_averaged"]


def test_a_file_of_many_names_for_one_dictionary_is_looked_at_once() -> None:
    large = {f"n{i}": torch.ones(()) for i in range(2000)}
    content = {"state_dict": STATE, **{f"k{i}": large for i in range(2000)}}  # 4 million tensors, if each were counted
    assert unwrap(content, "f").others == ()


# ------------------------------------------------------------------ heads


def test_an_ordinary_linear_head_is_a_guess_that_a_flag_settles(tmp_path: Path) -> None:
    head = {"head.weight": torch.randn(3, 5) / 5**0.5, "head.bias": torch.zeros(3)}
    path = _saved({"state_dict": {**{f"net.{n}": t for n, t in STATE.items()}, **head}}, tmp_path / "a.ckpt")
    assert read_checkpoint(path).facts["head"]["assumed"] == ["scale_baked", "normalize"]
    assert "a guess, because the file does not say" in inspect(path) and "--[no-]head-normalize" in inspect(path)
    convert(path, tmp_path / "b.safetensors")
    assert read_checkpoint(tmp_path / "b.safetensors").facts["head"]["assumed"] == ["scale_baked", "normalize"]
    convert(path, tmp_path / "c.safetensors", head_normalize=False, head_scale_baked=True)
    told = read_checkpoint(tmp_path / "c.safetensors").facts["head"]
    assert (told["normalize"], told["scale_baked"], told["assumed"]) == (False, True, [])
    assert "a guess" not in inspect(tmp_path / "c.safetensors")
    with pytest.raises(ConfigError, match="holds no head"):
        convert(_saved(STATE, tmp_path / "d.pt"), tmp_path / "e.safetensors", head_normalize=False)


def test_what_is_assumed_of_a_file_is_told_by_the_pair_and_by_the_run(tmp_path: Path) -> None:
    zero = load_pair("mini:zeroshot", "mini:failure", model="mini", head="zeroshot")
    body = {n: t for n, t in zero.theta_0.items() if not n.startswith("head.")}
    tuned = {n: t + 0.01 if n.startswith("visual.") else t for n, t in body.items()}
    head = {"head.weight": torch.randn(3, 64) / 8, "head.bias": torch.zeros(3)}
    path = _saved({"state_dict": {**tuned, **head}, "ema": tuned}, tmp_path / "a.ckpt")
    pair = load_pair(_saved(body, tmp_path / "b.pt"), path, model="mini", classnames=["cat", "dog", "fox"])
    assert len(pair.facts["assumed"]) == 3 and all(s.startswith("a.ckpt ") for s in pair.facts["assumed"])
    assert [w for w in ("ema", "unit length", "exp(logit_scale)") if w in " ".join(pair.facts["assumed"])] != []
    empty = pd.DataFrame({"claim": [], "rule": []})
    run = Run(tmp_path, {"verdicts": empty, "advice": empty}, assumed=tuple(pair.facts["assumed"]))
    assert run.summary().splitlines() == [f"assumed: {s}" for s in pair.facts["assumed"]]
    assert zero.facts["assumed"] == []


def test_what_is_no_part_of_a_clip_is_not_taken_for_its_text_tower(tmp_path: Path) -> None:
    head = {"classifier.weight": torch.ones(3, 5), "classifier.bias": torch.zeros(3)}
    assert read_checkpoint(_saved({**STATE, **head}, tmp_path / "a.pt")).facts["towers"] == ["image", "head", "scale"]
    for odd in ("projector.0.weight", "fusion", "classifier.0.weight"):
        with pytest.raises(CheckpointError, match=odd):
            read_checkpoint(_saved({**STATE, odd: torch.ones(3)}, tmp_path / "a.pt"))


# ------------------------------------------------------------------ adapters, prompts, bases


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [("ia3_l", "IA3"), ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("oft_r", "OFT"), ("oft_R.weight", "OFT"),
     ("boft_R", "BOFT"), ("vera_lambda_b", "VeRA"), ("lora_E", "AdaLoRA"), ("lora_magnitude_vector", "DoRA")],
)  # fmt: skip
def test_other_kinds_of_adapters_are_called_by_their_names(tmp_path: Path, tensor: str, kind: str) -> None:
    name = f"base_model.model.vision_model.encoder.layers.0.mlp.fc1.{tensor}"
    save_file({name: torch.ones(3, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"\({kind}\)") as caught:
        read_checkpoint(tmp_path / "a.safetensors", base=checkpoint_of(STATE))
    assert "prompts" not in str(caught.value) and "merge_and_unload" in str(caught.value)


def test_what_the_base_says_is_kept_when_parts_are_laid_over_it(tmp_path: Path, tiny_theta: dict[str, Tensor]) -> None:
    """The activation, and of a head its classes, its scale and whether it reads unit features."""
    target = "visual.transformer.resblocks.0.mlp.c_fc"
    lora = {f"{target}.lora_A": torch.ones(1, 16), f"{target}.lora_B": torch.ones(32, 1)}
    save_file(lora, tmp_path / "lora.safetensors")
    told = {"sharpscope.quick_gelu": "true", "sharpscope.head.scale_baked": "true"}
    told |= {"sharpscope.head.normalize": "false", "sharpscope.classnames": json.dumps(["a", "b"])}
    whole = {**tiny_theta, "head.weight": torch.ones(2, 12)}
    save_file({n: t.contiguous() for n, t in whole.items()}, tmp_path / "base.safetensors", metadata=told)
    base = read_checkpoint(tmp_path / "base.safetensors")
    read = read_checkpoint(tmp_path / "lora.safetensors", base=base, adapter_scale=2.0)
    assert read.facts["quick_gelu"] is True and read.facts["head"] == base.facts["head"]
    save_file(lora, tmp_path / "other.safetensors", metadata={"sharpscope.quick_gelu": "false"})
    with pytest.raises(CheckpointError, match="another base"):
        read_checkpoint(tmp_path / "other.safetensors", base=base, adapter_scale=2.0)


def test_a_point_of_a_path_keeps_its_activation(tmp_path: Path) -> None:
    interpolate("mini:zeroshot", "mini:success", 0.5, tmp_path / "half.safetensors", model="mini")
    assert read_checkpoint(tmp_path / "half.safetensors").facts["quick_gelu"] is not None


def test_prompts_of_other_kinds_are_refused_and_plain_ones_shown(tmp_path: Path) -> None:
    plain = {"ctx": torch.ones(4, 12), "token_prefix": torch.zeros(3, 1, 12), "token_suffix": torch.zeros(3, 11, 12)}
    path = _saved({"state_dict": plain, "epoch": 1}, tmp_path / "a.pth")
    assert read_prompts(path)["prompt_learner.ctx"].shape == (4, 12)
    said = inspect(path)
    assert "4 context vectors x 12, the same for all classes" in said and "assumed to follow" in said
    assert "4 context vectors" in inspect("mini:zeroshot", path)
    for odd, word in (("meta_net.linear1.weight", "image"), ("compound_prompts_text.0", "not CoOp's kind")):
        for lead in ("", "prompt_learner.", "module.prompt_learner."):
            state = {lead + n: t for n, t in {**plain, odd: torch.ones(2, 2)}.items()}
            with pytest.raises(CheckpointError, match=word):
                read_prompts(_saved({"state_dict": state}, tmp_path / "b.pth"))


# ------------------------------------------------------------------ where weights lie


def test_distributed_checkpoints_are_named_with_the_way_to_one_file(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"model": dict(STATE)}, checkpoint_id=tmp_path / "d")
    files = [f for f in (tmp_path / "d").iterdir() if f.suffix == ".distcp" or f.name == ".metadata"]
    assert len(files) == 2
    for path in (tmp_path / "d", *files):
        with pytest.raises(CheckpointError, match="format_utils dcp_to_torch") as caught:
            read_checkpoint(path)
        assert caught.value.exit_code == 2


def test_sharded_flax_is_read(tmp_path: Path) -> None:
    leaves = {"class_embedding": torch.ones(4), "patch_embedding.kernel": torch.ones(2, 2, 3, 4)}
    index = {}
    for i, (name, value) in enumerate(leaves.items()):
        tree: Any = value
        for part in reversed(["vision_model", "embeddings", *name.split(".")]):
            tree = {part: tree}
        (tmp_path / f"flax_model-{i}.msgpack").write_bytes(flax_bytes(tree))
        index["vision_model/embeddings/" + name.replace(".", "/")] = f"flax_model-{i}.msgpack"
    (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": index}))
    read = read_checkpoint(tmp_path / "flax_model.msgpack.index.json")
    assert read.tensors["visual.conv1.weight"].shape == (4, 3, 2, 2) and len(read.tensors) == 2


def test_a_pretrained_tag_is_told_what_it_is() -> None:
    for text in ("laion2b_s34b_b79k", "ViT-B-32/laion2b_s34b_b79k", "openai"):
        with pytest.raises(CheckpointError, match="pretrained tags[^~]*hf-hub:[^/]+/[^,]+"):
            inspect(text)
    assert pretrained_tag("epoch_3") == pretrained_tag("RN50/laion2b_s34b_b79k") == pretrained_tag("a.pt") == ""
