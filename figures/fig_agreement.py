"""How far the points of the path agree with the zero-shot model on every test set, of a run with --agreement.

python figures/fig_agreement.py runs/mine --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.agreementplots import agreement_along_alpha
from sharpscope.present.canvas import save
from sharpscope.present.script import figure_parser, paper_style, run_table


def main(argv: Sequence[str] | None = None) -> None:
    args = figure_parser(__doc__).parse_args(argv)
    with paper_style(__file__):
        save(agreement_along_alpha(run_table(args.run, "agreement")), args.out, "agreement")


if __name__ == "__main__":
    main()
