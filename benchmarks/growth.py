"""Cost and peak memory of the engine by depth, width and batch size, each point measured in a process of its own.

python benchmarks/growth.py --json FILE --plot FILE.png
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from work import Work, peak_mib, seconds

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.hvp import HessianEngine

BASE = {"blocks": 4, "width": 64, "images": 64}
POINTS = {"blocks": (2, 4, 8, 12), "width": (32, 64, 128), "images": (32, 64, 128, 256)}


def point(blocks: int, width: int, images: int) -> dict[str, float]:
    """Cost of a whole product and of a sweep over all layers, in gradients; memory of the graph and peak, in MiB."""
    torch.set_num_threads(1)
    work = Work.make(width=width, blocks=blocks, head_width=32, images=images)
    unit = work.gradient_seconds(5)
    before = peak_mib()
    layers = {x.name: x.params for x in work.layers}
    names = [n for params in layers.values() for n in params]
    with second_order():
        engine = HessianEngine(work, work.theta, {"(all)": names, **layers})
        costs = {}
        for name in engine.blocks:
            v = torch.ones(engine.blocks[name].size)
            costs[name] = seconds(lambda name=name, v=v: engine.operator(name).matvec(v), 4) / unit
    peak = peak_mib()
    return {
        "gradient_ms": 1e3 * unit, "whole": costs.pop("(all)"), "sweep": sum(costs.values()), "layers": len(costs),
        "graph_mib": engine.graph_bytes / 2**20, "added_peak_mib": peak - before,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--point",
        nargs=3,
        type=int,
        help="number of blocks, width and number of images: measure this point alone and print it",
    )
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(*options.point)))
        return
    rows: list[dict[str, Any]] = []
    for axis, values in POINTS.items():
        for value in values:
            where = BASE | {axis: value}
            call = [sys.executable, __file__, "--point", *(str(where[k]) for k in BASE)]
            out = subprocess.run(call, capture_output=True, text=True, check=True).stdout
            rows.append({"axis": axis, **where, **json.loads(out.splitlines()[-1])})
            print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey="row", layout="constrained")
        for ax, axis in zip(axes, POINTS, strict=True):
            of = [r for r in rows if r["axis"] == axis]
            for key, label in (("whole", "whole model"), ("sweep", "every layer once")):
                ax.plot([r[axis] for r in of], [r[key] for r in of], "o-", label=label)
            ax.set(xlabel=axis, ylim=(0, None))
        axes[0].set_ylabel("cost of a product, gradients")
        axes[0].legend(frameon=False)
        figure.savefig(options.plot, dpi=150)


if __name__ == "__main__":
    main()
