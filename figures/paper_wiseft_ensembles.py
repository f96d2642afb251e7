"""WiSE-FT, figs. 10, 12 and 13: the straight path beside ensembles of the two models' outputs and other paths.

From tables/accuracy.csv of a run with --ensembles (variants ensemble:logits, ensemble:probabilities) or --paths
(variants path:NAME). The paper's moving averages of weights are models of their own: give them as pairs.

python figures/paper_wiseft_ensembles.py runs/demo --variants dense ensemble:logits --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.wiseft_paths import paths_and_ensembles
from sharpscope.present.script import paper_style, runs_parser, runs_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument("--variants", nargs="+", default=(), help="variants to draw; default: all that have both ends")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        drawn = paths_and_ensembles(runs_table(args.runs, "accuracy", args.group), args.variants)
        save_drawn(drawn, args.out, "paper_wiseft_ensembles")


if __name__ == "__main__":
    main()
