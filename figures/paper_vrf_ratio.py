"""VRF's figure: the ratio of the fine-tuned to the zero-shot accuracy by the images' distance to zero-shot failures.

From tables/vrf.csv (sharpscope run --output-baselines vrf) and accuracy.csv, which says which sets are ID.

python figures/paper_vrf_ratio.py runs/demo --out figures
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpscope.present.paperplots.drawn import save_drawn
from sharpscope.present.paperplots.vrf import ratio_by_distance
from sharpscope.present.script import paper_style, runs_parser, runs_table


def main(argv: Sequence[str] | None = None) -> None:
    args = runs_parser(__doc__).parse_args(argv)
    with paper_style(__file__):
        vrf, accuracy = (runs_table(args.runs, name, args.group) for name in ("vrf", "accuracy"))
        save_drawn(ratio_by_distance(vrf, accuracy), args.out, "paper_vrf_ratio")


if __name__ == "__main__":
    main()
