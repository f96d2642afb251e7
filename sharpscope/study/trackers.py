"""Curves of a training or a run in an experiment tracker: TensorBoard, or Weights & Biases (offline unless asked).

What is tracked is a copy: tables, figures and report hold the same numbers, and nothing is read back from a tracker.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from PIL import Image

from sharpscope.errors import ConfigError
from sharpscope.study.report import Run
from sharpscope.tables.rows import dense_rows
from sharpscope.vocabulary import ALL, TrackerName

__all__ = ["TrainingCurves", "track_run", "tracked"]

Axis = Literal["step", "alpha"]
_PACKAGES: Final[Mapping[TrackerName, str]] = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
"""Tracker -> the module that writes its files."""


class Tracker(Protocol):
    """Where curves go. ``log`` takes values by name at one place of an axis."""

    def settings(self, values: Mapping[str, Any]) -> None: ...
    def log(self, values: Mapping[str, float], axis: Axis, at: float) -> None: ...
    def picture(self, name: str, file: Path) -> None: ...
    def close(self) -> None: ...


@contextmanager
def tracked(names: Sequence[TrackerName], folder: str | os.PathLike[str]) -> Iterator[tuple[Tracker, ...]]:
    """The trackers ``names``, each writing into a folder of its name in ``folder``; closed at the end.

    Nothing is written before the first value comes; then what an earlier start wrote there is replaced, because every
    start tells the whole curve.

    Raises:
        ConfigError: a tracker's package is not installed.
    """
    with ExitStack() as stack:
        made: list[Tracker] = []
        for name in dict.fromkeys(names):
            tracker: Tracker = _MADE[name](_module(name), Path(folder))
            stack.callback(tracker.close)
            made.append(tracker)
        yield tuple(made)


def _module(name: TrackerName) -> Any:
    try:
        return import_module(_PACKAGES[name])
    except ImportError as error:
        raise ConfigError(
            f"track: {name} is not installed ({error}).\nRemedy: pip install 'sharpscope[{name}]'"
        ) from None


class _TensorBoard:
    """Event files in FOLDER/tensorboard. Its axis has whole numbers only: alpha stands there in percent."""

    def __init__(self, module: Any, folder: Path) -> None:
        self._module, self._folder = module, folder / "tensorboard"
        self._writer: Any = None

    def _open(self) -> Any:
        if self._writer is None:
            for earlier in self._folder.glob("events.out.tfevents.*"):
                earlier.unlink()
            self._writer = self._module.SummaryWriter(str(self._folder))
        return self._writer

    def settings(self, values: Mapping[str, Any]) -> None:
        text = json.dumps(values, indent=1, default=str)
        self._open().add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()))

    def log(self, values: Mapping[str, float], axis: Axis, at: float) -> None:
        for name, value in values.items():
            self._open().add_scalar(name, value, round(100 * at) if axis == "alpha" else int(at))

    def picture(self, name: str, file: Path) -> None:
        with Image.open(file) as image:
            self._open().add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _WandB:
    """A run of Weights & Biases in FOLDER/wandb: offline, for ``wandb sync``, unless WANDB_MODE says otherwise.

    One folder is one run, whichever start writes it.
    """

    def __init__(self, module: Any, folder: Path) -> None:
        self._module, self._folder = module, folder
        self._run: Any = None
        self._placed: set[str] = set()

    def _open(self) -> Any:
        if self._run is None:
            place = str(self._folder.absolute())
            self._run = self._module.init(
                project=os.environ.get("WANDB_PROJECT", "sharpscope"), name=self._folder.name, dir=place,
                id=hashlib.sha256(place.encode()).hexdigest()[:16], resume="allow",
                mode=os.environ.get("WANDB_MODE", "offline"),
            )  # fmt: skip
            for axis in ("step", "alpha"):
                self._run.define_metric(axis)
        return self._run

    def settings(self, values: Mapping[str, Any]) -> None:
        self._open().config.update(json.loads(json.dumps(values, default=str)), allow_val_change=True)

    def log(self, values: Mapping[str, float], axis: Axis, at: float) -> None:
        run = self._open()
        for name in values.keys() - self._placed:
            run.define_metric(name, step_metric=axis)
        self._placed |= values.keys()
        run.log({axis: at, **values})

    def picture(self, name: str, file: Path) -> None:
        self._open().log({name: self._module.Image(str(file))})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


_MADE: Final[Mapping[TrackerName, Callable[[Any, Path], Tracker]]] = {"tensorboard": _TensorBoard, "wandb": _WandB}


# ---------------------------------------------------------------------------------------------------------- a training
class TrainingCurves:
    """Loss of every step and accuracy on validation data, as ``finetune`` tells them while it trains (``watch``)."""

    def __init__(self, trackers: Sequence[Tracker], settings: Mapping[str, Any]) -> None:
        self._trackers, self._settings = trackers, settings
        self._steps = self._judged = 0

    def __call__(self, losses: Sequence[float], accuracies: Sequence[tuple[int, float]]) -> None:
        """Log what is new in ``losses`` of all steps so far and in ``accuracies`` (steps so far, accuracy)."""
        for tracker in self._trackers:
            if not self._steps:
                tracker.settings(self._settings)
            for step in range(self._steps, len(losses)):
                tracker.log({"train/loss": losses[step]}, "step", step + 1)
            for step, accuracy in accuracies[self._judged :]:
                tracker.log({"val/accuracy": accuracy}, "step", step)
        self._steps, self._judged = len(losses), len(accuracies)


# --------------------------------------------------------------------------------------------------------------- a run
def track_run(trackers: Sequence[Tracker], run: Run, settings: Mapping[str, Any]) -> None:
    """Log a finished run: loss, accuracies and the whole model's sharpness along alpha, and its figures.

    Names are PAIR/loss, PAIR/accuracy/DATA SET (of a mean: PAIR/accuracy/mean of GROUP) and PAIR/sharpness/MEASURE;
    accuracies are fractions.
    """
    curves = list(_curves(run))
    figures = sorted((run.root / "figures").glob("*.png"))
    for tracker in trackers:
        tracker.settings(settings)
        for name, alpha, value in curves:
            tracker.log({name: value}, "alpha", alpha)
        for file in figures:
            tracker.picture(f"figures/{file.stem}", file)


def _curves(run: Run) -> Iterator[tuple[str, float, float]]:
    """(name, alpha, value) of every finite value."""
    dense, sharpness = dense_rows(run.accuracy), run.sharpness
    named = [
        f"mean of {g}" if r == "ood_mean" else d
        for d, g, r in zip(*(dense[c] for c in ("dataset", "group", "role")), strict=True)
    ]
    whole = sharpness[sharpness["layer"] == ALL]
    for prefix, rows, names, column in (
        ("loss", run.path, [""] * len(run.path), "loss"),
        ("accuracy", dense, named, "estimate"),
        ("sharpness", whole, list(whole["measure"]), "estimate"),
    ):
        for pair, name, alpha, value in zip(rows["pair"], names, rows["alpha"], rows[column], strict=True):
            if math.isfinite(value):
                yield "/".join(filter(None, (pair, prefix, name))), float(alpha), float(value)
