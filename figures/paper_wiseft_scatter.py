"""WiSE-FT, figs. 1, 7 and 8: OOD over ID accuracy along the path of every pair, with the line of effective robustness.

From tables/accuracy.csv. The paper's grey points are 204 models of Taori et al. 2020: --baseline takes them as a CSV
file (dataset, id_accuracy, ood_accuracy), or the runs' own models by name. Its axes are logit; probit is a choice.

python figures/paper_wiseft_scatter.py runs/demo --baseline models.csv --scale logit --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.findings.robustness import BASELINES, baseline_points, read_baseline
from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.wiseft_paths import scatter
from sharpscope.present.scales import SCALES
from sharpscope.present.script import paper_style, runs_parser, runs_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument("--scale", default="logit", choices=tuple(SCALES), help="stretching of both axes")
    parser.add_argument("--baseline", help=f"models that define the line: {', '.join(BASELINES)}, or a CSV file")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        accuracy = runs_table(args.runs, "accuracy", args.group)
        baseline = None
        if args.baseline:
            named = args.baseline in BASELINES
            baseline = baseline_points(accuracy, args.baseline) if named else read_baseline(args.baseline)
        save_drawn(scatter(accuracy, baseline, args.scale), args.out, "paper_wiseft_scatter")


if __name__ == "__main__":
    main()
