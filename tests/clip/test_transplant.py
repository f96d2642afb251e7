"""What a pair becomes on an upgraded backbone: the law for task vectors, the law for prompts, and their files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpscope.clip.head import Classifier, zero_shot_head
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import load_pair
from sharpscope.clip.prompts import ATTENTION, CTX, Prompts, initial_context
from sharpscope.clip.transplant import transplanted
from sharpscope.errors import CheckpointError, PairMismatch
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.method import Task
from sharpscope.finetuning.methods.contcoop import ContCoOp
from sharpscope.finetuning.methods.coop import CoOp
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint
from sharpscope.weights.prompts import read_prompts
from sharpscope.weights.theta import Theta


def other(theta: Theta, seed: int, size: float = 0.05) -> Theta:
    draw = torch.Generator().manual_seed(seed)
    return {k: v + size * torch.randn(v.shape, generator=draw) for k, v in theta.items()}


@pytest.fixture
def upgraded(tiny_theta: Theta) -> Theta:
    return other(tiny_theta, 1)


@pytest.mark.parametrize("mode", ["stored", "text", "zeroshot"])
def test_the_task_vector_is_added(mode: Any, task: Task, upgraded: Theta) -> None:
    classifier = Classifier(task.model, mode, task.classnames, task.templates)
    zero = classifier.attach(task.theta_0)
    one = other(zero, 2)
    start, adapted = transplanted(classifier, zero, one, upgraded)
    expected = classifier.attach(upgraded)
    assert set(start) == set(adapted) == set(expected)
    for name in expected:
        assert torch.equal(start[name], expected[name])
        torch.testing.assert_close(adapted[name], expected[name] + one[name] - zero[name])
    # on the backbone that it was made on it is the fine-tuned model; without a change, the zero-shot one
    for name, tensor in transplanted(classifier, zero, one, task.theta_0)[1].items():
        assert torch.equal(tensor, one[name]), name
    assert all(torch.equal(t, start[n]) for n, t in transplanted(classifier, zero, zero, upgraded)[1].items())


def test_what_does_not_fit_stays_the_upgraded_backbones(task: Task, upgraded: Theta) -> None:
    classifier = Classifier(task.model, "text", task.classnames, task.templates)
    one = {**other(task.theta_0, 2), "visual.proj": torch.zeros(3, 5)}
    zero = {**task.theta_0, "visual.proj": torch.zeros(3, 5)}
    start, adapted = transplanted(classifier, zero, one, upgraded)
    assert torch.equal(adapted["visual.proj"], start["visual.proj"])
    assert not torch.equal(adapted["visual.conv1.weight"], start["visual.conv1.weight"])


@pytest.mark.parametrize("kind", [CoOp, ContCoOp])
def test_the_same_prompts_on_the_upgraded_text_tower(
    kind: Any, task: Task, examples: TensorExamples, upgraded: Theta, tmp_path: Path
) -> None:
    method = kind(lr=1.0, steps=3, batch_size=4, warmup=0.0)
    fitted = fit(method, task, examples, progress=False)
    write_checkpoint(tmp_path / "prompts.safetensors", *fitted.exported)
    prompts = read_prompts(tmp_path / "prompts.safetensors")
    assert set(prompts) == ({CTX, *ATTENTION} if kind is ContCoOp else {CTX})
    told = read_checkpoint(tmp_path / "prompts.safetensors", partial=True).facts["producer"]
    assert told == "sharpscope finetune (learnt prompts and the head that they make)"
    assert all(torch.equal(t, fitted.theta[n]) for n, t in prompts.items())
    classifier = Classifier(task.model, "stored", task.classnames, task.templates)
    start, adapted = transplanted(classifier, {}, {}, upgraded, prompts)
    assert {n for n in adapted if not torch.equal(adapted[n], start[n])} == {"head.weight"}
    torch.testing.assert_close(
        start["head.weight"], zero_shot_head(task.model, upgraded, task.classnames, task.templates)
    )
    by_hand = Prompts.of(task.model, task.classnames, 4).class_vectors(task.model, {**upgraded, **prompts})
    torch.testing.assert_close(adapted["head.weight"], by_hand)
    # on the old backbone: the head in the file
    old = transplanted(classifier, {}, {}, task.theta_0, prompts)[1]
    torch.testing.assert_close(old["head.weight"], fitted.exported.tensors["head.weight"])


@pytest.mark.parametrize("shape", [(4, 16), (3, 4, 16)])
def test_dassls_files_are_read(
    shape: tuple[int, ...], tiny_model: ClipModel, tiny_theta: Theta, tmp_path: Path
) -> None:
    """A plain and a class-specific context, as Dassl saves them."""
    context = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    state = {"ctx": context.half(), "token_prefix": torch.zeros(3, 1, 16), "token_suffix": torch.zeros(3, 11, 16)}
    torch.save({"state_dict": state, "epoch": 50, "optimizer": {}}, tmp_path / "model.pth.tar-50")
    prompts = read_prompts(tmp_path / "model.pth.tar-50")
    assert set(prompts) == {CTX}
    assert torch.equal(prompts[CTX], context.half().float())
    vectors = Prompts.of(tiny_model, ("star", "key", "cup"), 4).class_vectors(tiny_model, {**tiny_theta, **prompts})
    assert vectors.shape == (3, 12)


def test_a_file_without_prompts_has_none(tiny_theta: Theta, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "clip.safetensors", tiny_theta)
    assert read_prompts(tmp_path / "clip.safetensors") == {}


# ---------------------------------------------------------------------- CoOp's own files, which hold the context alone
def test_a_file_of_prompts_alone_makes_a_pair(tiny_theta: Theta, tiny_paths: dict[str, Path], tmp_path: Path) -> None:
    """The words "a photo of a" as a context: the pair ends at the classifier of that prompt."""
    names, model = ("star", "sea horse"), ClipModel.load(str(tiny_paths["vit"]))
    write_checkpoint(tmp_path / "zs.safetensors", tiny_theta)
    context = initial_context(model, tiny_theta, "a photo of a")
    torch.save({"state_dict": {"ctx": context}, "epoch": 50}, tmp_path / "model.pth.tar-50")
    ends = tmp_path / "zs.safetensors", tmp_path / "model.pth.tar-50"
    pair = load_pair(*ends, model=str(tiny_paths["vit"]), classnames=names, templates=["a {}"])
    assert pair.classifier.mode == "stored" and pair.moving == ("head.weight",)
    torch.testing.assert_close(
        pair.theta_1["head.weight"], zero_shot_head(model, tiny_theta, names, ["a photo of a {}."])
    )
    torch.testing.assert_close(pair.theta_0["head.weight"], zero_shot_head(model, tiny_theta, names, ["a {}"]))
    assert pair.facts["finetuned"]["sha256"] == hashlib.sha256(ends[1].read_bytes()).hexdigest()
    torch.save({"state_dict": {"ctx": torch.zeros(4, 512)}}, ends[1])
    with pytest.raises(PairMismatch, match="vectors have 512 entries, but the text tower of '.*' needs 16"):
        load_pair(*ends, model=str(tiny_paths["vit"]), classnames=names)
    torch.save({"state_dict": {"token_prefix": torch.zeros(2, 1, 16)}}, ends[1])
    with pytest.raises(CheckpointError, match="learnt prompts only"):
        load_pair(*ends, model=str(tiny_paths["vit"]), classnames=names)
