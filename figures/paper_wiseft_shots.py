"""WiSE-FT, figs. 17 to 19: accuracy against the number of training images per class, and what the path adds to it.

From tables/accuracy.csv of one run for each number of images, named K=RUN. Several pairs of a run count as seeds. The
paper draws the best alpha too, which looks at the test sets: here the point of the path is fixed.

python figures/paper_wiseft_shots.py 1=runs/k1 5=runs/k5 25=runs/k25 --alpha 0.5 --out figures
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.wiseft_sweeps import shots
from sharpscope.present.script import numbered_runs, paper_style


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="K=RUN", help="run directory of the models tuned on K images per class"
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the PDF, the PNG and the caption")
    parser.add_argument("--alpha", type=float, default=0.5, help="point of the path to draw")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        accuracy, images = numbered_runs(args.runs)
        save_drawn(shots(accuracy, images, args.alpha), args.out, "paper_wiseft_shots")


if __name__ == "__main__":
    main()
