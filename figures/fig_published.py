"""Published paths of real CLIP models: OOD gain along alpha by learning rate, and the regret of rules for alpha.

python figures/fig_published.py analyses/results --out analyses/results
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sharpscope.errors import NoData, shown
from sharpscope.present.canvas import save
from sharpscope.present.publishedplots import published
from sharpscope.study.figures.script import drawing


def read(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise NoData(f"{shown(file)}: no such file; 'python analyses/published.py' writes it.")
    return pd.read_csv(file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tables", type=Path, metavar="FOLDER", help="folder of the tables that analyses/published.py writes"
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDF and the PNG")
    args = parser.parse_args(argv)
    with drawing():
        paths, summary = (read(args.tables / f"{name}.csv") for name in ("published", "published_summary"))
        save(published(paths, summary), args.out, "published")


if __name__ == "__main__":
    main()
