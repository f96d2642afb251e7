"""WiSE-FT, fig. 3: the paths of models fine-tuned with other hyperparameters, coloured by each of them.

From tables/accuracy.csv of one or several runs, and the hyperparameters: tables/finetunings.csv of a sweep, or a CSV
file with the column pair and one column per hyperparameter. Without either each pair has its own colour.

python figures/paper_wiseft_hyper.py runs/sweep --columns learning_rate epochs --out figures
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.wiseft_sweeps import hyperparameters
from sharpscope.present.script import paper_style, runs_parser, runs_table, settings_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="CSV: pair, and one column per hyperparameter; default: the sweep's own",
    )
    parser.add_argument("--columns", nargs="+", default=(), help="hyperparameters to draw; default: those that differ")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        accuracy = runs_table(args.runs, "accuracy", args.group)
        settings = settings_table(args.settings, args.runs, list(dict.fromkeys(accuracy["pair"])))
        columns = args.columns or (("pair",) if len(settings.columns) == 1 else ())
        save_drawn(hyperparameters(accuracy, settings, columns), args.out, "paper_wiseft_hyper")


if __name__ == "__main__":
    main()
