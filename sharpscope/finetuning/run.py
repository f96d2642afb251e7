"""A whole fine-tuning, from files to a file: ``sharpscope.finetune`` and the command of that name."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from sharpscope.atomic import writing
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.names import read_classnames, read_lines, same_names
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.head import default_templates
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import pick_device, resolve_checkpoint
from sharpscope.clip.progress import Shown
from sharpscope.config.halves import with_split
from sharpscope.config.spellings import current_value
from sharpscope.errors import ConfigError, DatasetError, shown
from sharpscope.finetuning.examples import load_examples
from sharpscope.finetuning.fit import Watch, fit
from sharpscope.finetuning.method import Exported, Method, Prepared, Task
from sharpscope.finetuning.recipes import published
from sharpscope.finetuning.registry import METHODS, configured, listing
from sharpscope.finetuning.schedule import learning_rate
from sharpscope.finetuning.statefile import StateFile, differences
from sharpscope.finetuning.trainer import AUTOCAST, check_precision
from sharpscope.layers import HEAD_WEIGHT, tower_of
from sharpscope.vocabulary import Precision
from sharpscope.weights.checkpoint import Checkpoint, checkpoint_of, read_checkpoint, write_checkpoint
from sharpscope.weights.compare import check_model
from sharpscope.weights.theta import Theta, on_device

__all__ = ["Tuned", "finetune", "tuned_by"]

_VALIDATION_BATCH: Final = 256
"""Images at a time in validation; more take more memory and change no accuracy."""
_ELSEWHERE: Final = "Remedy: choose another --out, or remove the file; nothing is overwritten."


@dataclass(frozen=True)
class Tuned:
    """A finished fine-tuning, as ``finetune`` returns it.

    ``path``: the checkpoint, None where nothing was written; ``theta``: what it holds, by name; ``method``;
    ``classnames``; ``losses`` of every step; ``accuracies``: (step, validation accuracy in [0, 1]) after every epoch;
    ``note``: warnings in words; ``metadata``: of the file. :meth:`summary` says it in a line.
    """

    path: Path | None
    """The checkpoint, which ``sharpscope run --finetuned`` takes; None where nothing was to be written."""
    method: Method
    classnames: tuple[str, ...]
    theta: Theta = field(repr=False)
    """What the checkpoint holds."""
    metadata: Mapping[str, str] = field(repr=False)
    losses: tuple[float, ...] = field(default=(), repr=False)
    """Loss of every step; empty if the file existed already."""
    accuracies: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """(step, validation accuracy) after every epoch."""
    note: str = ""
    """Warnings in words: images that could not be read (since training last resumed), a warm-up that is too long."""

    prompted: str = ""
    """Which templates made the zero-shot head and the captions, and whose they are."""

    def summary(self) -> str:
        """One line on what happened."""
        said = [self.method.title]
        if not self.losses:  # finetune refuses a training without a step, so the file was there before
            return f"{said[0]}, already finished"
        said.append(f"{len(self.losses)} steps, loss {self.losses[0]:.3g} -> {self.losses[-1]:.3g}")
        if self.accuracies:
            last, best = self.accuracies[-1][1], max(a for _, a in self.accuracies)
            kept = f", {best:.1%} kept" if self.method.keep_best else ""
            said.append(f"validation accuracy {last:.1%} at the end{kept}")
        elif self.method.keep_best:
            said.append("the last weights kept, because --val is missing")
        return ", ".join(said) + (f"\n{self.note}" if self.note else "")


def finetune(
    zeroshot: str | Path | Checkpoint | Mapping[str, Tensor],
    train: str,
    method: str | Method | None = None,
    *,
    recipe: str | None = None,
    model: str = "ViT-B-32",
    out: str | Path | None = None,
    val: str | None = None,
    data_root: str | Path | None = None,
    classnames: str | Path | Sequence[str] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "full",
    augment: bool = True,
    train_only: str | None = None,
    checkpoint_every: int = 500,
    keep_every: int | None = None,
    progress: Shown = False,
    watch: Watch | None = None,
    **hyperparameters: Any,
) -> Tuned:
    """Fine-tune ``zeroshot`` on ``train`` by ``method``; the same call again resumes an interrupted run.

    >>> tuned = finetune("mini:zeroshot", "mini:photo", "flyp", model="mini", steps=2, batch_size=32)
    >>> print(len(tuned.losses), tuned.path)  # without ``out`` nothing is written: tuned.theta holds the weights
    2 None

    Where a set has fewer examples than the method's default batch, every step takes all of them, as the authors'
    loaders do.

    Args:
        zeroshot: checkpoint file (or ``mini:zeroshot``), Checkpoint or named tensors; not modified.
        train: any data set spec, whose train split is taken; ``csv:PATH`` for image-caption pairs (columns filepath,
            title).
        method: name of a method (see below), or a Method; default: wise-ft.
        recipe: name of a published recipe (``finetune --list`` shows them), which sets the method and all of its
            hyperparameters; the file records it, and what is changed beside it.
        model: open_clip model name, config JSON, or ``mini``.
        out: folder for METHOD.safetensors, and for the state of an unfinished run; None: nothing is written.
        val: data set whose val split's accuracy is measured after every epoch; its test split is read only where the
            spec names it. Its classes are matched by name to those of ``train``. A method with ``keep_best`` keeps the
            weights of the best epoch, and takes the embedded world's own validation data by default.
        data_root: folder under which relative paths of data sets are looked up.
        classnames, templates: list, or text file with one per line; default: the class names of the data set, and the
            prompt that CoOp's authors wrote for the data set (``coop:SET``), elsewhere the model's templates.
            ``Tuned.prompted`` says which were taken.
        seed: seed of everything random (crops, order, dropout, prompts); the same seed gives the same bits on a CPU.
        device: cpu, cuda, or auto.
        precision: full; bf16 or fp16 (autocast on CUDA, the weights stay float32). The older words float32, bfloat16
            and float16 are taken too.
        augment: crop, mirror and colour images as the method says (``crop``, ``flip``, ``jitter``); False: not at all.
            Arrays and the embedded world stay as they are.
        train_only: regular expression; only the tensors in whose names it is found move (``bias$``: BitFit).
        checkpoint_every: steps between two writings of the state from which an interrupted run goes on, where ``out``
            is given.
        keep_every: steps between two checkpoints that stay, METHOD-stepN.safetensors in ``out``; None: the end alone.
        progress: True shows a bar, a function of ``total`` and ``desc`` (such as ``tqdm``) makes one.
        watch: called while training with the losses of all steps so far and with (steps so far, accuracy) on ``val``.
        hyperparameters: values that replace defaults of the method, by keyword: ``lr=1e-5``.

    Returns:
        Tuned: ``path`` of the file, ``theta`` (what it holds), ``losses`` of every step, ``accuracies`` on ``val``.

    Raises:
        ConfigError: an unknown method, recipe, model or hyperparameter (with the nearest name), a method beside a
            recipe, a setting that would do nothing, or a file of another fine-tuning in ``out``.
        DatasetError: data that cannot be used.
        CheckpointError, PairMismatch: weights that cannot be read, or do not fit the model.
        NumericalError: training diverged.
    """
    precision = cast(Precision, current_value("finetune", "precision", precision))
    check_precision(precision)
    tuning = tuned_by(method, recipe, hyperparameters)
    _check_steps(tuning)
    if keep_every is not None and out is None:
        raise ConfigError("keep_every: checkpoints need a folder, and out is None.")
    clip = ClipModel.load(model)
    names = read_classnames(classnames, repeated=True) if isinstance(classnames, (str, Path)) else classnames
    prompts = read_lines(templates, "templates") if isinstance(templates, (str, Path)) else templates
    start = _start(zeroshot)
    check_model(
        start.tensors, clip.shapes, clip.name, source=shown(start.source, 200), require=("image", "text", "scale")
    )
    given = tuple(names) if names is not None else None
    examples, found = load_examples(
        train, clip, data_root=data_root, classnames=given, shots=tuning.shots, seed=seed,
        augment=tuning.augmentation if augment else None,
    )  # fmt: skip
    _check_augmentation(tuning, hyperparameters, augment, examples.augmented)
    small = ""
    if len(examples) < tuning.batch_size and "batch_size" not in hyperparameters:
        small = (
            f"note: {len(examples)} training examples are fewer than a batch of {tuning.batch_size}: every step "
            "takes all of them"
        )
        tuning = dataclasses.replace(tuning, batch_size=len(examples))
    if given is None and examples.dataset.facts.get("unnamed"):
        raise DatasetError(
            f"data set {shown(train)}: has no class names, and prompts with class numbers ('a photo of a 0.') are "
            "meaningless.\nRemedy: --classnames FILE with one name per line, or classnames.txt beside the images."
        )
    names, (prompts, prompted) = tuple(found), _prompts(prompts, examples.dataset, clip)
    if val is None and tuning.keep_best and train.startswith("mini:"):
        val = with_split(train, "val")
    where = pick_device(device)
    belongs: dict[str, Any] = {
        "method": tuning.name, "hyperparameters": tuning.hyperparameters(), "zeroshot_sha256": start.sha256,
        "model": clip.name, "train": train, "val": val, "examples": len(examples), "augment": augment, "seed": seed,
        "precision": str(AUTOCAST[precision]).removeprefix("torch."), "device": where.type,
        "classnames": _digest(names), "templates": _digest(prompts),
    }  # fmt: skip
    # Added where they are used: a file that an earlier version wrote without them is the same fine-tuning.
    if recipe is not None:
        belongs["recipe"] = {"name": recipe, "changed": {n: getattr(tuning, n) for n in sorted(hyperparameters)}}
    belongs |= {n: v for n, v in (("train_only", train_only), ("keep_every", keep_every)) if v is not None}
    if inputs := tuning.inputs():
        belongs["inputs"] = dict(inputs)
    if origin := METHODS.origins.get(tuning.name):
        belongs["from_outside"] = [origin.source, origin.version]
    file, state = _files(out, tuning, belongs)
    if file is not None and file.exists():
        return _already(file, belongs, tuning, names, prompted)
    tensors, baked, remark = _start_head(start, names)
    task = Task(clip, on_device(tensors, where, torch.float32), names, prompts, len(examples), seed, baked)
    judge = None
    if val:
        # The classes are those of the training data, matched by name. Names that the user gives may be in order too.
        judge = _accuracy(
            load_dataset(val, model=clip, split="val", data_root=data_root, classnames=names, by_name=given is None)
        )

    def content(exported: Exported, facts: Mapping[str, Any]) -> tuple[Theta, dict[str, str]]:
        told = {"sharpscope.finetuning": json.dumps(belongs | dict(facts))}
        told["sharpscope.templates"] = json.dumps(list(prompts))
        if clip.config:
            told["sharpscope.quick_gelu"] = json.dumps(bool(clip.config.get("quick_gelu", False)))
        return {n: t.detach().cpu() for n, t in exported.tensors.items()}, exported.metadata | told

    def keep(step: int, exported: Exported) -> None:
        if file is not None:
            write_checkpoint(file.with_stem(f"{file.stem}-step{step}"), *content(exported, {"step": step}))

    fitted = fit(
        tuning, task, examples, validation=judge, state_file=state, every=checkpoint_every, precision=precision,
        progress=progress, watch=watch, train_only=train_only, keep=keep, keep_every=keep_every,
    )  # fmt: skip
    saved, metadata = content(fitted.exported, {**fitted.prepared.facts, "step": len(fitted.losses)})
    if file is not None and state is not None:
        write_checkpoint(file, saved, metadata)
        state.path.unlink(missing_ok=True)
    note = "\n".join(filter(None, (remark, examples.skipped, small, _note(fitted.prepared))))
    return Tuned(file, tuning, names, saved, metadata, fitted.losses, fitted.accuracies, note, prompted)


if finetune.__doc__:  # python -OO drops it
    # The registry says what there is: help(sharpscope.finetune) shows every method with its hyperparameters.
    _METHODS_HELP = textwrap.indent(listing(), "    ")
    finetune.__doc__ = f"{inspect.cleandoc(finetune.__doc__)}\n\nMethods, with hyperparameters:\n{_METHODS_HELP}\n"


def tuned_by(
    method: str | Method | None = None, recipe: str | None = None, changes: Mapping[str, Any] | None = None
) -> Method:
    """The method with its hyperparameters; raises ConfigError for a method beside a recipe."""
    changes = changes or {}
    if recipe is None:
        return configured(method or "wise-ft", changes)
    row = published(recipe)
    if method is not None:
        said = shown(method if isinstance(method, str) else method.name, 60)
        raise ConfigError(
            f"recipe: '{recipe}' sets the method ({row.method}), so no method goes beside it; got '{said}'.\n"
            "Remedy: leave one of the two out."
        )
    return configured(configured(row.method, row.settings), changes)


def _check_augmentation(method: Method, changes: Mapping[str, Any], augment: bool, augmented: bool) -> None:
    """Raise ConfigError for a changed augmentation that no image would show."""
    asked = [n for n in ("crop", "flip", "jitter") if n in changes]
    if asked and method.augmentation.changes and not augmented:
        why = "arrays and the embedded world stay as they are" if augment else "augmentation is switched off"
        raise ConfigError(f"{method.name}: {', '.join(asked)} would change no image, because {why}.")


def _prompts(given: Sequence[str] | None, dataset: Dataset, clip: ClipModel) -> tuple[tuple[str, ...], str]:
    """(templates, which these are): those given, the prompt of one of CoOp's sets, or the model's.

    CoOp, KgCoOp, CLIPFit and their few-shot protocols start from the hand-written prompt of each of CoOp's sets
    (CUSTOM_TEMPLATES in their code; Zhou et al. 2022, arXiv 2109.01134).
    """
    own = dataset.templates if dataset.facts.get("kind") == "coop" else None
    chosen, whose = (given, "given") if given else (own, "the data set's own") if own else (None, "the model's")
    prompts = tuple(chosen or default_templates(clip))
    more = f" and {len(prompts) - 1} more" * (len(prompts) > 1)
    return prompts, f"templates ({whose}): '{shown(prompts[0], 100)}'{more}"


def _note(prepared: Prepared) -> str:
    for recipe in (stage.recipe for stage in prepared.stages):
        if recipe.steps and recipe.warmup > recipe.steps:
            peak = max(learning_rate(recipe, step) for step in range(recipe.steps)) / recipe.lr
            return (
                f"note: the warm-up has {recipe.warmup:g} steps, the training {recipe.steps}: the learning rate never "
                f"passed {peak:.0%} of lr {recipe.lr:g} (--set warmup=0.1 warms up for a tenth of all steps)"
            )
    return ""


def _check_steps(method: Method) -> None:
    """Raise ConfigError for a training without steps, which would write the zero-shot weights unchanged."""
    name = "epochs" if method.steps is None else "steps"
    if (value := getattr(method, name)) < 1:
        raise ConfigError(f"{method.name}: {name} must be at least 1, got {value}: nothing would be trained.")


def _start(zeroshot: str | Path | Checkpoint | Mapping[str, Tensor]) -> Checkpoint:
    if isinstance(zeroshot, (str, Path)):
        return read_checkpoint(resolve_checkpoint(zeroshot))
    return checkpoint_of(zeroshot, "<zeroshot>")


def _start_head(start: Checkpoint, names: tuple[str, ...]) -> tuple[Mapping[str, Tensor], bool | None, str]:
    """(tensors to start from, whether their head contains the logit scale, a note).

    A head of other classes is left out even where it has the right number of rows, and so is a head that reads features
    without unit length.
    """
    head = start.facts.get("head")
    if head is None:
        return start.tensors, None, ""
    other = head["classnames"] and not same_names(head["classnames"], names)
    if not other and len(start.tensors[HEAD_WEIGHT]) == len(names) and head["normalize"]:
        return start.tensors, head["scale_baked"], ""
    why = "has other classes" if head["normalize"] else "reads features without unit length"
    body = {n: t for n, t in start.tensors.items() if tower_of(n) != "head"}
    return body, None, f"note: the head of {shown(start.source, 100)} {why}, so training starts from a text head"


def _files(out: str | Path | None, method: Method, belongs: Mapping[str, Any]) -> tuple[Path | None, StateFile | None]:
    if out is None:
        return None, None
    folder = Path(out).expanduser()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{method.name}.safetensors", StateFile(folder / f"{method.name}.state.safetensors", belongs)


def _already(file: Path, belongs: Mapping[str, Any], method: Method, names: tuple[str, ...], prompted: str) -> Tuned:
    """The finished file, if it is this fine-tuning's."""
    there = read_checkpoint(file, partial=True)  # prompts alone are a whole result too
    try:
        told = json.loads(there.facts["metadata"].get("sharpscope.finetuning", "{}"))
    except (ValueError, RecursionError):
        told = None
    told = told if isinstance(told, dict) else {}
    now = json.loads(json.dumps(dict(belongs)))
    if not told:
        raise ConfigError(f"{shown(file)}: exists already and does not say which fine-tuning wrote it.\n{_ELSEWHERE}")
    if different := differences({k: v for k, v in told.items() if k in now}, now):
        raise ConfigError(f"{shown(file)}: already holds another fine-tuning: {different}.\n{_ELSEWHERE}")
    return Tuned(file, method, names, there.tensors, there.facts["metadata"], prompted=prompted)


def _accuracy(dataset: Dataset) -> Callable[[Callable[[Tensor], Tensor]], float]:
    """Top-1 accuracy on ``dataset`` of any function from images to logits."""

    def measure(logits: Callable[[Tensor], Tensor]) -> float:
        hits = 0
        for images, labels in dataset.batches(_VALIDATION_BATCH):
            hits += int((dataset.project(logits(images)).argmax(1).cpu() == labels).sum())
        return hits / len(dataset)

    return measure


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
