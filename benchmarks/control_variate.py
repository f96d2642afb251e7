"""Does the Gauss-Newton trace pay as a control variate? Products with H, or with H - G, for a trace to 5 % and 1 %.

    python benchmarks/control_variate.py --json FILE

On the embedded failure pair in the middle of its path, by layer: the spread of ``PRODUCTS`` products, by directions of
each example's own and by shared ones, tells how many a tolerance needs. tr G takes one backward pass a probe, all
layers together, and is given as if it were free.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

import sharpscope
from sharpscope.clip.model import second_order
from sharpscope.curvature.ggn import Residual, ggn_trace
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.trace import hutchinson, per_example

PRODUCTS = {"per_example": 4, "hutchinson": 40}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair = sharpscope.load_pair("mini:zeroshot", "mini:failure", model="mini")
    data = sharpscope.load_dataset("mini:photo", model=pair.model, split="train")
    probe = sharpscope.Probe(pair.classifier, data, size=64, batch_size=64)
    theta = pair.path().at(0.5)
    blocks = {x.name: x.params for x in pair.layers("block")}
    rows = []
    with second_order():
        positive = ggn_trace(probe, theta, blocks, seed=0, rtol=0.02, max_probes=100)
        engines = {"H": HessianEngine(probe, theta, blocks), "H - G": HessianEngine(Residual(probe), theta, blocks)}
        for layer in blocks:
            trace = 0.0
            for method, estimate in (("per_example", per_example), ("hutchinson", hutchinson)):
                for what, engine in engines.items():
                    count = PRODUCTS[method]
                    found = estimate(engine.operator(layer), seed=1, rtol=1e-9, max_matvecs=count)
                    trace = trace or found.estimate  # of H by the finer method, which comes first
                    needed = {f"{r:.0%}": count * (found.stderr / (r * trace)) ** 2 for r in (0.05, 0.01)}
                    rows.append({"layer": layer, "method": method, "of": what, "trace": found.estimate, **needed})
                    print(f"{layer:32s}{method:12s}{what:6s} {found.estimate:8.3g}", end="  ")
                    print("  ".join(f"{v:8.1f} products to {k}" for k, v in needed.items()), flush=True)
            print(
                f"{layer:32s}tr G / tr H = {positive[layer].estimate / trace:.2f}, {positive[layer].num_matvecs} probes"
            )
    if options.json:
        about = {"machine": platform.machine(), "torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
