"""How far ``sharpscope plan`` is off: what it says of four jobs on the embedded world, and what their units then take.

python benchmarks/plan_error.py > benchmarks/results/plan_error.log      (about five minutes on a quiet machine)
"""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import sharpscope
from sharpscope.study import report
from sharpscope.study.log import Log

BASE = sharpscope.StudyConfig(
    pairs=(sharpscope.PairConfig("failure", "mini:zeroshot", "mini:failure"),), model="mini", probe="mini:photo",
    id=("mini:photo",), ood=("mini:sketch",), granularity="block", straggler_criterion="rewind", limit=300, threads=1,
    batch_size=64, densities=(), bootstrap=20, layer_alphas=(0.0, 1.0), criticality_noise=(1.0,),
    alphas=(0.0, 0.25, 0.5, 0.75, 1.0), jobs=1,  # what plan says is then the sum of the units' seconds
)  # fmt: skip
HESSIAN = ("hessian_trace", "lambda_max")
JOBS = {
    "traces and eigenvalues": replace(BASE, measures=HESSIAN, probe_size=96, rtol=0.1),
    "traces by module": replace(
        BASE, measures=HESSIAN[:1], granularity="module", probe_size=64, rtol=0.15, max_matvecs=60
    ),
    "rises and tr G": replace(
        BASE, measures=("sharpness_max", "ggn_trace"), probe_size=64, perturbation_alphas=None, alphas=(0.0, 0.5, 1.0)
    ),
    "seven batches by module": replace(
        BASE, measures=HESSIAN, granularity="module", probe_size=448, rtol=0.1, max_matvecs=60
    ),
}
UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}


def main() -> None:
    report.all_figures = lambda *_, **__: {}  # type: ignore[assignment]  # figures are no part of the estimate
    for name, config in JOBS.items():
        start = time.perf_counter()
        found = re.search(r"estimated time: ([\d.]+) (h|min|s) with", sharpscope.plan(config))
        planning = time.perf_counter() - start
        assert found is not None
        with tempfile.TemporaryDirectory() as folder:
            sharpscope.run(config, Path(folder) / "run")
            events = list(Log(Path(folder) / "run" / "log.jsonl").events())
        taken = sum(e["seconds"] for e in events if e["event"] == "unit")
        said = float(found[1]) * UNITS[found[2]]
        print(f"{name}: plan took {planning:.0f} s and said {said:.0f} s; the units took {taken:.0f} s "
              f"({said / taken - 1:+.0%})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
