"""sharpscope next to PyHessian, hessian-eigenthings, curvlinops and plain torch, in one run, on one machine.

    python benchmarks/peers.py --json FILE [--quick]

Every cost is in gradients: processor seconds divided by those of ONE gradient of the same loss in the same run (the
smallest of several repeats, one thread). Rows: {what, tool, value, unit, error, note}; ``note`` says which error it is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from work import Work, crash_as_shipped, load, peak_mib, quiet, relative, seconds, trained_path

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.eigen import End, RitzSpace, lanczos
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.measures.gauss_newton import controlled
from sharpscope.curvature.operator import DenseOperator, SymmetricOperator
from sharpscope.curvature.trace import TraceEstimate, per_example_trace, xtrace
from sharpscope.curvature.tracking import tracked
from sharpscope.seeds import derive

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
TOLERANCE = 0.01
PACKAGES = ("torch", "open_clip_torch", "pyhessian", "hessian-eigenthings", "curvlinops-for-pytorch", "scipy", "numpy")
Rows = list[dict[str, Any]]
Found = tuple[float, float]
"""(largest, smallest) eigenvalue."""


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


def peak_memory() -> Rows:
    """peak_memory_mib: what one product with the whole Hessian adds to a process, 4 blocks of width 128, 256 images."""
    rows = []
    for tool in TOOLS:
        call = [sys.executable, __file__, "--peak", tool]
        out = subprocess.run(call, capture_output=True, text=True, check=True).stdout
        note = "the kept graph of the gradient included" if tool in ("sharpscope", "PyHessian") else ""
        rows.append(row("peak_memory_mib", tool, float(out.splitlines()[-1]), "MiB", note=note))
    return rows


def peak(tool: str) -> float:
    """In this process: MiB at the peak of a product, less that of a forward pass."""
    work = Work.make(width=128, blocks=4, head_width=32, images=256)
    names = [n for layer in work.layers for n in layer.params]
    v = torch.randn(sum(t.numel() for t in work.theta.values()), generator=torch.Generator().manual_seed(0))
    with second_order():
        loss = work.batch_loss(0, {n: p.requires_grad_() for n, p in work.theta.items()})
        del loss
        before = peak_mib()
        TOOLS[tool](work, names)(v)
    return peak_mib() - before


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
    """Seconds of one product by tool and layer, without the set-up; ours share one kept graph."""
    engine = HessianEngine(work, work.theta, layers)
    out: dict[str, dict[str, float]] = {}
    for tool, make in TOOLS.items():
        out[tool] = {}
        for name, params in layers.items():
            v = torch.randn(engine.blocks[name].size, generator=torch.Generator().manual_seed(1))
            wide = tool == "curvlinops"
            product = engine.operator(name).matvec if tool == "sharpscope" else make(work, params)
            argument = v[:, None].repeat(1, 8) if wide else v
            times = 4 * repeats if tool in ("sharpscope", "PyHessian") else repeats  # noise is largest for cheap ones
            out[tool][name] = seconds(lambda call=product, x=argument: call(x), times) / (8 if wide else 1)
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
            found = per_example_trace(engine.operator(layer), seed=seed, max_matvecs=1000, rtol=TOLERANCE)
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
PAIR: tuple[End, ...] = ("largest", "dominant")
"""Both eigenvalues that lambda_max stands for: the largest algebraic one and the one of largest magnitude."""
BOTH: tuple[End, ...] = ("largest", "smallest")
"""Both ends of the spectrum; the smaller end to 1 % of its magnitude or of a tenth of the radius."""
KIND = {PAIR: "", BOTH: ", both ends"}
FIXED = (4, 6, 8, 10, 12, 16, 20, 24, 32)


class Scores:
    """Products spent and worst errors, by tool and pair of eigenvalues."""

    def __init__(self) -> None:
        self.spent: dict[tuple[str, tuple[End, ...]], list[int]] = {}
        self.errors: dict[tuple[str, tuple[End, ...]], list[float]] = {}

    def add(self, tool: str, ends: tuple[End, ...], count: int, found: Found, truth: Found) -> None:
        """Errors relative to the truth; for the smaller end, relative to at least a tenth of the spectral radius."""
        radius = max(map(abs, truth))
        errors = [abs(_end(found, end) - _end(truth, end)) / max(abs(_end(truth, end)), 0.1 * radius) for end in ends]
        self.spent.setdefault((tool, ends), []).append(count)
        self.errors.setdefault((tool, ends), []).append(max(errors))

    def within(self, tool: str, ends: tuple[End, ...]) -> float:
        return float(np.mean([e <= TOLERANCE for e in self.errors[tool, ends]]))

    def row(self, tool: str, ends: tuple[End, ...], name: str, how: str) -> dict[str, Any]:
        errors = self.errors[tool, ends]
        note = f"{how}; {100 * self.within(tool, ends):.0f} % of {len(errors)} problems within 1 %; error: the worst"
        value = float(np.mean(self.spent[tool, ends]))
        return row("eigs_1pct_hvps", name + KIND[ends], value, "HVPs a layer and alpha", max(errors), note)


def _end(pair: Found, end: End) -> float:
    """Of (largest, smallest)."""
    return {"largest": pair[0], "smallest": pair[1], "dominant": max(pair, key=abs)}[end]


def eigenvalues(
    work: Work, at: Callable[[float], dict[str, Tensor]], alphas: Sequence[float], peers_at: Sequence[float]
) -> Rows:
    """eigs_1pct_hvps: products for two eigenvalues to 1 %, along the path; tools without a path at ``peers_at``."""
    layers = {x.name: x.params for x in work.layers}
    scores = Scores()
    spaces: dict[tuple[str, tuple[End, ...]], RitzSpace] = {}
    for alpha in alphas:
        engine = HessianEngine(work, at(alpha), layers)
        for name in layers:
            operator, gradient = engine.operator(name), engine.gradient(name)
            exact = lanczos(operator, seed=7, rtol=1e-3, max_matvecs=90)
            truth = (exact.largest.value, exact.smallest.value)
            for ends in (PAIR, BOTH):
                space = spaces.get((name, ends))
                if space is None or alpha in peers_at:
                    ours = lanczos(operator, seed=1, rtol=TOLERANCE, start=gradient, ends=ends)
                    pair = (ours.largest.value, ours.smallest.value)
                    scores.add("cold", ends, ours.largest.num_matvecs, pair, truth)
                if space is not None:
                    ours = tracked(operator, space, seed=1, rtol=TOLERANCE, ends=ends)
                    pair = (ours.largest.value, ours.smallest.value)
                scores.add("sharpscope", ends, ours.largest.num_matvecs, pair, truth)
                assert ours.space is not None
                spaces[name, ends] = ours.space
            if alpha in peers_at:
                _peers(operator, truth, scores)
    rows = []
    for ends in (PAIR, BOTH):
        what = "largest and largest in magnitude" if ends == PAIR else "largest and smallest"
        rows.append(scores.row("sharpscope", ends, "sharpscope", f"{what}; followed along alpha, own stop"))
        rows.append(scores.row("cold", ends, "sharpscope, cold", f"{what}; each alpha from the gradient, own stop"))
        target = scores.within("sharpscope", ends)
        enough = next((m for m in FIXED if scores.within(f"lanczos {m}", ends) >= target), FIXED[-1])
        how = "Lanczos, least fixed count that does as well"
        rows.append(scores.row(f"lanczos {enough}", ends, "hessian-eigenthings", how))
        how = f"scipy eigsh '{'LM' if ends == PAIR else 'BE'}' on an exact operator (its own Hv is off)"
        rows.append(scores.row("eigsh", ends, "curvlinops", how))
    rows.append(scores.row("power", PAIR, "PyHessian", "power iteration, its own stop; finds no other end"))
    return rows


def _peers(operator: SymmetricOperator, truth: Found, scores: Scores) -> None:
    start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
    count = [0]

    def counted(v: np.ndarray) -> np.ndarray:
        count[0] += 1
        return operator.matvec(torch.from_numpy(np.asarray(v, dtype=np.float32).reshape(-1))).numpy()

    scipy_operator = LinearOperator(operator.shape, matvec=counted, dtype=np.float32)

    def eigs(k: int, which: str) -> list[float]:
        found = eigsh(scipy_operator, k=k, which=which, tol=TOLERANCE, return_eigenvectors=False, v0=start)
        return sorted(map(float, found))

    low, high = eigs(2, "BE")
    scores.add("eigsh", BOTH, count[0], (high, low), truth)
    count[0] = 0
    dominant = eigs(1, "LM")[0]
    largest = dominant if dominant > 0 else eigs(1, "LA")[0]
    scores.add("eigsh", PAIR, count[0], (largest, min(dominant, largest)), truth)
    theirs = LambdaOperator(operator.matvec, size=operator.shape[0], device=torch.device("cpu"), dtype=torch.float32)
    run = lanczos_tridiagonal(theirs, torch.from_numpy(start), FIXED[-1])  # shorter runs are its beginnings
    for m in FIXED:
        a, b = run.alphas[:m].double().numpy(), run.betas[: m - 1].double().numpy()
        found = eigh_tridiagonal(a, b, eigvals_only=True)
        for ends in (PAIR, BOTH):
            scores.add(f"lanczos {m}", ends, m, (float(found[-1]), float(found[0])), truth)
    products, value = _power_rule(operator)
    scores.add("power", PAIR, products, (value, value), truth)


def _power_rule(operator: SymmetricOperator) -> tuple[int, float]:
    """PyHessian's power iteration: at most 100 steps, until the quotient moves by less than a thousandth."""
    v = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(0))
    v, before = v / v.norm(), math.inf
    for step in range(1, 101):
        product = operator.matvec(v)
        value = float(v @ product)
        if abs(value - before) / (abs(value) + 1e-6) < 1e-3:
            return step, value
        before, v = value, product / product.norm()
    return 100, value


# ------------------------------------------------------------------ the whole map
def layer_map(
    work: Work, at: Callable[[float], dict[str, Tensor]], rows: Rows, repeats: int, traces_at: Sequence[float]
) -> Rows:
    """layer_map_gradients: every layer, 11 alphas, trace and two eigenvalues to 1 %: ours run, the peers' added up.

    Traces know nothing of each other along alpha: they may be run at some alphas and scaled.
    """
    load(work, at(0.5))
    unit = work.gradient_seconds(2 * repeats)
    layers = {x.name: x.params for x in work.layers}
    with second_order():
        costs = product_costs(work, layers, repeats)
    spent: dict[Any, float] = dict.fromkeys(("graphs", "per_example", "controlled", PAIR, BOTH), 0.0)
    spaces: dict[tuple[str, tuple[End, ...]], RitzSpace] = {}
    stated: dict[str, list[float]] = {"per_example": [], "controlled": []}

    @contextlib.contextmanager
    def timed(what: Any) -> Iterator[None]:
        start = time.process_time()
        yield
        spent[what] += time.process_time() - start

    for alpha in ALPHAS:
        theta = at(alpha)
        with second_order():
            with timed("graphs"):
                engine = HessianEngine(work, theta, layers)
            if alpha in traces_at:
                with timed("per_example"):
                    found = [
                        per_example_trace(engine.operator(n), seed=0, max_matvecs=1000, rtol=TOLERANCE) for n in layers
                    ]
                    stated["per_example"] += [x.stderr / abs(x.estimate) for x in found]
                with timed("controlled"):
                    found = _controlled(work, theta, layers)
                    stated["controlled"] += [x.stderr / abs(x.estimate) for x in found]
            for ends in (PAIR, BOTH):
                with timed(ends):
                    for name in layers:
                        operator, space = engine.operator(name), spaces.get((name, ends))
                        if space is None:
                            ours = lanczos(operator, seed=0, rtol=TOLERANCE, start=engine.gradient(name), ends=ends)
                        else:
                            ours = tracked(operator, space, seed=0, rtol=TOLERANCE, ends=ends)
                        assert ours.space is not None
                        spaces[name, ends] = ours.space
    out = []
    scale = len(ALPHAS) / len(traces_at)
    how = "run end to end" if scale == 1 else f"run, traces at {len(traces_at)} alphas and scaled"
    for ends in (PAIR, BOTH):
        for method, name in (("per_example", "sharpscope"), ("controlled", "sharpscope, controlled")):
            value = (spent["graphs"] + scale * spent[method] + spent[ends]) / unit
            note = f"{how}; traces {100 * scale * spent[method] / unit / value:.0f} % of it; error: mean stated one"
            error = float(np.mean(stated[method]))
            out.append(row("layer_map_gradients", name + KIND[ends], value, "gradients", error, note))
        out += _peers_maps(rows, {tool: sum(c.values()) / unit for tool, c in costs.items()}, ends)
    return out


def _controlled(work: Work, theta: Mapping[str, Tensor], layers: Mapping[str, Sequence[str]]) -> list[TraceEstimate]:
    """What ``trace_method="controlled"`` does: a known part of tr H, and a sampled rest."""
    seed = functools.partial(derive, 0)
    found, _ = controlled(work, theta, layers, seed=seed, rtol=TOLERANCE, atol_share=0, max_matvecs=1000)
    return [found[name] for name in layers]


def _peers_maps(rows: Rows, sweeps: Mapping[str, float], ends: tuple[End, ...]) -> Rows:
    """Products of trace_1pct_hvps and eigs_1pct_hvps times the measured cost of one product for every layer."""
    value = {(r["what"], r["tool"]): r["value"] for r in rows}
    tools = ("PyHessian", "hessian-eigenthings", "curvlinops")
    trace = {tool: value["trace_1pct_hvps", tool] for tool in tools}
    eigs = {tool: value.get(("eigs_1pct_hvps", tool + KIND[ends]), math.inf) for tool in tools}
    out = []
    for tool in tools:
        note, products = "products of trace_1pct_hvps and eigs_1pct_hvps times their measured cost a layer", eigs[tool]
        if math.isinf(products):
            products = eigs["hessian-eigenthings"]
            note += "; Lanczos counted, which it has not"
        if tool == "curvlinops":
            note += "; its products are wrong on a ViT (hvp_full)"
        total = len(ALPHAS) * (trace[tool] + products) * sweeps[tool]
        out.append(row("layer_map_gradients", tool + KIND[ends], total, "gradients", TOLERANCE, note))
    cheapest = min(("PyHessian", "hessian-eigenthings"), key=lambda tool: sweeps[tool])
    total = len(ALPHAS) * (min(trace.values()) + min(eigs.values())) * sweeps[cheapest]
    note = f"the best of each, which no tool does: fewest products for either, {cheapest}'s products (right, cheapest)"
    out.append(row("layer_map_gradients", "peers combined" + KIND[ends], total, "gradients", TOLERANCE, note))
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


def measure(quick: bool, images: int, traces_at: Sequence[float]) -> Rows:
    repeats = 4 if quick else 12
    rows = one_product(repeats)
    _say("one product")
    rows += every_layer(2 if quick else 6, width=64)
    wide = every_layer(2 if quick else 4, width=128)
    rows += [r | {"what": "hvp_all_layers_12_blocks_width_128"} for r in wide]
    if not quick:
        rows += peak_memory()
    _say("every layer of 12 blocks")
    work = Work.make(width=16, blocks=4, head_width=8, images=images)
    at = trained_path(work)
    with second_order():
        engine = HessianEngine(work, at(0.5), {x.name: x.params for x in work.layers})
        chosen = [work.layers[i].name for i in ((4, 5) if quick else range(6))]
        dense = {n: engine.operator(n).matmat(torch.eye(engine.blocks[n].size)) for n in chosen}
        _say("dense truth")
        rows += traces(engine, dense, 5 if quick else 8)
        _say("traces")
        rows += eigenvalues(work, at, ALPHAS, (0.5,) if quick else (0.0, 0.5, 1.0))
    _say("eigenvalues")
    return rows + layer_map(work, at, rows, repeats, traces_at)


def _say(done: str) -> None:
    print(f"{time.process_time():6.0f} s  {done}", file=sys.stderr, flush=True)


def table(rows: Rows) -> str:
    lines = [f"{'what':34} {'tool':26} {'value':>10}  {'unit':22} {'error':>9}  note"]
    for r in rows:
        lines.append(f"{r['what']:34} {r['tool']:26} {r['value']:10.4g}  {r['unit']:22} {r['error']:9.2g}  {r['note']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows, the versions and the machine")
    parser.add_argument(
        "--peak", choices=list(TOOLS), help="print the peak memory of one product of this tool and stop"
    )
    parser.add_argument("--quick", action="store_true", help="take fewer repeats and layers; under five minutes")
    parser.add_argument(
        "--images", type=int, default=256, help="number of images in the probe set for traces, eigenvalues and map"
    )
    parser.add_argument(
        "--all-alphas", action="store_true", help="with --quick: take the map's traces at all 11 alphas"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    if options.peak:
        print(peak(options.peak))
        return
    if options.json is None:
        parser.error("--json FILE is missing")
    traces_at = (0.0, 0.5, 1.0) if options.quick and not options.all_alphas else ALPHAS
    rows = measure(options.quick, options.images, traces_at)
    print(table(rows))
    clean = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()} for r in rows]
    part = options.json.with_suffix(".part")
    part.write_text(
        json.dumps(environment() | {"images": options.images, "rows": clean}, indent=1) + "\n", encoding="utf-8"
    )
    part.replace(options.json)


if __name__ == "__main__":
    main()
