"""Effective robustness: OOD against ID accuracy on logit axes, with the line that a baseline draws.

python figures/fig_robustness.py runs/demo --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.findings.robustness import BASELINES, baseline_points, read_baseline
from sharpscope.findings.robustness import effective_robustness as table_of
from sharpscope.present.canvas import save
from sharpscope.present.robustplots import effective_robustness
from sharpscope.present.script import figure_parser, paper_style, run_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser(__doc__)
    parser.add_argument(
        "--baseline", default="finetuned", help=f"models that define the line: {', '.join(BASELINES)}, or a CSV file"
    )
    args = parser.parse_args(argv)
    with paper_style(__file__):
        accuracy = run_table(args.run, "accuracy", args.group)
        named = args.baseline in BASELINES
        baseline = baseline_points(accuracy, args.baseline) if named else read_baseline(args.baseline)
        save(effective_robustness(table_of(accuracy, baseline, args.baseline)), args.out, "robustness")


if __name__ == "__main__":
    main()
