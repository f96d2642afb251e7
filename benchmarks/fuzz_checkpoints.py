"""Mutated checkpoints of every container: each is refused by one typed error, or read; nothing runs, nothing hangs.

    python benchmarks/fuzz_checkpoints.py --seconds 900 --out benchmarks/results/fuzz_checkpoints.json
    python benchmarks/fuzz_checkpoints.py --atheris corpus/ --seconds 600     (coverage-guided; pip install atheris)

Any other result is a finding: another exception, a marker file made by a payload, weights that differ from the
original's in a container with checksums (zip) or under an expected sha256, more memory than 2 x size + 64 MB, more than
five seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import pickletools
import platform
import random
import struct
import sys
import tempfile
import time
import tracemalloc
import types
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from sharpscope.errors import CheckpointError, CorruptCheckpoint
from sharpscope.weights.checkpoint import read_checkpoint

STATE = {
    "visual.conv1.weight": torch.arange(48.0).reshape(4, 3, 2, 2),
    "visual.proj": torch.arange(20.0).reshape(4, 5).half(),
    "visual.ln_post.weight": torch.ones(4, dtype=torch.bfloat16),
    "logit_scale": torch.tensor(2.5),
}
CHECKED = ("adapter", "torch zip", "deflated zip", "module zip", "TorchScript archive")
"""Containers with checksums of their own: an accepted file has to give identical weights."""
TYPED = CheckpointError
SLOW = 5.0


class Evil:
    """Runs a shell command when unpickled by anything that runs what it reads."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _msgpack(value: Any) -> bytes:
    """Just enough msgpack for a flax tree."""
    if isinstance(value, dict):
        return bytes([0x80 | len(value)]) + b"".join(_msgpack(k) + _msgpack(v) for k, v in value.items())
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value)]) + value.encode()
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xce" + struct.pack(">I", value)
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(map(_msgpack, value))
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    inner = _msgpack([list(value.shape), str(value.dtype).removeprefix("torch."), data])
    return b"\xc9" + struct.pack(">Ib", len(inner), 1) + inner


def files(marker: Path) -> dict[str, bytes]:
    """One small file of every container, honest ones and ones with a payload."""
    import safetensors.torch

    def saved(content: Any, **how: Any) -> bytes:
        out = io.BytesIO()
        torch.save(content, out, **how)
        return out.getvalue()

    module = torch.nn.Module()
    module.visual = torch.nn.Module()  # type: ignore[assignment]
    module.visual.conv1 = torch.nn.Conv2d(3, 4, 2, bias=False)  # type: ignore[union-attr]
    module.register_buffer("logit_scale", torch.tensor(2.5))
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        holder = torch.nn.Sequential()
        holder.add_module("visual", torch.nn.Sequential())
        holder.visual.add_module("conv1", torch.nn.Conv2d(3, 4, 2, bias=False))  # type: ignore[union-attr]
        torch.jit.save(torch.jit.trace(holder, torch.zeros(1, 3, 4, 4)), script)
    tree = {
        "cls": torch.ones(4, 3),
        "ext": {
            "vision_model": {"embeddings": {"class_embedding": torch.ones(4)}},
            "visual_projection": torch.ones(4, 4),
        },
    }
    pieces = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 4},
        "chunks": {"0": torch.ones(5), "1": torch.ones(3)},
    }
    tree["ext"]["visual_projection"] = {"kernel": pieces}  # type: ignore[index]
    clip_lora = {"layer_0": {"q_proj": {"w_lora_A": torch.ones(1, 4), "w_lora_B": torch.ones(4, 1)}}}
    told = {"r": 1, "alpha": 1, "encoder": "vision", "params": ["q"], "position": "all"}
    honest = {
        "adapter": saved({"weights": clip_lora, "metadata": told}),
        "torch zip": saved({"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: torch.ones(3)}}}),
        "legacy": saved(STATE, _use_new_zipfile_serialization=False),
        "raw pickle": pickle.dumps(STATE, 4),
        "module zip": saved(module),
        "raw module": pickle.dumps(module, 4),
        "TorchScript archive": script.getvalue(),
        "safetensors": safetensors.torch.save(STATE),
        "flax msgpack": _msgpack(tree),
    }
    honest["deflated zip"] = repack(honest["torch zip"], lambda _, body: body, zipfile.ZIP_DEFLATED)
    evil = Evil(marker)
    payloads = {
        "evil zip": saved(STATE | {"visual.x": evil}),
        "evil raw": pickle.dumps(STATE | {"visual.x": evil}, 4),
        "evil legacy": saved(STATE | {"visual.x": evil}, _use_new_zipfile_serialization=False),
        "evil protocol 0": pickle.dumps({"visual.x": evil}, 0),
    }
    return honest | payloads


def repack(data: bytes, edit: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with every entry passed through ``edit``, its checksums made right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return out.getvalue()


OPCODES = bytes(ord(o.code) for o in pickletools.opcodes)
NUMBERS = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\x01\0\0\0",
    struct.pack("<Q", 2**62),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """``data`` with a few random changes: bits, bytes, opcodes, numbers, cuts, doubled and moved pieces."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            out[at] = rng.choice(OPCODES)
        elif kind == 3:
            number = rng.choice(NUMBERS)
            out[at : at + len(number)] = number
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            del out[at : at + rng.randrange(1, 9)]
        elif kind == 6:
            piece = out[at : at + rng.randrange(1, 200)]
            place = rng.randrange(len(out))
            out[place:place] = piece * rng.choice((1, 1, 2, 50))
        else:
            out.insert(at, rng.choice(OPCODES))
    return bytes(out)


def mutated(name: str, data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """``(changed file, whether its container's own checksums still cover it)``; half the archives are repacked."""
    if data[:2] != b"PK" or rng.random() < 0.5:
        return mutate(data, rng), name in CHECKED
    inside = rng.choice(("data.pkl", "data.pkl", "data.pkl", "data/0", "byteorder"))
    return repack(data, lambda entry, body: mutate(body, rng) if entry.endswith(inside) else body), False


def judge(path: Path, data: bytes, original: dict[str, torch.Tensor] | None, memory: bool = False) -> tuple[str, str]:
    """``(outcome, detail)`` of reading ``data`` at ``path``: the error's name, "read", or a "FINDING ..."."""
    path.write_bytes(data)
    if memory:
        tracemalloc.start()
    start = time.process_time()
    try:
        tensors = read_checkpoint(path, partial=True).tensors
    except TYPED as error:
        outcome, detail = type(error).__name__, str(error)
        if len(detail.splitlines()) > 3 or not all(c.isprintable() or c == "\n" for c in detail):
            outcome = "FINDING message"
    except Exception as error:
        outcome, detail = "FINDING exception", f"{type(error).__name__}: {error}"
    else:
        outcome, detail = "read", ""
        if original is not None and not same(tensors, original):
            outcome = "FINDING weights"
    took = time.process_time() - start
    if memory:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > 2 * len(data) + 64 * 2**20:
            outcome, detail = "FINDING memory", f"{peak} bytes for {len(data)}"
    elif took > SLOW:
        outcome, detail = "FINDING time", f"{took:.1f} s"
    return outcome, detail


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal names, dtypes, shapes and bits."""
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in b
    )


def fuzz(seconds: float, seed: int, folder: Path, limit: int | None = None) -> dict[str, Any]:
    """Counted outcomes of as many mutated files as fit in ``seconds`` of CPU time."""
    marker = folder / "marker"
    corpus = files(marker)
    names = list(corpus)
    path = folder / "file"
    originals = {}
    for name in names:
        if not name.startswith("evil"):
            path.write_bytes(corpus[name])
            originals[name] = read_checkpoint(path, partial=True).tensors
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    by_container: dict[str, Counter[str]] = {n: Counter() for n in names}
    findings: list[dict[str, str]] = []
    start, number, slowest = time.process_time(), 0, 0.0  # pauses of the machine do not count
    while time.process_time() - start < seconds and (limit is None or number < limit):
        name = names[number % len(names)]
        data, covered = mutated(name, corpus[name], rng)
        before = time.process_time()
        outcome, detail = judge(path, data, originals.get(name) if covered else None, memory=number % 97 == 0)
        slowest = max(slowest, time.process_time() - before)
        if marker.exists():
            outcome, detail = "FINDING executed", "a payload ran"
            marker.unlink()
        if number % 53 == 0 and data != corpus[name]:
            try:
                read_checkpoint(path, expected_sha256=hashlib.sha256(corpus[name]).hexdigest())
                outcome = "FINDING sha256"
            except CorruptCheckpoint:
                counts["refused by an expected sha256"] += 1
        counts[outcome] += 1
        by_container[name][outcome] += 1
        if outcome.startswith("FINDING") and len(findings) < 50:
            findings.append({"container": name, "outcome": outcome, "detail": detail[:500], "hex": data[:4000].hex()})
        number += 1
    return {
        "files": number, "seed": seed, "cpu_seconds": round(time.process_time() - start, 1),
        "slowest_s": round(slowest, 3),
        "findings": findings, "outcomes": dict(sorted(counts.items())),
        "containers": {n: dict(sorted(c.items())) for n, c in by_container.items()},
        "command": " ".join(["python", "benchmarks/fuzz_checkpoints.py", *sys.argv[1:]]),
        "python": platform.python_version(), "torch": torch.__version__, "machine": platform.platform(),
    }  # fmt: skip


def _atheris(corpus: str, seconds: float) -> None:
    import atheris  # type: ignore[import-not-found]

    folder = Path(tempfile.mkdtemp())
    Path(corpus).mkdir(exist_ok=True)
    for name, data in files(folder / "marker").items():
        (Path(corpus) / name.replace(" ", "-")).write_bytes(data)

    def one(data: bytes) -> None:
        outcome, detail = judge(folder / "file", data, None)
        assert not outcome.startswith("FINDING") and not (folder / "marker").exists(), f"{outcome}: {detail}"

    for name, module in list(sys.modules.items()):
        if name.startswith("sharpscope.weights"):
            for function in vars(module).values():
                _instrument(atheris, function, name)
    atheris.Setup([sys.argv[0], corpus, f"-max_total_time={int(seconds)}", "-max_len=8192", "-timeout=20"], one)
    atheris.Fuzz()


def _instrument(atheris: Any, owner: Any, module: str) -> None:
    """Instruments one function, or the methods of a class, of the readers for coverage; nothing else is needed."""
    for function in vars(owner).values() if isinstance(owner, type) else (owner,):
        if isinstance(function, types.FunctionType) and function.__module__ == module:
            atheris.instrument_func(function)


def main() -> int:
    """Fuzz, write the log, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--files", type=int, default=None, help="stop after this many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--atheris", metavar="CORPUS")
    args = parser.parse_args()
    if args.atheris:
        _atheris(args.atheris, args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        log = fuzz(args.seconds, args.seed, Path(folder), args.files)
    text = json.dumps(log, indent=1)
    if args.out:
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        os.replace(temporary, args.out)
    print(f"{log['files']} files, {len(log['findings'])} findings", log["outcomes"])
    return 1 if log["findings"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
