"""Tidy tables to bytes and back: CSV (the interface), Parquet, Markdown, LaTeX, and numbers with their uncertainty.

The same rows always give the same bytes, whatever their order: sorted by the table's key (layers in the order of the
forward pass), shortest floats that read back exactly, ``\\n`` line ends. A spreadsheet evaluates no cell of a written file:
text that starts like a formula gets a leading ``'``, control characters become ``\\n``-like escapes, and ``read_csv``
takes both off again.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError, RunDirectoryError, did_you_mean, shown
from sharpscope.schema import ALL, COLUMNS, KEYS, MEASURES

__all__ = [
    "csv_bytes",
    "interval",
    "latex",
    "layer_key",
    "markdown",
    "normalised",
    "number",
    "parquet_bytes",
    "percent",
    "points",
    "read_csv",
    "with_error",
]

_BOOLS = frozenset({"chosen", "converged", "present"})
_INTS = frozenset({"depth", "n", "num_matvecs", "num_moving", "num_params", "seed"})
_TEXTS = frozenset(
    "pair layer granularity tower kind measure status note variant dataset role metric criterion base rule flag layers "
    "target select control against scope method source claim verdict evidence".split()
)
_FORMULA = ("=", "+", "-", "@", "'", "＝", "＋", "－", "＠")  # noqa: RUF001  full-width twins are formulas to some programs
_SHAPED = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[nrt])")


# ---------------------------------------------------------------------------------------------------- layers in order
_RANKS = {
    name: rank
    for rank, name in enumerate(
        "token_embedding stem patch_embed conv1 bn1 act1 conv2 bn2 act2 conv3 bn3 avgpool class_embedding "
        "positional_embedding embed ln_pre norm1 ln_1 attn ls_1 ls1 norm2 ln_2 mlp ls_2 ls2 downsample in_proj_weight in_proj_bias "
        "c_fc c_proj out_proj weight bias".split()
    )
}
_LAST = {name: rank for rank, name in enumerate("ln_post ln_final norm attnpool proj text_projection post head".split())}


def layer_key(name: str) -> tuple[Any, ...]:
    """Sort key that puts layer names in the order in which a CLIP's forward pass meets them; ``(all)`` comes first.

    Image tower, text tower, ``logit_scale``, head; inside a tower stem, numbered blocks as numbers, then what follows them.

    >>> sorted(["head", "visual.proj", "visual.transformer.resblocks.10.mlp", "visual.conv1"], key=layer_key)
    ['visual.conv1', 'visual.transformer.resblocks.10.mlp', 'visual.proj', 'head']
    """
    parts = name.split(".")
    if name == ALL:
        tower = -1
    elif parts[0] == "visual":
        tower = 0
    elif parts[0] == "logit_scale":
        tower = 2
    elif parts[0] in ("head", "classification_head"):
        tower = 3
    else:
        tower = 1
    body = [p for p in parts if p not in ("visual", "text", "trunk", "transformer", "resblocks", "blocks")]
    return tower, tuple(_part_key(p) for p in body), name


def _part_key(part: str) -> tuple[int, int, str]:
    """(stem 0 | numbered 1 | unknown 2 | after the blocks 3, rank or number, name)."""
    if part in _LAST:
        return 3, _LAST[part], part
    if part in _RANKS:
        return 0, _RANKS[part], part
    number = re.fullmatch(r"(?:layer|stages?|layers)?(\d{1,9})", part)
    return (1, int(number[1]), part) if number else (2, 0, part)


# ------------------------------------------------------------------------------------------------- one canonical frame
def normalised(df: pd.DataFrame, name: str) -> pd.DataFrame:
    """``df`` as table ``name`` is kept: schema columns first, one dtype a column, sorted by the key.

    Text ``str`` (missing: ``""``), counts ``int64``, flags ``bool`` (``Int64``, ``boolean`` where some are missing), everything
    else ``float64``. Raises RunDirectoryError for a missing key column, a value of the wrong kind or two rows with one key.
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
    if name not in COLUMNS:
        raise ConfigError(f"unknown table '{shown(name)}'.{did_you_mean(name, COLUMNS)} Known: {', '.join(COLUMNS)}.")
    return COLUMNS[name], KEYS[name]


def _kind(column: str, series: pd.Series | None) -> str:
    for kind, names in (("bool", _BOOLS), ("int", _INTS), ("text", _TEXTS)):
        if column in names:
            return kind
    if any(column in columns for columns in COLUMNS.values()) or series is None:
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
    if series is None and kind in ("float", "text"):
        return pd.Series(np.full(length, math.nan)) if kind == "float" else pd.Series([""] * length, dtype="str")
    values: list[Any] = [None] * length if series is None else series.astype(object).tolist()
    try:
        if kind == "float":
            return pd.Series([math.nan if _missing(v) else float(v) for v in values], dtype="float64")
        if kind == "text":
            texts: dict[Any, str] = {}
            return pd.Series([_text(v, texts) for v in values], dtype="str")
        convert: Callable[[Any], Any] = _as_bool if kind == "bool" else _as_int
        items = [None if _missing(v) else convert(v) for v in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise RunDirectoryError(f"table {name}, column {shown(column)}: {shown(error)}; expected {kind}.") from None
    gaps = any(v is None for v in items)
    dtype = {"bool": ("bool", "boolean"), "int": ("int64", "Int64")}[kind][gaps]
    return pd.Series(pd.array(items, dtype=dtype) if gaps else np.array(items, dtype=dtype))


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, seen: dict[Any, str]) -> str:
    """``value`` as text that UTF-8 can hold, remembered: a column holds few distinct values."""
    if not isinstance(value, str):
        return "" if _missing(value) else str(value)
    if value not in seen:
        seen[value] = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return seen[value]


def _as_int(value: Any) -> int:
    if isinstance(value, str) or int(value) != value:
        raise ValueError(f"'{shown(value)}' is no whole number")
    return int(value)


def _as_bool(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(f"'{shown(value)}' is neither True nor False")


def _sort_ranks(series: pd.Series, column: str) -> np.ndarray:
    """Position of each value among the distinct ones: numbers as numbers (missing last), layers in forward order."""
    if series.dtype == "float64":
        return series.fillna(math.inf).to_numpy()
    order: Callable[[str], Any] = layer_key if column == "layer" else str
    ranks = {v: i for i, v in enumerate(sorted(series.unique(), key=order))}
    return series.map(ranks).to_numpy(dtype="int64")


# ----------------------------------------------------------------------------------------------------- CSV and Parquet
def csv_bytes(df: pd.DataFrame, name: str) -> bytes:
    """Table ``name`` as UTF-8 CSV: the same rows in any order give the same bytes; ``read_csv`` gives ``normalised(df)`` back.

    Floats are the shortest that read back exactly, flags ``True`` / ``False``, missing values empty. Raises as ``normalised``.
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
    if isinstance(series.dtype, pd.StringDtype):
        guarded = {v: _guarded(v) for v in series.unique().tolist()}
        return [guarded[v] for v in series.to_numpy(dtype=object).tolist()]
    return ["" if v is pd.NA else str(v) for v in series.tolist()]


def _guarded(text: str) -> str:
    """Injective: control and invisible characters escaped, a ``'`` before whatever a spreadsheet might evaluate."""
    clean = text.replace("\\", "\\\\")
    clean = clean if clean.isprintable() else "".join(_escaped(c) for c in clean)
    return "'" + clean if clean.startswith(_FORMULA) else clean


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def _unguarded(text: str) -> str:
    text = text.removeprefix("'")
    return _SHAPED.sub(lambda m: m[0].encode("ascii").decode("unicode_escape"), text) if "\\" in text else text


def read_csv(path: str | os.PathLike[str], name: str) -> pd.DataFrame:
    """Table ``name`` from a file that ``csv_bytes`` made: the very frame, dtypes included, empty tables too.

    Columns beyond the schema come back as flags, counts or floats where every cell is one, else as text.
    Raises RunDirectoryError for a missing or unreadable file, or a cell of the wrong kind.
    """
    _schema(name)
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8")
    except FileNotFoundError:
        raise RunDirectoryError(f"{shown(os.fspath(path))}: no such file; 'sharpscope report RUN' writes the tables of a run.") from None
    except (OSError, ValueError) as error:  # pandas' parser errors and UnicodeDecodeError are ValueErrors
        raise RunDirectoryError(f"{shown(os.fspath(path))}: not a readable table ({shown(error)}).") from None
    raw.columns = pd.Index([_unguarded(c) for c in raw.columns])
    try:
        return normalised(pd.DataFrame({c: _parsed(raw[c], c) for c in raw.columns}), name)
    except ValueError as error:
        raise RunDirectoryError(f"{shown(os.fspath(path))}: {shown(error)}.") from None


def _parsed(series: pd.Series, column: str) -> pd.Series:
    """Cells to values; the kind of a column outside the schema is what all its cells can be."""
    known = any(column in columns for columns in COLUMNS.values())
    for kind in (_kind(column, None),) if known else ("bool", "int", "float", "text"):
        try:
            values = {cell: _value(cell, kind) for cell in series.unique()}
        except ValueError as error:
            if known:
                raise ValueError(f"column {shown(column)}: {error}") from None
            continue
        if known or kind == "text" or any(v is not None for v in values.values()):
            return pd.Series([values[c] for c in series.to_numpy(dtype=object).tolist()], dtype=object if known or kind == "text" else _loose(kind, values))
    return pd.Series([None] * len(series), dtype="float64")  # an unknown column without any value


def _loose(kind: str, values: dict[str, Any]) -> str:
    gaps = any(v is None for v in values.values())
    return {"bool": ("bool", "boolean"), "int": ("int64", "Int64"), "float": ("float64", "float64")}[kind][gaps]


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


# -------------------------------------------------------------------------------------------- numbers for human readers
MISSING = "—"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _fixed(value: float, place: int) -> str:
    """``value`` rounded to 10**place, with a true minus sign and no negative zero."""
    exact = Decimal(repr(float(value)))
    rounded = exact.quantize(Decimal(1).scaleb(place)) if place <= 0 else exact.scaleb(-place).quantize(Decimal(1)).scaleb(place)
    text = f"{abs(rounded):f}"
    return ("−" if rounded < 0 else "") + text  # noqa: RUF001


def _plain(value: float) -> str | None:
    if math.isnan(value):
        return MISSING
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else None  # noqa: RUF001


def number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits; below 1e-3 and from 1e6 on as a power of ten; missing: a dash.

    >>> number(1234.6), number(0.5), number(-2.5e-7)
    ('1235', '0.500', '−2.50×10⁻⁷')
    """
    value = float(value)
    special = _plain(value)
    if special is not None or value == 0:
        return special or "0"
    exponent = int(f"{abs(value):.{digits - 1}e}".split("e")[1])  # after rounding: 9.999 counts as 10.0
    if -3 <= exponent < 6:
        return _fixed(value, min(0, exponent - digits + 1))
    return f"{_fixed(value / 10.0**exponent, 1 - digits)}×10{str(exponent).translate(_SUPERSCRIPT)}"


def with_error(estimate: float, stderr: float) -> str:
    """``"12.3 ± 0.4"``: the error with the one or two digits that mean something, the estimate rounded likewise.

    The Particle Data Group's rule: leading digits 100-354 keep two, 355-949 one, 950-999 become 1000 and keep two.

    >>> with_error(12.345, 0.41), with_error(1521.3, 48.0), with_error(1.2345e-5, 4e-7)
    ('12.3 ± 0.4', '1520 ± 50', '(1.23 ± 0.04)×10⁻⁵')
    """
    estimate, stderr = float(estimate), float(stderr)
    if math.isnan(estimate):
        return MISSING
    if not math.isfinite(estimate) or not math.isfinite(stderr) or stderr <= 0:
        return number(estimate) + ("" if math.isnan(stderr) else f" ± {number(stderr)}")
    largest = max(abs(estimate), stderr)
    exponent = math.floor(math.log10(largest))
    scale = 0 if -3 <= exponent < 6 else exponent
    estimate, stderr = estimate / 10.0**scale, stderr / 10.0**scale
    digits, power = f"{stderr:.2e}".split("e")
    place = int(power) - (float(digits) < 3.55)
    text = f"{_fixed(estimate, place)} ± {_fixed(stderr, place)}"
    return f"({text})×10{str(scale).translate(_SUPERSCRIPT)}" if scale else text


def percent(value: float, digits: int = 1) -> str:
    """A share in [0, 1] as ``"52.5 %"``."""
    return _plain(float(value)) or f"{_fixed(100 * float(value), -digits)} %"


def points(value: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, signed: ``"+6.5"``."""
    text = _plain(float(value)) or _fixed(100 * float(value), -digits)
    return text if text[0] in "−∞" + MISSING or not text.strip("0.") else f"+{text}"  # noqa: RUF001


def interval(estimate: float, low: float, high: float, style: Callable[[float], str] = number) -> str:
    """``"52.5 % [51.4, 53.6]"``: an estimate with its interval, each in the given style (number, percent, points)."""
    if math.isnan(float(low)) and math.isnan(float(high)):
        return style(estimate)
    return f"{style(estimate)} [{style(low).removesuffix(' %')}, {style(high).removesuffix(' %')}]"


# ------------------------------------------------------------------------------------------------- Markdown and LaTeX
def _shown_cell(value: Any, digits: int) -> str:
    if _missing(value):
        return MISSING
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return number(float(value), digits) if isinstance(value, (float, np.floating)) else shown(value, 1000)


def _grid(df: pd.DataFrame, columns: Sequence[str] | None, digits: int) -> tuple[list[str], list[list[str]], list[bool]]:
    frame = df if columns is None else df[list(columns)]
    body = [[_shown_cell(v, digits) for v in frame[c].astype(object).tolist()] for c in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(frame[c]) and not pd.api.types.is_bool_dtype(frame[c]) for c in frame.columns]
    return [shown(c, 1000) for c in frame.columns], [list(row) for row in zip(*body, strict=True)], numeric


def markdown(df: pd.DataFrame, columns: Sequence[str] | None = None, digits: int = 3) -> str:
    """``df`` as a GitHub pipe table; numbers with ``digits`` significant digits, right-aligned; markup in names stays text."""
    head, rows, numeric = _grid(df, columns, digits)
    lines = [head, ["---:" if right else "---" for right in numeric]]
    cells = [[_markdown_escape(c) for c in row] for row in [head, *rows]]
    lines = [cells[0], lines[1], *cells[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def _markdown_escape(text: str) -> str:
    text = re.sub(r"([\\`*\[\]<>|#~$])", r"\\\1", text.replace("&", "&amp;"))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",  # noqa: RUF001
    "±": r"$\pm$",
    "×": r"$\times$",  # noqa: RUF001
    "∞": r"$\infty$",
    "—": "--",
    "…": r"\ldots{}",
} | {sup: rf"\textsuperscript{{{plain}}}" for plain, sup in zip("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)} | {"⁻": r"\textsuperscript{$-$}"}


def latex(df: pd.DataFrame, columns: Sequence[str] | None = None, digits: int = 3) -> str:
    """``df`` as a booktabs ``tabular`` (needs ``\\usepackage{booktabs}``); LaTeX's special characters in names escaped."""
    head, rows, numeric = _grid(df, columns, digits)
    body = [" & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in row) + r" \\" for row in [head, *rows]]
    align = "".join("r" if right else "l" for right in numeric)
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}", ""])
