"""sharpscope: layer-wise sharpness along the path between a zero-shot CLIP and its fine-tuned version.

The public names are imported when they are first used: ``import sharpscope`` costs nothing, torch comes with the first
one that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sharpscope.vocabulary import __version__

if TYPE_CHECKING:
    from sharpscope.clip.datasets.spec import load_dataset
    from sharpscope.clip.evaluate import evaluate
    from sharpscope.clip.pair import load_pair
    from sharpscope.clip.probe import Probe
    from sharpscope.config.study import PairConfig, StudyConfig
    from sharpscope.exchange import read_results
    from sharpscope.finetuning.run import finetune
    from sharpscope.notebook import layer_curvature, layer_sharpness
    from sharpscope.study.report import report
    from sharpscope.study.run import run

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

_HOME = {
    "PairConfig": "sharpscope.config.study",
    "Probe": "sharpscope.clip.probe",
    "StudyConfig": "sharpscope.config.study",
    "evaluate": "sharpscope.clip.evaluate",
    "finetune": "sharpscope.finetuning.run",
    "layer_curvature": "sharpscope.notebook",
    "layer_sharpness": "sharpscope.notebook",
    "load_dataset": "sharpscope.clip.datasets.spec",
    "load_pair": "sharpscope.clip.pair",
    "read_results": "sharpscope.exchange",
    "report": "sharpscope.study.report",
    "run": "sharpscope.study.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sharpscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
