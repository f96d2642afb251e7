"""Bytes nobody wrote on purpose, and bytes somebody did: every container, one typed error or identical tensors."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import resource
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpscope.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint
from sharpscope.weights.checkpoint import checkpoint_of, read_checkpoint
from sharpscope.weights.files import regions
from sharpscope.weights.files.dangerous import is_unsafe
from tests.scripts import loaded

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_checkpoints.py"


@pytest.fixture(scope="session")
def fuzzer() -> Any:
    """benchmarks/fuzz_checkpoints.py as a module."""
    return loaded("benchmarks/fuzz_checkpoints.py")


@pytest.fixture(scope="session")
def corpus(fuzzer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    found: dict[str, bytes] = fuzzer.files(tmp_path_factory.mktemp("c") / "marker")
    return found


HONEST = ("torch zip", "deflated zip", "module zip", "TorchScript archive", "legacy", "raw pickle", "raw module",
          "safetensors", "flax msgpack")  # fmt: skip


def _refused(path: Path, data: bytes, error: type[CheckpointError] = CheckpointError, slack: int = 64 * 2**20) -> str:
    """The message; refusing costs little memory, whatever the bytes promise."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + slack
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert text.startswith(str(path)) and len(text.splitlines()) <= 3
    return text


# ------------------------------------------------------------------ damage


def test_hundreds_of_mutated_files_give_no_finding(fuzzer: Any, tmp_path: Path) -> None:
    log = fuzzer.fuzz(seconds=120, seed=1, folder=tmp_path, limit=700)
    assert log["files"] == 700 and log["findings"] == []
    assert all(sum(c.values()) == 50 for c in log["containers"].values())
    assert log["outcomes"]["read"] > 15 and log["outcomes"]["UnsafeCheckpoint"] > 40


def test_the_fuzzer_finds_what_it_looks_for(fuzzer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fuzzer.files(tmp_path / "m")["torch zip"]
    other = {n: t + 1 for n, t in fuzzer.STATE.items()}
    assert fuzzer.judge(tmp_path / "f", data, None)[0] == "read"
    assert fuzzer.judge(tmp_path / "f", data, other)[0] == "FINDING weights"
    monkeypatch.setattr(fuzzer, "read_checkpoint", lambda _: 1 / 0)
    assert fuzzer.judge(tmp_path / "f", data, None)[0] == "FINDING exception"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(HONEST),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    st.floats(0.3, 1),
)
def test_changed_bytes_and_cuts(
    fuzzer: Any,
    corpus: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    changes: Any,
    keep: float,
) -> None:
    data = bytearray(corpus[name])
    path = tmp_path_factory.mktemp("h") / "f"
    path.write_bytes(data)
    original = read_checkpoint(path)
    for place, value in changes:
        data[int(place * len(data))] = value
    del data[int(keep * len(data)) + 1 :]
    covered = original.tensors if name in fuzzer.CHECKED else None
    outcome, detail = fuzzer.judge(path, bytes(data), covered)
    assert not outcome.startswith("FINDING"), detail
    if hashlib.sha256(data).hexdigest() != original.sha256:
        with pytest.raises(CorruptCheckpoint, match="sha256"):
            read_checkpoint(path, expected_sha256=original.sha256)


@pytest.mark.parametrize("name", ["module zip", "TorchScript archive", "raw module", "flax msgpack", "deflated zip"])
def test_truncation_of_every_container_is_refused(tmp_path: Path, corpus: dict[str, bytes], name: str) -> None:
    data = corpus[name]
    for cut in sorted({*range(0, len(data), max(1, len(data) // 60)), len(data) - 1}):
        (tmp_path / "f").write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "f")


def test_what_torch_reads_is_what_we_read(tmp_path: Path) -> None:
    """torch's own weights_only loader as the oracle, over dtypes, views, ties, empties and both formats."""
    base = torch.randn(6, 8)
    state = {
        "visual.a": base, "visual.t": base.T, "visual.s": base[1:3, ::2], "visual.e": torch.empty(0, 3),
        "visual.0": torch.tensor(3), "visual.h": base.half(), "visual.b": base.bfloat16(), "visual.m": base > 0,
        "visual.d": base.double(), "visual.p": torch.nn.Parameter(base[0].clone()), "visual.i": torch.arange(5).int(),
    }  # fmt: skip
    for new in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        ours, theirs = read_checkpoint(tmp_path / "a.pt").tensors, torch.load(tmp_path / "a.pt", weights_only=True)
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype and ours[name].stride() == tensor.stride()
            assert torch.equal(ours[name], tensor) and not ours[name].requires_grad
        assert ours["visual.a"].data_ptr() == ours["visual.t"].data_ptr()


# ------------------------------------------------------------------ pickles made to hurt

P = b"\x80\x04"
BOMBS = {
    "a memo index of 4 billion": P + b"Nr\xff\xff\xff\xff.",
    "bytes that claim 2^60": P + b"\x8e" + struct.pack("<Q", 2**60) + b".",
    "text that claims 2^60": P + b"\x8d" + struct.pack("<Q", 2**60) + b".",
    "a number of a megabyte": P + b"\x8b" + struct.pack("<i", 2**20) + b"\xff" * 2**20 + b".",
    "sets without end": P + b"\x8f" * 300_000 + b".",
    "dictionaries without end": P + b"}" * 300_000 + b".",
    "a million opcodes": P + b"N0" * 410_000 + b"N.",
    "tuples in tuples as a key": P + b"})" + b"2\x86" * 300 + b"Ns.",
    "lists in lists": P + b"]" + b"(" * 5000 + b"l" * 5000 + b".",
    "keys made to collide": P + b"}(" + b"".join(b"J" + struct.pack("<i", 1) + b"N" for _ in range(5)) + b"u.",
    "marks only": P + b"(" * 10**5 + b".",
    "a list as a key": P + b"}]Ns.",
    "an empty stack": P + b"0.",
    "a memo that is not there": P + b"h\x07.",
    "build on a number": P + b"K\x01}b.",
    "a frame of petabytes": P + b"\x95" + struct.pack("<Q", 2**50) + b"N.",
    "persistent ids outside torch's files": P + b"N\x51.",
    "out-of-band buffers": b"\x80\x05\x97.",
    "protocol 9": b"\x80\x09N.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_made_to_hurt_are_refused_cheaply(
    tmp_path: Path, corpus: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With an eighth of the budget: what is reckoned is more than what is spent, so that the whole keeps its bound."""
    assert regions.MAX_MEMORY <= 48 * 2**20
    monkeypatch.setattr(regions, "MAX_MEMORY", regions.MAX_MEMORY // 8)
    monkeypatch.setattr(regions, "MAX_OPCODES", regions.MAX_OPCODES // 8)
    slack = regions.MAX_MEMORY + 2**20
    _refused(tmp_path / "f", BOMBS[name], slack=slack)
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(corpus["torch zip"])) as old, zipfile.ZipFile(data, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, BOMBS[name] if entry.endswith("data.pkl") else old.read(entry))
    _refused(tmp_path / "f", data.getvalue(), slack=slack)


def test_shared_state_built_again_and_again_costs_nothing(tmp_path: Path) -> None:
    """One large dictionary, copied by each of 100,000 BUILDs with (state, slots), would be gigabytes."""
    large = b"}(" + b"".join(b"X" + struct.pack("<I", 6) + f"{i:06d}".encode() + b"N" for i in range(20_000)) + b"u"
    body = P + b"(" + large + b"}\x86\x940" + b"c__main__\nX\n)\x81h\x00b" * 20_000 + b"t."
    assert "more objects" in _refused(tmp_path / "f", body)


def test_a_second_pickle_behind_the_first_is_not_read(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {marker}",)

    honest = pickle.dumps({"visual.proj": torch.ones(2, 2)})
    _refused(tmp_path / "f", honest + pickle.dumps(Evil()), CorruptCheckpoint)
    legacy = io.BytesIO()
    torch.save({"visual.proj": torch.ones(2, 2)}, legacy, _use_new_zipfile_serialization=False)
    data = legacy.getvalue()
    keys = data.rindex(b"\x80\x02]")  # the pickle of the storages' keys
    _refused(tmp_path / "f", data[:keys] + pickle.dumps(Evil(), 2) + data[keys:], UnsafeCheckpoint)
    assert not marker.exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n", b"c__builtin__\neval\n", b"cos\nsystem\n", b"csubprocess\nPopen\n", b"ctorch\nload\n",
        b"ctorch.hub\nload\n", b"ctorch\nos.system\n", b"cnumpy\nload\n", b"cpandas\nread_pickle\n", b"cdill\nloads\n",
        b"crunpy\nrun_path\n", b"cshutil\nrmtree\n", b"coperator\nattrgetter\n", b"ctimeit\ntimeit\n",
        b"cnumpy.testing._private.utils\nrunstring\n", b"ctorch.utils.bottleneck.__main__\nrun_cprofile\n",
        b"csrc.models\nx.__globals__\n", b"cidlelib.pyshell\nModifiedInterpreter.runcode\n", b"cbuiltins\n__import__\n",
    ],
)  # fmt: skip
def test_names_that_only_an_attack_has_are_refused(tmp_path: Path, call: bytes) -> None:
    name = call[1:-1].replace(b"\n", b".").decode()
    for tail in (b"X\x04\x00\x00\x00true\x85R.", b"."):  # called, or only mentioned
        text = _refused(tmp_path / "f", b"\x80\x02" + call + tail, UnsafeCheckpoint)
        assert name.replace("__builtin__", "__builtin__") in text and "nothing was run" in text


@pytest.mark.parametrize(
    "name",
    [
        "src.models.modeling.ImageClassifier", "open_clip.model.CLIP", "clip.model.QuickGELU",
        "torch.nn.modules.linear.Linear", "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes",
        "torch.FloatStorage", "torch.float32", "argparse.Namespace", "pathlib.PosixPath",
        "numpy._core.multiarray.scalar", "collections.OrderedDict",
        "numpy.dtype", "torchvision.transforms.transforms.Compose", "timm.models.vision_transformer.VisionTransformer",
        "functools.partial", "builtins.getattr", "torch.optim.adamw.AdamW", "__main__.CLIPEncoder",
    ],
)  # fmt: skip
def test_names_that_checkpoints_of_the_field_have_are_not_refused(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert not is_unsafe(module, attribute)


def test_what_a_call_gives_is_never_called(tmp_path: Path) -> None:
    body = b"\x80\x02cbuiltins\ngetattr\ncsrc.x\nA\nX\x03\x00\x00\x00run\x86RX\x01\x00\x00\x00a\x85R."
    assert "builtins.getattr(...)" in _refused(tmp_path / "f", body, UnsafeCheckpoint)


def test_foreign_calls_give_nothing_and_are_named(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    body = {"state_dict": {"visual.proj": torch.ones(2, 2)}}
    data = pickle.dumps(body, 2)[:-1]  # without STOP: put a foreign call beside the state dict
    data += b"X\x05\x00\x00\x00extracevil_package\nrun\nX\x01\x00\x00\x00a\x85Rs."
    (tmp_path / "f").write_bytes(data)
    read = read_checkpoint(tmp_path / "f")
    assert read.facts["calls"] == ["evil_package.run"] and not read.facts["safe"] and not marker.exists()


# ------------------------------------------------------------------ msgpack, shards


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\xa1a" + b"\x91" * 10_000,  # arrays without end
        b"\x81\xa1a\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\xdf\xff\xff\xff\xff\xa1a\x01",  # a map of 4 billion
        b"\x81\xa1a\xc6\xff\xff\xff\xff",  # bytes of 4 GB
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",  # an extension of 4 GB
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x81\xa1a\xd5\x07ab",  # an extension that is none of flax's
        b"\x81\xa1a\xc7\x0a\x01\x93\x91\xce\xff\xff\xff\xff\xa4int8",
        b"\x81\xa1a\x01\x01",  # bytes behind the end
        b"\x81\xa1a" + b"\x81\xd9\xff" + b"k" * 255 + b"\x81\xa1a" * 60 + b"\x01",
    ],
)
def test_msgpack_made_to_hurt_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "msgpack" in _refused(tmp_path / "f", data, CorruptCheckpoint)


def _index(folder: Path, weight_map: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    save_file({"visual.proj": torch.ones(2, 2)}, outside / "s.safetensors")
    save_file({"visual.proj": torch.ones(2, 2)}, inside / "s.safetensors")
    assert read_checkpoint(_index(inside, {"visual.proj": "s.safetensors"})).facts["container"] == "sharded safetensors"
    for shard in ("../out/s.safetensors", str(outside / "s.safetensors"), "..", "", "a\\b"):
        with pytest.raises(CorruptCheckpoint, match="another folder"):
            read_checkpoint(_index(inside, {"visual.proj": shard}))
    (inside / "link.safetensors").symlink_to(outside / "s.safetensors")
    with pytest.raises(CorruptCheckpoint, match="link that leads out of its folder"):
        read_checkpoint(_index(inside, {"visual.proj": "link.safetensors"}))
    for weight_map, word in (
        ({"visual.x": "s.safetensors"}, "does not hold the tensors"),
        ([], "no weight_map"),
        ({"a": 1}, "no weight"),
    ):
        with pytest.raises(CorruptCheckpoint, match=word):
            read_checkpoint(_index(inside, weight_map))
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(_index(inside, {"visual.proj": "gone.safetensors"}))


def test_the_sha256_of_shards_covers_them_all(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"visual.proj": torch.ones(2, 2)}, tmp_path / "s.safetensors")
    index = _index(tmp_path, {"visual.proj": "s.safetensors"})
    digest = read_checkpoint(index).sha256
    assert digest == hashlib.sha256(index.read_bytes() + (tmp_path / "s.safetensors").read_bytes()).hexdigest()
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "s.safetensors")
    with pytest.raises(CorruptCheckpoint, match="sha256"):
        read_checkpoint(index, expected_sha256=digest)


def test_random_bytes_behind_every_magic(tmp_path: Path, fuzzer: Any) -> None:
    rng = random.Random(0)
    for head in (
        b"\x80\x04",
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        b"\x82\xa3cls",
        b"PK\x03\x04",
        b"(d",
        b"c",
    ):
        for _ in range(60):
            data = head + rng.randbytes(rng.randrange(80))
            outcome, detail = fuzzer.judge(tmp_path / "f", data, None)
            assert not outcome.startswith("FINDING") and outcome != "read", detail


def _nested(depth: int, name: bytes, kind: bytes) -> bytes:
    """Objects that all refer twice to the next one: 2^depth paths through ``depth`` objects."""
    make = P
    for i in range(depth):
        previous = b"N" if i == 0 else b"h" + bytes([i - 1])
        keys = b"".join(b"\x8c" + bytes([len(k)]) + k + previous for k in (name, b"b" + name))
        make += kind + b"}(" + keys + b"ub\x94" + b"0"
    return make + b"h" + bytes([depth - 1]) + b"."


def test_objects_that_share_without_end_are_not_walked_without_end(tmp_path: Path) -> None:
    script = b"c__torch__.a\nM\n)\x81"
    _refused(tmp_path / "f", _nested(200, b"x", script))
    body = P
    for i in range(200):  # dictionaries that hold the next one under every name that wraps
        inner = b"N" if i == 0 else b"h" + bytes([i - 1])
        names = (b"state_dict", b"model", b"module", b"net", b"weights")
        body += b"}(" + b"".join(b"\x8c" + bytes([len(n)]) + n + inner for n in names) + b"u\x940"
    _refused(tmp_path / "f", body + b"h\xc7.")


def test_views_that_would_be_copied_out_of_one_storage_are_refused_first(tmp_path: Path) -> None:
    """q, k and v are joined into new memory: 60 of them over one storage would be 20 times the file."""
    base = torch.zeros(1024, 1024)
    layer = "vision_model.encoder.layers.{}.self_attn.{}_proj.weight"
    state = {layer.format(i, p): base.as_strided((1000, 1024), (1024, 1), i * 1024) for i in range(20) for p in "qkv"}
    out = io.BytesIO()
    torch.save(state, out)
    assert "overlap" in _refused(tmp_path / "f", out.getvalue(), CorruptCheckpoint)


def test_lora_changes_are_made_only_where_they_fit(tmp_path: Path) -> None:
    """60 pairs of vectors that claim 60 matrices of 64 MB: told apart from the base before one of them is made."""
    state = {}
    for i in range(60):
        target = f"visual.transformer.resblocks.{i}.mlp.c_fc"
        state |= {f"{target}.lora_A": torch.zeros(1, 4096), f"{target}.lora_B": torch.zeros(4096, 1)}
        state[f"{target}.alpha"] = torch.tensor(1.0)
    torch.save(state, tmp_path / "g")
    names = [n.replace("lora_A", "weight") for n in state if n.endswith("lora_A")]
    base = checkpoint_of({n: torch.ones(2, 2) for n in names} | {"visual.proj": torch.ones(2, 2)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="fits no weight of the base"):
        read_checkpoint(tmp_path / "g", base=base)
    assert read_checkpoint(tmp_path / "g", partial=True).facts["partial"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 2**10  # kB


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def test_the_same_bytes_named_many_times_are_read_once(tmp_path: Path) -> None:
    """A raw pickle may hand one string of bytes to ``_load_from_bytes`` again and again."""
    inner = io.BytesIO()
    storage = torch.TypedStorage(wrap_storage=torch.ones(2**18).untyped_storage(), dtype=torch.float32, _internal=True)
    torch.save(storage, inner, _use_new_zipfile_serialization=False)
    data = P + b"B" + struct.pack("<I", len(inner.getvalue())) + inner.getvalue() + b"\x940"
    data += b"ctorch.storage\n_load_from_bytes\n\x940ctorch._utils\n_rebuild_tensor_v2\n\x940}("
    for i in range(200):
        data += (
            _text(f"visual.{i}") + b"h\x02(h\x01h\x00\x85RK\x00J" + struct.pack("<i", 2**18) + b"\x85K\x01\x85\x89NtR"
        )
    path = tmp_path / "f"
    path.write_bytes(data + b"u.")
    tracemalloc.start()
    read = read_checkpoint(path)
    cost = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cost < 16 * 2**20 and len(read.tensors) == 200
    assert len({t.data_ptr() for t in read.tensors.values()}) == 1


def test_what_is_hidden_in_a_subclass_of_tensor_is_reckoned(tmp_path: Path) -> None:
    """``_rebuild_from_type_v2(OrderedDict, ..., (pairs,))``: 300 dictionaries of one list, 20 bytes each."""
    pairs = b"](" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(20_000)) + b"e\x940"
    names = b"ctorch._tensor\n_rebuild_from_type_v2\n\x940ccollections\nOrderedDict\n\x940"
    calls = b"h\x01(h\x02Nh\x00\x85NtR" * 300
    _refused(tmp_path / "f", P + pairs + names + b"(" + calls + b"t.")


@pytest.mark.parametrize("kind", ["prefix", "class", "parameter"])
def test_names_of_megabytes_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    """Stripped prefix by prefix, or mentioned 20,000 times, they would take hours or all memory."""
    if kind == "prefix":
        data = pickle.dumps({"module." * 500_000 + "visual.proj": torch.ones(2, 2)}, 4)
    elif kind == "class":
        data = P + _text("x" * 3_000_000) + b"\x940" + _text("y") + b"\x940(" + b"h\x00h\x01\x930" * 20_000 + b"t."
    else:
        module = torch.nn.Module()
        module.register_buffer("p" * 100_000, torch.ones(2))
        data = pickle.dumps(module, 4)
    text = _refused(tmp_path / "f", data)
    assert ("very long" in text or "characters" in text) and len(text) < 400


def test_a_second_record_cannot_hide_the_size_of_the_directory(tmp_path: Path) -> None:
    """zip64's record with another magic number inside it: what zipfile would read is what counts."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHH", 1, 0, 0) + bytes(12) + b"a"
    directory = entry * (5 * 2**20 // len(entry))
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4 + len(directory), 1)
    decoy = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    data = b"PK\x03\x04" + directory + record + locator + decoy
    assert "claims a directory" in _refused(tmp_path / "f", data, CorruptCheckpoint)


def test_the_bounds_leave_room_for_the_largest_modules_of_the_field(tmp_path: Path) -> None:
    """As many modules and small tensors as a whole ViT-bigG has, in the most expensive container, a raw pickle."""
    module = torch.nn.Module()
    module.visual = torch.nn.Sequential(*(torch.nn.LayerNorm(800) for _ in range(1000)))
    (tmp_path / "f").write_bytes(pickle.dumps(module, 4))
    read = read_checkpoint(tmp_path / "f")
    assert read.facts["num_tensors"] == 2000 and read.facts["container"] == "raw pickle"
