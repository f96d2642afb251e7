"""Mean OOD accuracy of every path that was evaluated, along alpha and over ID accuracy.

python figures/fig_paths.py runs/demo --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.canvas import save
from sharpscope.present.furtherplots import paths_along_alpha
from sharpscope.present.script import figure_parser, paper_style, run_table


def main(argv: Sequence[str] | None = None) -> None:
    args = figure_parser(__doc__).parse_args(argv)
    with paper_style(__file__):
        save(paths_along_alpha(run_table(args.run, "accuracy", args.group)), args.out, "paths_along_alpha")


if __name__ == "__main__":
    main()
