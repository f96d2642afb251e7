from __future__ import annotations

import math
import struct
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpscope.study.unitfile import LONGEST_NAME, Unit, decode, encode, file_name

CELLS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())


def bits(x: float) -> bytes:
    return struct.pack("<d", x)


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or bits(a) == bits(b)
    return type(a) is type(b) and a == b


@given(
    st.dictionaries(st.text(max_size=5), st.lists(st.dictionaries(st.text(max_size=5), CELLS, max_size=3), max_size=3))
)
@settings(max_examples=100, deadline=None)
def test_rows_come_back_exactly(rows):
    back = decode("k", encode("k", Unit(rows))).rows
    assert list(back) == list(rows)
    for table in rows:
        assert len(back[table]) == len(rows[table])
        for old, new in zip(rows[table], back[table], strict=True):
            assert list(old) == list(new) and all(same(old[c], new[c]) for c in old)


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.1, -0.0, np.nan, np.inf, -np.inf]),
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.array(3.5),
        np.zeros((0, 4), np.int64),
        np.array([True, False]),
        np.array(["a", "bb"]),
        np.array([1 + 2j], np.complex64),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_arrays_come_back_bit_for_bit(array):
    back = decode("k", encode("k", Unit(arrays={"file": array, "a/b": array}))).arrays
    assert list(back) == ["file", "a/b"]
    for got in back.values():
        assert got.dtype == array.dtype and got.shape == array.shape and got.tobytes() == array.tobytes()


def test_a_computed_unit_equals_the_one_read_back():
    row = {"f32": np.float32(0.1), "f64": np.float64(0.1), "i": np.int32(7), "b": np.bool_(True), "s": np.str_("x")}
    unit = Unit({"t": [row]})
    back = decode("k", encode("k", unit))
    assert unit.rows == back.rows
    assert back.rows["t"][0] == {"f32": float(np.float32(0.1)), "f64": 0.1, "i": 7, "b": True, "s": "x"}
    assert [type(v) for v in unit.rows["t"][0].values()] == [float, float, int, bool, str]


def test_equal_units_have_equal_bytes():
    def make():
        return encode("k", Unit({"t": [{"a": 1.5}]}, {"x": np.arange(3.0)}))

    assert make() == make()
    assert make() != encode("other", Unit({"t": [{"a": 1.5}]}, {"x": np.arange(3.0)}))


@pytest.mark.parametrize("cell", [[1.0], {"a": 1}, object(), 1j, np.arange(2), b"x"], ids=lambda c: type(c).__name__)
def test_cells_that_no_table_can_hold_are_refused(cell):
    with pytest.raises(TypeError, match="column 'a'"):
        Unit({"t": [{"a": cell}]})


def test_object_arrays_are_refused():
    with pytest.raises(TypeError, match="'x' holds Python objects"):
        Unit(arrays={"x": np.array([None, "a"], dtype=object)})


def test_every_changed_byte_and_every_truncation_is_noticed():
    data = encode("curvature/a/0.5", Unit({"t": [{"a": 0.25, "b": "c"}]}, {"x": np.arange(2.0)}))
    for i in range(len(data)):
        with pytest.raises((ValueError, KeyError, TypeError)):
            decode("curvature/a/0.5", data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises((ValueError, KeyError, TypeError)):
            decode("curvature/a/0.5", data[:i])
    with pytest.raises(ValueError, match="does not match"):
        decode("curvature/a/0.50", data)
    with pytest.raises(ValueError, match="does not match"):
        decode("curvature/a/0.5", data + b"\0")


@given(st.text(min_size=1, max_size=40))
def test_file_names_are_safe_and_reversible(key):
    name = file_name(key)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.+%~ABCDEF")
    assert not name.startswith(".") and len(name) <= LONGEST_NAME
    if len(name) < LONGEST_NAME:
        assert unquote(name.replace("+", "/"), errors="surrogatepass") == key


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6, unique=True))
def test_no_two_keys_share_a_file_where_case_is_ignored(keys):
    assert len({file_name(k).lower() for k in keys}) == len(keys)


def test_known_names():
    assert file_name("curvature/success/0.3") == "curvature+success+0.3"
    assert "/" not in file_name("../../etc/passwd") and not file_name("../x").startswith(".")
    assert file_name("x" * 500) != file_name("x" * 501) and len(file_name("x" * 500)) == LONGEST_NAME
    with pytest.raises(ValueError, match="not empty"):
        file_name("")
