"""CLIPFit's and CoOp's few-shot figure: accuracy by the number of training images per class and by method.

From tables/few_shot.csv of one run of 'sharpscope protocol few-shot'.

python figures/paper_clipfit_shots.py runs/few-shot --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.prompting import few_shot_curves
from sharpscope.present.script import figure_parser, needed_table, paper_style


def main(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser(__doc__)
    args = parser.parse_args(argv)
    with paper_style(__file__):
        save_drawn(few_shot_curves(needed_table(args.run, "few_shot")), args.out, "paper_clipfit_shots")


if __name__ == "__main__":
    main()
