"""The command ``table``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.options import given
from sharpscope.cli.outcome import Outcome
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import DENSE, AlphaSide, PaperStyle, PrintedForm, PrintedTable

__all__ = ["Table"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Print what runs found as a paper prints it: accuracies, sharpness, advice or verdicts. Stored tables do not
    change."""

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN|FILE [RUN|FILE ...]")]
    """Run directories, CSV files with the columns of accuracy.csv, or result files of other systems. Pairs of one name
    in several of them count as seeds of one model: mean and standard deviation are printed."""
    what: PrintedTable = "accuracy"
    """accuracy: data sets side by side, with averages, optimum and the mean over seeds; sharpness: a row for each
    layer, a column for each measure, with errors; advice: the alphas of each rule with OOD and ID accuracy; verdicts:
    each claim with its estimate, interval and verdict. All but accuracy take one run directory."""
    rows: PaperStyle = "wise-ft"
    """Models that have a row. wise-ft: zero-shot, fine-tuned, alpha 0.5, the optimum of each column and its gain over
    alpha 0.5 (Tables 1 and 3 of the paper); alphas: every alpha and the optimum (its Tables 4 and 5)."""
    variants: tuple[str, ...] = (DENSE,)
    """Variants to print: dense is the path itself, others are path:NAME, ensemble:logits, ose, vrf, upgraded ..."""
    datasets: tuple[str, ...] = ()
    """Data sets to print and to average over, in this order; default: all, those in distribution (ID) first."""
    seeds: tuple[str, ...] = ()
    """Pairs of other names that are seeds of one model: NAME=PAIR,PAIR,... (once for each model)."""
    id: tuple[str, ...] = ()
    """Data sets of other systems' result files that are in distribution (ID); default: the training set if the file
    names it, else ImageNet."""
    alpha_on: AlphaSide = "finetuned"
    """Model whose weight is printed as alpha: finetuned as in WiSE-FT and in all stored tables, or zeroshot as in
    Abdollahpoorrostam 2024 (alpha is then 1 minus the stored alpha)."""
    measures: tuple[str, ...] = ()
    """Measures to print, in this order (sharpness only); default: the run's first three, which fit into a column."""
    alpha: float | None = None
    """Point of the path whose sharpness is printed (sharpness only); default: the one nearest to 0.5."""
    format: PrintedForm = "text"
    """Form of the table. In csv the numbers are not rounded, and standard deviations have columns of their own."""
    digits: int = 1
    """Number of decimals of each percentage."""

    def __call__(self) -> Outcome:
        if not self.sources:
            raise ConfigError("table: give at least one run directory or file of accuracies.")
        if not 0 <= self.digits <= 10:
            raise ConfigError(f"--digits: needs a whole number from 0 to 10, got {self.digits}.")
        self._check_idle()
        from sharpscope.study.papertables import paper_table, printed_table

        if self.what != "accuracy":
            return Outcome(
                printed_table(self.sources[0], self.what, measures=self.measures, alpha=self.alpha).text(self.format)
            )
        left_out = ("format", "digits", "what", "measures", "alpha")
        table = paper_table(**{**given(self, *left_out, id="ids", rows="style"), "seeds": self._seeds()})
        return Outcome(table.text(self.format, self.digits))

    def _check_idle(self) -> None:
        """Raise ConfigError for a flag that the chosen table does not have, or for several runs where one is taken."""
        for name in self._idle():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ConfigError(f"--{name.replace('_', '-')}: has no meaning with --what {self.what}.")
        if self.what != "accuracy" and len(self.sources) > 1:
            raise ConfigError(f"table: --what {self.what} takes one run directory, got {len(self.sources)}.")

    def _idle(self) -> tuple[str, ...]:
        of_accuracy = ("rows", "variants", "datasets", "seeds", "id", "alpha_on", "digits")
        of_sharpness = ("measures", "alpha")
        if self.what == "accuracy":
            return of_sharpness
        return of_accuracy if self.what == "sharpness" else (*of_accuracy, *of_sharpness)

    def _seeds(self) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for text in self.seeds:
            name, equals, pairs = text.partition("=")
            if not (name and equals and all(pairs.split(","))):
                raise ConfigError(f"--seeds: '{shown(text, 60)}' is not NAME=PAIR,PAIR,...")
            out.setdefault(name, []).extend(pairs.split(","))
        return out
