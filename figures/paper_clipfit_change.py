"""CLIPFit's analysis: the relative change of every tensor that fine-tuning moves, by depth in its tower.

From the CSV file of 'sharpscope inspect ZEROSHOT FINETUNED --granularity tensor --csv FILE', one row per tensor.

python figures/paper_clipfit_change.py changes.csv --out figures
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.prompting import change_by_tensor
from sharpscope.present.script import paper_style
from sharpscope.tables.files import read_csv


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "table",
        type=Path,
        metavar="TABLE",
        help="CSV file, as 'sharpscope inspect A B --granularity tensor --csv FILE' writes it",
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDF, the PNG and the caption")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        save_drawn(change_by_tensor(read_csv(args.table, "changes")), args.out, "paper_clipfit_change")


if __name__ == "__main__":
    main()
