"""sharpscope: layer-wise sharpness along the path between a zero-shot CLIP and its fine-tuned version.

The public names are imported when they are first used: ``import sharpscope`` costs nothing, torch comes with the first
one that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharpscope.clip.data import load_dataset
    from sharpscope.clip.probe import Probe
    from sharpscope.config import PairConfig, StudyConfig
    from sharpscope.curvature.notebook import layer_curvature
    from sharpscope.evaluation import evaluate
    from sharpscope.findings.foreign import read_results
    from sharpscope.finetune import finetune
    from sharpscope.study import layer_sharpness, load_pair, report, run

__all__ = [
    "PairConfig",
    "Probe",
    "StudyConfig",
    "__version__",
    "evaluate",
    "finetune",
    "layer_curvature",
    "layer_sharpness",
    "load_dataset",
    "load_pair",
    "read_results",
    "report",
    "run",
]

__version__ = "0.1.0"

_HOME = {
    "PairConfig": "sharpscope.config",
    "Probe": "sharpscope.clip.probe",
    "StudyConfig": "sharpscope.config",
    "evaluate": "sharpscope.evaluation",
    "finetune": "sharpscope.finetune",
    "layer_curvature": "sharpscope.curvature.notebook",
    "layer_sharpness": "sharpscope.study",
    "load_dataset": "sharpscope.clip.data",
    "load_pair": "sharpscope.study",
    "read_results": "sharpscope.findings.foreign",
    "report": "sharpscope.study",
    "run": "sharpscope.study",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sharpscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
