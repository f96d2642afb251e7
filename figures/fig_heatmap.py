"""Layer x alpha heat map of one sharpness measure, one panel per pair.

python figures/fig_heatmap.py runs/demo --measure lambda_max --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.canvas import save
from sharpscope.present.layerplots import heatmap
from sharpscope.present.script import figure_parser, paper_style, run_table
from sharpscope.vocabulary import MEASURES


def main(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser(__doc__)
    parser.add_argument("--measure", default="hessian_trace", choices=tuple(MEASURES), help="sharpness measure to draw")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        save(heatmap(run_table(args.run, "sharpness"), args.measure), args.out, f"heatmap_{args.measure}")


if __name__ == "__main__":
    main()
