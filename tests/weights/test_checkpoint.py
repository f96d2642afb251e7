"""Files become the tensors they hold, in open_clip's names, with what is known about them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sharpscope.errors import CheckpointError, ConfigError, CorruptCheckpoint
from sharpscope.layers import tower_of
from sharpscope.weights.checkpoint import as_theta, checkpoint_of, read_checkpoint, write_checkpoint
from sharpscope.weights.files.tensors import tied_names

DTYPES = ["float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
Thetas = dict[str, tuple[Any, dict[str, Tensor]]]


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def _state() -> dict[str, Tensor]:
    return {"visual.proj": torch.arange(6.0).reshape(2, 3), "logit_scale": torch.tensor(2.5)}


@pytest.mark.parametrize("kind", ["vit", "resnet", "customtext"])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.bin", "noextension"])
def test_the_content_decides_not_the_extension(tmp_path: Path, tiny_thetas: Thetas, kind: str, name: str) -> None:
    theta = tiny_thetas[kind][1]
    for container in ("torch zip", "safetensors"):
        path = tmp_path / name
        torch.save(theta, path) if container == "torch zip" else write_checkpoint(path, theta)
        read = read_checkpoint(path)
        assert _equal(read.tensors, theta)
        assert read.facts["container"] == container and read.facts["safe"] is True
        assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert read.source == str(path)


def test_facts_count_what_is_there(tmp_path: Path, tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["resnet"]
    write_checkpoint(tmp_path / "a", theta)
    facts = read_checkpoint(tmp_path / "a").facts
    assert facts["num_tensors"] == len(theta)
    assert facts["num_params"] == sum(theta[n].numel() for n in model.parameter_names)
    integers = sum(t.dtype == torch.int64 for t in theta.values())
    assert facts["dtypes"] == {"float32": len(theta) - integers, "int64": integers}
    assert facts["towers"] == ["image", "text", "scale"] and facts["head"] is None
    assert (facts["naming"], facts["prefix"], facts["wrapper"]) == ("open_clip", "", "")
    assert json.loads(json.dumps(facts)) == facts


def test_a_training_checkpoint_of_open_clip(tmp_path: Path, tiny_theta: dict[str, Tensor]) -> None:
    optimizer = torch.optim.AdamW([tiny_theta["visual.proj"].clone().requires_grad_()])
    content = {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{n}": nn.Parameter(t) for n, t in tiny_theta.items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(content, tmp_path / "epoch_3.pt")
    read = read_checkpoint(tmp_path / "epoch_3.pt")
    assert _equal(read.tensors, tiny_theta) and not any(t.requires_grad for t in read.tensors.values())
    assert (read.facts["wrapper"], read.facts["prefix"]) == ("state_dict", "module.")
    assert read.facts["ignored"] == ["epoch", "name", "optimizer"]


def test_a_wise_ft_state_dict_with_its_head(tmp_path: Path, tiny_theta: dict[str, Tensor]) -> None:
    state = {f"image_encoder.model.{n}": t for n, t in tiny_theta.items() if not n.startswith("transformer.")}
    state |= {"classification_head.weight": torch.randn(3, 12), "classification_head.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "checkpoint_10.pt")
    read = read_checkpoint(tmp_path / "checkpoint_10.pt")
    assert {n for n in read.tensors if tower_of(n) == "head"} == {"head.weight", "head.bias"}
    assert {n for n in read.tensors if tower_of(n) != "head"} == {
        n for n in tiny_theta if not n.startswith("transformer")
    }
    assert read.facts["head"] == {"scale_baked": True, "normalize": True, "classnames": None, "told_by": "names"}
    assert read.facts["naming"] == "WiSE-FT" and read.facts["towers"] == ["image", "text", "head", "scale"]


def test_openai_constants_are_dropped_and_said_so(tmp_path: Path) -> None:
    torch.save({**_state(), "input_resolution": torch.tensor(224), "vocab_size": torch.tensor(9)}, tmp_path / "a")
    read = read_checkpoint(tmp_path / "a")
    assert _equal(read.tensors, _state()) and read.facts["dropped"] == ["input_resolution", "vocab_size"]


@pytest.mark.parametrize("baked", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_head_is_what_the_metadata_says(tmp_path: Path, baked: bool, normalize: bool) -> None:
    names = ["cat", "dög", "a,b"]
    metadata = {
        "sharpscope.head.scale_baked": baked,
        "sharpscope.head.normalize": normalize,
        "sharpscope.classnames": names,
    }
    write_checkpoint(tmp_path / "a", {**_state(), "head.weight": torch.randn(3, 3)}, metadata)
    head = read_checkpoint(tmp_path / "a").facts["head"]
    assert head == {"scale_baked": baked, "normalize": normalize, "classnames": names, "told_by": "metadata"}


@pytest.mark.parametrize(("length", "baked"), [(1.0, False), (1.2, False), (14.0, True), (100.0, True)])
def test_without_metadata_the_length_of_the_class_vectors_tells(tmp_path: Path, length: float, baked: bool) -> None:
    weight = nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1) * length
    torch.save({**_state(), "head.weight": weight}, tmp_path / "a")
    head = read_checkpoint(tmp_path / "a").facts["head"]
    assert (head["scale_baked"], head["told_by"]) == (baked, "length of the class vectors")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("sharpscope.head.scale_baked", "maybe", "not a JSON bool"),
        ("sharpscope.head.normalize", "1", "not a JSON bool"),
        ("sharpscope.classnames", '["cat"]', "3 names"),
        ("sharpscope.classnames", '["cat", "dog", 3]', "3 names"),
        ("sharpscope.classnames", "cat, dog, cow", "not a JSON list"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(tmp_path: Path, key: str, value: str, word: str) -> None:
    write_checkpoint(tmp_path / "a", {**_state(), "head.weight": torch.randn(3, 3)}, {key: value})
    with pytest.raises(CheckpointError, match=word):
        read_checkpoint(tmp_path / "a")


@pytest.mark.parametrize(
    "head",
    [
        {"head.bias": torch.zeros(3)},
        {"head.weight": torch.zeros(3)},
        {"head.weight": torch.zeros(0, 3)},
        {"head.weight": torch.zeros(3, 3), "head.bias": torch.zeros(4)},
    ],
)
def test_a_head_that_is_none_is_refused(tmp_path: Path, head: dict[str, Tensor]) -> None:
    torch.save({**_state(), **head}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="head"):
        read_checkpoint(tmp_path / "a")


def test_an_expected_sha256_is_held_to(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", _state())
    digest = read_checkpoint(tmp_path / "a").sha256
    assert _equal(read_checkpoint(tmp_path / "a", expected_sha256=digest.upper()).tensors, _state())
    with pytest.raises(CorruptCheckpoint, match=digest):
        read_checkpoint(tmp_path / "a", expected_sha256="0" * 64)
    with pytest.raises(ConfigError, match="64 hex digits"):
        read_checkpoint(tmp_path / "a", expected_sha256="abc")


# ------------------------------------------------------------------ writing

_SHAPES = st.lists(st.integers(0, 3), max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(DTYPES), _SHAPES), max_size=6),
    st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=4),
)
def test_what_is_written_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, spec: dict[str, Any], metadata: dict[str, str]
) -> None:
    """The safetensors library is the independent reader."""
    if "__metadata__" in spec:
        return
    path = tmp_path_factory.mktemp("w") / "a.safetensors"
    tensors = {n: torch.randint(0, 2, shape).to(getattr(torch, dtype)) for n, (dtype, shape) in spec.items()}
    write_checkpoint(path, tensors, metadata)
    assert _equal(safetensors.torch.load_file(path), tensors)
    with safetensors.safe_open(path, "pt") as f:
        assert (f.metadata() or {}) == metadata


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_s_files_are_read(tmp_path: Path, dtype: str) -> None:
    tensors = {**_state(), "visual.extra": torch.tensor([0, 1, 1]).to(getattr(torch, dtype))}
    safetensors.torch.save_file(tensors, tmp_path / "a", {"b": "1", "a": "2"})
    read = read_checkpoint(tmp_path / "a")
    assert _equal(read.tensors, tensors) and read.facts["metadata"] == {"a": "2", "b": "1"}


def test_equal_input_gives_equal_bytes(tmp_path: Path, tiny_theta: dict[str, Tensor]) -> None:
    metadata = {"z": "1", "a": "2", "m": [1, "é"]}
    write_checkpoint(tmp_path / "a", tiny_theta, metadata)
    shuffled = {n: tiny_theta[n].clone() for n in reversed(tiny_theta)}
    write_checkpoint(tmp_path / "b", shuffled, dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_views_parameters_and_ties_are_written_whole(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {"visual.a": base.T, "visual.b": base[1:3, ::2], "visual.c": nn.Parameter(base), "visual.d": base}
    write_checkpoint(tmp_path / "a", tensors)
    read = read_checkpoint(tmp_path / "a").tensors
    assert all(torch.equal(read[n], tensors[n]) for n in tensors)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_checkpoint(path, _state())
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(path, {"visual.proj": torch.zeros(1)})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a"]
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_checkpoint(tmp_path / "missing" / "a", _state())


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'visual.s' is a sparse"):
        write_checkpoint(tmp_path / "a", {"visual.s": torch.eye(2).to_sparse()})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ memory


def test_a_live_module_becomes_a_checkpoint_and_stays_as_it_was() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_encoder = nn.ModuleDict({"model": nn.ModuleDict({"visual": nn.Linear(2, 3)})})
            self.classification_head = nn.Linear(3, 4)

    torch.manual_seed(0)
    module = Classifier().train()
    before = copy.deepcopy(module.state_dict())
    read = checkpoint_of(module)
    assert list(read.tensors) == ["visual.weight", "visual.bias", "head.weight", "head.bias"]
    assert read.facts["container"] == "memory" and read.facts["head"]["scale_baked"] is True
    with torch.no_grad():
        module.classification_head.weight.zero_()
    assert read.tensors["head.weight"].any()
    assert module.training and all(
        torch.equal(before[n], t) for n, t in module.state_dict().items() if "head.w" not in n
    )


def test_equal_weights_have_equal_hashes_and_others_do_not() -> None:
    state = _state()
    digest = checkpoint_of(state).sha256
    assert checkpoint_of({n: t.clone() for n, t in reversed(state.items())}).sha256 == digest
    changed = [
        state | {"logit_scale": torch.tensor(2.50001)},
        state | {"visual.proj": state["visual.proj"].reshape(3, 2)},
        state | {"visual.proj": state["visual.proj"].double()},
        {("visual.prok" if n == "visual.proj" else n): t for n, t in state.items()},
    ]
    assert len({digest, *(checkpoint_of(c).sha256 for c in changed)}) == 5


def test_ties_are_found_and_kept(tmp_path: Path) -> None:
    shared = torch.randn(3, 2)
    tensors = {"visual.a": shared, "visual.b": shared, "visual.t": shared.T, "visual.c": shared.clone()}
    tensors |= {"visual.e": torch.ones(0), "visual.f": torch.ones(0)}
    assert tied_names(tensors) == {"visual.b": "visual.a"}
    torch.save(tensors, tmp_path / "a")
    read = read_checkpoint(tmp_path / "a")
    assert read.facts["tied"] == {"visual.b": "visual.a"} and read.facts["num_params"] == 18
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    assert checkpoint_of(module).facts["tied"] == {"b.weight": "a.weight"}


def test_a_theta_is_detached_from_what_it_came_from() -> None:
    state = {"visual.proj": torch.ones(2, requires_grad=True)}
    theta = as_theta(state)
    assert not theta["visual.proj"].requires_grad and state["visual.proj"].requires_grad
    read = checkpoint_of(state)
    assert checkpoint_of(read) is read and as_theta(read) == read.tensors


def test_a_checkpoint_prints_itself_in_a_line() -> None:
    text = repr(checkpoint_of(_state(), "<b>\n\x1b[2J"))
    assert "2 tensors, 7 values" in text and "\n" not in text and "\x1b" not in text
    assert "<b>" not in checkpoint_of(_state(), "<b>")._repr_html_()
