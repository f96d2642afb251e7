"""Accuracy of every data set and the probe loss along alpha, with flagged failures shaded.

python figures/fig_path.py runs/demo --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.canvas import save
from sharpscope.present.pathplots import accuracy_along_alpha
from sharpscope.present.script import figure_parser, paper_style, run_table


def main(argv: Sequence[str] | None = None) -> None:
    args = figure_parser(__doc__).parse_args(argv)
    with paper_style(__file__):
        accuracy, path, failure = (run_table(args.run, name, args.group) for name in ("accuracy", "path", "failure"))
        save(accuracy_along_alpha(accuracy, path, failure), args.out, "accuracy_along_alpha")


if __name__ == "__main__":
    main()
