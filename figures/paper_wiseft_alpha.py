"""WiSE-FT, fig. 6: accuracy on every data set along alpha, with the chord between the ends; one panel per set.

From tables/accuracy.csv. The paper draws the mean over its shifts; here every shift has a panel too.

python figures/paper_wiseft_alpha.py runs/demo --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.wiseft_paths import accuracy_by_set
from sharpscope.present.script import paper_style, runs_parser, runs_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    args = parser.parse_args(argv)
    with paper_style(__file__):
        save_drawn(accuracy_by_set(runs_table(args.runs, "accuracy", args.group)), args.out, "paper_wiseft_alpha")


if __name__ == "__main__":
    main()
