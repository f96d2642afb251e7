"""The small tables of tests/findings, which the tests of exchange use too."""

from __future__ import annotations

from tests.scripts import loaded

_made = loaded("tests/findings/conftest.py")
accuracy_of = _made.accuracy_of
