"""In Search of the Successful Interpolation: accuracy along the path with sparse straggler layers and without.

From tables/repair.csv and accuracy.csv. Beside the paper's figure it has controls: random other layers, and all layers.
The gain at equal ID accuracy, which this figure does not show, is in figures/fig_repair.py.

python figures/paper_sharpness_repair.py runs/demo --target weight --density 0.5 --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.repaired import sparse_beside_plain
from sharpscope.present.script import paper_style, runs_parser, runs_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument("--target", default="weight", choices=("weight", "delta"), help="what is made sparse")
    parser.add_argument("--select", default="random", choices=("random", "magnitude"), help="choice of what is kept")
    parser.add_argument("--density", type=float, default=0.5, help="fraction that is kept")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        repair, accuracy = (runs_table(args.runs, name, args.group) for name in ("repair", "accuracy"))
        drawn = sparse_beside_plain(repair, accuracy, args.target, args.select, args.density)
        save_drawn(drawn, args.out, "paper_sharpness_repair")


if __name__ == "__main__":
    main()
