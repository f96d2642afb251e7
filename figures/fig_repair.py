"""OOD gain at equal ID accuracy with sparse stragglers, compared with random layers and with all layers made sparse.

python figures/fig_repair.py runs/demo --alpha 0.3 --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.canvas import save
from sharpscope.present.pairplots import repair
from sharpscope.present.script import figure_parser, paper_style, run_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser(__doc__)
    parser.add_argument(
        "--alpha",
        type=float,
        help="point of the repaired paths that is drawn with intervals; default: the one nearest 0.5",
    )
    args = parser.parse_args(argv)
    with paper_style(__file__):
        save(repair(run_table(args.run, "repair", args.group), args.alpha), args.out, "repair")


if __name__ == "__main__":
    main()
