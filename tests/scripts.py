"""Files that are no part of the package, loaded as modules: the scripts of figures, analyses and benchmarks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "loaded"]

ROOT = Path(__file__).parents[1]


def loaded(path: str) -> Any:
    """The file ``path``, counted from the root of the project, as a fresh module."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"loaded_{file.parent.name}_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the annotations of their module
    spec.loader.exec_module(module)
    return module
