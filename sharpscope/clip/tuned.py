"""How a checkpoint was fine-tuned, where its file says so."""

from __future__ import annotations

import json
from typing import Any

from sharpscope.miniworld.shipped import tunings
from sharpscope.weights.checkpoint import Checkpoint

__all__ = ["finetuning_of"]


def finetuning_of(end: Checkpoint) -> dict[str, Any]:
    """method, learning_rate, epochs, steps, examples and seed, as far as they are known; empty where nothing is.

    Files that ``finetune`` writes say it in their metadata, the embedded world's in its manifest.
    """
    for told in tunings().values():
        if told["sha256"] == end.sha256:
            return {k: v for k, v in told.items() if k != "sha256"}
    try:
        told = json.loads(end.facts.get("metadata", {}).get("sharpscope.finetuning", "{}"))
        hyper = told.get("hyperparameters", {})
        found = {
            "method": told.get("method"), "learning_rate": hyper.get("lr"), "epochs": hyper.get("epochs"),
            "steps": hyper.get("steps"), "examples": told.get("examples"), "seed": told.get("seed"),
        }  # fmt: skip
    except (ValueError, AttributeError, RecursionError):  # another program's text under our key
        return {}
    return {k: v for k, v in found.items() if isinstance(v, (int, float, str))}
