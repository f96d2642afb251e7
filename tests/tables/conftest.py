"""The made-up tables of tests/present, which the tests of reading and writing tables use too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[1] / "present" / "conftest.py"
_spec = importlib.util.spec_from_file_location("made_tables_of_present", _PATH)
assert _spec is not None and _spec.loader is not None
_made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_made)

layers, tables = _made.layers, _made.tables
