"""The made-up tables of tests/present, which the tests of reading and writing tables use too."""

from __future__ import annotations

from tests.scripts import loaded

_made = loaded("tests/present/conftest.py")
layers, tables = _made.layers, _made.tables
