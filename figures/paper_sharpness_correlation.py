"""In Search of the Successful Interpolation: sharpness against OOD accuracy, across models and along the path.

From tables/sharpness.csv and accuracy.csv; a single run's correlations.csv gives the coefficient.

python figures/paper_sharpness_correlation.py runs/demo --measure hessian_trace --alpha 0.5 --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.sharpness import against_accuracy
from sharpscope.present.script import paper_style, runs_parser, runs_table
from sharpscope.vocabulary import ALL


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument("--measure", default="hessian_trace", help="sharpness measure to draw")
    parser.add_argument("--layer", default=ALL, help="layer whose sharpness is drawn; default: the whole model")
    parser.add_argument("--alpha", type=float, default=0.5, help="point of the path at which models are compared")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        sharpness, accuracy = (runs_table(args.runs, name, args.group) for name in ("sharpness", "accuracy"))
        known = runs_table(args.runs, "correlations", args.group) if len(args.runs) == 1 else None
        drawn = against_accuracy(sharpness, accuracy, known, args.measure, args.layer, args.alpha)
        save_drawn(drawn, args.out, "paper_sharpness_correlation")


if __name__ == "__main__":
    main()
