"""Strangers' files: accepted whole, or refused by one typed error that says what they are; nothing in them runs."""

from __future__ import annotations

import ctypes
import gc
import gzip
import io
import json
import os
import pickle
import random
import re
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sharpscope.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint
from sharpscope.weights import checkpoint
from sharpscope.weights.checkpoint import read_checkpoint

STATE = {
    "visual.conv1.weight": torch.arange(48.0).reshape(4, 3, 2, 2),
    "visual.proj": torch.arange(20.0).reshape(4, 5).half(),
    "logit_scale": torch.tensor(2.5),
}
MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class Evil:
    """Runs a shell command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _zip(content: object = STATE) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _safe() -> bytes:
    return safetensors.torch.save(STATE)


def _legacy() -> bytes:
    out = io.BytesIO()
    torch.save(STATE, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def _raw() -> bytes:
    return pickle.dumps(STATE)


def _rezip(data: bytes, edit: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with every entry passed through ``edit`` (None drops it), checksums made right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            changed = edit(name, old.read(name))
            if changed is not None:
                new.writestr(name, changed)
    return out.getvalue()


def _pickle(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
    return _rezip(data, lambda name, body: body.replace(old, new, 1) if name.endswith("data.pkl") else body)


def _write(folder: Path, data: bytes, name: str = "a.pt") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def _refused(path: Path, error: type[CheckpointError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert (
        text.startswith(str(path)) and len(text.splitlines()) <= 3 and all(c.isprintable() or c == "\n" for c in text)
    )
    return text


def _same(tensors: dict[str, Tensor]) -> bool:
    return list(tensors) == list(STATE) and all(torch.equal(tensors[n], STATE[n]) for n in STATE)


# ------------------------------------------------------------------ code in the file


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_raw_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    path = _write(tmp_path, pickle.dumps({"state_dict": Evil(marker)}, protocol))
    text = _refused(path, UnsafeCheckpoint)
    assert f"{os.system.__module__}.system" in text and not marker.exists()
    assert UnsafeCheckpoint.exit_code == 3


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_torch_zip_does_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    torch.save(STATE | {"visual.x": Evil(marker)}, buffer, pickle_protocol=protocol)
    text = _refused(_write(tmp_path, buffer.getvalue()), UnsafeCheckpoint)
    assert f"{os.system.__module__}.system" in text and not marker.exists()


def test_a_malicious_legacy_file_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"x": Evil(marker)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "system" in _refused(tmp_path / "a.pt", UnsafeCheckpoint) and not marker.exists()


def test_code_hidden_behind_torch_s_own_loader_does_not_run(tmp_path: Path) -> None:
    """``_load_from_bytes`` unpickles its argument, which is read here as inertly as the rest."""
    marker = tmp_path / "marker"
    inner = _zip({"x": Evil(marker)})

    class Hidden:
        def __reduce__(self) -> tuple[Any, tuple[bytes]]:
            return torch.storage._load_from_bytes, (inner,)

    for data in (_zip({"visual.x": Hidden()}), pickle.dumps({"visual.x": Hidden()})):
        assert "damaged" in _refused(_write(tmp_path, data), CorruptCheckpoint)  # the zip inside is no legacy file
    legacy = io.BytesIO()
    torch.save({"x": Evil(marker)}, legacy, _use_new_zipfile_serialization=False)
    inner = legacy.getvalue()
    for data in (_zip({"visual.x": Hidden()}), pickle.dumps({"visual.x": Hidden()})):
        assert "posix.system" in _refused(_write(tmp_path, data), UnsafeCheckpoint)
    inner = pickle.dumps(Evil(marker))  # no legacy file at all
    _refused(_write(tmp_path, pickle.dumps({"visual.x": Hidden()})))
    assert not marker.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x04true\x85R.",  # the same through the memo
        # os.system hidden under a harmless pair of strings that is popped again
        b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x0bcollections\x8c\x0bOrderedDict00\x93\x8c\x04true\x85R.",
        b"\x80\x02(iposix\nsystem\n.",  # INST
        b"\x80\x02\x82\x05.",  # an extension code: whatever copyreg says
    ],
)
def test_no_way_of_naming_code_escapes_the_scan(tmp_path: Path, body: bytes) -> None:
    _refused(_write(tmp_path, body), UnsafeCheckpoint)
    data = _rezip(_zip(), lambda name, old: body if name.endswith("data.pkl") else old)
    _refused(_write(tmp_path, data), UnsafeCheckpoint)


def test_modules_that_are_no_clip_and_foreign_scalars_are_refused_by_name(tmp_path: Path) -> None:
    assert "no image tower" in _refused(_write(tmp_path, _zip(nn.Linear(2, 2))))
    assert "'acc' is a numpy" in _refused(_write(tmp_path, _zip(STATE | {"acc": np.float64(0.5)})))


def test_safe_globals_of_this_process_do_not_widen_what_a_file_may_do(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with torch.serialization.safe_globals([os.system]):
        _refused(_write(tmp_path, _zip({"visual.x": Evil(marker)})), UnsafeCheckpoint)
    assert not marker.exists()


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("make", [_zip, _safe, _legacy, _raw], ids=["zip", "safetensors", "legacy", "raw"])
def test_truncation_anywhere_is_refused(tmp_path: Path, make: Callable[[], bytes]) -> None:
    data = make()
    cuts = {*range(0, len(data), max(1, len(data) // 150)), *range(1, 24), len(data) - 1, len(data) - 30}
    for cut in sorted(cuts):
        _refused(_write(tmp_path, data[:cut]))


def test_a_cut_off_safetensors_file_says_how_much_is_missing(tmp_path: Path) -> None:
    data = _safe()
    text = _refused(_write(tmp_path, data[:-7]), CorruptCheckpoint)
    assert f"promises {len(data)} bytes, it has {len(data) - 7}" in text
    assert "inside its header" in _refused(_write(tmp_path, data[:20]), CorruptCheckpoint)


def test_any_flipped_bit_of_a_pt_is_refused_or_harmless(tmp_path: Path) -> None:
    data = _zip()
    rng = random.Random(0)
    outcomes = {"refused": 0, "same": 0}
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path = _write(tmp_path, bytes(damaged))
        try:
            tensors = read_checkpoint(path).tensors
        except CheckpointError:
            outcomes["refused"] += 1
        else:
            assert _same(tensors)
            outcomes["same"] += 1
    assert min(outcomes.values()) > 20


def test_any_changed_byte_of_a_safetensors_file_is_caught_by_its_sha256(tmp_path: Path) -> None:
    data = _safe()
    digest = read_checkpoint(_write(tmp_path, data)).sha256
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path = _write(tmp_path, bytes(damaged))
        with pytest.raises(CorruptCheckpoint):
            read_checkpoint(path, expected_sha256=digest)
        try:
            read_checkpoint(path)  # without the digest: read or refused, but never another exception
        except CheckpointError:
            continue


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", MAGIC, b"\x80\x04", b"\x20" + 7 * b"\0" + b"{"]))
def test_random_bytes_give_a_typed_error(tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes) -> None:
    _refused(_write(tmp_path_factory.mktemp("r"), head + tail))


# ------------------------------------------------------------------ archives that lie


def _cheaply_refused(path: Path, error: type[CheckpointError] = CorruptCheckpoint) -> str:
    tracemalloc.start()
    try:
        text = _refused(path, error)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    return text


def test_a_zip_bomb_is_judged_by_its_directory(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_zip())) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        with new.open("archive/data/9", "w") as entry:
            for _ in range(100):
                entry.write(bytes(2**20))
    assert len(out.getvalue()) < 2**20
    assert "zip bomb" in _cheaply_refused(_write(tmp_path, out.getvalue()))


def test_a_compressed_archive_of_honest_size_is_read(tmp_path: Path) -> None:
    assert _same(read_checkpoint(_write(tmp_path, _rezip(_zip(), lambda _, b: b, zipfile.ZIP_DEFLATED))).tensors)


def test_a_directory_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    data = _zip()
    entry = data.rfind(b"PK\x01\x02", 0, data.rfind(b"archive/data/0"))
    for size in (0, 10, 2**31):
        lie = bytearray(data)
        struct.pack_into("<LL", lie, entry + 20, size, size)
        _cheaply_refused(_write(tmp_path, bytes(lie)))


def test_a_directory_of_millions_of_entries_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        new.writestr("archive/data.pkl", b"}.")
        new.writestr("archive/data/0", b"")
    data = out.getvalue()
    record = data[data.rfind(b"PK\x01\x02") : data.rfind(b"PK\x05\x06")]
    end = bytearray(data[data.rfind(b"PK\x05\x06") :])
    struct.pack_into("<L", end, 12, len(record) * 100_000)
    start = data.find(b"PK\x01\x02")
    struct.pack_into("<L", end, 16, start)
    assert "directory of" in _cheaply_refused(_write(tmp_path, data[:start] + record * 100_000 + bytes(end)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_and_outside_entries_are_refused(tmp_path: Path) -> None:
    for name, word in (
        ("archive/data/0", "twice"),
        ("archive/../x", "outside"),
        ("/etc/x", "outside"),
        ("a\\..\\x", "outside"),
    ):
        out = io.BytesIO(_zip())
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr(name, b"x")
        assert word in _cheaply_refused(_write(tmp_path, out.getvalue()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K0tq", b"J\xff\xff\xff\x7ftq"),  # a storage of 2^31 elements
        (b"QK\x00(K\x04K\x03", b"QJ\xff\xff\xff\x7f(K\x04K\x03"),  # an offset behind the end
        (b"(K\x04K\x03K\x02K\x02t", b"(J\xff\xff\xff\x7fK\x03K\x02K\x02t"),  # more rows than there are
    ],
)
def test_tensors_out_of_bounds_are_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    _cheaply_refused(_write(tmp_path, _pickle(_zip(), old, new)))


def test_a_tensor_of_stride_0_with_a_million_million_elements_is_refused(tmp_path: Path) -> None:
    huge = STATE | {"visual.x": torch.zeros(1).expand(10**12)}
    assert "'visual.x' claims" in _cheaply_refused(_write(tmp_path, _zip(huge)))


def test_a_few_views_of_one_storage_are_read_many_are_not(tmp_path: Path) -> None:
    base = torch.zeros(40, 25)
    few = {"visual.a": base, "visual.b": base.T, "visual.c": base[3:5]} | STATE
    assert read_checkpoint(_write(tmp_path, _zip(few))).facts["num_tensors"] == 6
    many = {f"visual.{i}": base[i:] for i in range(8)}
    assert "overlap" in _cheaply_refused(_write(tmp_path, _zip(many)))


def test_lengths_that_promise_gigabytes_allocate_nothing(tmp_path: Path) -> None:
    for body in (
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40),
        b"\x80\x02\x8b" + struct.pack("<l", 2**31 - 1),
        MAGIC + b"\x80\x02T\xff\xff\xff\x7f",
    ):
        assert "cut off" in _cheaply_refused(_write(tmp_path, body), CheckpointError)
    for length in (2**30, 2**39):
        _cheaply_refused(_write(tmp_path, struct.pack("<Q", length) + b"{" + b" " * 100))
    header = b'{"visual.a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    assert "promises" in _cheaply_refused(_write(tmp_path, struct.pack("<Q", len(header)) + header + bytes(64)))


def _header(entries: dict[str, Any] | str, data: bytes = bytes(8)) -> bytes:
    text = entries if isinstance(entries, str) else json.dumps(entries)
    return struct.pack("<Q", len(text)) + text.encode() + data


_F = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        _header('{"visual.a":%s,"visual.a":%s}' % ((json.dumps(_F),) * 2)),
        _header({"visual.a": _F | {"shape": [3]}}),
        _header({"visual.a": _F | {"shape": [-2]}}),
        _header({"visual.a": _F | {"dtype": "F99"}}),
        _header({"visual.a": _F | {"data_offsets": [4, 8]}}),
        _header({"visual.a": _F | {"data_offsets": [0, "8"]}}),
        _header({"visual.a": _F | {"data_offsets": []}}),
        _header({"visual.a": _F, "visual.b": _F}),
        _header({"visual.a": _F}, bytes(12)),
        _header({"visual.a": [1]}),
        _header({"visual.a": None}),
        _header({"visual.a": _F, "__metadata__": {"a": 1}}),
        _header({"visual.a": _F, "__metadata__": [1]}),
        _header("[" * 100_000),
        _header("{" * 100),
        _header('{"visual.a": NaN}'),
    ],
)
def test_safetensors_headers_that_lie_are_refused(tmp_path: Path, data: bytes) -> None:
    _cheaply_refused(_write(tmp_path, data), CheckpointError)


# ------------------------------------------------------------------ tensors that are none


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.zeros(3, device="meta"), "meta"),
        (lambda: torch.ones(3, dtype=torch.complex64), "complex"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "quantised"),
        (lambda: torch.ones(3, dtype=torch.uint32), "uint32"),
    ],
)
def test_tensors_no_clip_has_are_refused_by_key(tmp_path: Path, make: Callable[[], Tensor], word: str) -> None:
    text = _refused(_write(tmp_path, _zip(STATE | {"visual.odd": make()})))
    assert "'visual.odd'" in text and word in text


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage is deprecated")
def test_quantised_tensors_are_refused_by_key(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    text = _refused(_write(tmp_path, _zip(STATE | {"visual.odd": quantised})))
    assert "'visual.odd'" in text and "quantised" in text


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e5m2])
def test_safetensors_is_held_to_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    data = safetensors.torch.save(STATE | {"visual.odd": torch.ones(3).to(dtype)})
    assert "'visual.odd'" in _refused(_write(tmp_path, data))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({**STATE, 3: torch.ones(1)}, "key 3 is a int"),
        ({**STATE, ("a", "b"): torch.ones(1)}, "is a tuple"),
        ({**STATE, "epoch": 3}, "'epoch' is a int"),
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({"epoch": 3}, "holds no tensors"),
        ({"resnet.conv1.weight": torch.ones(1)}, "no image tower"),
        ({f"module.{n}": t for n, t in STATE.items()} | {"logit_scale": torch.ones(1)}, "3 of 4 keys"),
        ({"vision_model.a": torch.ones(1)}, "no part of a CLIP"),
    ],
)
def test_dictionaries_that_are_no_state_dict_are_refused(tmp_path: Path, content: Any, word: str) -> None:
    assert word in _refused(_write(tmp_path, _zip(content)))


def test_hostile_key_names_are_escaped(tmp_path: Path) -> None:
    text = _refused(_write(tmp_path, _zip({**STATE, "\x1b[31m\n<script>": 3})))
    assert "\\x1b[31m\\n<script>" in text


# ------------------------------------------------------------------ files that are something else


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    return out.getvalue()


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(2))
    return out.getvalue()


def _zip_of(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x")
    return out.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605157884\n"
LOOKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "lfs": (lambda: LFS, "git lfs pull"),
    "html": (lambda: b"\n <!DOCTYPE html><html><title>404</title>", "web page"),
    "xml": (lambda: b'<?xml version="1.0"?><Error>AccessDenied</Error>', "web page"),
    "json": (lambda: b'{"embed_dim": 512, "vision_cfg": {}}', "JSON"),
    "gzip": (lambda: gzip.compress(b"x"), "gzip"),
    "tar": (_tar, "tar archive"),
    "npz": (_npz, "numpy arrays"),
    "npy": (lambda: b"\x93NUMPY\x01\x00", "numpy array"),
    "zip of a checkpoint": (lambda: _zip_of("epoch.pt"), "unpack it"),
    "zip of something": (lambda: _zip_of("a.txt"), "data.pkl is missing"),
    "empty zip": (lambda: b"PK\x05\x06" + bytes(18), "holds nothing"),
    "raw pickle": (lambda: pickle.dumps({"a": [1, 2]}), "holds no tensors"),
    "raw pickle, cut": (lambda: pickle.dumps({"a": [1, 2]})[:-3], "damaged or cut off"),
    "legacy torch, cut": (lambda: _legacy()[:-3], "damaged or cut off"),
    "flax": (lambda: b"\x82\xa3cls\xc7\x12\x01", "msgpack"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n", "HDF5"),
    "gguf": (lambda: b"GGUF\x03\x00", "GGUF"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n", "picture"),
    "text": (lambda: b"hello, world", "no known format"),
    "zeros": (lambda: bytes(100), "no known format"),
}


@pytest.mark.parametrize("look", LOOKS)
def test_other_files_are_told_what_they_look_like(tmp_path: Path, look: str) -> None:
    make, word = LOOKS[look]
    text = _refused(_write(tmp_path, make(), "model.safetensors"))
    assert word in text and not re.search(r"Traceback|Error\(", text)


def test_a_folder_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    assert "is a folder; pass the checkpoint file itself" in _refused(tmp_path)
    _write(tmp_path, b"x", "open_clip_model.safetensors")
    assert "in it (open_clip_model.safetensors)" in _refused(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="descriptors are numbered from below on POSIX")
def test_refusing_leaves_no_file_open(tmp_path: Path) -> None:
    def lowest() -> int:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    broken = _write(tmp_path, b"hello")
    before = lowest()
    for path in (tmp_path, broken):
        _refused(path)
    assert lowest() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "FIFO" in _refused(tmp_path / "pipe")


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    _write(tmp_path, b"x", "checkpoint_10.pt")
    assert "no such file. Did you mean 'checkpoint_10.pt'?" in _refused(tmp_path / "checkpoint_1.pt")
    assert "no such file" in _refused(tmp_path / "nowhere" / "a.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint("a\0b")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    path = _write(tmp_path, _zip())
    path.chmod(0)
    assert "Permission denied" in _refused(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, _zip())
    read = checkpoint.read_container

    def slow(*args: Any) -> Any:
        os.utime(path, ns=(0, 0))
        return read(*args)

    monkeypatch.setattr(checkpoint, "read_container", slow)
    assert "changed while it was read" in _refused(path)


def test_no_unpickler_is_ever_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [_zip(), _legacy(), pickle.dumps(STATE)]

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("an unpickler was started")

    for owner, name in (
        (torch, "load"),
        (torch.jit, "load"),
        (pickle, "loads"),
        (pickle, "load"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(owner, name, started)
    for data in files:
        assert _same(read_checkpoint(_write(tmp_path, data)).tensors)


def _memory(field: str) -> int:
    line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line is not None
    return 1024 * int(line[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's resettable peak")
@pytest.mark.parametrize(
    "container",
    ["torch zip", "safetensors", "legacy torch file", "raw pickle", "TorchScript archive", "flax msgpack",
     "sharded safetensors"],
)  # fmt: skip
def test_reading_costs_at_most_twice_the_file(tmp_path: Path, container: str) -> None:
    big = {"visual.proj": torch.randn(2**24)}
    path, size = tmp_path / "a", 4 * 2**24
    if container == "safetensors":
        safetensors.torch.save_file(big, path)
    elif container == "raw pickle":
        path.write_bytes(pickle.dumps(big))
    elif container == "flax msgpack":  # kernels are turned, so that every tensor is copied once more
        kernel = np.ones((2**12, 2**12), np.float32)
        array = msgpack.ExtType(1, msgpack.packb((kernel.shape, "float32", kernel.tobytes()), use_bin_type=True))
        layer = {"mlp": {"fc1": {"kernel": array}}}
        path.write_bytes(msgpack.packb({"ext": {"vision_model": {"encoder": {"layers": {"0": layer}}}}}))
        del kernel, array, layer
    elif container == "sharded safetensors":
        halves = {"visual.a": big["visual.proj"][: 2**23], "visual.b": big["visual.proj"][2**23 :]}
        for name, half in halves.items():
            safetensors.torch.save_file({name: half}, tmp_path / f"{name}.safetensors")
        path.write_text(json.dumps({"weight_map": {n: f"{n}.safetensors" for n in halves}}))
        del halves, half
    elif container == "TorchScript archive":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            holder: Any = nn.Sequential()
            holder.add_module("visual", nn.Linear(2**12, 2**12, bias=False))
            torch.jit.save(torch.jit.trace(holder, torch.zeros(1, 2**12)), path)
        del holder
    else:
        torch.save(big, path, _use_new_zipfile_serialization=container == "torch zip")
    del big
    # Memory that earlier tests freed but that the allocator kept would serve the read without any growth.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    read = read_checkpoint(path)
    cost = _memory("VmHWM") - before
    assert read.facts["container"] == container
    assert size / 2 < cost <= 2 * size + 64 * 2**20
