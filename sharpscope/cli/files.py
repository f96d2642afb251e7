"""The commands on checkpoint files: inspect, convert, interpolate, sparsify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sharpscope.cli.options import Ends, Head, Model, Point, check_output, given
from sharpscope.cli.outcome import Outcome
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import Granularity, PathName, Select, Target

__all__ = ["Convert", "Inspect", "Interpolate", "Sparsify"]


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What is in a checkpoint, whether it is safe, and how far two of them are apart, layer by layer."""

    a: Annotated[Positional[str], arg(metavar="FILE")]
    """Checkpoint file."""
    b: Annotated[Positional[str | None], arg(metavar="[FILE]")] = None
    """A second one, to compare."""
    model: str | None = None
    """open_clip model name or config JSON to check against; default: a guess from the shapes."""
    weights: str | None = None
    """Key of the set of weights that is meant where a file holds several (state_dict_ema); default: the raw ones."""

    def __call__(self) -> Outcome:
        from sharpscope.clip.inspect import inspect

        return Outcome(inspect(**given(self)))


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a checkpoint of any known format as safetensors, in open_clip's names, its facts in the metadata."""

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Checkpoint: a file, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``."""
    out: Annotated[Positional[str], arg(metavar="OUT.safetensors")]
    """File to write."""
    names: Literal["open_clip", "huggingface"] = "open_clip"
    """Whose names the tensors get."""
    base: str | None = None
    """Zero-shot checkpoint below a file that holds only what was tuned (Dassl, LoRA, R-Adapter)."""
    head_file: str | None = None
    """Classification head in a file of its own (task_vectors), to be written with the checkpoint."""
    classnames: str | None = None
    """Text file with the head's class names, one a line, in its order."""
    quick_gelu: bool | None = None
    """Whether the model uses QuickGELU, where the file does not tell (OpenAI's weights do)."""
    adapter_scale: float | None = None
    """What an adapter's change is multiplied by, where the file does not tell: LoRA's alpha / r, R-Adapter's
    eval_scale."""
    adapter_merged: bool | None = None
    """Whether the weights hold the change of the LoRA matrices beside them already, where the file does not tell."""
    weights: str | None = None
    """Key of the set of weights that is meant where a file holds several (state_dict_ema); default: the raw ones."""
    head_scale_baked: bool | None = None
    """Whether the head's weights hold exp(logit_scale), where the file does not tell."""
    head_normalize: bool | None = None
    """Whether the head reads features of unit length, where the file does not tell (--no-head-normalize: raw ones)."""

    def __call__(self) -> Outcome:
        check_output(self.out, self.source, self.base, self.head_file)
        if not self.out.endswith(".safetensors"):
            raise ConfigError(f"OUT: {shown(self.out)} is to be a safetensors file; name it .safetensors.")
        from sharpscope.clip.export import convert

        read = convert(**given(self))
        return Outcome(f"wrote {shown(self.out)}: {len(read.tensors)} tensors of {shown(read.facts['producer'])}")


@dataclass(frozen=True, kw_only=True)
class Interpolate(Head, Model, Point, Ends):
    """Write theta(alpha) = (1 - alpha) theta_0 + alpha theta_1 as a safetensors file."""

    path: PathName = "linear"
    """linear: the straight path; lines: the straight path to the LiNeS edit of theta_1, which keeps less of the change
    of shallow layers."""

    def __call__(self) -> Outcome:
        self.check(self.zeroshot, self.finetuned)
        from sharpscope.clip.export import interpolate

        interpolate(**given(self))
        return Outcome(f"wrote {shown(self.out)}")


@dataclass(frozen=True, kw_only=True)
class Sparsify(Head, Model, Point, Ends):
    """Write theta(alpha) with some layers made sparse as a safetensors file."""

    alpha: float = 1.0
    """Point of the path, on the fine-tuned side."""
    layers: tuple[str, ...]
    """Layers to make sparse, as ``sharpscope inspect`` names them."""
    density: float = 0.5
    """Fraction of entries KEPT."""
    target: Target = "delta"
    """delta: dropped entries return to theta_0; weight: dropped entries become 0."""
    select: Select = "random"
    """Which entries are kept: a random choice, or the largest |delta| (|weight|)."""
    granularity: Granularity = StudyConfig.granularity
    """What a layer is: every tensor, every module, or every block."""
    seed: int = 0
    """Seed of the random choice."""

    def __call__(self) -> Outcome:
        self.check(self.zeroshot, self.finetuned)
        if not self.layers:
            raise ConfigError("--layers: name at least one layer; 'sharpscope inspect' lists them.")
        if not 0 <= self.density <= 1:
            raise ConfigError(f"--density: {self.density} is outside [0, 1]; density is the fraction of entries KEPT.")
        from sharpscope.clip.export import sparsify

        sparsify(**given(self))
        return Outcome(f"wrote {shown(self.out)}")
