"""Tidy tables to bytes and back: CSV, which is the interface, and Parquet.

The same rows always give the same bytes, whatever their order: rows are sorted by the table's key (layers in the order
of the forward pass), floats are the shortest that read back exactly, and lines end in ``\\n``. Spreadsheets do not
evaluate any cell: text that starts like a formula gets a leading ``'``, and control characters are escaped (``\\n``).
``read_csv`` removes both again.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError, RunDirectoryError, did_you_mean, shown
from sharpscope.layers import layer_key
from sharpscope.tables.experiments import EVERY_COLUMNS, EXPERIMENT_KEYS
from sharpscope.tables.formats import is_missing
from sharpscope.tables.schema import KEYS

__all__ = ["csv_bytes", "normalised", "parquet_bytes", "read_csv"]

_BOOLS = frozenset({"advised", "chosen", "converged", "present", "primary"})
_INTS = frozenset((
    "batch_size", "bin", "depth", "failures", "k", "n", "n_controls", "n_masks", "n_stragglers", "num_matvecs",
    "num_moving", "num_params", "rank", "seed", "seeds", "shots", "steps",
))  # fmt: skip
_TEXTS = frozenset((
    "pair", "layer", "granularity", "tower", "kind", "measure", "status", "note", "variant", "dataset", "role",
    "metric", "criterion", "base", "rule", "flag", "layers", "target", "select", "control", "against", "scope",
    "method", "source", "claim", "verdict", "evidence", "protocol", "evaluated", "group", "given", "family",
    "left_out", "situation", "best_baseline", "setting", "doubt",
))  # fmt: skip
_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "'",
    "＝",
    "＋",
    "－",
    "＠",
)  # some programs take the full-width characters for formulas
_SHAPED = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[nrt])")


# ------------------------------------------------------------------------------------------------- one canonical frame
def normalised(df: pd.DataFrame, name: str) -> pd.DataFrame:
    """``df`` in the canonical form of table ``name``: schema columns first, one dtype per column, sorted by the key.

    Text is ``str`` (missing: ``""``), counts are ``int64`` and flags ``bool`` (``Int64`` and ``boolean`` where some are
    missing), everything else is ``float64``.

    Raises:
        RunDirectoryError: a key column is missing, a value has the wrong kind, or two rows have the same key.
    """
    known, key = _schema(name)
    lost = [c for c in key if c not in df.columns]
    if lost and len(df.columns):
        raise RunDirectoryError(f"table {name}: no column '{lost[0]}', which is part of its key ({', '.join(key)}).")
    wanted = list(known) + [c for c in df.columns if c not in known]
    out = pd.DataFrame({c: _typed(df[c] if c in df.columns else None, c, name, len(df)) for c in wanted})
    twins = out.duplicated(list(key))
    if twins.any():
        row = out.loc[twins, list(key)].iloc[0]
        what = ", ".join(f"{k}={shown(v, 60)}" for k, v in row.items())
        raise RunDirectoryError(f"table {name}: {int(twins.sum())} rows repeat the key of another row, e.g. {what}.")
    order = pd.DataFrame({c: _sort_ranks(out[c], c) for c in key})
    return out.iloc[np.lexsort([order[c] for c in reversed(key)])].reset_index(drop=True)


def _schema(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if name not in EVERY_COLUMNS:
        raise ConfigError(
            f"unknown table '{shown(name)}'.{did_you_mean(name, EVERY_COLUMNS)} Known: {', '.join(EVERY_COLUMNS)}."
        )
    return EVERY_COLUMNS[name], {**KEYS, **EXPERIMENT_KEYS}[name]


def _kind(column: str, series: pd.Series | None) -> str:
    for kind, names in (("bool", _BOOLS), ("int", _INTS), ("text", _TEXTS)):
        if column in names:
            return kind
    if any(column in columns for columns in EVERY_COLUMNS.values()) or series is None:
        return "float"
    if pd.api.types.is_bool_dtype(series):
        return "bool"
    if pd.api.types.is_integer_dtype(series):
        return "int"
    return "float" if pd.api.types.is_float_dtype(series) else "text"


def _typed(series: pd.Series | None, column: str, name: str, length: int) -> pd.Series:
    kind = _kind(column, series)
    if series is not None and str(series.dtype) == {"float": "float64", "int": "int64", "bool": "bool"}.get(kind):
        return series.reset_index(drop=True)
    if series is not None and kind == "text" and getattr(series.dtype, "storage", "") == "pyarrow":
        return series.fillna("").astype("str").reset_index(drop=True)  # pyarrow's text is always UTF-8
    if series is None and kind in ("float", "text"):
        return pd.Series(np.full(length, math.nan)) if kind == "float" else pd.Series([""] * length, dtype="str")
    values: list[Any] = [None] * length if series is None else series.astype(object).tolist()
    try:
        if kind == "float":
            return pd.Series([math.nan if is_missing(v) else float(v) for v in values], dtype="float64")
        if kind == "text":
            texts: dict[Any, str] = {}
            return pd.Series([_text(v, texts) for v in values], dtype="str")
        convert: Callable[[Any], Any] = _as_bool if kind == "bool" else _as_int
        return _with_gaps([None if is_missing(v) else convert(v) for v in values], kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise RunDirectoryError(f"table {name}, column {shown(column)}: {shown(error)}; expected {kind}.") from None


def _with_gaps(items: list[Any], kind: str) -> pd.Series:
    """Flags or counts, None where one is missing, without a conversion to float, which would round large seeds."""
    mask = np.array([v is None for v in items], dtype=bool)
    if kind == "bool":
        flags = np.array([bool(v) for v in items], dtype=bool)
        return pd.Series(pd.arrays.BooleanArray(flags, mask) if mask.any() else flags)
    counts = np.array([v or 0 for v in items], dtype="int64")
    return pd.Series(pd.arrays.IntegerArray(counts, mask) if mask.any() else counts)


def _text(value: Any, seen: dict[Any, str]) -> str:
    """``value`` as text that UTF-8 can encode; results are cached, since a column has few distinct values."""
    if not isinstance(value, str):
        return "" if is_missing(value) else str(value)
    if value not in seen:
        seen[value] = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return seen[value]


def _as_int(value: Any) -> int:
    if isinstance(value, str) or int(value) != value:
        raise ValueError(f"'{shown(value)}' is not a whole number")
    if isinstance(value, (float, np.floating)) and abs(float(value)) > 2**53:
        raise ValueError(f"{value!r} is a floating-point number too large to hold all its digits")
    return int(value)


def _as_bool(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(f"'{shown(value)}' is neither True nor False")


def _sort_ranks(series: pd.Series, column: str) -> np.ndarray:
    """Sort keys of the values: numbers by value (missing last), layers in forward order, other text by itself."""
    if series.dtype == "float64":
        return series.fillna(math.inf).to_numpy()
    if series.dtype == "int64":
        return series.to_numpy()
    order: Callable[[Any], Any] = layer_key if column == "layer" else str
    codes, values = series.factorize(use_na_sentinel=False)
    ranks = np.empty(len(values), dtype="int64")
    ranks[sorted(range(len(values)), key=lambda i: order(values[i]))] = np.arange(len(values))
    return ranks[codes]


# ----------------------------------------------------------------------------------------------------- CSV and Parquet
def csv_bytes(df: pd.DataFrame, name: str) -> bytes:
    """Table ``name`` as UTF-8 CSV, the same bytes for the same rows; ``read_csv`` gives ``normalised(df)`` back.

    Floats are the shortest that read back exactly, flags are ``True`` or ``False``, and missing values are empty.

    Raises:
        RunDirectoryError: as ``normalised``.
    """
    frame = normalised(df, name)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_guarded(str(c)) for c in frame.columns])
    writer.writerows(zip(*(_cells(frame[c]) for c in frame.columns), strict=True))
    return text.getvalue().encode("utf-8")


def _cells(series: pd.Series) -> list[str]:
    if series.dtype == "float64":
        return ["" if math.isnan(v) else repr(v) for v in series.tolist()]
    if pd.api.types.is_string_dtype(series.dtype):
        guarded = {v: _guarded(v) for v in series.unique().tolist()}
        return [guarded[v] for v in series.to_numpy(dtype=object).tolist()]
    return ["" if v is pd.NA else str(v) for v in series.tolist()]


def _guarded(text: str) -> str:
    """Escape control and invisible characters, and put a ``'`` before text that a spreadsheet might evaluate.

    Distinct texts stay distinct, so that ``_unguarded`` can invert this.
    """
    clean = text.replace("\\", "\\\\")
    clean = clean if clean.isprintable() else "".join(_escaped(c) for c in clean)
    return "'" + clean if clean.startswith(_FORMULA) else clean


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def _unguarded(text: str) -> str:
    text = text.removeprefix("'")
    return _SHAPED.sub(lambda m: m[0].encode("ascii").decode("unicode_escape"), text) if "\\" in text else text


def read_csv(path: str | os.PathLike[str], name: str) -> pd.DataFrame:
    """Table ``name`` from a file that ``csv_bytes`` made: the same frame with the same dtypes, also if it is empty.

    A column beyond the schema comes back as flags, counts or floats if every cell of it is one, otherwise as text.

    Raises:
        RunDirectoryError: the file is missing or unreadable, or a cell has the wrong kind.
    """
    _schema(name)
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8")
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{shown(os.fspath(path))}: no such file; 'sharpscope report RUN' writes the tables of a run."
        ) from None
    except (OSError, ValueError) as error:  # pandas' parser errors and UnicodeDecodeError are ValueErrors
        raise RunDirectoryError(f"{shown(os.fspath(path))}: not a readable table ({shown(error)}).") from None
    raw.columns = pd.Index([_unguarded(c) for c in raw.columns])
    try:
        return normalised(pd.DataFrame({c: _parsed(raw[c], c) for c in raw.columns}), name)
    except ValueError as error:
        raise RunDirectoryError(f"{shown(os.fspath(path))}: {shown(error)}.") from None


def _parsed(series: pd.Series, column: str) -> pd.Series:
    """Cells to values. The kind of a column outside the schema is the first that fits all its cells."""
    known = any(column in columns for columns in EVERY_COLUMNS.values())
    for kind in (_kind(column, None),) if known else ("bool", "int", "float", "text"):
        try:
            values = {cell: _value(cell, kind) for cell in series.unique()}
        except ValueError as error:
            if known:
                raise ValueError(f"column {shown(column)}: {error}") from None
            continue
        items = [values[c] for c in series.to_numpy(dtype=object).tolist()]
        if known or kind == "text":
            return pd.Series(items, dtype=object)
        if any(v is not None for v in values.values()):
            return pd.Series(items, dtype="float64") if kind == "float" else _with_gaps(items, kind)
    return pd.Series([None] * len(series), dtype="float64")  # an unknown column without any value


def _value(cell: str, kind: str) -> Any:
    if kind == "text":
        return _unguarded(cell)
    if cell == "":
        return None
    if kind == "bool":
        if cell not in ("True", "False"):
            raise ValueError(f"'{shown(cell)}' is neither True nor False")
        return cell == "True"
    return int(cell) if kind == "int" else float(cell)


def parquet_bytes(df: pd.DataFrame, name: str) -> bytes:
    """Table ``name`` as Parquet: typed, unescaped, the same bytes for the same rows and pyarrow version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(normalised(df, name), preserve_index=False).replace_schema_metadata(None)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
