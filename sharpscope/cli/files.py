"""The commands on checkpoint files: inspect, convert, interpolate, sparsify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sharpscope.cli.inputs import check_inputs
from sharpscope.cli.options import Ends, Head, Model, PathSettings, Point, Replacing, WeightSet, given
from sharpscope.cli.outcome import Outcome
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import Granularity, PathName, SelectOrScore, Target

__all__ = ["Convert", "Inspect", "Interpolate", "Sparsify"]


@dataclass(frozen=True, kw_only=True)
class Inspect(Replacing, WeightSet):
    """Show what is in a checkpoint and whether it is safe; with two, also how far apart they are, layer by layer."""

    a: Annotated[Positional[str], arg(metavar="FILE")]
    """Checkpoint file."""
    b: Annotated[Positional[str | None], arg(metavar="[FILE]")] = None
    """A second checkpoint file, to compare with the first."""
    model: str | None = None
    """open_clip model name or config JSON that the file is checked against; default: guessed from the tensor shapes."""
    granularity: Granularity | None = None
    """With two files: what is one layer of the comparison, a tensor (every bias and norm by itself), a module (default)
    or a block."""
    out: str | None = None
    """CSV file to write with two files: their comparison, one row per layer."""

    def __call__(self) -> Outcome:
        if self.granularity is not None and self.b is None:
            raise ConfigError("--granularity: belongs to the comparison of two files, and there is one.")
        if self.out is not None and self.b is None:
            raise ConfigError("--out: takes the comparison of two files, and there is one.")
        self.check_output(self.out, self.a, self.b, ending=".csv")
        from sharpscope.clip.inspect import inspect

        chosen = {} if self.granularity is None else {"granularity": self.granularity}
        text = inspect(**given(self, "granularity", out="csv"), **chosen)
        return Outcome(text + (f"\nwrote {shown(self.out)}" if self.out is not None else ""))


@dataclass(frozen=True, kw_only=True)
class Convert(Replacing, WeightSet):
    """Write a checkpoint of any known format as safetensors, with open_clip's tensor names and facts as metadata."""

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Checkpoint: a file, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``."""
    out: Annotated[Positional[str], arg(metavar="OUT.safetensors")]
    """File to write."""
    names: Literal["open_clip", "huggingface"] = "open_clip"
    """Library whose names the tensors get."""
    base: str | None = None
    """Zero-shot checkpoint that completes a file which holds only the tuned tensors (Dassl, LoRA, R-Adapter)."""
    head_file: str | None = None
    """File that holds a classification head alone (task_vectors), to be written with the checkpoint."""
    classnames: str | None = None
    """Text file with the head's class names, one per line, or ``imagenet``; in the order of the head's rows."""
    quick_gelu: bool | None = None
    """Whether the model uses QuickGELU, for a file that does not say (OpenAI's weights use it)."""
    adapter_scale: float | None = None
    """Factor by which an adapter's change is multiplied, for a file that does not say: alpha / r for LoRA, eval_scale
    for R-Adapter."""
    adapter_merged: bool | None = None
    """Whether the weights already contain the change of the LoRA matrices beside them, for a file that does not say."""
    head_scale_baked: bool | None = None
    """Whether the head's weights contain the factor exp(logit_scale), for a file that does not say."""
    head_normalize: bool | None = None
    """Whether the head reads features of unit length, for a file that does not say (--no-head-normalize: raw ones)."""

    def __call__(self) -> Outcome:
        self.check_output(self.out, self.source, self.base, self.head_file, flag="OUT")
        check_inputs((self.source, self.base, self.head_file), classnames=self.classnames)
        from sharpscope.clip.export import convert

        read = convert(**given(self))
        return Outcome(f"wrote {shown(self.out)}: {len(read.tensors)} tensors of {shown(read.facts['producer'])}")


@dataclass(frozen=True, kw_only=True)
class Interpolate(PathSettings, Head, Model, Point, Ends):
    """Write theta(alpha) = (1 - alpha) theta_0 + alpha theta_1, or a point of another path, as a safetensors file."""

    alpha: float | None = None
    """Point of the path: 0 is the zero-shot model, 1 the fine-tuned one. With --layer-alphas it is the point at which
    the layers stand that the file does not name."""
    path: PathName = "linear"
    """linear: the straight path. fisher: means weighted by Fisher information; random: each weight is theta_1's with
    probability alpha; both have the same ends. Straight paths to an edit of theta_1: lines (less change in shallow
    layers), ties (only the largest changes), dare (a random part of the changes, rescaled), monosoup (singular
    directions of the change reweighted)."""
    seed: int | None = None
    """Seed of the random choice of the paths dare and random; default: 0."""
    layer_alphas: str | None = None
    """CSV file with the columns layer and alpha: the point of the path for single layers."""
    granularity: Granularity | None = None
    """What counts as one layer in --layer-alphas: a tensor, a module, or a block; default: a module."""

    def __call__(self) -> Outcome:
        self.check(self.zeroshot, self.finetuned, self.fisher_0, self.fisher_1, self.layer_alphas)
        if self.granularity is not None and self.layer_alphas is None:
            raise ConfigError("--granularity: says what a layer of --layer-alphas is, and --layer-alphas is missing.")
        if self.alpha is None and self.layer_alphas is None:
            raise ConfigError("--alpha: is missing; it says which point of the path is written, e.g. --alpha 0.5.")
        files = (self.zeroshot, self.finetuned, self.head_file, self.fisher_0, self.fisher_1)
        check_inputs(files, classnames=self.classnames, model=self.model)
        from sharpscope.clip.export import interpolate

        interpolate(**given(self))
        return Outcome(f"wrote {shown(self.out)}")


@dataclass(frozen=True, kw_only=True)
class Sparsify(Head, Model, Point, Ends):
    """Make some layers of theta(alpha) sparse and write the result as a safetensors file."""

    alpha: float = 1.0
    """Point of the path: 0 is the zero-shot model, 1 the fine-tuned one."""
    layers: tuple[str, ...]
    """Layers to make sparse, as ``sharpscope inspect`` names them."""
    density: float = 0.5
    """Fraction of each layer's entries that is KEPT."""
    target: Target = "delta"
    """delta: dropped entries return to theta_0; weight: dropped entries become 0."""
    select: SelectOrScore = "random"
    """Which entries are kept: random, a seeded choice; magnitude, the largest |delta| (target weight: |weight|); score,
    those with the largest scores in the file --scores."""
    scores: str | None = None
    """File of tensors with the names and shapes of the weights, for --select score: Fisher information, for example."""
    rescale: bool = False
    """Divide what is kept by the density, as DARE does, so that the expected change stays the same."""
    granularity: Granularity = StudyConfig.granularity
    """What counts as one layer: a tensor, a module, or a block."""
    seed: int = 0
    """Seed of the random choice."""

    def __call__(self) -> Outcome:
        self.check(self.zeroshot, self.finetuned, self.scores)
        if (self.select == "score") != (self.scores is not None):
            raise ConfigError(
                "--select score: takes the scores of --scores FILE, and nothing else uses them; give both or neither."
            )
        if not self.layers:
            raise ConfigError("--layers: name at least one layer; 'sharpscope inspect' lists them.")
        if not 0 <= self.density <= 1:
            raise ConfigError(f"--density: {self.density} is outside [0, 1]; density is the fraction of entries KEPT.")
        if self.select != "random" and self.seed:
            raise ConfigError(f"--seed: changes nothing, because --select {self.select} makes no random choice.")
        if self.alpha == 0 and self.target == "delta":
            raise ConfigError("--alpha: at 0 no entry differs from theta_0, to which --target delta returns entries.")
        files = (self.zeroshot, self.finetuned, self.head_file, self.scores)
        check_inputs(files, classnames=self.classnames, model=self.model)
        from sharpscope.clip.export import sparsify

        sparsify(**given(self))
        return Outcome(f"wrote {shown(self.out)}")
