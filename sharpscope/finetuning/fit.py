"""Training a method on a task: its stages in order, batches, validation, and a state to resume from."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sharpscope.clip.progress import Shown
from sharpscope.errors import ConfigError
from sharpscope.finetuning.examples import Examples
from sharpscope.finetuning.method import Batch, Exported, Method, Prepared, Stage, Task
from sharpscope.finetuning.moving import only
from sharpscope.finetuning.statefile import Progress, StateFile
from sharpscope.finetuning.trainer import State, epochs, train
from sharpscope.machine.devices import onto
from sharpscope.seeds import derive
from sharpscope.vocabulary import Precision
from sharpscope.weights.theta import Theta

__all__ = ["Fitted", "fit"]

T = TypeVar("T")
R = TypeVar("R")
Validation = Callable[[Callable[[Tensor], Tensor]], float]
"""(logits of images) -> accuracy on the validation set."""
Watch = Callable[[Sequence[float], Sequence[tuple[int, float]]], None]
"""(loss of every step so far, (steps so far, validation accuracy) so far) -> None."""
Keep = Callable[[int, Exported], None]
"""(steps of all stages so far, what a checkpoint of them holds) -> None."""


@dataclass(frozen=True)
class Fitted:
    """The result of training: ``theta`` (with the method's own tensors), what to save, losses and accuracies."""

    theta: Theta
    exported: Exported
    losses: tuple[float, ...]
    """Loss of every step of every stage."""
    accuracies: tuple[tuple[int, float], ...]
    """(steps of all stages so far, validation accuracy), after every epoch."""
    prepared: Prepared


def fit(
    method: Method,
    task: Task,
    examples: Examples,
    *,
    validation: Validation | None = None,
    state_file: StateFile | None = None,
    every: int = 500,
    precision: Precision = "full",
    progress: Shown = False,
    watch: Watch | None = None,
    train_only: str | None = None,
    keep: Keep | None = None,
    keep_every: int | None = None,
) -> Fitted:
    """Train ``method`` on ``examples``. The result depends on the arguments alone, not on interruptions.

    validation  asked after every epoch and at the end; decides what is kept where the method says ``keep_best``
    state_file  file to which the state is written every ``every`` steps, and from which training resumes
    progress    True shows a bar, a function of total and desc (such as tqdm) makes one
    watch       told losses and accuracies whenever these are judged or the state is written, and at every stage's end
    train_only  regular expression: only tensors whose names match it move (see ``moving.only``)
    keep        given what a checkpoint would hold after every ``keep_every`` steps but the last

    Raises ConfigError where a batch is larger than the data, where ``train_only`` matches nothing, or where training is
    over before ``keep_every`` steps; NumericalError when training diverges.
    """
    if len(examples) != task.n:
        raise ConfigError(f"finetune: the task has n = {task.n}, but there are {len(examples)} examples.")
    prepared = method.prepare(task)
    if train_only is not None:
        prepared = only(prepared, task, train_only, method.name)
    keeper = _Keeper(prepared, keep, _checked_interval(keep_every, prepared) if keep else None)
    at = (state_file.load(task.device) if state_file else None) or Progress()
    for number in range(at.stage, len(prepared.stages)):
        last = number + 1 == len(prepared.stages)
        judge = _Judge(prepared, validation, method.keep_best and last, at)
        run = _Stage(method, task, examples, prepared, number, precision, progress, watch, keeper)
        at = run(at, judge, state_file.save if state_file else None, every)
    theta = {**prepared.theta, **at.moved, **at.best}
    return Fitted(theta, prepared.export(theta), tuple(at.losses), tuple(at.accuracies), prepared)


class _Judge:
    """Validation accuracies during training, and the best weights if the method keeps them."""

    def __init__(self, prepared: Prepared, validation: Validation | None, keep_best: bool, at: Progress) -> None:
        self.prepared, self.validation, self.keep_best = prepared, validation, keep_best
        self.accuracies, self.best, self.best_accuracy = list(at.accuracies), dict(at.best), at.best_accuracy

    def __call__(self, step: int, theta: Theta, moved: Theta) -> None:
        if self.validation is None:
            return
        with torch.no_grad():
            frozen = self.prepared.freeze(theta)
            accuracy = self.validation(lambda images: self.prepared.logits(frozen, images))
        self.accuracies.append((step, accuracy))
        if self.keep_best and accuracy > self.best_accuracy:
            self.best_accuracy, self.best = accuracy, {n: t.clone() for n, t in moved.items()}


def _checked_interval(every: int | None, prepared: Prepared) -> int | None:
    """``every``; raises ConfigError where no checkpoint would be kept by it."""
    total = sum(stage.recipe.steps for stage in prepared.stages)
    if every is not None and not 1 <= every < total:
        raise ConfigError(
            f"keep_every: needs 1 to {total - 1} steps, got {every}: the training has {total}, and its end is written "
            "anyway."
        )
    return every


@dataclass(frozen=True)
class _Keeper:
    """Checkpoints while training: every so many steps, but for the last."""

    prepared: Prepared
    keep: Keep | None
    every: int | None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is kept after so many steps."""
        total = sum(stage.recipe.steps for stage in self.prepared.stages)
        return self.keep is not None and self.every is not None and step % self.every == 0 and step < total

    def __call__(self, step: int, theta: Theta) -> None:
        if self.keep is not None:
            self.keep(step, self.prepared.export(theta))


@dataclass(frozen=True)
class _Stage:
    """One stage of a method, ready to run."""

    method: Method
    task: Task
    examples: Examples
    prepared: Prepared
    number: int
    precision: Precision
    progress: Shown
    watch: Watch | None
    keeper: _Keeper

    @property
    def stage(self) -> Stage:
        return self.prepared.stages[self.number]

    def __call__(self, at: Progress, judge: _Judge, save: Callable[[Progress], None] | None, every: int) -> Progress:
        """Train from the progress ``at`` to the end of the stage."""
        recipe, before = self.stage.recipe, len(at.losses)
        theta = {**self.prepared.theta, **at.moved}
        if self.stage.begin is not None:
            theta |= self.stage.begin(theta)
        rows = self._rows()
        size = min(self.method.batch_size, len(rows))
        per_epoch = max(1, len(rows) // size)
        batches = self._batches(rows, size, per_epoch, at.state.step if at.state else 0)
        judge_every = self.method.judge_every or per_epoch
        meter: dict[str, Tensor] = {}
        held: dict[int, Batch] = {}  # sharpness-aware training asks twice for the loss of one step

        def loss(current: Theta, step: int) -> Iterator[Tensor]:
            if first := step not in held:
                held.clear()
                held[step] = next(batches)
            batch, accuracy = held[step], torch.zeros((), device=self.task.device)
            for part in batch.split(self.method.accumulate):
                share = len(part.labels) / len(batch.labels)  # unequal parts weigh by their examples
                losses = self.prepared.losses(current, part)
                if first and self.progress and losses.logits is not None:
                    right = losses.logits.detach().argmax(1) == part.labels
                    meter["accuracy"] = accuracy = accuracy + share * right.float().mean()
                yield share * losses.total

        def after(state: State) -> None:
            done, step = state.step == recipe.steps, before + state.step
            judged, kept = done or state.step % judge_every == 0, self.keeper.due(step)
            saved = save is not None and not done and state.step % every == 0
            if judged or kept or saved:
                state.settle()  # what is not finite is neither judged nor written
            if judged:
                judge(step, {**theta, **state.kept}, state.kept)
            if kept:
                self.keeper(step, {**theta, **state.kept})
            if self.watch is not None and (judged or saved):
                self.watch([*at.losses, *state.losses], judge.accuracies)
            if save is not None and saved:
                save(dataclasses.replace(
                    at, state=state, accuracies=judge.accuracies, best=judge.best, best_accuracy=judge.best_accuracy
                ))  # fmt: skip

        fitted = train(
            theta,
            self.stage.trained,
            loss,
            recipe,
            constrain=self.stage.constrain,
            ascent=self.stage.ascent,
            ema=self.method.ema,
            ema_debias=self.method.ema_debias,
            precision=self.precision,
            resume=at.state,
            after=after,
            meter=meter,
            description=f"{self.method.name}, {self.stage.name}",
            progress=self.progress,
        )
        finished = Progress(
            stage=self.number + 1,
            moved={**at.moved, **{n: fitted.theta[n] for n in self.stage.trained}},
            losses=[*at.losses, *fitted.losses],
            accuracies=judge.accuracies,
            best=judge.best,
            best_accuracy=judge.best_accuracy,
        )
        if save is not None:
            save(finished)
        return finished

    def _rows(self) -> Tensor:
        """The examples that this stage trains on."""
        (first, last), n = self.stage.part, self.task.n
        if (first, last) == (0.0, 1.0):
            return torch.arange(n)
        return torch.randperm(n, generator=self.task.generator("parts"))[round(first * n) : round(last * n)]

    def _batches(self, rows: Tensor, size: int, per_epoch: int, done: int) -> Iterator[Batch]:
        """The batches from step ``done`` on; the next batch is read while the current one is trained on."""
        task, steps = self.task, self.stage.recipe.steps
        # the first stage's order is that of the seed itself: the embedded world's checkpoints were trained so
        order_seed = task.seed if self.number == 0 else derive(task.seed, "stage", self.number)
        order = itertools.islice(epochs(len(rows), size, -(-steps // per_epoch), order_seed), done, steps)
        seed = derive(task.seed, "finetune", self.number)

        def read(item: tuple[int, Tensor]) -> Batch:
            step, indices = item
            epoch = step // per_epoch
            # a picture depends on the image and the epoch alone, whatever batch it is in
            images, labels, captions = self.examples.batch(rows[indices], derive(seed, "augment", epoch))
            return Batch(
                onto(images, task.device),
                onto(labels, task.device),
                None if captions is None else onto(task.model.tokenize(captions), task.device),
                step,
                step / steps,
                seed,
                epoch,
            )

        return _ahead(read, enumerate(order, done))


def _ahead(work: Callable[[T], R], items: Iterator[T]) -> Iterator[R]:
    """``map(work, items)`` in order; a thread of its own prepares up to two results in advance."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(work, item) for item in itertools.islice(items, 2)]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(work, item) for item in itertools.islice(items, 1)]
            yield result
