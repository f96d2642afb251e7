"""Lipsum-FT, fig. 1: OOD over ID accuracy of fine-tuned models of several methods over learning rates and steps.

From tables/accuracy.csv of one or several runs, and the settings: tables/finetunings.csv of a sweep, or a CSV file with
pair, method, and a column for each number that was varied. Only the fine-tuned ends are drawn.

python figures/paper_lipsum_tradeoff.py runs/sweep --order learning_rate steps --out figures
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.lipsum import tradeoff
from sharpscope.present.script import paper_style, runs_parser, runs_table, settings_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="CSV: pair, method, lr, steps; default: the sweep's own"
    )
    parser.add_argument("--method", default="method", help="column of the settings that tells the methods apart")
    parser.add_argument("--order", nargs="+", default=(), help="columns, one panel each; default: numbers that differ")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        accuracy = runs_table(args.runs, "accuracy", args.group)
        settings = settings_table(args.settings, args.runs, list(dict.fromkeys(accuracy["pair"])))
        save_drawn(tradeoff(accuracy, settings, args.method, args.order), args.out, "paper_lipsum_tradeoff")


if __name__ == "__main__":
    main()
