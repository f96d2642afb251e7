"""ContCoOp's comparison: accuracy on the old and on the upgraded model, zero-shot and with what was tuned.

From tables/upgrade.csv of 'sharpscope protocol upgrade', or, with --from accuracy, from tables/accuracy.csv of a run
with --upgraded. The gain is the difference to the upgraded zero-shot model.

python figures/paper_contcoop_upgrade.py runs/upgrade --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.prompting import upgrade_bars, upgrade_of
from sharpscope.present.script import figure_parser, needed_table, paper_style


def main(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser(__doc__)
    parser.add_argument(
        "--from", dest="table", default="upgrade", choices=("upgrade", "accuracy"), help="table to read"
    )
    args = parser.parse_args(argv)
    with paper_style(__file__):
        table = needed_table(args.run, args.table)
        drawn = upgrade_bars(upgrade_of(table) if args.table == "accuracy" else table)
        save_drawn(drawn, args.out, "paper_contcoop_upgrade")


if __name__ == "__main__":
    main()
