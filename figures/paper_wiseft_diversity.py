"""WiSE-FT, fig. 5 and figs. 27 to 30: diversity of the two ends' predictions, who overrides whom, and margins.

From tables/agreement.csv (sharpscope run --agreement) and accuracy.csv, which says which sets are ID. The paper's KL
has the other end in first place, and its figures 27 to 30 compare many models with each other: here each fine-tuned
model is compared with its own zero-shot model.

python figures/paper_wiseft_diversity.py runs/demo --pairs success failure --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.wiseft_diversity import diversity
from sharpscope.present.script import paper_style, runs_parser, runs_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument(
        "--pairs", nargs="+", default=(), metavar="PAIR", help="pairs to draw; default: the first seven"
    )
    args = parser.parse_args(argv)
    with paper_style(__file__):
        agreement, accuracy = (runs_table(args.runs, name, args.group) for name in ("agreement", "accuracy"))
        save_drawn(diversity(agreement, accuracy, args.pairs), args.out, "paper_wiseft_diversity")


if __name__ == "__main__":
    main()
