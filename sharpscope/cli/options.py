"""Options that several commands have, each with its one text; and how a command hands its fields to what does the work.

A command inherits the groups that it needs. Fields of the group that is named LAST come first on its help page, its own
fields come at the end.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import Device, HeadMode

__all__ = [
    "AsTable",
    "Computing",
    "Ends",
    "Head",
    "Images",
    "Model",
    "Plugins",
    "Point",
    "check_output",
    "given",
]


def given(command: Any, *left_out: str, **called: str) -> dict[str, Any]:
    """The fields of ``command`` by name, as keywords for the function that does the work.

    ``left_out``: fields that are no business of that function (``plugin`` never is). ``called``: field -> the
    function's word for it. A field that the function does not know is a TypeError there, never silently dropped.
    """
    names = [f.name for f in dataclasses.fields(command) if f.name not in (*left_out, "plugin")]
    return {called.get(name, name): getattr(command, name) for name in names}


def check_output(out: str, *inputs: str | None) -> None:
    """Raise ConfigError where the file to write is one of the files to read."""
    for path in inputs:
        if path is not None and Path(path).exists() and Path(out).exists() and Path(path).samefile(out):
            raise ConfigError(f"--out: {shown(out)} is one of the inputs, and inputs are never changed.")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The architecture."""

    model: str = StudyConfig.model
    """open_clip model name, path of an open_clip config JSON, or ``mini``."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The two ends of a path."""

    zeroshot: str
    """Checkpoint of the zero-shot model, theta_0 (or ``mini:zeroshot``)."""
    finetuned: str
    """Checkpoint of the fine-tuned model, theta_1 (or ``mini:success`` ...)."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a path, and the file that it goes to."""

    alpha: float
    """Point of the path, on the fine-tuned side."""
    extrapolate: bool = StudyConfig.extrapolate
    """Allow alpha outside [0, 1]."""
    out: str
    """File to write."""

    def check(self, *inputs: str) -> None:
        """Raise ConfigError for a point that was not asked for rightly, or an output that is an input."""
        if not (self.extrapolate and abs(self.alpha) < float("inf")) and not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"--alpha: {self.alpha} is outside [0, 1]; extrapolation has to be asked for (--extrapolate)."
            )
        check_output(self.out, *inputs)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The classification head."""

    head: HeadMode = StudyConfig.head
    """stored: the checkpoints' own; zeroshot, text: from the text tower (text: anew at every alpha); auto: stored where
    there is one that fits, else from the text tower."""
    head_file: str | None = StudyConfig.head_file
    """Classification head in a file of its own (task_vectors), for each checkpoint without one."""
    classnames: str | None = StudyConfig.classnames
    """Text file with one class name a line; default: those that the head or the data bring."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where images are looked up, and the words for their classes."""

    templates: str | None = StudyConfig.templates
    """Text file with one prompt template a line, ``{}`` for the class name; default: the data set's or the model's."""
    data_root: str | None = StudyConfig.data_root
    """Folder under which named data sets and relative paths are looked up."""


@dataclass(frozen=True, kw_only=True)
class Computing:
    """Where and from which seed."""

    device: Device = StudyConfig.device
    """Where to compute; auto takes CUDA when there is one."""
    seed: int = StudyConfig.seed
    """Seed of everything random."""


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """Code of the user's own."""

    plugin: tuple[str, ...] = ()
    """Python files of your own that add measures, straggler criteria, data sets or methods; they are run."""


@dataclass(frozen=True, kw_only=True)
class AsTable:
    """How a table is printed."""

    csv: bool = False
    """Print CSV instead of a table."""
