"""In Search of the Successful Interpolation: probe loss along the path with its instability (LII) and its barrier.

From tables/path.csv. Alpha is the weight of the fine-tuned model, as everywhere in sharpscope.

python figures/paper_sharpness_lii.py runs/demo --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.findings.pathheights import path_heights
from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.sharpness import instability_of_path
from sharpscope.present.script import paper_style, runs_parser, runs_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    args = parser.parse_args(argv)
    with paper_style(__file__):
        path = runs_table(args.runs, "path")
        save_drawn(instability_of_path(path, path_heights(path)), args.out, "paper_sharpness_lii")


if __name__ == "__main__":
    main()
