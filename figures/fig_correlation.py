"""Correlation of every layer's sharpness with OOD gain: across pairs (evidence) or along one path (descriptive).

python figures/fig_correlation.py runs/demo --scope pairs --alpha 0.3 --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.canvas import save
from sharpscope.present.pairplots import correlation
from sharpscope.present.script import figure_parser, paper_style, run_table
from sharpscope.vocabulary import AGAINST, CORRELATIONS


def main(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser(__doc__)
    parser.add_argument("--scope", default="pairs", choices=("pairs", "path"))
    parser.add_argument("--method", default="spearman", choices=CORRELATIONS)
    parser.add_argument("--against", choices=AGAINST, help="default: ood_gain")
    parser.add_argument("--alpha", type=float, help="alpha at which pairs are compared; default: the one nearest 0.5")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        drawn = correlation(
            run_table(args.run, "correlations", args.group), args.scope, args.method, args.against, args.alpha
        )
        save(drawn, args.out, f"correlation_{args.scope}")


if __name__ == "__main__":
    main()
