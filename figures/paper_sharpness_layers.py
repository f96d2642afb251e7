"""In Search of the Successful Interpolation: sharpness of every layer along alpha, with the stragglers marked.

From tables/sharpness.csv and stragglers.csv. By default a straggler is a layer whose own interpolation costs, the only
definition that the paper has published.

python figures/paper_sharpness_layers.py runs/demo --measure hessian_trace --criterion instability --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.sharpness import layers_along_alpha
from sharpscope.present.script import paper_style, runs_parser, runs_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = runs_parser(__doc__)
    parser.add_argument("--measure", default="hessian_trace", help="sharpness measure to draw")
    parser.add_argument("--criterion", default="instability", help="straggler criterion, as in stragglers.csv")
    parser.add_argument("--base", help="base of the criterion; default: finetuned where the table has it")
    args = parser.parse_args(argv)
    with paper_style(__file__):
        sharpness, stragglers = (runs_table(args.runs, name, args.group) for name in ("sharpness", "stragglers"))
        drawn = layers_along_alpha(sharpness, stragglers, args.measure, args.criterion, args.base)
        save_drawn(drawn, args.out, "paper_sharpness_layers")


if __name__ == "__main__":
    main()
