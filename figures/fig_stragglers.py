"""Straggler scores of every layer by criterion, with threshold, chosen layers and bootstrap probability.

python figures/fig_stragglers.py runs/demo --criteria sharpness:hessian_trace rewind --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.canvas import save
from sharpscope.present.layerplots import straggler_ranking
from sharpscope.present.script import figure_parser, paper_style, run_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser(__doc__)
    parser.add_argument("--criteria", nargs="+", metavar="NAME", help="at most four criteria; default: the main ones")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        save(straggler_ranking(run_table(args.run, "stragglers"), args.criteria), args.out, "straggler_ranking")


if __name__ == "__main__":
    main()
