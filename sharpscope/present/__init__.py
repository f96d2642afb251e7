"""Tables, figures and the report of a run. No torch; a module is loaded when it is asked for by name."""

from __future__ import annotations

__all__ = ["plots", "report", "tables"]
