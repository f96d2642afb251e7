"""Laws that every fine-tuning method obeys: what moves, where it starts, that nothing is left to chance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpscope.errors import ConfigError
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.method import Batch, Exported, Method, Prepared, Task
from sharpscope.finetuning.registry import METHODS
from sharpscope.finetuning.statefile import Progress, StateFile
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint

EVERY = pytest.mark.parametrize("name", METHODS)
OWN: dict[str, dict[str, Any]] = {"tpgm": {"radius_steps": 3}, "tpgm-project": {}}
"""What single methods need beside the settings of all."""


@pytest.fixture(scope="module", autouse=True)
def finetuned(tiny_thetas: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The file that tpgm-project projects: both towers moved."""
    model, theta = tiny_thetas["vit"]
    draw = torch.Generator().manual_seed(9)
    moved = {n: theta[n] + 0.05 * torch.randn(theta[n].shape, generator=draw) for n in model.parameter_names}
    OWN["tpgm-project"]["file"] = str(tmp_path_factory.mktemp("finetuned") / "both.safetensors")
    write_checkpoint(OWN["tpgm-project"]["file"], {**theta, **moved})


def quick(name: str, **changes: Any) -> Method:
    """The method with its paper's loss, in four steps on twelve images."""
    small = {
        "lr": 0.01, "batch_size": 4, "epochs": 2, "steps": 4, "warmup": 0.0, "warmup_epochs": 0.0, "judge_every": None,
        "shots": None, **changes,
    }  # fmt: skip
    return dataclasses.replace(METHODS[name](), **small, **OWN.get(name, {}))


def first_batch(task: Task, examples: TensorExamples) -> Batch:
    return Batch(examples.images[:4], examples.labels[:4], seed=5)


def all_trained(prepared: Prepared) -> set[str]:
    return {name for stage in prepared.stages for name in stage.trained}


@EVERY
def test_it_says_what_it_is(name: str) -> None:
    kind = METHODS[name]
    assert kind.name == name and kind.title and kind.source
    assert kind().description.endswith(".") and len(kind().description) <= 120
    assert all(field.kw_only for field in dataclasses.fields(kind))


@EVERY
def test_exactly_the_named_tensors_move(name: str, task: Task, examples: TensorExamples) -> None:
    before = {k: v.clone() for k, v in task.theta_0.items()}
    fitted = fit(quick(name), task, examples)
    trained = all_trained(fitted.prepared)
    start = fitted.prepared.theta
    assert set(fitted.theta) == set(start)
    moved = {k for k in start if not torch.equal(fitted.theta[k], start[k])}
    assert moved == trained
    assert all(torch.equal(task.theta_0[k], before[k]) for k in before)
    assert len(fitted.losses) == sum(s.recipe.steps for s in fitted.prepared.stages)


@EVERY
def test_the_penalty_vanishes_at_the_start(name: str, task: Task, examples: TensorExamples) -> None:
    # a learnt prompt starts as these words: at the zero-shot classifier where they are the only template
    task = dataclasses.replace(task, templates=("a photo of a {}.",))
    prepared = quick(name).prepare(task)
    losses = prepared.losses(prepared.theta, first_batch(task, examples))
    assert losses.fit.ndim == 0 and bool(losses.fit.isfinite())
    if losses.penalty is not None:
        assert float(losses.penalty) == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(losses.total, losses.fit + losses.penalty)


@EVERY
def test_the_loss_is_a_function_of_theta_and_batch(name: str, task: Task, examples: TensorExamples) -> None:
    """Asked twice, and whatever the global random state, it answers the same bits."""
    prepared, batch = quick(name).prepare(task), first_batch(task, examples)
    first = prepared.losses(prepared.theta, batch).total
    torch.rand(7)
    assert torch.equal(prepared.losses(prepared.theta, batch).total, first)


@EVERY
def test_every_tensor_that_is_to_move_is_in_one_group_of_the_optimizer(name: str, task: Task) -> None:
    prepared = quick(name).prepare(task)
    for stage in prepared.stages:
        assert stage.trained and len(set(stage.trained)) == len(stage.trained)
        assert all(prepared.theta[n].is_floating_point() for n in stage.trained)
        assert not set(stage.trained) & set(task.model.buffer_names)


@EVERY
def test_killed_and_taken_up_is_uninterrupted_bit_for_bit(
    name: str, task: Task, examples: TensorExamples, tmp_path: Path
) -> None:
    method = quick(name, ema=0.9, keep_best=True)
    answers = iter([0.2, 0.9, 0.5, 0.7] * 2)
    whole = fit(method, task, examples, validation=lambda logits: next(answers))

    class KilledError(Exception):
        pass

    saved = iter(range(3))

    class Stopping(StateFile):
        def save(self, at: Progress) -> None:
            super().save(at)
            if next(saved) == 2:  # in the second stage, where there are two
                raise KilledError

    file = StateFile(tmp_path / "state.safetensors", {"method": name})
    answers = iter([0.2, 0.9, 0.5, 0.7] * 2)
    with pytest.raises(KilledError):
        fit(
            method,
            task,
            examples,
            validation=lambda x: next(answers),
            state_file=Stopping(file.path, file.belongs),
            every=1,
        )
    resumed = fit(method, task, examples, validation=lambda logits: next(answers), state_file=file, every=1)
    assert resumed.losses == whole.losses and resumed.accuracies == whole.accuracies
    assert all(torch.equal(resumed.theta[k], whole.theta[k]) for k in whole.theta)


@EVERY
def test_what_is_frozen_for_validation_classifies_alike(name: str, task: Task, examples: TensorExamples) -> None:
    prepared = quick(name).prepare(task)
    moved = {k: t + 0.1 * t.cos() if k in all_trained(prepared) else t for k, t in prepared.theta.items()}
    with torch.no_grad():
        frozen = prepared.logits(prepared.freeze(moved), examples.images)
        torch.testing.assert_close(frozen, prepared.logits(moved, examples.images))


@pytest.mark.parametrize("name", ["lp-ft", "tpgm"])
def test_checkpoints_count_the_steps_of_all_stages_and_hold_what_earlier_stages_moved(
    name: str, task: Task, examples: TensorExamples
) -> None:
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def keep(step: int, exported: Exported) -> None:
        kept[step] = {n: t.clone() for n, t in exported.tensors.items()}

    fitted = fit(quick(name), task, examples, keep=keep, keep_every=1)
    assert [*kept] == [*range(1, len(fitted.losses))]
    first = fitted.prepared.stages[0].recipe.steps
    tower = {step: not torch.equal(kept[step]["visual.proj"], task.theta_0["visual.proj"]) for step in kept}
    assert tower == {step: step > first or name == "tpgm" for step in kept}  # the second stage of tpgm moves no weight


def test_a_checkpoint_on_the_way_holds_the_average_that_the_end_would(task: Task, examples: TensorExamples) -> None:
    """After one step the average is .75 theta_0 + .25 theta."""
    kept: list[torch.Tensor] = []

    def keep(_: int, exported: Exported) -> None:
        kept.append(exported.tensors["head.weight"].clone())

    for ema in (None, 0.75):
        fitted = fit(quick("linear-probe", ema=ema, steps=2), task, examples, keep=keep, keep_every=1)
    start = fitted.prepared.theta["head.weight"]
    torch.testing.assert_close(kept[1], torch.lerp(start, kept[0], 0.25))
    assert not torch.equal(kept[1], start)


@EVERY
def test_another_seed_is_another_training(name: str, task: Task, examples: TensorExamples) -> None:
    first, other = (fit(quick(name), dataclasses.replace(task, seed=s), examples) for s in (3, 4))
    assert any(not torch.equal(first.theta[k], other.theta[k]) for k in first.theta)


@EVERY
def test_what_is_saved_classifies_as_what_was_trained(
    name: str, task: Task, examples: TensorExamples, tmp_path: Path
) -> None:
    from sharpscope.clip.pair import load_pair

    fitted = fit(quick(name, lr=0.1), task, examples)
    write_checkpoint(tmp_path / "zeroshot.safetensors", task.theta_0)
    write_checkpoint(tmp_path / "finetuned.safetensors", *fitted.exported)
    dropped = read_checkpoint(tmp_path / "finetuned.safetensors", partial=True).facts["dropped"]
    assert all(n.startswith("prompt_learner.") for n in dropped)  # kept in the file for other backbones
    pair = load_pair(
        tmp_path / "zeroshot.safetensors",
        tmp_path / "finetuned.safetensors",
        model=task.model.name,
        templates=task.templates,
    )
    with torch.no_grad():
        saved = pair.classifier.logits(pair.path().at(1.0), examples.images)
        trained = fitted.prepared.logits(fitted.theta, examples.images)
    torch.testing.assert_close(saved, trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.couples])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(name: str, task: Task, examples: TensorExamples) -> None:
    """Plain SGD moves by the gradient: in float64 the same for 11 images at once and in parts of 3, 2, 2, 2 and 2."""
    theta = {k: t.double() if t.is_floating_point() else t for k, t in task.theta_0.items()}
    exact, data = dataclasses.replace(task, theta_0=theta), TensorExamples(examples.images.double(), examples.labels)
    plain = {"optimizer": "sgd", "clip_norm": None, "batch_size": 11, "steps": 2, "warmup_lr": None, "ema": None}
    whole, parts = (fit(quick(name, accumulate=k, **plain), exact, data) for k in (1, 5))
    assert parts.losses == pytest.approx(whole.losses, rel=1e-12)
    for key in all_trained(whole.prepared):
        moved = whole.theta[key] - whole.prepared.theta[key]
        torch.testing.assert_close(parts.theta[key] - whole.prepared.theta[key], moved, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.couples])
def test_a_loss_between_images_is_not_taken_apart(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: accumulate 2 would change the loss"):
        quick(name, accumulate=2)
    with pytest.raises(ConfigError, match="accumulate needs at least 1 part"):
        quick(name, accumulate=0)


@EVERY
def test_couples_says_whether_the_mean_over_parts_is_the_loss(name: str, task: Task, examples: TensorExamples) -> None:
    prepared = quick(name).prepare(task)
    start = {k: t + 0.01 * t.sin() if k in all_trained(prepared) else t for k, t in prepared.theta.items()}
    batch = first_batch(task, examples)
    whole, *parts = (float(prepared.losses(start, b).total) for b in (batch, *batch.split(2)))
    assert (sum(parts) / 2 == pytest.approx(whole, rel=1e-4)) != METHODS[name].couples


def test_a_state_of_another_run_is_refused(task: Task, examples: TensorExamples, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    fit(quick("wise-ft"), task, examples, state_file=StateFile(path, {"seed": 1}))
    with pytest.raises(ConfigError, match="belongs to another fine-tuning: seed was 1 and is now 2"):
        fit(quick("wise-ft"), task, examples, state_file=StateFile(path, {"seed": 2}))


def test_an_unknown_method_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'wise-ft'"):
        METHODS.find("wiseft", "method")
