"""Tables as papers print them, from run directories and files of accuracies; neither torch nor figures are imported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import pandas as pd

from sharpscope.errors import ConfigError, RunDirectoryError, did_you_mean, shown
from sharpscope.exchange.reading import is_accuracy_csv, read_results
from sharpscope.findings.papertables import Member, PaperTable
from sharpscope.findings.papertables import paper_table as table_of
from sharpscope.findings.resulttables import result_table
from sharpscope.study.named import manifest_of, pairs_of
from sharpscope.tables.files import read_csv
from sharpscope.tables.printed import Printed
from sharpscope.tables.rows import ordered, unique_in_order
from sharpscope.vocabulary import DENSE, AlphaSide, PaperStyle, ResultTable

__all__ = ["paper_table", "printed_table"]


def paper_table(
    sources: Sequence[str | os.PathLike[str]],
    style: PaperStyle = "wise-ft",
    *,
    variants: Sequence[str] = (DENSE,),
    datasets: Sequence[str] = (),
    seeds: Mapping[str, Sequence[str]] | None = None,
    ids: Sequence[str] = (),
    alpha_on: AlphaSide = "finetuned",
) -> PaperTable:
    """The accuracies of runs, or of files, as a table of a paper: rows are points of a path, columns are data sets.

    Pairs come in the order of the sources and, inside a run, of its config.
    Pairs of one name in several sources count as seeds of one model, and so do the pairs that ``seeds`` lists: their
    mean and standard deviation are printed. See ``findings.papertables.paper_table`` for the rows and averages.

    Args:
        sources: run directories, CSV files with the columns of accuracy.csv, or result files of other systems
            (``exchange.FORMATS``).
        style: wise-ft or alphas.
        variants: variants of the accuracy table, such as dense, path:lines or ensemble:logits.
        datasets: the data sets to print and to average over, in this order; default: all.
        seeds: name to print -> the pairs that are its seeds.
        ids: names of the ID sets in the result files of other systems; default: as ``read_results``.
        alpha_on: the model whose weight is printed as alpha; nothing stored changes.

    Raises:
        RunDirectoryError: a folder without tables, or a table that cannot be read.
        ResultsError: a result file that cannot be read.
        ConfigError: no source, an unknown pair, variant or data set, or a pair under two names.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), Tables 1, 3, 4, 5.
    """
    found: list[tuple[str, pd.DataFrame]] = []
    for source in sources:
        accuracy = _accuracy(FilePath(source), ids)
        pairs = ordered(accuracy["pair"], pairs_of(manifest_of(FilePath(source))))
        found += [(str(p), accuracy[accuracy["pair"] == p]) for p in pairs]
    names = _names(seeds or {}, unique_in_order(pair for pair, _ in found))
    return table_of([Member(names[pair], rows) for pair, rows in found], style, variants, datasets, alpha_on)


def printed_table(
    run: str | os.PathLike[str], result: ResultTable, *, measures: Sequence[str] = (), alpha: float | None = None
) -> Printed:
    """What a run found, as a table for a paper: see ``findings.resulttables.result_table``.

    Args:
        run: a run directory.
        result: sharpness | advice | verdicts.
        measures, alpha: of sharpness.

    Raises:
        RunDirectoryError: no run directory, or one without this table.
        ConfigError, NoData: as ``result_table``.
    """
    return result_table(result, _stored(FilePath(run), result), measures=measures, alpha=alpha)


def _stored(run: FilePath, name: str) -> pd.DataFrame:
    file = run / "tables" / f"{name}.csv"
    if not file.exists():
        raise RunDirectoryError(f"{shown(run)}: has no tables/{name}.csv; finish it with 'sharpscope run' first.")
    return read_csv(file, name)


def _accuracy(source: FilePath, ids: Sequence[str]) -> pd.DataFrame:
    if (source / "tables").is_dir() or (source / "manifest.json").exists():
        return _stored(source, "accuracy")
    if source.is_file() and is_accuracy_csv(source):
        return read_csv(source, "accuracy")
    return read_results(source, ids=ids)


def _names(seeds: Mapping[str, Sequence[str]], pairs: Sequence[str]) -> dict[str, str]:
    """Pair -> the name under which it is printed."""
    names = {pair: pair for pair in pairs}
    taken: dict[str, str] = {}
    for name, members in seeds.items():
        for pair in members:
            if pair not in names:
                raise ConfigError(f"seeds: no pair '{shown(pair, 60)}'.{did_you_mean(pair, pairs)}")
            if pair in taken:
                raise ConfigError(
                    f"seeds: pair '{shown(pair, 60)}' is given twice ({shown(taken[pair])}, {shown(name)})."
                )
            names[pair] = taken[pair] = name
    return names
