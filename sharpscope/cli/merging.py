"""The commands on several checkpoints, or on what a merge needs: merge, fisher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.inputs import check_inputs
from sharpscope.cli.options import Computing, Ends, Head, Images, Model, Plugins, Replacing, ToFile, given
from sharpscope.cli.outcome import Outcome
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import FISHER_FILES, Device, MergeMethod

__all__ = ["Fisher", "Merge"]


@dataclass(frozen=True, kw_only=True)
class _Merged(ToFile):
    """What is merged, how, and the file that it goes to."""

    checkpoints: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE FILE [FILE ...]")]
    """Fine-tuned checkpoints of one architecture."""
    method: MergeMethod = "uniform"
    """uniform: the mean of all. greedy: the mean of those that do not lower the accuracy on --val, tried from the best
    to the worst. model-stock: the mean, drawn towards theta_0 by the angle between the changes. ties: the largest
    changes, with elected signs. dare: the mean of the changes, a random part of each kept and rescaled."""
    zeroshot: str | None = None
    """Checkpoint of theta_0, which model-stock, ties and dare need. For soups it completes files that hold only the
    tuned tensors."""


@dataclass(frozen=True, kw_only=True)
class Merge(Plugins, Images, Head, Model, _Merged):
    """Merge fine-tuned checkpoints into one: a soup, Model Stock, TIES or DARE."""

    val: str | None = None
    """Data set whose val split judges a greedy soup."""
    results: str | None = None
    """File with the accuracies of the single checkpoints, so that greedy does not measure them again: a result file of
    WiSE-FT, model-soups (individual_model_results.jsonl), CLIP_benchmark, FLYP, StarFT, Dassl or MonoSoup."""
    results_set: str | None = None
    """Data set of the --results file by which the checkpoints are sorted (model-soups: ImageNet2p); default: --val."""
    batch_size: int | None = None
    """Number of validation images per batch; default: 128."""
    limit: int | None = None
    """Largest number of validation images (a fixed, stratified choice); default: all."""
    device: Device | None = None
    """Device on which accuracies are computed; default: CUDA if it is available."""
    density: float | None = None
    """Fraction of each change's entries that ties and dare keep; default: .2 for ties, .1 for dare."""
    scale: float | None = None
    """Factor of the merged change of ties and dare; default: 1. The number of files gives the sum of dare's changes."""
    seed: int | None = None
    """Seed of dare's choice of entries and of greedy's choice of images; default: 0."""

    def __call__(self) -> Outcome:
        files = (*self.checkpoints, self.zeroshot, self.head_file)
        self.check_output(self.out, *files)
        check_inputs(
            files, (self.val,), self.data_root, classnames=self.classnames, templates=self.templates, model=self.model
        )
        from sharpscope.study.merging import merge

        merged = merge(**given(self))
        return Outcome(f"wrote {shown(self.out)}: {merged.summary()}")


@dataclass(frozen=True, kw_only=True)
class Fisher(Replacing, Plugins, Computing, Images, Head, Model, Ends):
    """Compute the diagonal Fisher information of both ends of a pair, for interpolate --path fisher."""

    probe: str
    """Data set spec of the images (its train split) on which the Fisher information is taken."""
    probe_size: int = StudyConfig.probe_size
    """Number of images. Up to 20 classes, each costs one gradient per class, beyond that one gradient."""
    out: str
    """Folder for fisher_0.safetensors (of theta_0) and fisher_1.safetensors (of theta_1)."""

    def __call__(self) -> Outcome:
        if self.probe_size < 1:
            raise ConfigError(f"--probe-size: needs a whole number of at least 1, got {self.probe_size}.")
        files = (self.zeroshot, self.finetuned, self.head_file)
        for name in FISHER_FILES:
            self.check_output(str(Path(self.out) / name), *files)
        check_inputs(
            files, (self.probe,), self.data_root, classnames=self.classnames, templates=self.templates, model=self.model
        )
        from sharpscope.study.fishers import fisher

        return Outcome(fisher(**given(self)).summary())
