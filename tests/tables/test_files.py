"""Tables to bytes and back: exact, in one order, harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpscope.errors import ConfigError, RunDirectoryError
from sharpscope.layers import layer_key
from sharpscope.tables.files import csv_bytes, normalised, parquet_bytes, read_csv
from sharpscope.tables.schema import COLUMNS, KEYS

HOSTILE = (
    "=1+1",
    "+x",
    "-x",
    "@SUM(A1)",
    "'quoted",
    "a,b",
    'say "hi"',
    "two\nlines",
    "tab\there",
    "\x1b[31mred",
    "\r",
    "nan",
)
HOSTILE += (
    "\\n is not a newline",
    "",
    "NA",
    "None",
    "<script>",
    "\u202egnp.exe",
    "层",
    "＝1",
    "x" * 500,
    "\ud800",
    " lead",
)


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted from the alphabetical order, so that nothing is right by having been so before."""
    return sorted(sorted(names), key=layer_key)


def back(data: bytes, name: str, folder: Path) -> pd.DataFrame:
    path = folder / f"{name}.csv"
    path.write_bytes(data)
    return read_csv(path, name)


@pytest.mark.parametrize("name", COLUMNS)
def test_csv_gives_the_very_frame_back(name: str, tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    want = normalised(tables[name], name)
    got = back(csv_bytes(tables[name], name), name, tmp_path)
    pd.testing.assert_frame_equal(got, want, check_exact=True)
    assert csv_bytes(got, name) == csv_bytes(tables[name], name)
    assert list(got.columns) == list(COLUMNS[name])
    assert len(got) == len(tables[name]) > 0


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_in_any_order_give_the_same_bytes(name: str, tables: dict[str, pd.DataFrame]) -> None:
    shuffled = tables[name].sample(frac=1, random_state=3)[list(reversed(tables[name].columns))]
    assert csv_bytes(shuffled, name) == csv_bytes(tables[name], name)
    assert parquet_bytes(shuffled, name) == parquet_bytes(tables[name], name)


@pytest.mark.parametrize("name", COLUMNS)
def test_empty_tables_keep_columns_and_dtypes(name: str, tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    for empty in (pd.DataFrame(), tables[name].iloc[:0]):
        got = back(csv_bytes(empty, name), name, tmp_path)
        assert len(got) == 0
        assert list(got.columns) == list(COLUMNS[name])
        full = normalised(tables[name], name)
        kinds = {c: got[c].dtype.kind for c in got}
        assert all(kinds[c] == full[c].dtype.kind for c in got if str(full[c].dtype) not in ("Int64", "boolean"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("csv")


@settings(max_examples=60, deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_floats_read_back_to_the_last_bit(value: float) -> None:
    data = csv_bytes(pd.DataFrame({"pair": ["p"], "alpha": [0.1], "loss": [value]}), "path")
    cell = next(csv.DictReader(io.StringIO(data.decode())))["loss"]
    if math.isnan(value):
        assert cell == ""
    else:
        assert np.float64(cell).tobytes() == np.float64(value).tobytes()
        assert len(cell) <= len(repr(value))


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20), st.text("=+-@'\\\nxu0", max_size=8)))
def test_any_text_comes_back_and_is_no_formula(folder: Path, text: str) -> None:
    cells = {"status": pd.Series([text], dtype=object), "memo": pd.Series([text + "!"], dtype=object)}
    df = pd.DataFrame({"pair": ["p"], "alpha": [0.0], "loss": [1.0], **cells})
    df = df.rename(columns={"memo": "memo" + text.replace("\ud800", "")}) if text.isascii() else df
    data = csv_bytes(df, "path")
    got = back(data, "path", folder)
    want = text.encode("utf-8", "backslashreplace").decode()
    assert got["status"][0] == want
    pd.testing.assert_frame_equal(got, normalised(df, "path"))
    body = data.decode()
    assert body.count("\n") == 2
    assert all(c.isprintable() for c in body.replace("\n", ""))
    for row in csv.reader(io.StringIO(body)):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


def test_negative_numbers_stay_numbers() -> None:
    data = csv_bytes(pd.DataFrame({"pair": ["p"], "alpha": [0.5], "loss": [-0.25]}), "path").decode()
    assert ",-0.25," in data


def test_missing_counts_and_flags_stay_missing_and_large_seeds_exact(
    tmp_path: Path, tables: dict[str, pd.DataFrame]
) -> None:
    df = tables["sharpness"].head(3).astype({"seed": object, "converged": object})
    df["seed"] = pd.Series([2**62 + 1, None, 2**63 - 1], dtype=object)
    df["converged"] = [True, None, False]
    got = back(csv_bytes(df, "sharpness"), "sharpness", tmp_path)
    assert sorted(got["seed"].dropna()) == [2**62 + 1, 2**63 - 1]
    assert str(got["seed"].dtype) == "Int64"
    with pytest.raises(RunDirectoryError, match="too large to hold all its digits"):
        csv_bytes(df.assign(seed=[2.0**62, None, 1.0]), "sharpness")
    assert got["seed"].isna().sum() == got["converged"].isna().sum() == 1


def test_columns_beyond_the_schema_follow_and_keep_their_kind(tmp_path: Path) -> None:
    df = pd.DataFrame(
        {"flagged": [True, False], "memo": ["a", ""], "lr": [0.1, 1e-7], "alpha": [0, 1], "pair": "p", "steps": [3, 4]}
    )
    got = back(csv_bytes(df, "path"), "path", tmp_path)
    assert list(got.columns) == [*COLUMNS["path"], "flagged", "memo", "lr", "steps"]
    assert [got[c].dtype.kind for c in ("flagged", "lr", "steps")] == ["b", "f", "i"]
    assert got["memo"].tolist() == ["a", ""]


@pytest.mark.parametrize("name", COLUMNS)
def test_two_rows_with_one_key_are_refused(name: str, tables: dict[str, pd.DataFrame]) -> None:
    twice = pd.concat([tables[name], tables[name].head(1)])
    with pytest.raises(RunDirectoryError, match=rf"table {name}: 1 rows repeat the key"):
        csv_bytes(twice, name)


def test_wrong_input_is_named(tmp_path: Path, tables: dict[str, pd.DataFrame]) -> None:
    with pytest.raises(RunDirectoryError, match="no column 'alpha'"):
        csv_bytes(tables["path"].drop(columns="alpha"), "path")
    with pytest.raises(RunDirectoryError, match=r"column n: 'many' is not a whole number"):
        csv_bytes(tables["accuracy"].head(1).assign(n="many"), "accuracy")
    with pytest.raises(RunDirectoryError, match=r"column present: 'perhaps'"):
        csv_bytes(tables["failure"].head(1).assign(present="perhaps"), "failure")
    with pytest.raises(RunDirectoryError, match=r"column loss: .*expected float"):
        csv_bytes(tables["path"].head(1).assign(loss="much"), "path")
    with pytest.raises(ConfigError, match="Did you mean 'sharpness'"):
        csv_bytes(tables["path"], "sharpnes")
    with pytest.raises(RunDirectoryError, match="no such file"):
        read_csv(tmp_path / "none.csv", "path")
    for content in (
        b"",
        b"\xff\xfe\x00",
        b'pair,alpha\n"open',
        b"pair,alpha,loss\np,zero,1\n",
        b"pair,alpha,num_moving\np,0,1.5\n",
    ):
        (tmp_path / "bad.csv").write_bytes(content)
        with pytest.raises(RunDirectoryError, match=r"bad\.csv"):
            read_csv(tmp_path / "bad.csv", "path")


def test_parquet_holds_the_same_values(tables: dict[str, pd.DataFrame]) -> None:
    for name in ("sharpness", "failure"):
        got = pq.read_table(io.BytesIO(parquet_bytes(tables[name], name))).to_pandas()
        want = normalised(tables[name], name)
        assert list(got.columns) == list(want.columns)
        np.testing.assert_array_equal(got["estimate"], want["estimate"])
        assert got["pair"].tolist() == want["pair"].tolist()


def test_layers_are_in_the_order_of_the_forward_pass(layers: tuple[str, ...], tables: dict[str, pd.DataFrame]) -> None:
    assert in_order(layers) == list(layers)
    text = [
        "token_embedding.weight",
        "positional_embedding",
        "transformer.resblocks.2.ln_1",
        "transformer.resblocks.10.attn",
    ]
    text += ["ln_final", "text_projection", "head", "logit_scale"]
    image = [
        "(all)",
        "(stragglers)",
        "visual.stem",
        "visual.transformer.resblocks.9",
        "visual.transformer.resblocks.11",
        "visual.post",
    ]
    assert in_order(image + text) == image + text
    resnet = [
        "visual.conv1",
        "visual.bn1",
        "visual.layer1.0.conv1",
        "visual.layer1.0.conv2",
        "visual.layer2.0.conv1",
        "visual.attnpool",
    ]
    assert in_order(resnet) == resnet
    table = normalised(tables["sharpness"], "sharpness")
    one = table[(table["pair"] == "success") & (table["alpha"] == 0.5) & (table["measure"] == "lambda_max")]
    assert one["layer"].tolist() == ["(all)", *layers]


def test_every_key_column_is_sorted_first_to_last(tables: dict[str, pd.DataFrame]) -> None:
    for name, df in tables.items():
        if name in KEYS and "layer" not in KEYS[name]:
            got = normalised(df, name)
            want = got.sort_values(list(KEYS[name]), kind="stable")
            assert got.index.tolist() == want.index.tolist()
