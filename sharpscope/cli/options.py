"""Options that several commands share, each documented once, and ``given``, which passes a command's fields on.

A command inherits the groups that it needs. Fields of the group that is named LAST come first on its help page, its own
fields come at the end.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import ClassPosition, Device, HeadMode, TrackerName

__all__ = [
    "NOT_GIVEN",
    "AsTable",
    "Batches",
    "Computing",
    "Ends",
    "Head",
    "HeadParts",
    "Images",
    "Limit",
    "Model",
    "OnDevice",
    "PathSettings",
    "Plugins",
    "Point",
    "Replacing",
    "ToFile",
    "Tracked",
    "WeightSet",
    "given",
]


NOT_GIVEN = ("plugin", "overwrite")
"""Fields that are settled before the work begins: plug-ins are run, and the output may be replaced or not."""
Ending = Literal[".csv", ".safetensors"]
_KINDS: Final[dict[Ending, str]] = {".csv": "a CSV table", ".safetensors": "tensors as safetensors"}


def given(command: Any, *left_out: str, **called: str) -> dict[str, Any]:
    """The fields of ``command`` by name, as keywords for the function that does the work.

    ``left_out``: fields that are not passed (those of ``NOT_GIVEN`` never are). ``called``: field -> its name in that
    function. A field that the function does not know is a TypeError there, never silently dropped.
    """
    names = [f.name for f in dataclasses.fields(command) if f.name not in (*left_out, *NOT_GIVEN)]
    return {called.get(name, name): getattr(command, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Replacing:
    """A file that is there already."""

    overwrite: bool = False
    """Replace the output file if it is there. Without this flag the command refuses to."""

    def check_output(
        self, out: str | None, *inputs: str | None, flag: str = "--out", ending: Ending = ".safetensors"
    ) -> None:
        """Raise ConfigError where ``out`` has another ending, is one of the files to read or must not be replaced.

        ``out``: the file to write; None where none is asked for.
        """
        if out is None:
            if self.overwrite:
                raise ConfigError(f"--overwrite: belongs to {flag}, which is missing.")
            return
        for path in inputs:
            if path is not None and Path(path).exists() and Path(out).exists() and Path(path).samefile(out):
                raise ConfigError(f"{flag}: {shown(out)} is one of the inputs, and inputs are never changed.")
        if not out.lower().endswith(ending):
            raise ConfigError(
                f"{flag}: {shown(out)} would hold {_KINDS[ending]}.\nRemedy: a name that ends in {ending}."
            )
        if not self.overwrite and Path(out).exists():
            raise ConfigError(
                f"{flag}: {shown(out)} is there already.\nRemedy: another name, or --overwrite to replace it."
            )


@dataclass(frozen=True, kw_only=True)
class Model:
    """The architecture."""

    model: str = StudyConfig.model
    """open_clip model name, path of an open_clip config JSON, or ``mini``."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """An experiment tracker."""

    track: tuple[TrackerName, ...] = ()
    """Experiment trackers that also get the curves: tensorboard (files in OUT/tensorboard) and wandb (OUT/wandb,
    offline for 'wandb sync' unless WANDB_MODE says otherwise). Each needs the extra of its name, as in
    sharpscope[tensorboard]."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The two ends of a path."""

    zeroshot: str
    """Checkpoint of the zero-shot model, theta_0 (or ``mini:zeroshot``)."""
    finetuned: str
    """Checkpoint of the fine-tuned model, theta_1 (or ``mini:success`` ...)."""


@dataclass(frozen=True, kw_only=True)
class ToFile(Replacing):
    """The file that the result goes to."""

    out: str
    """File to write."""


@dataclass(frozen=True, kw_only=True)
class Point(ToFile):
    """One point of a path, and the file that it goes to."""

    alpha: float | None
    """Point of the path: 0 is the zero-shot model, 1 the fine-tuned one."""
    extrapolate: bool = StudyConfig.extrapolate
    """Allow alpha outside [0, 1]."""

    def check(self, *inputs: str | None) -> None:
        """Raise ConfigError for an alpha that does not go with ``extrapolate``, or an output that is an input."""
        self.check_output(self.out, *inputs)
        if self.alpha is None:  # every layer has an alpha of its own
            return
        if not (self.extrapolate and abs(self.alpha) < float("inf")) and not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"--alpha: {self.alpha} is outside [0, 1]; extrapolation has to be asked for (--extrapolate)."
            )
        if self.extrapolate and 0 <= self.alpha <= 1:
            raise ConfigError(
                f"--extrapolate: changes nothing, because --alpha {self.alpha:g} is inside [0, 1]; leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class HeadParts:
    """What the classification head is made of."""

    head_file: str | None = StudyConfig.head_file
    """File that holds a classification head alone (task_vectors), for each checkpoint that has no head."""
    classnames: str | None = StudyConfig.classnames
    """Text file with one class name per line, or ``imagenet``; default: the class names of the head or of the data
    set."""
    class_position: ClassPosition | None = StudyConfig.class_position
    """Where the class name stands in a file's learnt prompts (CoOp): end, middle or front; default: end is assumed."""


@dataclass(frozen=True, kw_only=True)
class Head(HeadParts):
    """The classification head."""

    head: HeadMode = StudyConfig.head
    """Where the classification head comes from. stored: the checkpoints' own heads; zeroshot: built once from the text
    tower; text: rebuilt from the text tower at every alpha; auto: stored if there is a head that fits, else from the
    text tower."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where images are looked up, and the words for their classes."""

    templates: str | None = StudyConfig.templates
    """Text file with one prompt template per line, ``{}`` for the class name, or ``imagenet``; default: the data set's
    templates or the model's."""
    data_root: str | None = StudyConfig.data_root
    """Folder under which named data sets and relative paths are looked up."""


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """Where it is computed."""

    device: Device = StudyConfig.device
    """Device to compute on; auto takes CUDA if it is available."""


@dataclass(frozen=True, kw_only=True)
class Computing(OnDevice):
    """Where and from which seed."""

    seed: int = StudyConfig.seed
    """Seed of everything random."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How many examples are evaluated."""

    limit: int | None = StudyConfig.limit
    """Largest number of examples per test set (a fixed, stratified choice); default: all."""


@dataclass(frozen=True, kw_only=True)
class Batches(Limit):
    """How many examples are evaluated, and how many at once."""

    batch_size: int = StudyConfig.batch_size
    """Number of examples per batch."""


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """Which of a file's weights are read."""

    weights: str | None = None
    """Key of the set of weights to read from a file that holds several (state_dict_ema); default: the raw weights."""


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """The settings of paths that are not straight lines between the two models."""

    path_density: float | None = None
    """Fraction of the change's entries that the paths ties and dare keep; default: .2 for ties, .1 for dare."""
    fisher_0: str | None = None
    """File with the Fisher information of theta_0, for the path fisher ('sharpscope fisher' writes it)."""
    fisher_1: str | None = None
    """File with the Fisher information of theta_1, the fine-tuned model."""


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """Code of the user's own."""

    plugin: tuple[str, ...] = ()
    """Your own Python files that add measures, straggler criteria, data sets or methods. Their code is executed."""


@dataclass(frozen=True, kw_only=True)
class AsTable:
    """How a table is printed."""

    csv: bool = False
    """Print CSV instead of a table."""
