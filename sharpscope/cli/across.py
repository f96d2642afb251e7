"""The commands on several runs: correlate, robustness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.options import AsTable, given
from sharpscope.cli.outcome import Outcome, shown_table
from sharpscope.errors import ConfigError

__all__ = ["Correlate", "Robustness"]


@dataclass(frozen=True, kw_only=True)
class _AcrossRuns:
    """The runs of a comparison, and accuracies that were measured elsewhere."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    accuracy: str | None = None
    """Accuracies measured elsewhere: CSV with the columns of accuracy.csv, or the result file of WiSE-FT, model-soups,
    CLIP_benchmark (also a folder of json), FLYP, StarFT, Dassl or MonoSoup. A model belongs to a pair if it is called
    by the path of the pair's checkpoint, the pair's name, or the end of that path."""
    match: tuple[str, ...] = ()
    """Where names differ: PAIR=MODEL, or PAIR@ALPHA=MODEL for one point of its path (PAIR@0: its zero-shot model)."""
    id: tuple[str, ...] = ()
    """Which of those data sets are in distribution; default: the one trained on if the file tells, else ImageNet."""
    seed: int = 0
    """Seed of the bootstrap."""

    def check(self) -> None:
        if not self.runs:
            raise ConfigError(f"{type(self).__name__.lower()}: give at least one run directory.")
        if self.accuracy is None and (self.match or self.id):
            raise ConfigError("--match, --id: are about the file of --accuracy, which is missing.")


@dataclass(frozen=True, kw_only=True)
class Correlate(AsTable, _AcrossRuns):
    """Correlate sharpness with OOD accuracy across the pairs of several runs."""

    def __call__(self) -> Outcome:
        self.check()
        from sharpscope.study.across import correlate

        return shown_table(correlate(**given(self, "csv", id="ids")), self.csv)


@dataclass(frozen=True, kw_only=True)
class Robustness(AsTable, _AcrossRuns):
    """Effective robustness: OOD accuracy beyond what a baseline lets one expect at the same ID accuracy."""

    baseline: str = "finetuned"
    """Models on whose line OOD accuracy is expected: zeroshot, finetuned or ends (of these runs), or a CSV file with
    dataset, id_accuracy, ood_accuracy (a row a model) or dataset, intercept, slope (logit scale)."""

    def __call__(self) -> Outcome:
        self.check()
        from sharpscope.study.across import robustness

        return shown_table(robustness(**given(self, "csv", id="ids")), self.csv)
