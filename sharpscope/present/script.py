"""Shared by the scripts in figures/: the arguments RUN and --out, the style sheet and the handling of errors."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
import pandas as pd

from sharpscope.errors import SharpscopeError
from sharpscope.tables.files import read_csv

__all__ = ["figure_parser", "paper_style", "run_table"]


def figure_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments RUN, a run directory, and --out, the folder of PDF and PNG (default: ./figures)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory (holds tables/)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDF and the PNG")
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


def run_table(run: Path, name: str) -> pd.DataFrame:
    """Table ``name`` of a run directory."""
    return read_csv(run / "tables" / f"{name}.csv", name)
