"""What the Gauss-Newton part saves as a control variate: every layer's trace by per_example and by controlled.

    python benchmarks/control_variate.py --json FILE

Measured on the embedded world's failure pair in the middle of its path (64 images) and on the benchmarks' tower in the
middle of a trained path (1,024 images), to a tolerance of 5 % and of 1 %. Written are products and passes by layer, and
each method's cost: its processor seconds, including those of its engines, divided by those of a gradient of the same
loss in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from work import Work, seconds, trained_path

import sharpscope
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.ggn import ClassificationObjective, ggn_trace
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.layers import Layer

METHODS = ("per_example", "controlled")


def gradient_seconds(objective: ClassificationObjective, theta: Mapping[str, Tensor], layers: Sequence[Layer]) -> float:
    """One gradient of the loss for all parameters that are measured."""
    params = {n: theta[n].clone().requires_grad_() for x in layers for n in x.params}

    def gradient() -> None:
        for i in range(len(objective.weights)):
            torch.autograd.grad(objective.batch_loss(i, {**theta, **params}), list(params.values()))

    return seconds(gradient, 5)


def compare(
    what: str, objective: ClassificationObjective, theta: Mapping[str, Tensor], layers: Sequence[Layer], rtol: float
) -> dict[str, Any]:
    with second_order():
        unit = gradient_seconds(objective, theta, layers)
        blocks = {x.name: x.params for x in layers}
        positive = ggn_trace(objective, theta, blocks, seed=0, rtol=rtol / 3, max_probes=100)
        passes = seconds(lambda: ggn_trace(objective, theta, blocks, seed=0, rtol=rtol / 3, max_probes=100), 1) / unit
    out: dict[str, Any] = {"work": what, "rtol": rtol, "gauss_newton": {"gradients": passes}, "methods": {}}
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for method in METHODS:
        settings = MeasureSettings(rtol=rtol, atol_share=0, max_matvecs=20_000, trace_method=method)
        start = time.process_time()
        rows = measure_layers(objective, theta, layers, ["hessian_trace"], settings).rows
        spent = time.process_time() - start
        keys = ("estimate", "stderr", "num_matvecs", "converged")
        tables[method] = {r["layer"]: {k: r[k] for k in keys} for r in rows}
        out["methods"][method] = {"gradients": spent / unit, "layers": tables[method]}
        print(f"{what}, to {rtol:.0%}: {method} {spent / unit:.0f} gradients", flush=True)
    out["gauss_newton"]["passes"] = next(iter(positive.values())).num_matvecs
    for layer, plain in tables["per_example"].items():
        other = tables["controlled"][layer]
        gap = abs(plain["estimate"] - other["estimate"]) / (plain["stderr"] ** 2 + other["stderr"] ** 2) ** 0.5
        share = positive[layer].estimate / other["estimate"] if layer in positive else float("nan")
        other |= {"gap_in_errors": gap} | ({"gauss_newton_share": share} if layer in positive else {})
        print(
            f"{layer:32s} {plain['estimate']:9.4g} {other['estimate']:9.4g}, {gap:4.1f} errors apart; products "
            f"{plain['num_matvecs']:5d} {other['num_matvecs']:5d}; tr G / tr H {share:.2f}",
            flush=True,
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair = sharpscope.load_pair("mini:zeroshot", "mini:failure", model="mini")
    data = sharpscope.load_dataset("mini:photo", model=pair.model, split="train")
    probe = sharpscope.Probe(pair.classifier, data, size=64, batch_size=64)
    work = Work.make(width=16, blocks=4, head_width=8, images=1024)
    tower = trained_path(work)(0.5)
    results = []
    for rtol in (0.05, 0.01):
        results.append(compare("embedded pair, 64 images", probe, pair.path().at(0.5), pair.layers("block"), rtol))
        results.append(compare("tower, 1,024 images", work, tower, work.layers, rtol))
    if options.json:
        about = {
            "command": "OMP_NUM_THREADS=1 python benchmarks/control_variate.py --json FILE",
            "machine": platform.machine(), "torch": torch.__version__, "results": results,
        }  # fmt: skip
        options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
