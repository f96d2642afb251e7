"""The commands on checkpoint files: inspect, convert, interpolate, sparsify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sharpscope.cli.outcome import Outcome
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import Granularity, HeadMode, Select, Target

__all__: list[str] = []


@dataclass(frozen=True)
class Inspect:
    """What is in a checkpoint, whether it is safe, and how far two of them are apart, layer by layer."""

    a: Annotated[Positional[str], arg(metavar="FILE")]
    """Checkpoint file."""
    b: Annotated[Positional[str | None], arg(metavar="[FILE]")] = None
    """A second one, to compare."""
    model: str | None = None
    """open_clip model name or config JSON to check against; default: a guess from the shapes."""

    def __call__(self) -> Outcome:
        from sharpscope.clip.inspect import inspect

        return Outcome(inspect(self.a, self.b, self.model))


@dataclass(frozen=True)
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
    head: str | None = None
    """File with the classification head, where it is kept apart (task_vectors)."""
    classnames: str | None = None
    """Text file with the head's class names, one a line, in its order."""
    quick_gelu: bool | None = None
    """Whether the model uses QuickGELU, where the file does not tell (OpenAI's weights do)."""
    adapter_scale: float | None = None
    """What an adapter's change is multiplied by, where the file does not tell: LoRA's alpha / r, R-Adapter's
    eval_scale."""

    def __call__(self) -> Outcome:
        _check_output(self.out, self.source, *(p for p in (self.base, self.head) if p))
        if not self.out.endswith(".safetensors"):
            raise ConfigError(f"OUT: {shown(self.out)} is to be a safetensors file; name it .safetensors.")
        from sharpscope.clip import export

        read = export.convert(
            self.source,
            self.out,
            names=self.names,
            base=self.base,
            head=self.head,
            classnames=self.classnames,
            quick_gelu=self.quick_gelu,
            adapter_scale=self.adapter_scale,
        )
        return Outcome(f"wrote {shown(self.out)}: {len(read.tensors)} tensors of {shown(read.facts['producer'])}")


@dataclass(frozen=True)
class Interpolate:
    """Write theta(alpha) = (1 - alpha) theta_0 + alpha theta_1 as a safetensors file."""

    zeroshot: str
    """Checkpoint of theta_0."""
    finetuned: str
    """Checkpoint of theta_1."""
    alpha: float
    """Point of the path, on the fine-tuned side."""
    out: str
    """File to write."""
    model: str = "ViT-B-32"
    """open_clip model name, config JSON, or ``mini``."""
    extrapolate: bool = False
    """Allow alpha outside [0, 1]."""
    classnames: str | None = None
    """Text file with one class name a line, where a head is stored without its names."""
    head: HeadMode = "auto"
    """stored: the checkpoints' own; zeroshot, text: from the text tower; auto: as in ``sharpscope run``."""
    head_file: str | None = None
    """Classification head in a file of its own (task_vectors), for each checkpoint without one."""

    def __call__(self) -> Outcome:
        _check_alpha(self.alpha, self.extrapolate)
        _check_output(self.out, self.zeroshot, self.finetuned)
        from sharpscope.clip import export

        export.interpolate(
            self.zeroshot,
            self.finetuned,
            self.alpha,
            self.out,
            self.model,
            classnames=self.classnames,
            extrapolate=self.extrapolate,
            head=self.head,
            head_file=self.head_file,
        )
        return Outcome(f"wrote {shown(self.out)}")


@dataclass(frozen=True)
class Sparsify:
    """Write theta(alpha) with some layers made sparse as a safetensors file."""

    zeroshot: str
    """Checkpoint of theta_0."""
    finetuned: str
    """Checkpoint of theta_1."""
    layers: tuple[str, ...]
    """Layers to make sparse, as ``sharpscope inspect`` names them."""
    out: str
    """File to write."""
    density: float = 0.5
    """Fraction of entries KEPT."""
    target: Target = "delta"
    """delta: dropped entries return to theta_0; weight: dropped entries become 0."""
    select: Select = "random"
    """Which entries are kept: a random choice, or the largest |delta| (|weight|)."""
    alpha: float = 1.0
    """Point of the path, on the fine-tuned side."""
    model: str = "ViT-B-32"
    """open_clip model name, config JSON, or ``mini``."""
    granularity: Granularity = "module"
    """What a layer is: every tensor, every module, or every block."""
    seed: int = 0
    """Seed of the random choice."""
    extrapolate: bool = False
    """Allow alpha outside [0, 1]."""
    classnames: str | None = None
    """Text file with one class name a line, where a head is stored without its names."""
    head: HeadMode = "auto"
    """stored: the checkpoints' own; zeroshot, text: from the text tower; auto: as in ``sharpscope run``."""
    head_file: str | None = None
    """Classification head in a file of its own (task_vectors), for each checkpoint without one."""

    def __call__(self) -> Outcome:
        _check_alpha(self.alpha, self.extrapolate)
        _check_output(self.out, self.zeroshot, self.finetuned)
        if not self.layers:
            raise ConfigError("--layers: name at least one layer; 'sharpscope inspect' lists them.")
        if not 0 <= self.density <= 1:
            raise ConfigError(f"--density: {self.density} is outside [0, 1]; density is the fraction of entries KEPT.")
        from sharpscope.clip import export

        export.sparsify(
            self.zeroshot,
            self.finetuned,
            layers=self.layers,
            density=self.density,
            target=self.target,
            select=self.select,
            alpha=self.alpha,
            out=self.out,
            model=self.model,
            granularity=self.granularity,
            seed=self.seed,
            classnames=self.classnames,
            extrapolate=self.extrapolate,
            head=self.head,
            head_file=self.head_file,
        )
        return Outcome(f"wrote {shown(self.out)}")


def _check_alpha(alpha: float, extrapolate: bool) -> None:
    if not (extrapolate and abs(alpha) < float("inf")) and not 0 <= alpha <= 1:
        raise ConfigError(f"--alpha: {alpha} is outside [0, 1]; extrapolation has to be asked for (--extrapolate).")


def _check_output(out: str, *inputs: str) -> None:
    for path in inputs:
        if Path(path).exists() and Path(out).exists() and Path(path).samefile(out):
            raise ConfigError(f"--out: {shown(out)} is one of the inputs, and inputs are never changed.")
