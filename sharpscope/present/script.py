"""Shared by the scripts in figures/: the arguments RUN and --out, the style sheet and the handling of errors."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
import pandas as pd

from sharpscope.errors import ConfigError, NoData, SharpscopeError, did_you_mean, shown
from sharpscope.present.paperplots.drawn import MADE_BY
from sharpscope.tables.files import read_csv
from sharpscope.tables.rows import groups_in, of_group

__all__ = [
    "figure_parser",
    "needed_table",
    "numbered_runs",
    "paper_style",
    "run_table",
    "runs_parser",
    "runs_table",
    "settings_table",
]


def figure_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments RUN, a run directory, and --out, the folder of PDF and PNG (default: ./figures)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory (holds tables/)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDF and the PNG")
    return _with_group(parser)


def _with_group(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--group", help="group of OOD sets to draw; needed where the run has several and they are averaged"
    )
    return parser


@contextmanager
def paper_style(script: str | os.PathLike[str]) -> Iterator[None]:
    """Draw with the ``paper.mplstyle`` in the folder of ``script``; an error of the input ends the program with its
    message."""
    try:
        with matplotlib.style.context(Path(script).with_name("paper.mplstyle")):
            yield
    except SharpscopeError as error:
        raise SystemExit(str(error)) from error


def run_table(run: Path, name: str, group: str | None = None) -> pd.DataFrame:
    """Table ``name`` of a run directory; with ``group`` without the rows of other groups of OOD sets.

    Raises:
        ConfigError: the table has no such group.
    """
    return _of(read_csv(run / "tables" / f"{name}.csv", name), group)


def _of(table: pd.DataFrame, group: str | None) -> pd.DataFrame:
    if group is None:
        return table
    known = groups_in(table)
    if known and group not in known:
        raise ConfigError(f"--group: no OOD sets are in the group '{shown(group, 40)}'.{did_you_mean(group, known)}")
    return of_group(table, group)


def runs_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments RUN ..., one or more run directories, and --out, the folder of the figure's files."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories (each holds tables/)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDF, the PNG and the caption")
    return _with_group(parser)


def needed_table(run: Path, name: str) -> pd.DataFrame:
    """Table ``name`` of a run directory; one that is missing or empty is an error that names the command for it."""
    file = run / "tables" / f"{name}.csv"
    if not file.is_file():
        raise NoData(f"{shown(file)}: no such file; '{MADE_BY[name]}' makes this table.")
    table = read_csv(file, name)
    if not len(table):
        raise NoData(f"{shown(file)}: has no rows; '{MADE_BY[name]}' makes this table.")
    return table


def runs_table(runs: Sequence[Path], name: str, group: str | None = None) -> pd.DataFrame:
    """Table ``name`` of several run directories in one; pairs of one name are told apart by the folder's name.

    With ``group`` the rows of other groups of OOD sets are left out.

    Raises:
        NoData: a run without this table.
        ConfigError: two runs whose folders and pairs have the same names; a group that no run has.
    """
    tables = [needed_table(run, name) for run in runs]
    names = [set(table["pair"]) for table in tables]
    twice = {pair for i, own in enumerate(names) for pair in own if any(pair in o for o in names[:i] + names[i + 1 :])}
    told = [
        table.assign(pair=[f"{run.resolve().name}: {p}" if p in twice else p for p in table["pair"]])
        for run, table in zip(runs, tables, strict=True)
    ]
    seen: set[str] = set()
    for run, table in zip(runs, told, strict=True):
        if same := seen & set(table["pair"]):
            raise ConfigError(
                f"{shown(run)}: '{shown(min(same), 60)}' is also in a run of another folder of this name."
            )
        seen |= set(table["pair"])
    return _of(pd.concat(told, ignore_index=True), group)


def numbered_runs(texts: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The accuracy table of the runs named ``K=RUN``, and pair -> K; a pair's name begins with its number.

    Raises:
        NoData: a run without the table.
        ConfigError: a text that is not K=RUN with a whole number K above 0.
    """
    tables: list[pd.DataFrame] = []
    numbers: dict[str, int] = {}
    for text in texts:
        count, equals, run = text.partition("=")
        if not (equals and run and count.isdigit() and int(count) > 0):
            raise ConfigError(f"'{shown(text, 80)}' is not K=RUN, such as 5=runs/k5: K training images per class.")
        table = needed_table(Path(run), "accuracy")
        told = [f"{count}: {pair} of {run}" for pair in table["pair"]]
        tables.append(table.assign(pair=told))
        numbers |= dict.fromkeys(told, int(count))
    return pd.concat(tables, ignore_index=True), numbers


def settings_table(path: Path | None, runs: Sequence[Path], pairs: Sequence[str]) -> pd.DataFrame:
    """How every pair was fine-tuned, one row per pair: the CSV file ``path``, else the sweep's table ``finetunings``.

    A file has the column pair and one more per setting. Runs of no sweep have the only setting ``pair``, its name.

    Raises:
        ConfigError: a file that cannot be read, repeats a pair, or lacks one of ``pairs``.
    """
    if path is None:
        if not all((run / "tables" / "finetunings.csv").is_file() for run in runs):
            return pd.DataFrame({"pair": list(pairs)})
        table, where = runs_table(runs, "finetunings"), "finetunings.csv"
    else:
        where = shown(path)
        try:
            table = pd.read_csv(path, dtype={"pair": str})
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}: not a readable table of settings ({shown(error, 80)}).") from None
    if "pair" not in table or len(table.columns) < 2:
        raise ConfigError(f"{where}: needs the column pair and at least one setting, such as lr or epochs.")
    if lost := [p for p in pairs if p not in set(table["pair"])]:
        raise ConfigError(f"{where}: no row for the pair '{shown(lost[0], 60)}'; every pair needs one.")
    twice = table.loc[table["pair"].duplicated(), "pair"]
    if len(twice):
        raise ConfigError(f"{where}: two rows for the pair '{shown(twice.iloc[0], 60)}'.")
    return table[table["pair"].isin(pairs)].reset_index(drop=True)
