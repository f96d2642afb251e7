"""One unit of work as bytes: table rows and arrays with a checksum, and the file name that belongs to its key."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

__all__ = ["LONGEST_NAME", "Unit", "decode", "encode", "file_name"]

_UNIT_FORMAT: Final = "sharpscope-unit/1"
LONGEST_NAME: Final = 180
"""The longest file name of a unit, in characters; a name of this length ends in a digest of its key."""

Cell = str | int | float | bool | None
Rows = dict[str, list[dict[str, Cell]]]


@dataclass(frozen=True, eq=False)
class Unit:
    """The result of one unit of work: table rows by table name, and arrays by name.

    Cells are str, bool, int, float or None. Numpy scalars are converted to the Python number of the same value at once,
    so that a unit just computed and the same unit read back give byte-identical tables (float32(0.1) prints
    differently). Arrays hold numbers, never objects.

    Raises:
        TypeError: another type of cell or array.
    """

    rows: Rows = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = {
            str(table): [{str(column): _cell(value, column) for column, value in row.items()} for row in table_rows]
            for table, table_rows in self.rows.items()
        }
        arrays = {str(name): np.asarray(array) for name, array in self.arrays.items()}
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise TypeError(f"array {name!r} holds Python objects; a unit keeps numbers only")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "arrays", arrays)


def file_name(key: str) -> str:
    """A file name for ``key``: lower-case letters, digits and ``-_.`` as they are, ``/`` as ``+``, the rest as ``%XX``.

    No two keys share a file name, even on a file system that ignores case. Long names end in a digest of the key.

    >>> file_name("curvature/success/0.3")
    'curvature+success+0.3'
    """
    if not key:
        raise ValueError("a unit of work needs a key that is not empty")
    name = "".join(
        c
        if re.fullmatch(r"[a-z0-9_.-]", c)
        else "+"
        if c == "/"
        else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogatepass"))
        for c in key
    )
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > LONGEST_NAME - 10:
        name = f"{name[:100]}~{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}".ljust(
            LONGEST_NAME, "~"
        )
    return name


def _cell(value: Any, column: object) -> Cell:
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        number = float(value)
        if number != value and not np.isnan(value):
            raise TypeError(f"column {column!r}: {value!r} of {value.dtype} does not fit a float64")
        return number
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"column {column!r}: a cell is text, a number, a truth value or None, not {type(value).__name__}")


def encode(key: str, unit: Unit) -> bytes:
    """The unit as file contents: a header line (format, key, SHA-256), JSON rows, npz arrays."""
    text = json.dumps({"rows": unit.rows, "arrays": list(unit.arrays)}, separators=(",", ":")).encode("ascii")
    packed = io.BytesIO()
    np.savez(packed, *unit.arrays.values())  # by position: any name is allowed; entries carry a fixed date
    return _header(key, len(text), text + packed.getvalue()) + text + packed.getvalue()


def _header(key: str, rows: int, payload: bytes) -> bytes:
    about = {"format": _UNIT_FORMAT, "key": key, "rows": rows}
    digest = hashlib.sha256(json.dumps(about).encode() + b"\n" + payload).hexdigest()
    return json.dumps({**about, "sha256": digest}).encode("ascii") + b"\n"


def decode(key: str, data: bytes) -> Unit:
    """The unit in a file's contents.

    Raises:
        ValueError: a byte differs from what ``encode(key, unit)`` wrote.
    """
    first, _, payload = data.partition(b"\n")
    size = json.loads(first)["rows"]
    if type(size) is not int or first + b"\n" != _header(key, size, payload):
        raise ValueError("its checksum, key or format does not match")
    content = json.loads(payload[:size])
    with np.load(io.BytesIO(payload[size:]), allow_pickle=False) as packed:
        arrays = {name: packed[f"arr_{i}"] for i, name in enumerate(content["arrays"])}
    return Unit(content["rows"], arrays)
