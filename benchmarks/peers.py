"""sharpscope next to PyHessian, hessian-eigenthings, curvlinops and plain torch, in one run, on one machine.

    python benchmarks/peers.py --json FILE [--quick]

Every cost is in gradients: processor seconds divided by those of ONE gradient of the same loss in the same run (least
of several repeats, one thread). Rows: {what, tool, value, unit, error, note}; ``note`` says what the error is one of.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curvlinops import xtrace as curvlinops_xtrace
from hessian_eigenthings import LambdaOperator, lanczos_tridiagonal
from hessian_eigenthings import trace as eigenthings_trace
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from tools import TOOLS
from torch import Tensor
from work import Work, crash_as_shipped, load, quiet, relative, seconds, trained_path

from sharpscope.clip.model import second_order
from sharpscope.curvature.eigen import lanczos
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.operator import DenseOperator
from sharpscope.curvature.trace import per_example, xtrace

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
TOLERANCE = 0.01
PACKAGES = ("torch", "open_clip_torch", "pyhessian", "hessian-eigenthings", "curvlinops-for-pytorch", "scipy", "numpy")
Rows = list[dict[str, Any]]


def row(what: str, tool: str, value: float, unit: str, error: float = math.nan, note: str = "") -> dict[str, Any]:
    return {"what": what, "tool": tool, "value": value, "unit": unit, "error": error, "note": note}


# ------------------------------------------------------------------ one product
def one_product(repeats: int) -> Rows:
    """hvp_full: a product with the whole Hessian, 4 blocks of width 128, 64 images."""
    work = Work.make(width=128, blocks=4, head_width=32)
    names = [n for layer in work.layers for n in layer.params]
    unit = work.gradient_seconds(2 * repeats)
    v = torch.randn(sum(t.numel() for t in work.theta.values()), generator=torch.Generator().manual_seed(0))
    rows, truth = [], None
    order = ["plain double backward", *(t for t in TOOLS if t != "plain double backward")]
    for tool in order:
        crash = crash_as_shipped(lambda make=TOOLS[tool]: make(work, names)(v)) if tool != "sharpscope" else ""
        with second_order():
            product = TOOLS[tool](work, names)
            found = product(v)
            truth = found if truth is None else truth
            cost = seconds(lambda call=product: call(v), repeats) / unit
        note = "; ".join(x for x in ("error: |Hv - double backward| / |Hv|", crash) if x)
        rows.append(row("hvp_full", tool, cost, "gradients", relative(found, truth), note))
    return rows


def every_layer(repeats: int, width: int) -> Rows:
    """hvp_all_layers_12_blocks: one product for each of the 14 layers of a 12-block tower, 64 images."""
    work = Work.make(width=width, blocks=12, head_width=32)
    unit = work.gradient_seconds(2 * repeats)
    layers = {x.name: x.params for x in work.layers}
    rows = []
    with second_order():
        for tool, costs in product_costs(work, layers, repeats).items():
            rows.append(
                row(
                    "hvp_all_layers_12_blocks",
                    tool,
                    sum(costs.values()) / unit,
                    "gradients",
                    note=_sweep_note(tool, width),
                )
            )
    return rows


def product_costs(work: Work, layers: dict[str, Sequence[str]], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of one product by tool and layer, setting up apart; ours share one kept graph."""
    engine = HessianEngine(work, work.theta, layers)
    out: dict[str, dict[str, float]] = {}
    for tool, make in TOOLS.items():
        out[tool] = {}
        for name, params in layers.items():
            v = torch.randn(engine.blocks[name].size, generator=torch.Generator().manual_seed(1))
            wide = tool == "curvlinops"
            product = engine.operator(name).matvec if tool == "sharpscope" else make(work, params)
            argument = v[:, None].repeat(1, 8) if wide else v
            out[tool][name] = seconds(lambda call=product, x=argument: call(x), repeats) / (8 if wide else 1)
    return out


def _sweep_note(tool: str, width: int) -> str:
    how = {
        "sharpscope": "one kept graph for all layers",
        "PyHessian": "one object a layer, the rest frozen; each layer's own forward and gradient not counted",
        "curvlinops": "subset of parameters, 8 columns at once; its Hv is off on every ViT (hvp_full)",
        "hessian-eigenthings": "param_filter",
        "plain double backward": "masked whole-model products",
        "jvp(grad)": "other parameters constant",
    }
    return f"width {width}, 64 images; {how[tool]}"


# ------------------------------------------------------------------ traces
def traces(engine: HessianEngine, dense: dict[str, Tensor], repeats: int) -> Rows:
    """trace_1pct_hvps: products for an RMS error of 1 %, mean over layers; the peers' on dense block Hessians."""
    budgets = (24, 48, 96, 192)
    needed: dict[str, list[float]] = {}
    hits, spent, errors = 0, [], []
    classic: list[tuple[int, float]] = []
    stopped: list[tuple[int, float]] = []
    for layer, matrix in dense.items():
        matrix = matrix.double()
        truth = float(matrix.trace())
        off = float((matrix**2).sum() - (matrix.diagonal() ** 2).sum())
        needed.setdefault("Hutchinson", []).append(2 * off / (TOLERANCE * truth) ** 2)
        operator, single = DenseOperator(matrix), matrix.float()
        theirs = LambdaOperator(
            lambda v, m=single: m @ v, size=len(matrix), device=torch.device("cpu"), dtype=torch.float32
        )
        methods: dict[str, Callable[[int, int], float]] = {
            "XTrace": lambda m, s, o=operator: xtrace(o, seed=s, num_matvecs=m).estimate,
            "Hutch++": lambda m, s, o=theirs: eigenthings_trace(o, num_matvecs=m, seed=s).estimate,
            "curvlinops XTrace": lambda m, s, a=single: _seeded(s, lambda: float(curvlinops_xtrace(a, m))),
        }
        for name, method in methods.items():
            rms = [np.sqrt(np.mean([(method(m, s) / truth - 1) ** 2 for s in range(repeats)])) for m in budgets]
            needed.setdefault(name, []).append(_crossing(budgets, rms))
        for seed in range(repeats):
            found = per_example(engine.operator(layer), seed=seed, max_matvecs=1000, rtol=TOLERANCE)
            hits += abs(found.estimate - truth) <= 1.96 * found.stderr
            spent.append(found.num_matvecs)
            errors.append(found.estimate / truth - 1)
            again = xtrace(operator, seed=seed, num_matvecs=512, rtol=TOLERANCE, adaptive=True)
            classic.append((again.num_matvecs, again.estimate / truth - 1))
            stopped.append(_pyhessian_rule(DenseOperator(single), seed, truth))
    cover = hits / len(spent)
    ours = f"own stop at a stated error of 1 %; its 95 % interval held {100 * cover:.0f} % of the time"
    luck = "its own rule (two running means within 1e-3, at most 100): not 1 %, see error"
    one = "HVPs a layer for an RMS error of 1 %"
    values = {
        "sharpscope": (float(np.mean(spent)), _rms(errors), ours),
        "sharpscope, XTrace": (float(np.mean([n for n, _ in classic])), _rms([e for _, e in classic]), "own stop"),
        "sharpscope, XTrace, fixed count": (float(np.mean(needed["XTrace"])), TOLERANCE, one),
        "hessian-eigenthings": (float(np.mean(needed["Hutch++"])), TOLERANCE, f"Hutch++; {one}"),
        "curvlinops": (float(np.mean(needed["curvlinops XTrace"])), TOLERANCE, f"XTrace on an exact operator; {one}"),
        "PyHessian": (float(np.mean(needed["Hutchinson"])), TOLERANCE, f"Hutchinson; {one}"),
        "PyHessian, own stop": (float(np.mean([n for n, _ in stopped])), _rms([e for _, e in stopped]), luck),
    }
    return [
        row("trace_1pct_hvps", tool, value, "HVPs a layer", error, note)
        for tool, (value, error, note) in values.items()
    ]


def _seeded(seed: int, call: Callable[[], float]) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return call()


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _crossing(budgets: Sequence[int], rms: Sequence[float]) -> float:
    """The budget at which log-log interpolation of the error meets 1 % (extrapolated with the slope of a mean)."""
    for i, error in enumerate(rms):
        if error <= TOLERANCE:
            if i == 0:
                return float(budgets[0])
            x = math.log(rms[i - 1] / TOLERANCE) / math.log(rms[i - 1] / error)
            return float(budgets[i - 1] * (budgets[i] / budgets[i - 1]) ** x)
    return float(budgets[-1] * (rms[-1] / TOLERANCE) ** 2)


def _pyhessian_rule(operator: DenseOperator, seed: int, truth: float) -> tuple[int, float]:
    generator = torch.Generator().manual_seed(seed)
    values: list[float] = []
    mean = 0.0
    for _ in range(100):
        v = torch.randint(0, 2, (operator.shape[0],), generator=generator).float() * 2 - 1
        values.append(float(v @ operator.matvec(v)))
        if abs(np.mean(values) - mean) / (mean + 1e-6) < 1e-3:
            break
        mean = float(np.mean(values))
    return len(values), float(np.mean(values)) / truth - 1


# ------------------------------------------------------------------ eigenvalues
def eigenvalues(work: Work, at: Callable[[float], dict[str, Tensor]], alphas: Sequence[float]) -> Rows:
    """eigs_1pct_hvps: products for BOTH extreme eigenvalues to 1 % (the smaller end: of a tenth of the radius)."""
    layers = {x.name: x.params for x in work.layers}
    spent: dict[str, list[int]] = {}
    missed: dict[str, list[float]] = {}
    warm: dict[str, Tensor] = {}
    fixed = (8, 12, 16, 20, 24, 32)
    for alpha in alphas:
        engine = HessianEngine(work, at(alpha), layers)
        for name in layers:
            operator = engine.operator(name)
            exact = lanczos(operator, seed=7, rtol=1e-3, max_matvecs=60)
            truth = (exact.largest.value, exact.smallest.value)

            def note(tool: str, count: int, pair: tuple[float, float], truth: tuple[float, float] = truth) -> None:
                radius = max(map(abs, truth))
                spent.setdefault(tool, []).append(count)
                missed.setdefault(tool, []).append(
                    max(abs(a - b) / max(abs(b), 0.1 * radius) for a, b in zip(pair, truth, strict=True))
                )

            start = warm.get(name, engine.gradient(name))
            for tool, first in (("sharpscope", start), ("sharpscope, cold", engine.gradient(name))):
                ends = lanczos(operator, seed=1, rtol=TOLERANCE, start=first)
                note(tool, ends.largest.num_matvecs, (ends.largest.value, ends.smallest.value))
                if tool == "sharpscope":
                    assert ends.largest.vector is not None and ends.smallest.vector is not None
                    warm[name] = ends.largest.vector + ends.smallest.vector
            top = lanczos(operator, seed=1, rtol=TOLERANCE, start=start, ends=["largest"]).largest
            note("sharpscope, largest", top.num_matvecs, (top.value, truth[1]))
            count = [0]

            def counted(v: np.ndarray, call: Any = operator, count: list[int] = count) -> np.ndarray:
                count[0] += 1
                return call.matvec(torch.from_numpy(np.asarray(v, dtype=np.float32).reshape(-1))).numpy()

            scipy_operator = LinearOperator(operator.shape, matvec=counted, dtype=np.float32)
            start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
            low, high = sorted(
                eigsh(scipy_operator, k=2, which="BE", tol=TOLERANCE, return_eigenvectors=False, v0=start)
            )
            note("curvlinops", count[0], (float(high), float(low)))
            theirs = LambdaOperator(
                operator.matvec, size=operator.shape[0], device=torch.device("cpu"), dtype=torch.float32
            )
            run = lanczos_tridiagonal(theirs, torch.from_numpy(start), fixed[-1])  # shorter runs are its beginnings
            for m in fixed:
                a, b = run.alphas[:m].double().numpy(), run.betas[: m - 1].double().numpy()
                found = eigh_tridiagonal(a, b, eigvals_only=True)
                note(f"hessian-eigenthings {m}", m, (float(found[-1]), float(found[0])))
    within = {tool: float(np.mean([e <= TOLERANCE for e in errors])) for tool, errors in missed.items()}
    enough = next((m for m in fixed if within[f"hessian-eigenthings {m}"] >= within["sharpscope"]), fixed[-1])
    tell = lambda tool: f"{100 * within[tool]:.0f} % of {len(spent[tool])} problems within 1 %; error: the worst"  # noqa: E731
    names = {
        "sharpscope": ("sharpscope", "Lanczos, warm along alpha, own stop"),
        "sharpscope, cold": ("sharpscope, cold", "Lanczos from the gradient, own stop"),
        "sharpscope, largest": ("sharpscope, largest one only", "Lanczos, warm along alpha, own stop"),
        f"hessian-eigenthings {enough}": ("hessian-eigenthings", "Lanczos, least fixed count that does as well"),
        "curvlinops": ("curvlinops", "scipy eigsh 'BE' on an exact operator (its own Hv is off)"),
    }
    rows = [
        row("eigs_1pct_hvps", tool, float(np.mean(spent[key])), "HVPs a layer and alpha", max(missed[key]),
            f"{how}; {tell(key)}")
        for key, (tool, how) in names.items()
    ]  # fmt: skip
    only = "power iteration finds the eigenvalue of largest magnitude only: not the other end"
    rows.append(row("eigs_1pct_hvps", "PyHessian", math.nan, "HVPs a layer and alpha", note=only))
    return rows


# ------------------------------------------------------------------ the whole map
def layer_map(
    work: Work, at: Callable[[float], dict[str, Tensor]], rows: Rows, repeats: int, alphas: Sequence[float]
) -> Rows:
    """layer_map_gradients: every layer, 11 alphas, trace to 1 %, both eigenvalues: ours run, the peers' added up."""
    load(work, at(0.5))
    unit = work.gradient_seconds(2 * repeats)
    layers = {x.name: x.params for x in work.layers}
    with second_order():
        costs = product_costs(work, layers, repeats)
    start = time.process_time()
    warm: dict[str, Tensor] = {}
    stated = []
    for alpha in alphas:
        with second_order():
            engine = HessianEngine(work, at(alpha), layers)
            for name in layers:
                operator = engine.operator(name)
                found = per_example(operator, seed=0, max_matvecs=1000, rtol=TOLERANCE)
                ends = lanczos(operator, seed=0, rtol=TOLERANCE, start=warm.get(name, engine.gradient(name)))
                assert ends.largest.vector is not None and ends.smallest.vector is not None
                warm[name] = ends.largest.vector + ends.smallest.vector
                stated.append(found.stderr / abs(found.estimate))
    ours = (time.process_time() - start) / unit * len(ALPHAS) / len(alphas)
    how = "run end to end" if len(alphas) == len(ALPHAS) else f"run at {len(alphas)} alphas, times 11 / {len(alphas)}"
    error = float(np.mean(stated))
    out = [
        row("layer_map_gradients", "sharpscope", ours, "gradients", error, f"{how}; error: mean stated one of a trace")
    ]
    value = {(r["what"], r["tool"]): r["value"] for r in rows}
    for tool in ("hessian-eigenthings", "curvlinops", "PyHessian"):
        eigs = value["eigs_1pct_hvps", "hessian-eigenthings" if tool == "PyHessian" else tool]
        each = value["trace_1pct_hvps", tool] + eigs
        total = len(ALPHAS) * each * sum(costs[tool].values()) / unit
        note = "products of trace_1pct_hvps and eigs_1pct_hvps times their measured cost a layer"
        note += "; Lanczos counted, which it has not" if tool == "PyHessian" else ""
        note += "; its products are wrong on a ViT (hvp_full)" if tool == "curvlinops" else ""
        out.append(row("layer_map_gradients", tool, total, "gradients", TOLERANCE, note))
    return out


# ------------------------------------------------------------------ the table
def environment() -> dict[str, Any]:
    cpu = next((x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "")
    return {
        "command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{platform.machine()}, {cpu or platform.processor()}", "python": platform.python_version(),
        "threads": torch.get_num_threads(), "versions": {p: version(p) for p in PACKAGES},
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def measure(quick: bool, images: int) -> Rows:
    repeats = 4 if quick else 12
    rows = one_product(repeats)
    _say("one product")
    rows += every_layer(2 if quick else 8, width=64)
    if not quick:
        rows += [r | {"what": "hvp_all_layers_12_blocks_width_128"} for r in every_layer(4, width=128)]
    _say("every layer of 12 blocks")
    work = Work.make(width=16, blocks=4, head_width=8, images=images)
    at = trained_path(work)
    alphas = ALPHAS[4:7] if quick else ALPHAS
    with second_order():
        engine = HessianEngine(work, at(0.5), {x.name: x.params for x in work.layers})
        chosen = [work.layers[i].name for i in ((4, 5) if quick else range(6))]
        dense = {n: engine.operator(n).matmat(torch.eye(engine.blocks[n].size)) for n in chosen}
        _say("dense truth")
        rows += traces(engine, dense, 5 if quick else 20)
        _say("traces")
        rows += eigenvalues(work, at, alphas)
    _say("eigenvalues")
    return rows + layer_map(work, at, rows, repeats, alphas)


def _say(done: str) -> None:
    print(f"{time.process_time():6.0f} s  {done}", file=sys.stderr, flush=True)


def table(rows: Rows) -> str:
    lines = [f"{'what':34} {'tool':26} {'value':>10}  {'unit':22} {'error':>9}  note"]
    for r in rows:
        lines.append(f"{r['what']:34} {r['tool']:26} {r['value']:10.4g}  {r['unit']:22} {r['error']:9.2g}  {r['note']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="where the rows, versions and machine go")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and layers, under five minutes")
    parser.add_argument("--images", type=int, default=256, help="size of the probe set for traces, eigenvalues and map")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    rows = measure(options.quick, options.images)
    print(table(rows))
    clean = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in rows]
    part = options.json.with_suffix(".part")
    part.write_text(
        json.dumps(environment() | {"images": options.images, "rows": clean}, indent=1) + "\n", encoding="utf-8"
    )
    part.replace(options.json)


if __name__ == "__main__":
    main()
