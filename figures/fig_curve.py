"""WiSE-FT curve: OOD against ID accuracy along the path of every pair of a run.

python figures/fig_curve.py runs/demo --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.canvas import save
from sharpscope.present.pathplots import wiseft_curves
from sharpscope.present.script import figure_parser, paper_style, run_table


def main(argv: Sequence[str] | None = None) -> None:
    args = figure_parser(__doc__).parse_args(argv)
    with paper_style(__file__):
        save(wiseft_curves(run_table(args.run, "accuracy", args.group)), args.out, "wiseft_curve")


if __name__ == "__main__":
    main()
