"""The commands on several runs: correlate, robustness."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.options import AsTable, Replacing, given
from sharpscope.cli.outcome import Outcome, shown_table
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, shown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Correlate", "Robustness"]


@dataclass(frozen=True, kw_only=True)
class _AcrossRuns:
    """The runs of a comparison, and accuracies that were measured elsewhere."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    accuracy: str | None = None
    """Accuracies that were measured elsewhere: a CSV file with the columns of accuracy.csv, or a result file of
    WiSE-FT, model-soups, CLIP_benchmark (also a folder of its JSON files), FLYP, StarFT, Dassl or MonoSoup. A model
    belongs to a pair if the model's name is the path of the pair's fine-tuned checkpoint, the pair's name, or the end
    of that path."""
    match: tuple[str, ...] = ()
    """Model of the --accuracy file that belongs to a pair, where their names differ: PAIR=MODEL, or PAIR@ALPHA=MODEL
    for one point of the pair's path (PAIR@0 is its zero-shot model)."""
    id: tuple[str, ...] = ()
    """Data sets of the --accuracy file that are in distribution (ID); default: the training set if the file names it,
    else ImageNet."""
    seed: int = 0
    """Seed of the bootstrap."""

    def check(self) -> None:
        if not self.runs:
            raise ConfigError(f"{type(self).__name__.lower()}: give at least one run directory.")
        if self.accuracy is None and (self.match or self.id):
            raise ConfigError("--match, --id: both refer to the file of --accuracy, and --accuracy is missing.")


@dataclass(frozen=True, kw_only=True)
class Correlate(AsTable, Replacing, _AcrossRuns):
    """Correlate sharpness with OOD accuracy across the pairs of several runs: a line for each finding.

    All correlations are a table of thousands of rows, which --csv prints in place of the findings and --out writes.
    """

    straggler_criterion: str | None = None
    """Criterion that chooses the stragglers of every pair, taken together as the layer (stragglers): any criterion of
    the runs' stragglers.csv (instability is the sharpness paper's definition); default: the one that decided in the
    runs."""
    covariates: str | None = None
    """CSV file with the column pair and one for each further covariate (learning_rate ...) that correlations hold
    fixed; it wins over what checkpoints and study files state. Its column setting, if there is one, is a text: pairs
    that differ in their seed alone have the same, all others a name of their own."""
    primary_measure: str | None = None
    """Measure of the primary comparison, on which verdicts rest; default: the one that the runs named before looking,
    which must be the same in all."""
    primary_alpha: float | None = None
    """The alpha of that comparison; default: the one that the runs named. The nearest one at which every pair has the
    measure is taken."""
    out: str | None = None
    """CSV file for all correlations, beside the findings that are printed."""
    figures: str | None = None
    """Folder for a figure of each group of OOD sets, with its caption: gain by sharpness, as it is and with the
    covariates held fixed. Files of the same names are replaced."""

    def __call__(self) -> Outcome:
        self.check()
        self.check_output(self.out, self.accuracy, self.covariates, ending=".csv")
        from sharpscope.study.across import correlate, relations, save_correlations

        level, bootstrap = StudyConfig.level, StudyConfig.bootstrap
        table = correlate(**given(self, "csv", "out", "figures", id="ids"), level=level, bootstrap=bootstrap)
        if self.out is not None:
            save_correlations(table, self.out)
        drawn = "" if self.figures is None else self._drawn(table, self.figures)
        if self.csv:
            return replace(shown_table(table, csv=True), complaint=drawn)
        verdicts = relations(
            table, self.runs, self.covariates, primary_measure=self.primary_measure, primary_alpha=self.primary_alpha,
            level=level, bootstrap=bootstrap,
        )  # fmt: skip
        return Outcome("\n".join(filter(None, (self._findings(table, verdicts), drawn))))

    def _drawn(self, table: pd.DataFrame, folder: str) -> str:
        """What was drawn of every group of OOD sets."""
        from sharpscope.study.across import population
        from sharpscope.study.figures.making import gain_figures

        compared = population(**given(self, "csv", "out", "figures", "seed", id="ids"))
        return str(gain_figures(compared.residuals(table), table, folder))

    def _findings(self, table: pd.DataFrame, verdicts: pd.DataFrame) -> str:
        """A line for each verdict, and where the rest is."""
        lines = [
            f"{group}{row['claim']}: {row['verdict']}. {row['evidence']}"
            for row in verdicts.to_dict("records")
            for group in (f"{shown(row['group'], 60)} | " if row["group"] else "",)
        ]
        undefined = int((table["status"] != "ok").sum())
        where = f"in {shown(self.out)}" if self.out is not None else "with --csv, or in a file with --out FILE"
        return "\n".join([*lines, f"All {len(table):,} correlations, {undefined:,} of them undefined: {where}."])


@dataclass(frozen=True, kw_only=True)
class Robustness(AsTable, _AcrossRuns):
    """Effective robustness: the OOD accuracy beyond what a baseline predicts from the same ID accuracy."""

    baseline: str = "finetuned"
    """Models whose line predicts OOD accuracy from ID accuracy: zeroshot, finetuned or ends (of these runs), or a CSV
    file with the columns dataset, id_accuracy, ood_accuracy (one row per model) or dataset, intercept, slope (on the
    logit scale)."""

    def __call__(self) -> Outcome:
        self.check()
        from sharpscope.study.across import robustness

        return shown_table(robustness(**given(self, "csv", id="ids")), self.csv)
