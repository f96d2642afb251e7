"""Lipsum-FT's analysis: accuracy against the energy gap and the feature distortion between a model and zero-shot.

From tables/agreement.csv (sharpscope run --agreement) and accuracy.csv. The paper's regulariser is half of this gap.

python figures/paper_lipsum_energy.py runs/demo --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.lipsum import energy
from sharpscope.present.script import paper_style, runs_parser, runs_table
from sharpscope.vocabulary import AGREEMENT


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument("--measures", nargs="+", default=("energy_gap", "feature_distortion"), choices=tuple(AGREEMENT))
    parser.add_argument("--alpha", type=float, default=1.0, help="point of the path that is compared with zero-shot")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        agreement, accuracy = (runs_table(args.runs, name, args.group) for name in ("agreement", "accuracy"))
        save_drawn(energy(agreement, accuracy, args.measures, args.alpha), args.out, "paper_lipsum_energy")


if __name__ == "__main__":
    main()
