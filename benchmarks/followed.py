"""How often a converged eigenvalue is right: followed along alpha, or afresh at each alpha, against tight Lanczos.

    python benchmarks/followed.py --json FILE

Takes pairs of the embedded world, every module and the whole model, the largest eigenvalue and the largest in
magnitude, on a coarse path (steps of .2 to .5) at three tolerances. An estimate counts as missed if it is further below
the truth than the tolerance that it claims. The truth is the larger one of two Lanczos runs to a thousandth, one
started from the gradient and one from a random vector; no method can prove the true value.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

import sharpscope
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.eigen import End, RitzSpace, lanczos
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.tracking import tracked

ALPHAS = (0.0, 0.3, 0.5, 1.0)
ENDS: tuple[End, ...] = ("largest", "dominant")


def misses(pair: str, rtols: tuple[float, ...]) -> list[dict[str, Any]]:
    """One row for every layer, alpha (but the first), tolerance and method."""
    loaded = sharpscope.load_pair("mini:zeroshot", f"mini:{pair}", model="mini")
    data = sharpscope.load_dataset("mini:photo", model=loaded.model, split="train")
    probe = sharpscope.Probe(loaded.classifier, data, size=64, batch_size=64)
    layers = loaded.layers("module")
    blocks = {"(all)": [n for x in layers for n in x.params]} | {x.name: x.params for x in layers}
    path, rows = loaded.path(), []
    spaces: dict[tuple[str, float], RitzSpace] = {}
    for alpha in ALPHAS:
        with second_order():
            engine = HessianEngine(probe, path.at(alpha), blocks)
            for layer in blocks:
                operator, gradient = engine.operator(layer), engine.gradient(layer)
                tight = [
                    lanczos(operator, seed=s, rtol=1e-3, start=g, ends=ENDS) for s, g in ((1, gradient), (2, None))
                ]
                truth = max(x.largest.value for x in tight)
                for rtol in rtols:
                    afresh = lanczos(operator, seed=0, rtol=rtol, start=gradient, ends=ENDS)
                    space = spaces.get((layer, rtol))
                    followed = afresh if space is None else tracked(operator, space, seed=0, rtol=rtol, ends=ENDS)
                    assert followed.space is not None
                    spaces[layer, rtol] = followed.space
                    for method, found in (("followed", followed), ("afresh", afresh)) if space is not None else ():
                        error = (truth - found.largest.value) / abs(truth)
                        count = found.largest.num_matvecs
                        rows.append({"method": method, "rtol": rtol, "error": error, "num_matvecs": count})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", nargs="+", default=["success", "failure", "success-seed1", "lr5e-3"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rtols = (0.15, 0.05, 0.01)
    rows = [row for pair in options.pairs for row in misses(pair, rtols)]
    table = []
    for rtol in rtols:
        for method in ("followed", "afresh"):
            of = [r for r in rows if (r["method"], r["rtol"]) == (method, rtol)]
            errors = [r["error"] for r in of]
            table.append({
                "rtol": rtol, "method": method, "problems": len(of), "worst": max(errors),
                "products": sum(r["num_matvecs"] for r in of) / len(of),
                "missed": sum(e > rtol for e in errors) / len(of),
                "missed_twice_rtol": sum(e > 2 * rtol for e in errors) / len(of),
            })  # fmt: skip
            print(table[-1], flush=True)
    if options.json:
        command = "OMP_NUM_THREADS=1 python benchmarks/followed.py --json FILE"
        about = {"command": command, "machine": platform.machine(), "torch": torch.__version__, "pairs": options.pairs}
        options.json.write_text(json.dumps(about | {"rows": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
