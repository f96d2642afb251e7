"""TPGM on top of a given file: the second stage of TPGM, whoever made the first one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpscope.errors import ConfigError, PairMismatch
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.method import Task
from sharpscope.finetuning.methods.tpgm import KEPT, RADII, TPGM
from sharpscope.finetuning.methods.tpgm_project import TPGMProject
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.finetuning.run import finetune
from sharpscope.miniworld.shipped import checkpoint_path
from sharpscope.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

STEPS: dict[str, Any] = {"batch_size": 4, "steps": 5}


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_tpgm_is_wise_ft_and_then_the_projection_of_its_file(
    norm: Any, task: Task, examples: TensorExamples, tmp_path: Path
) -> None:
    """A third of the images is held out, and every step of the radii sees all of them: no order is left."""
    tuning: dict[str, Any] = {"lr": 0.01, "steps": 4, "batch_size": 4, "warmup": 0.0}
    both = fit(TPGM(**tuning, held_out=1 / 3, radius_steps=5, norm=norm), task, examples)
    rows = torch.randperm(12, generator=task.generator("parts"))
    parts = [TensorExamples(examples.images[r], examples.labels[r]) for r in (rows[:8], rows[8:])]
    first = fit(WiseFT(**tuning), dataclasses.replace(task, n=8), parts[0])
    write_checkpoint(tmp_path / "wise-ft.safetensors", *first.exported)
    method = TPGMProject(**STEPS, norm=norm, file=str(tmp_path / "wise-ft.safetensors"))
    second = fit(method, dataclasses.replace(task, n=4), parts[1])
    names = both.prepared.stages[0].trained
    told, expected = (json.loads(f.exported.metadata[KEPT]) for f in (second, both))
    assert set(told) == set(names) and set(second.theta) == {RADII}
    for name in names:
        assert told[name] == pytest.approx(expected[name], abs=2e-4)
        torch.testing.assert_close(second.exported.tensors[name], both.exported.tensors[name], rtol=1e-3, atol=1e-5)
    assert second.losses == pytest.approx(both.losses[4:], rel=1e-4)
    torch.testing.assert_close(second.theta[RADII], both.theta[RADII], rtol=1e-3, atol=1e-5)  # and none left its range
    assert min(told.values()) < 0.6 < max(told.values())


def project(file: str | Path | None, out: Path | None = None, **changes: Any) -> Any:
    return finetune(
        "mini:zeroshot", "mini:photo@val", "tpgm-project", model="mini", out=out, progress=False, batch_size=32,
        shots=4, steps=2, file=None if file is None else str(file), **changes,
    )  # fmt: skip


def test_a_shipped_file_is_projected_tensor_by_tensor_and_its_content_is_remembered(tmp_path: Path) -> None:
    zero, one = (read_checkpoint_of(name) for name in ("zeroshot", "success"))
    write_checkpoint(tmp_path / "mine.safetensors", one.tensors, one.facts["metadata"])
    tuned = project(tmp_path / "mine.safetensors", tmp_path / "out")
    told = json.loads(tuned.metadata[KEPT])
    assert len({round(share, 2) for share in told.values()}) > 5
    for name, share in told.items():
        if name.startswith("visual."):
            start, end = zero.tensors[name].float(), one.tensors[name].float()
            whole, kept = end - start, tuned.theta[name] - start
            torch.testing.assert_close(kept, share * whole, rtol=1e-3, atol=1e-5)
    facts = json.loads(tuned.metadata["sharpscope.finetuning"])
    assert len(facts["inputs"]["file"]) == 64 and facts["train"] == "mini:photo@val"
    again = project(tmp_path / "mine.safetensors", tmp_path / "out")
    assert not again.losses  # already finished
    other = read_checkpoint_of("failure")
    write_checkpoint(tmp_path / "mine.safetensors", other.tensors, other.facts["metadata"])
    with pytest.raises(ConfigError, match="already holds another fine-tuning: inputs.file was"):
        project(tmp_path / "mine.safetensors", tmp_path / "out")


def read_checkpoint_of(name: str) -> Checkpoint:
    zero = read_checkpoint(checkpoint_path("mini:zeroshot"))
    return zero if name == "zeroshot" else read_checkpoint(checkpoint_path(f"mini:{name}"), base=zero)


def test_what_it_cannot_project(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file is missing, .* to project.\nRemedy: --set file="):
        project(None)
    one = read_checkpoint_of("success")
    prompts = {"sharpscope.templates": json.dumps(["a sketch of a {}"])}
    write_checkpoint(tmp_path / "mine.safetensors", one.tensors, one.facts["metadata"] | prompts)
    with pytest.raises(ConfigError, match=r"fine-tuned from 1 other prompts \(a sketch of a {} ...\)"):
        project(tmp_path / "mine.safetensors")
    names = [*reversed(json.loads(one.facts["metadata"]["sharpscope.classnames"]))]
    turned = {"sharpscope.classnames": json.dumps(names)}
    write_checkpoint(tmp_path / "mine.safetensors", one.tensors, one.facts["metadata"] | turned)
    with pytest.raises(PairMismatch, match="the file names the 16 classes of its head"):
        project(tmp_path / "mine.safetensors")
