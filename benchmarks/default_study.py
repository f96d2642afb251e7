"""Where the time of a default study goes: what each family of its measures costs at one alpha of an embedded pair.

    OMP_NUM_THREADS=1 python benchmarks/default_study.py [--images 64] [--alpha 0.5] [--shares 0 0.01] [--only-traces]

Printed are products (for sums over layers) and processor seconds, also in gradients of the same loss in the same run.
Eigenvalues are measured at the alpha before, too, and followed from there, as in a study.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from work import seconds

import sharpscope
from sharpscope.config.study import StudyConfig
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.vocabulary import ALL

TRACES = ("hessian_trace", "weighted_trace")
OTHERS = (
    ("ggn_trace",), ("lambda_max", "lambda_abs"), ("lambda_max", "lambda_min", "lambda_abs"), ("sharpness_avg",),
    ("sharpness_max",), ("sharpness_max_l2",),
)  # fmt: skip


def main(pair: str, images: int, alpha: float, shares: Sequence[float], others: bool) -> None:
    torch.set_num_threads(1)
    loaded = sharpscope.load_pair("mini:zeroshot", f"mini:{pair}", model="mini")
    data = sharpscope.load_dataset("mini:photo", model=loaded.model, split="train")
    probe = sharpscope.Probe(loaded.classifier, data, size=images, batch_size=StudyConfig.batch_size)
    layers, path = loaded.layers("module"), loaded.path()
    theta = path.at(alpha)

    def gradient() -> None:
        params = {n: theta[n].clone().requires_grad_() for x in layers for n in x.params}
        for i in range(len(probe.weights)):
            torch.autograd.grad(probe.batch_loss(i, {**theta, **params}), list(params.values()))

    with second_order():
        unit = seconds(gradient, 2)
    print(f"{images} images, alpha {alpha:g}, {len(layers)} layers; a gradient takes {unit:.2f} s", flush=True)

    def cost(measures: Sequence[str], at: float, said: str, **more: object) -> object:
        settings = MeasureSettings(atol_share=share)
        start = time.process_time()
        result = measure_layers(probe, path.at(at), layers, measures, settings, **more)  # type: ignore[arg-type]
        spent = time.process_time() - start
        rows = [r for r in result.rows if r["layer"] != ALL]
        products = {m: sum(int(r["num_matvecs"]) for r in rows if r["measure"] == m) for m in measures}
        print(f"{said}: {products}, {spent:.1f} s, {spent / unit:.0f} gradients", flush=True)
        return result.warm

    for share in shares:
        cost(TRACES, alpha, f"share {share:g}")
    for measures in OTHERS if others else ():
        eigen = measures[0].startswith("lambda")
        warm = cost(measures, alpha - 0.1, "the alpha before") if eigen else {}
        cost(measures, alpha, "here", warm=warm)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="success")
    parser.add_argument("--images", type=int, default=StudyConfig.probe_size)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, StudyConfig.atol_share])
    parser.add_argument("--only-traces", dest="others", action="store_false")
    main(**vars(parser.parse_args()))
