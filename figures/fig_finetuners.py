"""Every fine-tuning method on the embedded world: OOD and ID accuracy at its end and at the best point of its path.

python figures/fig_finetuners.py analyses/results/finetuners.csv --out analyses/results
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sharpscope.present.canvas import save
from sharpscope.present.methodplots import methods
from sharpscope.study.figures.script import drawing


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, metavar="TABLE", help="finetuners.csv, as analyses/finetuners.py writes it")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDF and the PNG")
    args = parser.parse_args(argv)
    with drawing():
        save(methods(pd.read_csv(args.table, dtype={"seed": str})), args.out, "finetuners")


if __name__ == "__main__":
    main()
