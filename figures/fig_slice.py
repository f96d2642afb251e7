"""A slice of the loss along one direction or in the plane of two, from the table that sharpscope.loss_slice returns.

>>> path, H = pair.path(), sharpscope.HessianOperator(probe, pair.path().at(0.5), pair.moving)
>>> top = sharpscope.curvature.top_eigenpairs(H, 2, seed=0)
>>> axes = [H.split(v) for v in top.vectors]
>>> sharpscope.loss_slice(probe, path.at(0.5), axes, reach=2.0).to_csv("slice.csv", index=False)

python figures/fig_slice.py slice.csv --names "eigenvector 1" "eigenvector 2" --out figures
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sharpscope.present.canvas import save
from sharpscope.present.script import paper_style
from sharpscope.present.sliceplots import loss_slice


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, metavar="TABLE", help="CSV file of the table that loss_slice returned")
    parser.add_argument("--names", nargs="+", default=["direction 1", "direction 2"], help="what the directions are")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDF and the PNG")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        save(loss_slice(pd.read_csv(args.table), args.names), args.out, "loss_slice")


if __name__ == "__main__":
    main()
