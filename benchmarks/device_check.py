"""Checks of sharpscope on a GPU, all of them in one run of at most nine minutes.

    python device_check.py [--quick] [--out DIR] [--parts env,products,...] [--cpu] [--seconds 540] [--repo DIR]

The parts, the most valuable first: env, products, demo, vit_b, vit_l, train, ranks, tests, two. Each part runs in a
process of its own with a time budget; a part that fails or takes too long is recorded as such, and the next one runs.
Results are written line by line, so that a killed run keeps its finished checks:

    DIR/results.jsonl   one JSON object per check: part, name, status (ok | BAD | error | slow | skipped), seconds,
                        and the numbers of the check
    DIR/log.txt         the same as text
    DIR/profile.txt     kernels of a Hessian-vector product, by time
    DIR/tests.txt       output of the tests
    DIR/tables.zip      tables of the study on the device and on the CPU

``--quick`` takes tiny models, for a smoke test; with ``--cpu`` it runs anywhere. BAD means that a number is outside its
limit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import zipfile
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve()


def repository(given):
    """The checkout whose code is checked: ``given``, else the current folder or the nearest one above this file that
    holds sharpscope/.
    """
    for folder in [Path(given)] if given else [Path.cwd(), *HERE.parents]:
        if (folder / "sharpscope" / "__init__.py").is_file():
            return folder.resolve()
    raise SystemExit("no sharpscope/ here: run it in the repository's root, or give --repo DIR")


# ---------------------------------------------------------------------- what every part writes
class Out:
    """One check after the other: guarded, timed, written at once."""

    def __init__(self, folder, part, until, checks=""):
        self.folder, self.part, self.until, self.checks = Path(folder), part, until, re.compile(checks)

    @property
    def left(self):
        """Seconds that the part still has."""
        return self.until - time.monotonic()

    def write(self, name, outcome, numbers=None, /, **more):
        """One row; a number of the same name as a column gets an underscore."""
        row, numbers = {"part": self.part, "name": name, "status": outcome, **plain(more)}, numbers or {}
        row |= {f"{k}_" if k in row else k: v for k, v in plain(numbers).items()}
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = ", ".join(f"{k}={brief(v)}" for k, v in row.items() if k not in ("part", "name", "status", "trace"))
        self.say(f"{outcome:<7} {self.part}/{name}: {shown}")
        if row.get("trace"):
            self.say(row["trace"])

    def say(self, text):
        print(text, flush=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(text + "\n")

    def check(self, name, work, *, limit=60.0, needs=1.0, bad=None):
        """Run ``work() -> dict`` for at most ``limit`` seconds; ``bad(numbers)``: whether they are outside what is
        allowed. A check whose name holds nothing of ``checks`` is left out.
        """
        if not self.checks.search(name):
            return None
        if self.left < needs:
            self.write(name, "skipped", reason=f"{self.left:.0f} s left, needs {needs:.0f}")
            return None
        start = time.monotonic()
        try:
            with alarm(min(limit, self.left)):
                numbers = work() or {}
                synchronize()
            value = numbers.pop("_value", None)
            wrong = bool(bad(numbers)) if bad else False
            self.write(name, "BAD" if wrong else "ok", numbers, seconds=time.monotonic() - start)
            return numbers if value is None else value
        except TooSlowError:
            self.write(name, "slow", seconds=time.monotonic() - start)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.write(name, "error", seconds=time.monotonic() - start, **told(error))
            del error
        gc.collect()
        return None


class TooSlowError(Exception):
    pass


def told(error):
    """The message of an error and the end of its traceback. Call it while the error is handled."""
    lines = traceback.format_exc().strip().splitlines()
    return {"error": f"{type(error).__name__}: {error}"[:600], "trace": "\n".join(lines[-16:])}


@contextlib.contextmanager
def alarm(seconds):
    """Raises TooSlowError after that many seconds, as soon as Python runs again."""

    def ring(*_):
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def plain(value):
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    try:
        number = float(value)
        return number if math.isfinite(number) else str(number)
    except (TypeError, ValueError):
        return str(value)


def brief(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(brief, value[:14])) + (", ..." if len(value) > 14 else "") + "]"
    if isinstance(value, dict):
        shown = [f"{k}: {brief(v)}" for k, v in list(value.items())[:14]]
        return "{" + ", ".join(shown + ["..."] * (len(value) > 14)) + "}"
    return str(value)


# ---------------------------------------------------------------------- the device
DEVICE = "cuda"


def synchronize():
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def clock(call, repeats=3, warm=1):
    """Best seconds of ``call`` on the device."""
    for _ in range(warm):
        call()
    best = math.inf
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def once(call):
    """(result, seconds) of one call on the device."""
    synchronize()
    start = time.perf_counter()
    out = call()
    synchronize()
    return out, time.perf_counter() - start


def memory():
    """GiB allocated now, at the peak since the last call, and free to other processes."""
    import torch

    if DEVICE != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info()
    out = {
        "allocated_gib": torch.cuda.memory_allocated() / 2**30, "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.memory_reserved() / 2**30, "free_gib": free / 2**30, "total_gib": total / 2**30,
    }  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    return out


def budget():
    """Bytes for gradient graphs, by the rule of a study."""
    import torch

    from sharpscope.machine.devices import free_bytes
    from sharpscope.study.context import GRAPH_SHARE

    return int(GRAPH_SHARE["cuda"] * free_bytes(torch.device(DEVICE))) if DEVICE == "cuda" else 2 * 2**30


def empty():
    import torch

    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def gap(a, b):
    """||a - b|| / ||b||, in float64 on the CPU."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    size = float(b.norm())
    return float((a - b).norm()) / size if size else float((a - b).norm())


def on(theta, dtype=None, device=None):
    device = device or DEVICE
    return {n: t.to(device, dtype or t.dtype) if t.is_floating_point() else t.to(device) for n, t in theta.items()}


# ---------------------------------------------------------------------- env
def part_env(out, options):
    import importlib.metadata

    import torch

    def versions():
        names = (
            "torch",
            "torchvision",
            "open_clip_torch",
            "timm",
            "numpy",
            "scipy",
            "pandas",
            "safetensors",
            "huggingface_hub",
            "pytest",
        )
        found = {}
        for name in names:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        return {
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            **found,
        }

    def device():
        if DEVICE != "cuda":
            return {"device": "cpu"}
        p = torch.cuda.get_device_properties(0)
        said = ""
        if shutil.which("nvidia-smi"):
            said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout.strip()
        return {
            "device": p.name,
            "gib": p.total_memory / 2**30,
            "capability": f"{p.major}.{p.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "smi": said,
            **memory(),
        }

    def switches():
        """Defaults outside and inside second_order, and whether torch's older switches can still be read in there."""
        from sharpscope.curvature.arithmetic import second_order

        b = torch.backends
        read = lambda: {"conv": b.cudnn.conv.fp32_precision, "matmul": b.cuda.matmul.fp32_precision}  # noqa: E731
        before, said = read(), {}

        def flags():
            with b.cudnn.flags(enabled=True):
                return "can be entered"

        with second_order():
            inside = read()
            for name, get in (("allow_tf32", lambda: b.cuda.matmul.allow_tf32),
                              ("cudnn.allow_tf32", lambda: b.cudnn.allow_tf32),
                              ("get_float32_matmul_precision", torch.get_float32_matmul_precision),
                              ("cudnn.flags", flags)):  # fmt: skip
                try:
                    said[name] = str(get())[:40]
                except Exception as error:
                    said[name] = f"{type(error).__name__}: {error}"[:120]
        return {"before": before, "inside": inside, "after": read(), "older_switches_inside": said,
                "cudnn.deterministic": b.cudnn.deterministic, "cudnn.benchmark": b.cudnn.benchmark}  # fmt: skip

    def arithmetic():
        """TFLOP/s of a square product: how much float64, full float32, TF32 and bf16 differ here."""
        n = 512 if options.quick else 8192
        found = {}
        kinds = {
            "float64": (torch.float64, "ieee"),
            "float32": (torch.float32, "ieee"),
            "tf32": (torch.float32, "tf32"),
            "bf16": (torch.bfloat16, "ieee"),
        }
        for name, (dtype, kind) in kinds.items():
            torch.backends.cuda.matmul.fp32_precision = kind
            a = torch.randn(n, n, device=DEVICE, dtype=dtype)
            found[name] = 2 * n**3 / clock(lambda a=a: a @ a, 3) / 1e12
            del a
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        return {"tflops": found}

    def copies():
        """GB/s from the host: pageable, pinned; and seconds to draw what one probe of ViT-B-32 draws, on the host and
        on the device.
        """
        n = 2**18 if options.quick else 88_000_000
        host = torch.empty(n)
        found = {"pageable_gb_s": 4 * n / clock(lambda: host.to(DEVICE)) / 1e9}
        if DEVICE == "cuda":
            pinned = host.pin_memory()
            found["pinned_gb_s"] = 4 * n / clock(lambda: pinned.to(DEVICE, non_blocking=True)) / 1e9
            there = pinned.to(DEVICE)
            found["back_gb_s"] = 4 * n / clock(lambda: there.cpu()) / 1e9
        g = torch.Generator().manual_seed(0)
        found["signs_host_s"] = clock(lambda: torch.randint(0, 2, (n,), generator=g, dtype=torch.int8) * 2 - 1, 1, 0)
        bytes_ = torch.ones(n, dtype=torch.int8)
        found["signs_host_to_device_s"] = clock(lambda: bytes_.to(DEVICE, torch.float32), 1)
        found["normal_host_s"] = clock(lambda: torch.randn(n, generator=g, dtype=torch.float64), 1, 0)
        on_device = torch.Generator(DEVICE).manual_seed(0)
        signs = lambda: torch.randint(0, 2, (n,), generator=on_device, dtype=torch.int8, device=DEVICE) * 2 - 1  # noqa: E731
        found["signs_device_s"] = clock(signs, 1)
        found["normal_device_s"] = clock(
            lambda: torch.randn(n, generator=on_device, dtype=torch.float64, device=DEVICE), 1
        )
        return {"numbers": n, **found}

    def rows():
        """vecdot, as the attention and layer norm kernels use it, beside (a * b).sum(-1): microseconds."""
        shapes = {
            "attention 128x12x50x50": (128 * 12, 50, 50),
            "norm 128x50x768": (128, 50, 768),
            "norm 32x257x1024": (32, 257, 1024),
        }
        found = {}
        for name, shape in shapes.items():
            if options.quick:
                shape = (max(shape[0] // 32, 1), *shape[1:])
            a, b = (torch.randn(shape, device=DEVICE) for _ in range(2))
            found[name] = {
                "vecdot_us": 1e6 * clock(lambda a=a, b=b: torch.linalg.vecdot(a, b)),
                "mul_sum_us": 1e6 * clock(lambda a=a, b=b: (a * b).sum(-1)),
                "einsum_us": 1e6 * clock(lambda a=a, b=b: torch.einsum("...i,...i->...", a, b)),
            }  # fmt: skip
        if DEVICE == "cuda":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            exact = (a.double() * b.double()).sum(-1)
            found["vecdot_error_under_tf32"] = gap(torch.linalg.vecdot(a, b), exact)
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            found["vecdot_error"] = gap(torch.linalg.vecdot(a, b), exact)
        return found

    def launches():
        x = torch.ones(16, device=DEVICE)

        def many():
            y = x
            for _ in range(1000):
                y = y + 1

        found = {"small_op_us": 1e3 * clock(many)}
        start = time.perf_counter()
        for _ in range(200):
            float(x[0])
        return found | {"item_us": (time.perf_counter() - start) / 200 * 1e6}

    out.check("versions", versions)
    out.check("device", device)
    out.check("switches", switches)
    out.check("arithmetic", arithmetic, limit=20)
    out.check("copies", copies, limit=25)
    out.check("row products", rows, limit=20)
    out.check("launches", launches, limit=10)


def captured(engine_of, layer):
    """Seconds of a product, launched one by one and replayed as a CUDA graph; the engine has to be made on the stream
    of the capture.
    """
    import torch

    if DEVICE != "cuda":
        return {"note": "CUDA only"}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        engine = engine_of()
        v = torch.ones(engine.blocks[layer].size, 1, dtype=engine.dtype, device=engine.device)
        for _ in range(3):
            eager = engine.products({layer: v})[layer]
        side.synchronize()
        eager_s = clock(lambda: engine.products({layer: v}), 5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        replayed = engine.products({layer: v})[layer]
    replay_s = clock(graph.replay, 5)
    return {
        "eager_ms": 1e3 * eager_s,
        "replay_ms": 1e3 * replay_s,
        "gain": eager_s / replay_s,
        "same_bits": bool(torch.equal(eager, replayed)),
    }


# ---------------------------------------------------------------------- products
TEXT = {
    "context_length": 16,
    "vocab_size": 708,
    "width": 16,
    "heads": 2,
    "layers": 1,
    "tokenizer_kwargs": {"bpe_path": "mini_bpe.txt.gz"},
}
VIT = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "mlp_ratio": 2.0}
TINY = {
    "vit": {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT},
    "quickgelu": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "customtext": {"embed_dim": 12, "custom_text": True, "vision_cfg": {**VIT, "pool_type": "avg"}, "text_cfg": TEXT},
}


def tiny_model(kind, folder):
    """(ClipModel, theta in float64, random and nowhere degenerate)."""
    import torch

    from sharpscope.clip.model import ClipModel
    from sharpscope.miniworld import world as miniworld

    shutil.copy(miniworld.tokenizer_path(), Path(folder) / "mini_bpe.txt.gz")
    path = Path(folder) / f"{kind}.json"
    path.write_text(json.dumps(TINY[kind]))
    model = ClipModel.load(str(path))
    generator = torch.Generator().manual_seed(0)
    theta = model.init(0)
    for name, value in theta.items():
        if value.is_floating_point() and name != "logit_scale":
            noise = torch.randn(value.shape, generator=generator)
            theta[name] = (value + 0.1 * (noise.abs() if name.endswith("running_var") else noise)).double()
    return model, {n: t.double() if t.is_floating_point() else t for n, t in theta.items()}


def toy_probe(model, theta, device, dtype, mode="stored", batch=8):
    """(probe, theta with its head) of random images on a device."""
    import numpy as np
    import torch

    from sharpscope.clip.datasets.dataset import Dataset, Memory
    from sharpscope.clip.head import Classifier
    from sharpscope.clip.probe import Probe

    names = ("cup", "key", "fish")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, *model.image_size), dtype=np.uint8)
    data = Dataset(
        "toy", names, torch.arange(20) % 3, Memory(torch.from_numpy(pixels)), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    classifier = Classifier(model, mode, names)
    full = classifier.attach(theta)
    return Probe(classifier, data, size=20, batch_size=batch, device=device, dtype=dtype), on(full, dtype, device)


def products_of(probe, theta, layers, count=2, **how):
    """{layer: H V} for fixed random V, and the engine."""
    import torch

    from sharpscope.curvature.hvp import HessianEngine

    blocks = {"(all)": [n for x in layers for n in x.params]} | {x.name: x.params for x in layers}
    engine = HessianEngine(probe, theta, blocks, **how)
    requests = {}
    for i, (name, spec) in enumerate(engine.blocks.items()):
        v = torch.randn(spec.size, count, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        requests[name] = v.to(engine.device, engine.dtype)
    return engine.products(requests), engine


def worst(ours, truth):
    """The layer with the largest relative difference of its products, and that."""
    found = {n: gap(ours[n], truth[n]) for n in truth}
    layer = max(found, key=found.get)
    return {"worst": found[layer], "layer": layer}


def part_products(out, options):
    import torch

    import sharpscope
    from sharpscope.curvature.arithmetic import in_precision, precision_error, second_order
    from sharpscope.curvature.measures.registry import measure_layers
    from sharpscope.curvature.measures.rows import MeasureSettings
    from sharpscope.curvature.operator import check_symmetric
    from sharpscope.vocabulary import MEASURES

    size, batch = (24, 16) if options.quick else (64, 40)  # ragged batches
    pair = sharpscope.load_pair("mini:zeroshot", "mini:failure", model="mini")
    data = sharpscope.load_dataset("mini:photo", model=pair.model, split="train", classnames=pair.classifier.classnames)
    layers = pair.layers("module")

    def probe(dtype, device, half=1):
        return sharpscope.Probe(
            pair.classifier, data, size=size // half, batch_size=batch // half, device=device, dtype=dtype
        )

    def theta(dtype, device, alpha=0.4):
        return on(pair.path(dtype).at(alpha), device=device)

    f32, f64 = torch.float32, torch.float64
    exact = lambda limit: lambda n: not n["worst"] <= limit  # noqa: E731

    def reference():
        with second_order():
            truth, engine = products_of(probe(f64, "cpu"), theta(f64, "cpu"), layers)
        kept = (truth, engine.gradient("(all)"), engine.loss, engine.graph_bytes)
        return {"_value": kept, "layers": len(truth), "parameters": engine.blocks["(all)"].size, "loss": engine.loss}

    made = out.check("reference on the CPU, float64", reference, limit=60)
    if made is None:
        return
    truth, gradient, loss, graph = made

    def against(dtype, device=None, precision="full", **how):
        device = device or DEVICE

        def work():
            with second_order(tf32=precision == "tf32"):
                p, at = probe(dtype, device), theta(dtype, device)
                rough = in_precision(p, precision, at)
                found, engine = products_of(rough, at, layers, **how)
                ones = torch.ones(engine.blocks["(all)"].size, 1, dtype=engine.dtype, device=engine.device)
                again, twice = (engine.products({"(all)": ones})["(all)"] for _ in range(2))
                asymmetry = check_symmetric(engine.operator("(all)"), torch.Generator().manual_seed(1), rtol=1.0)
            return {
                **worst(found, truth),
                "gradient": gap(engine.gradient("(all)"), gradient),
                "loss": abs(engine.loss - loss) / abs(loss),
                "same_bits_twice": bool(torch.equal(again, twice)),
                "asymmetry": asymmetry,
                "tapped": len(engine.by_example(0)),
                "analytic": engine.analytic,
                "plan": str(engine.plan),
            }

        return work

    out.check("float64, every layer", against(f64), bad=exact(1e-9))
    out.check("float64, torch's own formulas", against(f64, analytic=False), bad=exact(1e-9))
    out.check("float64, graphs rebuilt", against(f64, memory=int(1.7 * graph)), bad=exact(1e-9))
    out.check("float64, batches cut", against(f64, memory=int(0.8 * graph)), bad=exact(1e-9))
    out.check("float32", against(f32), bad=exact(1e-3))
    out.check("float32 on the CPU", against(f32, "cpu"))
    out.check("float32, torch's own formulas", against(f32, analytic=False), bad=exact(1e-3))
    out.check("tf32", against(f32, precision="tf32"), bad=exact(0.05))
    out.check("bf16", against(f32, precision="bf16"), bad=exact(0.3))

    def errors():
        p, at = probe(f32, DEVICE), theta(f32, DEVICE)
        blocks = {"(all)": [n for x in layers for n in x.params]} | {x.name: x.params for x in layers}
        return {k: max(precision_error(p, at, blocks, k).values()) for k in ("tf32", "bf16")}

    out.check("precision_error", errors)

    def divisible():
        from sharpscope.curvature.operator import Divisible

        p = probe(f32, DEVICE)
        kinds = {k: isinstance(in_precision(p, k, theta(f32, DEVICE)), Divisible) for k in ("full", "tf32", "bf16")}
        return {"divisible": kinds, "python": platform.python_version()}

    out.check("an objective in bf16 can be cut", divisible, bad=lambda n: not all(n["divisible"].values()))

    def same_engine():
        with second_order():
            a, _ = products_of(probe(f32, DEVICE), theta(f32, DEVICE), layers, 1)
            b, _ = products_of(probe(f32, DEVICE), theta(f32, DEVICE), layers, 1)
        return {"same_bits": all(torch.equal(a[n], b[n]) for n in a), **worst(a, b)}

    out.check("two engines, float32: the same bits", same_engine, bad=lambda n: not n["same_bits"])

    def rebuilt():
        with second_order():
            a, _ = products_of(probe(f32, DEVICE), theta(f32, DEVICE), layers, 1)
            b, engine = products_of(probe(f32, DEVICE), theta(f32, DEVICE), layers, 1, memory=int(0.85 * graph))
        return {"same_bits": all(torch.equal(a[n], b[n]) for n in a), **worst(a, b), "plan": str(engine.plan)}

    out.check("graphs rebuilt, float32: the same bits", rebuilt, bad=lambda n: not n["same_bits"])

    def nested():
        """A loss that holds a gradient: the written-out kernels say no from inside the backward pass, and torch's own
        formulas run.
        """
        found = []
        for device in ("cpu", DEVICE):

            class Penalty:
                inner = probe(f64, device, 2)
                weights = inner.weights

                def batch_loss(self, i, at):
                    loss = self.inner.batch_loss(i, at)
                    moving = [t for n, t in at.items() if t.requires_grad and t.ndim > 1][:2]
                    return loss + sum(g.square().sum() for g in torch.autograd.grad(loss, moving, create_graph=True))

            with second_order():
                found.append(products_of(Penalty(), theta(f64, device), layers[:3], 1))
        return {**worst(found[1][0], found[0][0]), "analytic": found[1][1].analytic}

    out.check(
        "a loss that holds a gradient, float64", nested, bad=lambda n: not n["worst"] <= 1e-9 or n["analytic"], limit=30
    )

    def losses():
        """Losses outside second_order: a study's path and single layers. cuDNN convolutions use TF32 there unless
        somebody forbids it.
        """
        p, at = probe(f32, DEVICE), theta(f32, DEVICE)
        outside = p.sample_losses(at).double().cpu()
        with second_order():
            inside = p.sample_losses(at).double().cpu()
        full = probe(f64, "cpu").sample_losses(theta(f64, "cpu"))
        return {"outside": gap(outside, full), "inside": gap(inside, full), "worst": gap(outside, full)}

    out.check("losses outside second_order, float32", losses, bad=exact(2e-5))

    def notebook():
        torch.manual_seed(0)
        nn = torch.nn
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 5)
        ).double()
        x, y = torch.randn(24, 3, 8, 8).double(), torch.arange(24) % 5
        found = []
        for device in ("cpu", DEVICE):
            net = net.to(device)
            batches = [(x[:16].to(device), y[:16].to(device)), (x[16:].to(device), y[16:].to(device))]
            loss = lambda net, b: torch.nn.functional.cross_entropy(net(b[0]), b[1])  # noqa: E731
            what = ("hessian_trace", "lambda_max", "ggn_trace", "sharpness_max")
            found.append(
                sharpscope.layer_curvature(
                    net, loss, batches, logits=lambda net, b: (net(b[0]), b[1]), rtol=0.1, measures=what
                )
            )
        d = ((found[1].estimate - found[0].estimate).abs() / found[0].estimate.abs().clip(lower=1e-9)).max()
        return {"worst": d, "statuses": sorted(set(found[1].status))}

    out.check(
        "layer_curvature of a convolutional net, float64",
        notebook,
        bad=lambda n: not n["worst"] <= 1e-6,
        limit=40,
        needs=3,
    )

    # Every measure with the same seeds in float64: the random numbers are the host's on every device.
    few = [x for x in layers if x.tower != "scale"]
    few = few[:: max(len(few) // 3, 1)] if not options.quick else few[:2]

    def rows(device, dtype, measures, alpha=0.4, warm=None, **how):
        settings = MeasureSettings(rtol=0.1, max_matvecs=12, noise_samples=2, pgd_steps=4, **how)
        return measure_layers(probe(dtype, device, 2), theta(dtype, device, alpha), few, measures, settings, warm=warm)

    def compared(ours, theirs):
        worst_of, spent, size = {}, 0, {}
        for b in theirs.rows:
            if math.isfinite(b["estimate"]):
                size[b["measure"]] = max(size.get(b["measure"], 1e-9), abs(b["estimate"]))
        for a, b in zip(ours.rows, theirs.rows, strict=True):
            scale = max(abs(b["estimate"]), 1e-6 * size.get(b["measure"], 1.0))  # what is zero but for rounding is zero
            d = abs(a["estimate"] - b["estimate"]) / scale
            if not math.isfinite(b["estimate"]):
                d = 0.0 if a["status"] == b["status"] else math.inf
            worst_of[a["measure"]] = max(worst_of.get(a["measure"], 0.0), d)
            spent += a["num_matvecs"] != b["num_matvecs"]
        failed = sorted({f"{r['layer']} {r['measure']}: {r['note']}" for r in ours.rows if r["status"] == "failed"})
        return {
            "worst": max(worst_of.values()),
            "by_measure": worst_of,
            "other_number_of_products": spent,
            "failed": failed,
        }

    def measure(name, measures, limit=1e-6, **how):
        def work():
            theirs = rows("cpu", f64, measures, **how)
            ours, seconds = once(lambda: rows(DEVICE, f64, measures, **how))
            return {**compared(ours, theirs), "device_s": seconds}

        out.check(name, work, bad=lambda n: not n["worst"] <= limit or n["failed"], limit=30, needs=4)

    everything = tuple(MEASURES)

    def reference_rows():
        theirs, seconds = once(lambda: rows("cpu", f64, everything))
        return {"_value": theirs, "rows": len(theirs.rows), "cpu_s": seconds}

    theirs = out.check("every measure on the CPU, float64", reference_rows, limit=45)
    if theirs is not None:
        close = lambda n: not n["worst"] <= 1e-5 or n["failed"]  # noqa: E731
        out.check(
            "every measure, float64", lambda: compared(rows(DEVICE, f64, everything), theirs), bad=close, limit=45
        )
        out.check(
            "every measure, float32 against float64", lambda: compared(rows(DEVICE, f32, everything), theirs), limit=45
        )
    measure(
        "traces and an eigenvalue, graphs rebuilt, float64",
        ("hessian_trace", "weighted_trace", "lambda_max"),
        memory=int(0.85 * graph),
    )
    measure("trace_method controlled, float64", ("hessian_trace", "weighted_trace"), trace_method="controlled")

    def followed():
        found = []
        for device in ("cpu", DEVICE):
            first = rows(device, f64, ("lambda_max", "lambda_min"), 0.4)
            found.append(rows(device, f64, ("lambda_max", "lambda_min"), 0.45, warm=first.warm))
        return compared(found[1], found[0])

    out.check(
        "eigenvectors followed along alpha, float64", followed, bad=lambda n: not n["worst"] <= 1e-5, limit=40, needs=4
    )

    def density():
        from sharpscope.curvature.measures.density import measure_density

        how = MeasureSettings(density_steps=8, density_runs=2)
        found = [
            measure_density(probe(f64, d), theta(f64, d), few, ["(all)", few[0].name], how) for d in ("cpu", DEVICE)
        ]
        pairs = list(zip(*found, strict=True))
        return {
            "worst": max(
                abs(a["density"] - b["density"]) / max(b["density"], 1e-9) for b, a in pairs if b["density"] > 1e-6
            ),
            "rows": len(pairs),
        }

    out.check("spectral density, float64", density, limit=30, needs=3)
    for method in ("xtrace", "hutchpp", "hutchinson"):
        measure(f"trace_method {method}, float64", ("hessian_trace", "weighted_trace"), trace_method=method)

    # What comes before a loss: text towers on the path, other architectures, convolutions, dense batch shapes.
    with tempfile.TemporaryDirectory() as folder:
        for kind in TINY:
            for mode in ("stored", "text") if kind in ("vit", "customtext") else ("stored",):

                def architecture(kind=kind, mode=mode):
                    model, start = tiny_model(kind, folder)
                    found = []
                    for device in ("cpu", DEVICE):
                        p, at = toy_probe(model, start, device, f64, mode)
                        names = p.classifier.parameters(at)
                        parts = sharpscope.layers.split_layers({n: at[n].shape for n in names}, "module")
                        with second_order():
                            got, engine = products_of(p, at, parts)
                        found.append(got)
                    single, at = toy_probe(model, start, DEVICE, f32, mode)
                    with second_order():
                        rough, _ = products_of(single, at, parts)
                    single = worst(rough, found[0])["worst"]
                    return {
                        **worst(found[1], found[0]),
                        "float32": single,
                        "tapped": len(engine.by_example(0)),
                        "parameters": len(names),
                    }

                import sharpscope.layers

                out.check(f"{kind}, head {mode}, float64", architecture, bad=exact(1e-9), limit=30)

    def graphed():
        with second_order():
            return captured(lambda: products_of(probe(f32, DEVICE), theta(f32, DEVICE), layers, 1)[1], "(all)")

    out.check("a product as a CUDA graph, mini", graphed, limit=20)


# ---------------------------------------------------------------------- a whole study
def study(device, folder, quick):
    """The demo's study on a device at three alphas; quick: a corner of it."""
    from sharpscope.study.demo import demo_config
    from sharpscope.study.run import run

    config = dataclasses.replace(demo_config(), device=device, alphas=(0.0, 0.5, 1.0))
    if device != "cpu":  # launches bound models of this size: several processes on one GPU
        config = dataclasses.replace(config, jobs=6)
    if quick:
        config = dataclasses.replace(
            config,
            ood=config.ood[:1],
            limit=64,
            probe_size=24,
            batch_size=24,
            bootstrap=100,
            measures=("hessian_trace", "lambda_max", "lambda_abs", "sharpness_avg"),
            shipped_pairs=False,
            perturbation_alphas=(0.5,),
            jobs=1,
            pairs=config.pairs[:1],
            layer_alphas=(0.0, 1.0),
            criticality_noise=(0.5,),
        )
    start = time.perf_counter()
    finished = run(config, folder)
    print(json.dumps({"seconds": time.perf_counter() - start, "failed": list(finished.failed_units)}))


def environment(options):
    """The environment of a process that imports this repository."""
    folders = [str(options.repo), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(f for f in folders if f), "MPLBACKEND": "Agg"}


def study_process(device, folder, options, threads=None):
    env = environment(options)
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, str(HERE), "--study", str(folder), "--study-device", device, "--repo", str(options.repo)]
    command += ["--quick"] * options.quick
    log = Path(str(folder) + ".log").open("w")  # noqa: SIM115 (the child process owns it)
    return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=options.repo)


def part_demo(out, options):
    import pandas as pd

    from sharpscope.tables.schema import KEYS

    ours, theirs = Path(options.work) / "study_device", Path(options.work) / "study_cpu"

    def run():
        process = study_process(DEVICE, ours, options)
        try:
            code = process.wait(timeout=max(out.left - 5, 5))
        except subprocess.TimeoutExpired:
            said = Path(str(ours) + ".log").read_text().strip().splitlines()
            raise RuntimeError(f"not finished; done: {unit_times(ours)}\n" + "\n".join(said[-8:])) from None
        finally:
            if process.poll() is None:
                process.kill()
        said = Path(str(ours) + ".log").read_text().strip().splitlines()
        times = unit_times(ours)
        if code:
            raise RuntimeError("the study failed: " + "\n".join(said[-15:]))
        return {"said": said[-1][-300:], "seconds_by_kind": times}

    finished = out.check("study on the device", run, limit=150, bad=lambda n: '"failed": []' not in n["said"])

    def reference():
        while not (theirs / "report.html").exists() and out.left > 8:
            if (Path(options.work) / "study_cpu.failed").exists():
                break
            time.sleep(1)
        text = Path(str(theirs) + ".log").read_text().strip().splitlines()
        if not (theirs / "report.html").exists():
            raise RuntimeError("no study on the CPU to compare with: " + "\n".join(text[-8:]))
        time.sleep(1)
        return {"said": (text or [""])[-1][-200:], "seconds_by_kind": unit_times(theirs)}

    compared = out.check("study on the CPU, begun at the start", reference, limit=150)

    def table(name):
        def work():
            a, b = (pd.read_csv(f / "tables" / f"{name}.csv") for f in (ours, theirs))
            keys = [k for k in KEYS[name] if k in a and k in b]
            a, b = (t.set_index(keys).sort_index() for t in (a, b))
            common = a.index.intersection(b.index)
            numbers = {}
            for column in [c for c in a.columns if c in b]:
                x, y = a.loc[common, column], b.loc[common, column]
                if pd.api.types.is_numeric_dtype(x) and pd.api.types.is_numeric_dtype(y) and x.dtype != bool:
                    d = ((x.astype(float) - y.astype(float)).abs() / y.astype(float).abs().clip(lower=1e-9)).to_numpy()
                    d = d[[math.isfinite(v) for v in d]]
                    if len(d) and d.max() > 0:
                        d.sort()
                        p95 = d[int(0.95 * (len(d) - 1))]
                        numbers[column] = {
                            "median": d[len(d) // 2],
                            "p95": p95,
                            "max": d[-1],
                            "above_1e-3": int((d > 1e-3).sum()),
                        }
                else:
                    other = int((x.fillna("").astype(str) != y.fillna("").astype(str)).sum())
                    if other:
                        numbers[column] = {"other": other}
            return {"rows": len(a), "rows_cpu": len(b), "common": len(common), "differences": numbers}

        return work

    if finished is not None and compared is not None:
        for path in sorted((ours / "tables").glob("*.csv")):
            out.check(f"table {path.stem}", table(path.stem), bad=lambda n: n["rows"] != n["rows_cpu"])

        def verdicts():
            a, b = (pd.read_csv(f / "tables" / "verdicts.csv") for f in (ours, theirs))
            return {"device": list(a.verdict), "cpu": list(b.verdict), "same": list(a.verdict) == list(b.verdict)}

        out.check("verdicts", verdicts, bad=lambda n: not n["same"])
        with zipfile.ZipFile(out.folder / "tables.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for label, folder in (("device", ours), ("cpu", theirs)):
                for path in [*(folder / "tables").glob("*.csv"), folder / "manifest.json", folder / "log.jsonl"]:
                    if path.exists():
                        file.write(path, f"{label}/{path.name}")

    def again():
        """The same study once more on the device: the same bits?"""
        second = Path(options.work) / "study_again"
        process = study_process(DEVICE, second, options)
        try:
            code = process.wait(timeout=max(out.left - 3, 5))
        finally:
            if process.poll() is None:
                process.kill()
        if code:
            raise RuntimeError(Path(str(second) + ".log").read_text()[-500:])
        same = {
            p.stem: p.read_bytes() == (second / "tables" / p.name).read_bytes() for p in (ours / "tables").glob("*.csv")
        }
        return {"same_bytes": same, "all": all(same.values())}

    if finished is not None:
        seconds = (
            sum(finished["seconds_by_kind"].values())
            if isinstance(finished, dict) and "seconds_by_kind" in finished
            else 60
        )
        out.check(
            "the study again, the same bits",
            again,
            limit=120,
            needs=min(seconds, 60) * 0.7 + 10,
            bad=lambda n: not n["all"],
        )


def unit_times(folder):
    found = {}
    path = Path(folder) / "log.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError):
            event = json.loads(line)
            if event["event"] == "unit":
                kind = event["key"].split("/")[0]
                found[kind] = found.get(kind, 0.0) + event["seconds"]
    return found


# ---------------------------------------------------------------------- ViT-B-32
SMALL = {"embed_dim": 32, "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
         "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}  # fmt: skip


def big_model(name, options, folder):
    """The open_clip model of that name; quick: a small one with the same parts."""
    from sharpscope.clip.model import ClipModel

    if not options.quick:
        return name, ClipModel.load(name)
    path = Path(folder) / "small.json"
    path.write_text(json.dumps(SMALL))
    return str(path), ClipModel.load(str(path))


def random_theta(model, device, seed=0):
    """Weights of the right sizes, drawn on the device: nothing is initialised on the host."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    theta = {}
    for name, shape in model.shapes.items():
        t = (
            torch.randn(shape, generator=generator, device=device)
            if len(shape) > 1
            else torch.zeros(shape, device=device)
        )
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        if name.endswith(("proj",)) and len(shape) == 2 and "weight" not in name:
            fan = shape[0]
        theta[name] = (
            t / math.sqrt(fan) if len(shape) > 1 else t + 1 if ("ln" in name and name.endswith("weight")) else t
        )
        if name == "logit_scale":
            theta[name] = torch.full(shape, math.log(20.0), device=device)
    return theta


def make_images(folder, count, classes, size, shift=0):
    """``count`` JPEGs of a pattern for each class under noise, in class folders; ``shift``: further from the pattern
    and other noise."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    patterns = rng.normal(0, 1, (classes, 8, 8, 3))

    def one(i):
        own = np.random.default_rng(i + 1 + 1_000_000 * shift)
        coarse = 128 + 50 * (patterns[i % classes] + (1 + 0.5 * shift) * own.normal(0, 1, (8, 8, 3)))
        picture = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noisy = np.asarray(picture, dtype=np.int16) + own.integers(-20, 21, (size[1], size[0], 3))
        target = Path(folder) / f"class {i % classes:02d}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(target / f"{i:05d}.jpg", quality=85)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))


def part_vit_b(out, options):
    import torch
    from torch.nn import functional as F  # noqa: N812

    import sharpscope
    from sharpscope.clip.answering import answers
    from sharpscope.clip.head import Classifier
    from sharpscope.curvature import draws, eigen
    from sharpscope.curvature.arithmetic import in_precision, precision_error, second_order
    from sharpscope.curvature.hvp import HessianEngine
    from sharpscope.curvature.measures import solving
    from sharpscope.curvature.measures.registry import measure_layers
    from sharpscope.curvature.measures.rows import MeasureSettings

    work = tempfile.TemporaryDirectory()
    count, classes, batch, steps = (
        (48, 4, 16, 4) if options.quick else (options.images, 20, min(options.batch, max(options.images // 2, 4)), 24)
    )
    if options.cpu and not options.quick:
        classes, steps = 4, 1
    name, model = big_model("ViT-B-32", options, work.name)
    names = [f"class {i:02d}" for i in range(classes)]
    images = Path(work.name) / "images"
    kept = {}

    def folder():
        make_images(images, count, classes, (64, 48) if options.quick else (320, 256))
        return {"images": count}

    out.check("images are made", folder, limit=40)

    def decoded():
        data, seconds = once(lambda: sharpscope.load_dataset(f"folder:{images}", model=model, split="train"))
        kept["data"] = data
        return {"images_per_s": count / seconds, "cores": os.cpu_count()}

    out.check("images decoded", decoded, limit=60)
    if "data" not in kept:
        return

    def weights():
        theta, seconds = once(lambda: model.init(0))
        classifier = Classifier(model, "zeroshot", names)
        full, text_s = once(lambda: classifier.attach(on(theta)))
        parts = [(x.to(DEVICE), y.to(DEVICE)) for x, y in kept["data"].batches(batch)]
        params = {
            n: t.clone().requires_grad_() for n, t in full.items() if n.startswith("visual.") and t.is_floating_point()
        }
        ends, lost, spent = [], [], 0.0
        for shift, rate in ((1, 3e-4), (0, 1e-4)):
            optimizer = torch.optim.AdamW(params.values(), lr=rate)

            def train(shift=shift, optimizer=optimizer):
                for step in range(steps):
                    x, y = parts[step % len(parts)]
                    optimizer.zero_grad()
                    loss = F.cross_entropy(classifier.logits({**full, **params}, x), (y + shift * (y % 2)) % classes)
                    loss.backward()
                    optimizer.step()
                lost.append(float(loss.detach()))

            spent += once(train)[1]
            ends.append({**theta, **{n: p.detach().cpu().clone() for n, p in params.items()}})
        kept["ends"] = ends
        kept["pair"], loaded_s = once(
            lambda: sharpscope.load_pair(*ends, model=name, classnames=names, head="zeroshot", name="synthetic")
        )
        pace = 2 * steps / spent
        return {
            "init_s": seconds,
            "text_head_s": text_s,
            "training_steps_per_s": pace,
            "losses": lost,
            "load_pair_s": loaded_s,
            **memory(),
        }

    out.check("weights: drawn, trained a little", weights, limit=240 if options.cpu else 90)
    if "pair" not in kept:
        return
    pair = kept["pair"]
    path = pair.path()
    layers = pair.layers("block")
    everything = [n for x in layers for n in x.params]

    def placed():
        theta, at_s = once(lambda: path.at(0.5))
        _, to_s = once(lambda: on(theta))
        return {"theta_on_host_s": at_s, "to_device_s": to_s, "parameters": sum(t.numel() for t in theta.values())}

    out.check("a point of the path", placed)

    def probed():
        kept["probe"], seconds = once(
            lambda: sharpscope.Probe(pair.classifier, kept["data"], size=count, batch_size=batch, device=DEVICE)
        )
        return {"seconds": seconds, **memory()}

    out.check("probe", probed)
    probe, theta = kept["probe"], on(path.at(0.5))
    first = probe.rebatched(batch)
    first.batches, first.weights, first.n = probe.batches[:1], (1.0,), len(probe.batches[0][1])
    blocks = {"(all)": everything} | {x.name: x.params for x in layers}

    def costs(precision):
        def timed():
            empty()
            memory()
            rough = in_precision(first, precision, theta)
            params = {n: theta[n].clone().requires_grad_() for n in everything}
            full = {**theta, **params}

            def gradient():
                torch.autograd.grad(rough.batch_loss(0, full), list(params.values()))

            fast = clock(gradient)
            with second_order(tf32=precision == "tf32"):
                plain_s = clock(gradient)
                unit = min(fast, plain_s)
                engine, build = once(lambda: HessianEngine(rough, theta, blocks))
                again = clock(lambda: HessianEngine(rough, theta, {"(all)": everything}), 1, 0)
                held = memory()
                v = {
                    n: torch.ones(s.size, 1, dtype=engine.dtype, device=engine.device) for n, s in engine.blocks.items()
                }
                whole = clock(lambda: engine.products({"(all)": v["(all)"]}))
                sweep = clock(lambda: [engine.products({n: x}) for n, x in v.items() if n != "(all)"], 2)
                last = clock(lambda: engine.products({layers[-1].name: v[layers[-1].name]}))
            return {
                "gradient_s": unit,
                "gradients_per_s": 1 / unit,
                "images_per_s": batch / unit,
                "gradient_with_second_order_s": plain_s,
                "build_s": build,
                "rebuild_s": again,
                "hvp_s": whole,
                "hvp_in_gradients": whole / unit,
                "sweep_s": sweep,
                "sweep_in_gradients": sweep / unit,
                "last_layer_s": last,
                "layers": len(layers),
                "graph_gib": engine.graph_bytes / 2**30,
                "held": held,
                "peak_gib": memory().get("peak_gib"),
            }

        return timed

    for precision in ("full", "tf32", "bf16"):
        out.check(f"gradient, product and sweep, {precision}", costs(precision), limit=45)

    def rough_errors():
        some = {"(all)": everything} | {x.name: x.params for x in layers[::4]}
        return {p: max(precision_error(first, theta, some, p).values()) for p in ("tf32", "bf16")}

    out.check(
        "error of a product in less precision",
        rough_errors,
        limit=30,
        bad=lambda n: not (n["tf32"] <= 0.1 and n["bf16"] <= 0.5),
    )

    def profiled():
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
        with second_order():
            engine = HessianEngine(first, theta, {"(all)": everything})
            v = torch.ones(engine.blocks["(all)"].size, 1, dtype=engine.dtype, device=engine.device)
            engine.products({"(all)": v})
            with profile(activities=kinds) as seen:
                engine.products({"(all)": v})
                synchronize()
        rank = "self_cuda_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
        table = seen.key_averages().table(sort_by=rank, row_limit=40, max_name_column_width=60)
        (out.folder / "profile.txt").write_text(table)
        events = sorted(seen.key_averages(), key=lambda e: -getattr(e, "self_device_time_total", e.self_cpu_time_total))
        total = sum(getattr(e, "self_device_time_total", 0) for e in events) or sum(
            e.self_cpu_time_total for e in events
        )
        top = {e.key[:50]: getattr(e, "self_device_time_total", e.self_cpu_time_total) / total for e in events[:10]}
        kernels = sum(e.count for e in events if getattr(e, "self_device_time_total", 0))
        return {"kernels": kernels, "device_ms": total / 1e3, "top": top}

    out.check("profile of a product", profiled, limit=30)

    def probed_layers():
        """Milliseconds of one random direction for every layer on one batch: drawing it, and its tangent pass."""
        from sharpscope.curvature.operator import Probes

        generator, found = torch.Generator().manual_seed(0), {}
        with second_order(tf32=options.precision == "tf32"):
            rough = in_precision(first, options.precision, theta)
            engine, build = once(lambda: HessianEngine(rough, theta, {x.name: x.params for x in layers}, use="probes"))
            graph, forms = engine.graph(0), engine._forms
            for x in layers:
                seeds = partial(forms._seeds, graph, x.name, forms._signs(Probes(1, generator), ()), weighted=False)
                at = {slot: u.clone() for slot, u in seeds().items()}
                found[x.name] = {
                    "probe": 1e3 * clock(lambda x=x: engine.answer({"": (x.name, Probes(1, generator))})),
                    "drawn": 1e3 * clock(seeds),
                    "pass": 1e3 * clock(lambda at=at: graph.tangents.forms(at)) if at else 0.0,
                }
        return {"build_s": build, "sweep_ms": sum(f["probe"] for f in found.values()), "layers": found}

    out.check("a direction for every layer, one batch", probed_layers, limit=30, needs=5)

    # Where the time of a map goes, host work apart: what the host draws, what it copies back.
    spent = {}

    def watch(module, attribute, label, wait=True):
        real = getattr(module, attribute)

        def timed(*args, **more):
            if wait:
                synchronize()
            start = time.perf_counter()
            try:
                return real(*args, **more)
            finally:
                if wait:
                    synchronize()
                spent[label] = spent.get(label, 0.0) + time.perf_counter() - start

        setattr(module, attribute, timed)
        return lambda: setattr(module, attribute, real)

    def traced():
        undo = watch(draws, "_words", "words on the host", False)
        spent.clear()
        try:
            settings = MeasureSettings(rtol=0.1, max_matvecs=12, memory=budget())
            few = probe.rebatched(batch)
            few.batches = probe.batches[:2]
            few.n = sum(len(y) for _, y in few.batches)
            few.weights = tuple(len(y) / few.n for _, y in few.batches)
            result, seconds = once(lambda: measure_layers(few, theta, layers, ("hessian_trace",), settings, key=("t",)))
        finally:
            undo()
        of = [r for r in result.rows if r["layer"] != "(all)"]
        done = sum(r["converged"] for r in of) / len(of)
        return {
            "map_s": seconds,
            "products": [r["num_matvecs"] for r in of],
            "converged": done,
            "host": dict(spent),
            "plan": result.facts,
            **memory(),
        }

    out.check("traces to 10 %, every block, two batches, at most 12 products", traced, limit=45, needs=5)

    def traced_by(method):
        def work():
            settings = MeasureSettings(
                rtol=0.1, max_matvecs=60, memory=budget(), trace_method=method, precision=options.precision
            )
            call = partial(measure_layers, probe, theta, layers, ("hessian_trace",), settings, key=("t",))
            result, seconds = once(call)
            of = [r for r in result.rows if r["layer"] != "(all)"]
            return {
                "map_s": seconds, "products": [r["num_matvecs"] for r in of], "plan": result.facts,
                "estimates": [r["estimate"] for r in of], "stderrs": [r["stderr"] for r in of],
                "converged": sum(r["converged"] for r in of) / len(of), **memory(),
            }  # fmt: skip

        return work

    for method in ("per_example", "controlled"):
        out.check(f"one alpha of traces, {method}", traced_by(method), limit=60, needs=15)

    def evaluated():
        data = kept["data"]
        found = {}
        for label in ("first", "second"):
            given, seconds = once(lambda: answers(pair.classifier, theta, data, batch, torch.device(DEVICE)))
            found[f"{label}_images_per_s"] = count / seconds
        loaded = [(x.to(DEVICE), y) for x, y in data.batches(batch)]
        with torch.inference_mode():
            model_s = clock(lambda: [pair.classifier.logits(theta, x) for x, _ in loaded])
            with torch.autocast(DEVICE, torch.bfloat16):
                half_s = clock(lambda: [pair.classifier.logits(theta, x) for x, _ in loaded])
        _, host_s = once(lambda: [x for x, _ in data.batches(batch)])
        _, copy_s = once(lambda: [x.to(DEVICE) for x in [b for b, _ in data.batches(batch)]])
        return {
            **found,
            "model_alone_images_per_s": count / model_s,
            "bf16_images_per_s": count / half_s,
            "batches_on_host_s": host_s,
            "batches_to_device_s": copy_s,
            "top1": float(given.correct.mean()),
        }

    out.check("evaluation", evaluated, limit=40)

    def mapped():
        undo = [
            watch(draws, "_words", "words on the host", False), watch(eigen, "random_unit", "start vectors"),
            watch(solving, "check_symmetric", "symmetry check"),
        ]  # fmt: skip
        real = eigen.RitzSpace.of.__func__

        def of(cls, *args):
            synchronize()
            start = time.perf_counter()
            try:
                return real(cls, *args)
            finally:
                synchronize()
                spent["Ritz vectors to the host"] = (
                    spent.get("Ritz vectors to the host", 0.0) + time.perf_counter() - start
                )

        eigen.RitzSpace.of = classmethod(of)
        how = {"precision": options.precision, "trace_method": options.trace_method}
        alphas, warm, total, what = (
            (3 if options.quick else 11),
            None,
            0.0,
            ("hessian_trace", "lambda_max", "lambda_abs"),
        )
        spent.clear()
        try:
            for k in range(alphas):
                if out.left < 12 and k:
                    break
                at, place_s = once(lambda k=k: on(path.at(k / (alphas - 1))))
                settings = MeasureSettings(rtol=0.1, max_matvecs=60, memory=budget(), **how)
                call = partial(measure_layers, probe, at, layers, what, settings, key=(k,), warm=warm)
                result, seconds = once(call)
                warm, total = result.warm, total + seconds + place_s
                spent["theta to the device"] = spent.get("theta to the device", 0.0) + place_s
                of_kind = {m: [r for r in result.rows if r["measure"] == m] for m in what}
                out.write(
                    f"map, alpha {k / (alphas - 1):.1f}", "ok", seconds=seconds,
                    products={m: sum(r["num_matvecs"] for r in rs) / len(rs) for m, rs in of_kind.items()},
                    converged={m: sum(r["converged"] for r in rs) / len(rs) for m, rs in of_kind.items()},
                    plan=result.facts, host={n: round(s, 2) for n, s in spent.items()},
                    failed=sum(r["status"] == "failed" for r in result.rows), **memory(),
                )  # fmt: skip
        finally:
            eigen.RitzSpace.of = classmethod(real)
            for back in undo:
                back()
            out.write("map, host work so far", "ok", host={n: round(s, 2) for n, s in spent.items()})
        return {"alphas": k + 1, "of": alphas, "total_s": total, **how, "host": dict(spent)}

    def perturbed():
        settings = MeasureSettings(rtol=0.1, noise_samples=2, pgd_steps=4)
        _, seconds = once(
            lambda: measure_layers(first, theta, layers[:3], ("sharpness_avg", "sharpness_max"), settings)
        )
        return {"seconds": seconds}

    out.check("sharpness at a finite radius, 3 blocks, one batch", perturbed, limit=30, needs=8)

    def graphed():
        with second_order():
            return captured(lambda: HessianEngine(first, theta, {layers[-2].name: layers[-2].params}), layers[-2].name)

    def studied():
        """README's ImageNet command on made files: what plan says of it, and how far it gets in the time."""
        first_end, second_end = Path(work.name) / "zeroshot.pt", Path(work.name) / "finetuned.pt"
        for path, end in zip((first_end, second_end), kept["ends"], strict=True):
            torch.save(end, path)
        sets = [Path(work.name) / name for name in ("id", "far", "farther")]
        for i, folder in enumerate(sets):
            make_images(
                folder, 24 if options.quick else 1000, classes, (64, 48) if options.quick else (320, 256), i + 1
            )
        words = ["--zeroshot", first_end, "--finetuned", second_end, "--model", name, "--head", "zeroshot"]
        words += ["--probe", f"folder:{images}", "--id", f"folder:{sets[0]}", "--granularity", "block"]
        words += ["--ood", *(f"folder:{x}" for x in sets[1:])]
        words += ["--device", DEVICE, "--precision", options.precision, "--trace-method", options.trace_method]
        words += (["--alphas", "0", "1", "--bootstrap", "100"] if options.quick else []) + options.flags.split()
        ours = Path(work.name) / "study"

        def told_by(command, file, seconds):
            start = time.perf_counter()
            line = [sys.executable, "-m", "sharpscope", command, *map(str, words), "--out", str(ours)]
            with (out.folder / file).open("w") as log:
                process = subprocess.Popen(
                    line, cwd=options.repo, env=environment(options), stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
                try:
                    code = process.wait(timeout=seconds)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    code = "stopped"
            return code, time.perf_counter() - start

        empty()
        code, seconds = told_by("plan", "plan.txt", max(min(out.left - 5, 120), 5))
        out.write("plan of the study", "ok" if code == 0 else "BAD", {"code": code, "seconds": seconds})
        code, seconds = told_by("run", "study.txt", max(out.left - 6, 5))
        return {"code": code, "run_s": seconds, "seconds_by_kind": unit_times(ours)}

    out.check(
        "the study of README's ImageNet command",
        studied,
        limit=max(out.left - 2, 12),
        needs=20,
        bad=lambda n: n["code"] not in (0, "stopped"),
    )
    out.check("layer map over the path: trace and eigenvalues to 10 %", mapped, limit=max(out.left - 8, 12), needs=12)
    out.check("a product of the last block as a CUDA graph", graphed, limit=20, needs=5)


# ---------------------------------------------------------------------- ViT-L-14, memory
class Loss:
    """Cross-entropy of an image tower with a random head, cut into batches as the engine likes."""

    def __init__(self, model, images, labels, head, batch_size):
        self.model, self.images, self.labels, self.head, self.batch_size = (
            model,
            images,
            labels,
            head,
            min(batch_size, len(labels)),
        )

    @property
    def batch_sizes(self):
        return [len(y) for y in self.labels.split(self.batch_size)]

    @property
    def weights(self):
        return [n / len(self.labels) for n in self.batch_sizes]

    def rebatched(self, size):
        return Loss(self.model, self.images, self.labels, self.head, size)

    def batch_labels(self, i):
        return self.labels.split(self.batch_size)[i]

    def batch_logits(self, i, theta):
        return 10 * self.model.encode_image(theta, self.images.split(self.batch_size)[i]) @ self.head.mT

    def batch_loss(self, i, theta):
        from torch.nn import functional as F  # noqa: N812

        return F.cross_entropy(self.batch_logits(i, theta), self.batch_labels(i))


def random_loss(model, count, batch, device, classes=20):
    import torch
    from torch.nn import functional as F  # noqa: N812

    generator = torch.Generator(device).manual_seed(1)
    images = torch.randn(count, 3, *model.image_size, generator=generator, device=device)
    labels = torch.randint(0, classes, (count,), generator=generator, device=device)
    width = model.config["embed_dim"]
    head = F.normalize(torch.randn(classes, width, generator=generator, device=device), dim=1)
    return Loss(model, images, labels, head, batch)


def part_vit_l(out, options):
    import torch

    from sharpscope.curvature.arithmetic import second_order
    from sharpscope.curvature.hvp import HessianEngine
    from sharpscope.curvature.measures.rows import MeasureSettings
    from sharpscope.layers import split_layers
    from sharpscope.machine.team import ALONE
    from sharpscope.study import compute as units
    from sharpscope.study.context import Budget

    work = tempfile.TemporaryDirectory()
    _, model = big_model("ViT-L-14", options, work.name)
    count, batch = (16, 8) if options.quick else (64, 64)
    kept = {}

    def placed():
        theta, seconds = once(lambda: {n: t for n, t in random_theta(model, DEVICE).items() if n.startswith("visual.")})
        kept["theta"] = theta
        kept["layers"] = split_layers({n: t.shape for n, t in theta.items()}, "block")
        return {
            "seconds": seconds,
            "parameters": sum(t.numel() for t in theta.values()),
            "layers": len(kept["layers"]),
            **memory(),
        }

    out.check("weights", placed)
    if "theta" not in kept:
        return
    theta, layers = kept["theta"], kept["layers"]
    everything = [n for x in layers for n in x.params]
    blocks = {"(all)": everything, layers[-2].name: layers[-2].params}

    def product(precision):
        def timed():
            from sharpscope.curvature.arithmetic import in_precision

            empty()
            memory()
            loss = random_loss(model, count, batch, DEVICE)
            with second_order(tf32=precision == "tf32"):
                rough = in_precision(loss, precision, theta)
                engine, build = once(lambda: HessianEngine(rough, theta, blocks, memory=budget()))
                built = memory()
                draw = torch.Generator(DEVICE).manual_seed(0)  # the map of the ones nearly cancels here
                v = torch.randint(0, 2, (engine.blocks["(all)"].size, 1), generator=draw, device=DEVICE) * 2.0 - 1
                hv, seconds = once(lambda: engine.products({"(all)": v})["(all)"])
                again = clock(lambda: engine.products({"(all)": v}), 1, 0)
            after = memory()
            counted = engine.plan.graph_bytes / 2**30
            kept[f"hv {precision}"] = hv.cpu()
            return {
                "plan": str(engine.plan),
                "build_s": build,
                "product_s": seconds,
                "product_again_s": again,
                "finite": bool(torch.isfinite(hv).all()),
                "graph_gib_counted": counted,
                "allocated_gib": built.get("allocated_gib"),
                "peak_building_gib": built.get("peak_gib"),
                "peak_product_gib": after.get("peak_gib"),
                "work_in_graphs": (after.get("peak_gib", 0) - built.get("allocated_gib", 0)) / counted
                if counted
                else None,
            }

        return timed

    out.check("memory and a product, float32", product("full"), limit=50, bad=lambda n: not n["finite"])
    out.check("memory and a product, bf16", product("bf16"), limit=40, needs=8)
    if "hv full" in kept and "hv bf16" in kept:
        out.check("error of the bf16 product", lambda: {"worst": gap(kept["hv bf16"], kept["hv full"])})

    def halved():
        """A budget far above what there is: a study halves it until it fits, and the numbers stay."""
        empty()
        loss = random_loss(model, count, batch, DEVICE)
        attempts = []
        real = units.measure_layers

        def counted(*args, **more):
            held = memory().get("allocated_gib")
            attempts.append({"memory_gib": args[4].memory / 2**30, "held_before_gib": held})
            return real(*args, **more)

        class Looked(types.SimpleNamespace):
            """What a measurement looks at of a study's context."""

            @property
            def settings(self):
                return MeasureSettings(memory=self.budget.bytes)

        # The first block alone needs the graph through all others.
        context = Looked(
            team_probe=loss, layers=[layers[1]], pair=types.SimpleNamespace(name="p"), theta=lambda alpha: theta,
            budget=Budget(20 * 2**30), team=ALONE, device=torch.device(DEVICE),
        )  # fmt: skip
        free = dataclasses.replace(context.settings, memory=budget())
        wanted = real(loss, theta, context.layers, ("gradient_curvature",), free)
        plan = wanted.facts
        units.measure_layers = counted
        try:
            if DEVICE == "cuda":
                empty()
                room = torch.cuda.memory_allocated() + (2**30 if options.quick else 10 * 2**30)
                torch.cuda.set_per_process_memory_fraction(min(room / torch.cuda.mem_get_info()[1], 1.0))
            (result, note), seconds = once(
                lambda: units._measure(context, 0.5, ("gradient_curvature",), {}, lambda what: None)
            )
        finally:
            units.measure_layers = real
            if DEVICE == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0)
        pairs = [(a["estimate"], b["estimate"]) for a, b in zip(result.rows, wanted.rows, strict=True)]
        return {
            "worst": max(abs(a - b) / abs(b) for a, b in pairs),
            "attempts": attempts,
            "note": note,
            "measured_s": seconds,
            "plan": result.facts,
            "plan_with_all_memory": plan,
            "statuses": sorted({r["status"] for r in result.rows}),
            **memory(),
        }

    out.check(
        "out of memory: the budget is halved",
        halved,
        limit=60,
        needs=10,
        bad=lambda n: not n["worst"] <= 1e-2 or n["statuses"] != ["ok"],
    )

    def drift():
        """What is free, before and after the allocator has kept a tensor's memory in reserve."""
        empty()
        found = [budget() / 2**30]
        x = torch.empty(2**20 if options.quick else 2**32, dtype=torch.uint8, device=DEVICE)
        del x
        found.append(budget() / 2**30)
        empty()
        drifted = abs(found[0] - found[1])
        return {
            "before_gib": found[0],
            "after_a_4_gib_tensor_came_and_went": found[1],
            "after_empty_cache": budget() / 2**30,
            "worst": drifted,
        }

    out.check("the memory budget does not drift", drift, bad=lambda n: n["worst"] > 0.1)


# ---------------------------------------------------------------------- training
def part_train(out, options):
    import torch

    import sharpscope
    from sharpscope.finetuning import fit as fit_module
    from sharpscope.finetuning.registry import METHODS

    kept = {}
    quick = {"model": "mini", "steps": 3, "batch_size": 16, "lr": 1e-3, "shots": 2, "progress": False}

    def tuned(method, device, **more):
        if method == "tpgm-project":
            more |= {"file": kept["tuned"]}
        more |= {"falls": "steps"} if method == "starft" else {}  # 0 in the last epoch, here the only one
        return sharpscope.finetune("mini:zeroshot", "mini:photo", method, device=device, **{**quick, **more})

    def compared(method):
        def work():
            (ours, seconds), theirs = once(lambda: tuned(method, DEVICE)), tuned(method, "cpu")
            d = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(ours.losses, theirs.losses, strict=True))
            moved = max(
                gap(ours.theta[n], t) for n, t in theirs.theta.items() if t.is_floating_point() and t.numel() > 1
            )
            right = [a for _, a in ours.accuracies]
            return {"worst": d, "weights": moved, "device_s": seconds, "losses": ours.losses, "accuracies": right}

        return work

    folder = tempfile.TemporaryDirectory()
    kept["tuned"] = str(Path(folder.name) / "tuned" / "wise-ft.safetensors")
    tuned("wise-ft", "cpu", out=Path(folder.name) / "tuned")
    chosen = list(METHODS)[:2] if options.quick else list(METHODS)
    for method in chosen:
        out.check(
            f"mini, {method}: losses as on the CPU", compared(method), limit=20, bad=lambda n: not n["worst"] <= 2e-3
        )
    for precision in ("bf16", "fp16"):
        half = lambda p=precision: {"losses": tuned("wise-ft", DEVICE, precision=p).losses}  # noqa: E731
        out.check(
            f"mini, wise-ft, {precision}", half, limit=20, bad=lambda n: not all(math.isfinite(x) for x in n["losses"])
        )

    def resumed():
        real = fit_module.train

        def stopped(*args, **how):
            after = how["after"]

            def interrupting(state):
                after(state)
                if state.step == 2:
                    raise KeyError("stop")

            return real(*args, **{**how, "after": interrupting})

        found = {}
        for precision in ("full", "fp16"):
            with tempfile.TemporaryDirectory() as folder:
                whole = tuned("wise-ft", DEVICE, out=Path(folder) / "whole", precision=precision)
                fit_module.train = stopped
                try:
                    with contextlib.suppress(KeyError):
                        tuned("wise-ft", DEVICE, out=Path(folder) / "part", checkpoint_every=1, precision=precision)
                finally:
                    fit_module.train = real
                part = tuned("wise-ft", DEVICE, out=Path(folder) / "part", checkpoint_every=1, precision=precision)
                found[precision] = all(torch.equal(whole.theta[n], part.theta[n]) for n in whole.theta)
        return {"same_bits": found}

    out.check(
        "interrupted and taken up: the same bits", resumed, limit=30, bad=lambda n: not all(n["same_bits"].values())
    )

    work = tempfile.TemporaryDirectory()
    name, model = big_model("ViT-B-32", options, work.name)
    count, classes, batch, steps = (32, 4, 16, 3) if options.quick else (512, 8, 128, 12)
    images = Path(work.name) / "images"

    def made():
        make_images(images, count, classes, (64, 48) if options.quick else (320, 256))
        kept["theta"] = {n: t.cpu() for n, t in random_theta(model, DEVICE).items()}
        return {"images": count}

    out.check("images and weights", made, limit=40)
    if "theta" not in kept:
        return

    def rate(method, precision, augment):
        def timed():
            empty()
            memory()
            times = []
            real = fit_module.train

            def watched(*args, **how):
                after = how["after"]

                def marking(state):
                    after(state)
                    synchronize()
                    times.append(time.perf_counter())

                return real(*args, **{**how, "after": marking})

            fit_module.train = watched
            try:
                how = {"model": name, "device": DEVICE, "precision": precision, "augment": augment, "progress": False}
                how |= {"batch_size": batch, "steps": steps, "lr": 1e-5}
                done, seconds = once(lambda: sharpscope.finetune(kept["theta"], f"folder:{images}", method, **how))
            finally:
                fit_module.train = real
            pace = (times[-1] - times[1]) / (len(times) - 2)
            lost = [done.losses[0], done.losses[-1]]
            return {
                "steps_per_s": 1 / pace,
                "images_per_s": batch / pace,
                "whole_s": seconds,
                "losses": lost,
                "peak_gib": memory().get("peak_gib"),
            }

        return timed

    kinds = [("wise-ft", p, False) for p in ("full", "bf16", "fp16")] + [
        ("wise-ft", "bf16", True),
        ("flyp", "bf16", False),
    ]
    for method, precision, augment in kinds:
        label = f"{method}, {precision}, batch {batch}{', random crops' if augment else ''}"
        out.check(label, rate(method, precision, augment), limit=30, needs=6)


# ---------------------------------------------------------------------- ranks of one torchrun
def part_ranks(out, options):
    """Units that two ranks on one GPU measure together (--split-units; words and sums over gloo), and NCCL's sums."""
    import pandas as pd
    import torch

    def nccl():
        import torch.distributed as dist

        from sharpscope.study.together import RankTeam

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            team = RankTeam(0, 1, torch.device(DEVICE))
            x = torch.arange(5.0, device=DEVICE)
            words, sums = team.combine("numbers", lambda: ((1, x[:2]), {"x": x}))
            return {
                "words": words, "sum": sums["x"].tolist(), "on": str(sums["x"].device),
                "over": str(team._tensors and team._tensors.name()),
            }  # fmt: skip
        finally:
            dist.destroy_process_group()

    out.check("sums of a team of one over NCCL", nccl, limit=20, bad=lambda n: n["sum"] != [0, 1, 2, 3, 4])

    def written(dtype, split):
        from sharpscope.config.study import PairConfig, StudyConfig
        from sharpscope.config.studyfile import dump

        some = {"measures": ("hessian_trace",), "probe_size": 6, "batch_size": 2, "alphas": (0.0, 1.0)}
        every = ("hessian_trace", "ggn_trace", "lambda_max", "sharpness_avg")
        most = {"measures": every, "probe_size": 96, "batch_size": 32, "alphas": (0.0, 0.5, 1.0), "noise_samples": 2}
        config = StudyConfig(
            pairs=(PairConfig("success", "mini:zeroshot", "mini:success"),), model="mini", probe="mini:photo",
            id=("mini:photo",), ood=("mini:sketch",), granularity="block", straggler_criterion="rewind", limit=16,
            layer_alphas=(0.0, 1.0), criticality_noise=(1.0,), targets=("delta",), repair_alphas=(0.5,), masks=1,
            repair_limit=8, bootstrap=20, max_matvecs=20, threads=1, dtype=dtype, device=DEVICE, split_units=split,
            **(some if options.quick else most),
        )  # fmt: skip
        path = Path(options.work) / f"ranks-{dtype}-{split}.yaml"
        path.write_text(dump(config))
        return path

    def runs():
        env = environment(options) | {"OMP_NUM_THREADS": "1"}
        started = {}
        for dtype in ("float64", "float32"):
            for split in (False, True):
                study_file, folder = written(dtype, split), Path(options.work) / f"ranks-{dtype}-{split}"
                launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if split else []
                command = [sys.executable, *launch, "-m", "sharpscope", "run", str(study_file), "--out", str(folder)]
                log = Path(str(folder) + ".log").open("w")  # noqa: SIM115 (the child process owns it)
                how = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
                started[folder] = subprocess.Popen(command, cwd=options.repo, env=env, **how)
        try:
            for folder, process in started.items():
                if code := process.wait(timeout=max(out.left - 4, 5)):
                    said = Path(str(folder) + ".log").read_text().strip().splitlines()
                    raise RuntimeError(f"{folder.name} ended with {code}: " + "\n".join(said[-15:]))
        finally:
            for process in started.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        found = {}
        for dtype in ("float64", "float32"):
            one, two = (pd.read_csv(Path(options.work) / f"ranks-{dtype}-{s}" / "tables" / "sharpness.csv")
                        for s in (False, True))  # fmt: skip
            keys = ["pair", "alpha", "layer", "measure"]
            both = one.merge(two, on=keys, suffixes=("", "_2"), validate="one_to_one")
            gaps = ((both.estimate_2 - both.estimate).abs() / both.estimate.abs().clip(lower=1e-12)).groupby(
                both.measure
            )
            found[dtype] = {"rows": [len(one), len(two), len(both)], "largest": gaps.max().to_dict(),
                            "other_products": int((both.num_matvecs != both.num_matvecs_2).sum())}  # fmt: skip
        return found

    def apart(found):
        return not max(found["float64"]["largest"].values()) <= 1e-9 or len(set(found["float64"]["rows"])) > 1

    out.check("two ranks on one GPU measure units together", runs, limit=110, needs=15, bad=apart)


# ---------------------------------------------------------------------- tests
def part_tests(out, options):
    def run(label, arguments, seconds):
        def work():
            env = environment(options) | {"OMP_NUM_THREADS": "2"}
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *arguments]
            how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
            process = subprocess.Popen(command, cwd=options.repo, env=env, **how)
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                said = (process.communicate()[0] or "") + f"\nstopped after {seconds:.0f} s"
            with (out.folder / "tests.txt").open("a") as file:
                file.write(f"==== {label}\n{said[-60000:]}\n")
            lines = said.strip().splitlines()
            return {
                "code": process.returncode,
                "last": (lines or [""])[-1],
                "failed": [x for x in lines if x.startswith(("FAILED", "ERROR"))][:20],
            }

        out.check(label, work, limit=seconds + 5, bad=lambda n: n["code"] not in (0, 5))

    marked = ["tests/laws/test_precision.py", "tests/laws/test_memory_laws.py", "-k", "gpu", "-rs"]
    run("tests that need a GPU", marked, min(60, max(out.left - 2, 5)))
    if options.quick:
        return
    spread = ["-n", "8", "--dist", "loadfile"]
    more = [
        "study/test_evaluating.py",
        "study/test_timing.py",
        "study/test_merging.py",
        "clip/test_probe.py",
        "clip/test_evaluate.py",
        "finetuning/test_run.py",
    ]
    if out.left > 25:
        arguments = [*(f"tests/{m}" for m in more), *spread, "--maxfail=30"]
        run("tests whose device is auto: they run on the GPU here", arguments, max(out.left - 5, 5))


# ---------------------------------------------------------------------- two processes
def sweeps(options, seconds):
    """How many sweeps of ViT-B-32's layers this process does in so long; prints JSON."""
    import torch

    from sharpscope.curvature.arithmetic import second_order
    from sharpscope.curvature.hvp import HessianEngine
    from sharpscope.layers import split_layers

    with tempfile.TemporaryDirectory() as folder:
        _, model = big_model("ViT-B-32", options, folder)
    theta = {n: t for n, t in random_theta(model, DEVICE).items() if n.startswith("visual.")}
    loss = random_loss(model, 32, 32, DEVICE)
    layers = split_layers({n: t.shape for n, t in theta.items()}, "block")
    asked = budget()
    with second_order():
        engine = HessianEngine(loss, theta, {x.name: x.params for x in layers}, memory=asked)
        v = {n: torch.ones(s.size, 1, device=DEVICE) for n, s in engine.blocks.items()}

        def sweep():
            for n, x in v.items():
                engine.products({n: x})
            synchronize()

        sweep()
        print("ready", flush=True)
        sys.stdin.readline()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            sweep()
            count += 1
        spent = time.perf_counter() - start
    print(
        json.dumps({"sweeps_per_s": count / spent, "budget_gib": asked / 2**30, "plan": str(engine.plan)}), flush=True
    )


def part_two(out, options):
    def run(count):
        def work():
            seconds = 2 if options.quick else 5
            flags = ["--quick"] * options.quick + ["--cpu"] * options.cpu
            command = [sys.executable, str(HERE), "--sweeps", str(seconds), "--repo", str(options.repo), *flags]
            how = {
                "env": environment(options),
                "cwd": options.repo,
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "text": True,
            }
            own = [subprocess.Popen(command, **how) for _ in range(count)]
            try:
                for p in own:
                    p.stdout.readline()
                for p in own:
                    p.stdin.write("go\n")
                    p.stdin.flush()
                said = [json.loads(p.stdout.readline()) for p in own]
                for p in own:
                    p.wait(timeout=20)
            finally:
                for p in own:
                    if p.poll() is None:
                        p.kill()
            rates = [s["sweeps_per_s"] for s in said]
            return {
                "sweeps_per_s": rates,
                "together": sum(rates),
                "budgets_gib": [s["budget_gib"] for s in said],
                "plan": said[0]["plan"],
            }

        return work

    alone = out.check("one process", run(1), limit=50)
    both = out.check("two processes on one device", run(2), limit=60)
    if alone and both:
        out.write("gain of a second process", "ok", factor=both["together"] / alone["together"])


# ---------------------------------------------------------------------- all of it
PARTS = {
    "env": (part_env, 30),
    "products": (part_products, 110),
    "demo": (part_demo, 115),
    "vit_b": (part_vit_b, 135),
    "vit_l": (part_vit_l, 60),
    "train": (part_train, 50),
    "ranks": (part_ranks, 60),
    "tests": (part_tests, 40),
    "two": (part_two, 25),
}
"""Seconds of each part; the time that a part leaves goes to the next one."""

NO_FORK, NO_DEVICE = 77, 78
"""Exit codes of a part that cannot reach the device from a forked process, and of one that cannot reach it at all."""


def child(name, options, until):
    """A part, in its own process."""
    import torch

    out = Out(options.out, name, until, options.checks)
    try:
        torch.ones(1, device=DEVICE) + 1
    except (RuntimeError, AssertionError) as error:
        if options.child is not None:
            out.write("(part)", "error", **told(error))
        os._exit(NO_FORK if options.child is None else NO_DEVICE)
    torch.set_num_threads(min(torch.get_num_threads(), 8))
    try:
        PARTS[name][0](out, options)
    except BaseException as error:
        out.write("(part)", "error", **told(error))
        raise SystemExit(1) from None


def forked(fork, name, options, until, limit):
    """Exit code of a part in a forked process, None where it had to be stopped."""
    process = fork.Process(target=child, args=(name, options, until))
    process.start()
    process.join(limit + 2)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def in_process(name, options, limit):
    """The same in an interpreter of its own."""
    flags = (
        ["--images", str(options.images), "--batch", str(options.batch), "--checks", options.checks]
        + ["--precision", options.precision]
        + ["--trace-method", options.trace_method, f"--flags={options.flags}"]
        + ["--quick"] * options.quick
        + ["--cpu"] * options.cpu
    )
    command = [
        sys.executable,
        str(HERE),
        "--child",
        name,
        "--out",
        options.out,
        "--work",
        options.work,
        "--repo",
        str(options.repo),
        *flags,
    ]
    process = subprocess.Popen([*command, "--seconds", str(limit - 2)], env=environment(options), cwd=options.repo)
    try:
        return process.wait(timeout=limit + 2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def main():
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", default="device_out")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--checks", default="", help="only checks in whose names this regular expression is found")
    parser.add_argument("--images", type=int, default=1024, help="number of images in the part vit_b")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch of the part vit_b")
    parser.add_argument("--precision", default="full", help="arithmetic of the map and the study in the part vit_b")
    parser.add_argument("--trace-method", default="per_example", help="the same of its traces")
    parser.add_argument("--flags", default="", help="more flags of the study in the part vit_b, in one word")
    parser.add_argument("--repo")
    parser.add_argument("--study", help=argparse.SUPPRESS)
    parser.add_argument("--study-device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--sweeps", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    begun = time.monotonic()
    DEVICE = "cpu" if options.cpu else "cuda"
    options.repo = repository(options.repo)
    sys.path.insert(0, str(options.repo))
    os.environ.setdefault("MPLBACKEND", "Agg")
    if options.study:
        study(options.study_device, options.study, options.quick)
        return
    if options.sweeps:
        sweeps(options, options.sweeps)
        return
    if options.child:
        child(options.child, options, begun + options.seconds)
        return
    wanted = [p for p in options.parts.split(",") if p]
    for part in wanted:
        if part not in PARTS:
            raise SystemExit(f"no part '{part}'; there are {', '.join(PARTS)}")
    options.out = str(Path(options.out).resolve())
    Path(options.out).mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "log.txt", "tests.txt"):
        (Path(options.out) / name).unlink(missing_ok=True)
    log = Out(options.out, "all", begun + options.seconds)
    with tempfile.TemporaryDirectory() as work:
        options.work = work
        reference = study_process("cpu", Path(work) / "study_cpu", options, 1) if "demo" in wanted else None
        try:
            # Everything heavy is imported once, before the parts are forked; the device is first touched in them.
            import pandas  # noqa: F401
            import torch

            import sharpscope.clip.evaluate
            import sharpscope.finetuning.run
            import sharpscope.study.run  # noqa: F401

            spent = time.monotonic() - begun
            log.say(
                f"torch {torch.__version__}, imports after {spent:.0f} s, parts {', '.join(wanted)}, "
                f"at most {options.seconds:.0f} s"
            )
            fork, waiting, fresh = multiprocessing.get_context("fork"), list(wanted), False
            while waiting:
                name = waiting[0]
                left = begun + options.seconds - time.monotonic()
                planned = sum(PARTS[n][1] for n in waiting)
                limit = PARTS[name][1] + left - planned if left > planned else PARTS[name][1] * left / planned
                if left < 10:
                    log.write(name, "skipped", reason="no time left")
                    waiting.pop(0)
                    continue
                start = time.monotonic()
                code = (
                    in_process(name, options, limit) if fresh else forked(fork, name, options, start + limit - 2, limit)
                )
                if code == NO_FORK and not fresh:
                    log.say("the device is out of reach of forked processes: every part in an interpreter of its own")
                    fresh = True
                    continue
                waiting.pop(0)
                if code == NO_DEVICE:
                    log.say("no device here; --cpu does without")
                    break
                if code is None:
                    log.write(name, "slow", seconds=time.monotonic() - start, reason="stopped at its limit")
                left = begun + options.seconds - time.monotonic()
                log.say(f"-- {name}: {time.monotonic() - start:.0f} s of {limit:.0f}, exit {code}, {left:.0f} s left")
        finally:
            if reference is not None and reference.poll() is None:
                reference.kill()
                reference.wait()
    rows = [json.loads(x) for x in (Path(options.out) / "results.jsonl").read_text().splitlines()]
    counts = {s: sum(r["status"] == s for r in rows) for s in ("ok", "BAD", "error", "slow", "skipped")}
    log.say(
        "\n".join(
            [
                "",
                "not ok:",
                *(
                    f"  {r['status']:<7} {r['part']}/{r['name']} {r.get('error', '')}"
                    for r in rows
                    if r["status"] != "ok"
                ),
            ]
        )
    )
    log.say(f"{counts}, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
