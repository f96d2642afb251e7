"""Files with the diagonal Fisher information of one set of weights: name -> tensor, beside it what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from sharpscope.errors import CheckpointError, PairMismatch, shown
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint
from sharpscope.weights.compare import check_finite

__all__ = ["read_fisher", "write_fisher"]

_KEY: Final = "sharpscope.fisher"


def write_fisher(path: str | Path, values: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write Fisher information as safetensors; ``facts`` goes into the metadata, with ``of_sha256``, the weights' file.

    Raises CheckpointError when the file cannot be written.
    """
    write_checkpoint(path, values, {_KEY: dict(facts)})


def read_fisher(path: str | Path, of_sha256: str) -> tuple[dict[str, torch.Tensor], str]:
    """(name -> tensor >= 0, sha256 of the file): the Fisher information of the weights in the file ``of_sha256``.

    Pickles of WiSE-FT's code and anything else that holds named tensors are taken too; only sharpscope's own files say
    whose Fisher information they hold.

    Raises CheckpointError for a file that holds something else, PairMismatch for the Fisher information of other
    weights, NonFiniteWeights.
    Source: Wortsman et al. 2022, arXiv 2109.01903 (the files of the released code, src/models/fisher.py).
    """
    read = read_checkpoint(path, partial=True)
    label = shown(path, 200)
    try:
        told = json.loads(read.facts["metadata"].get(_KEY, "{}"))
    except ValueError:
        told = {}
    of = told.get("of_sha256") if isinstance(told, dict) else None
    if of is not None and of != of_sha256:
        raise PairMismatch(
            f"{label}: holds the Fisher information of another file (sha256 {shown(of, 12)}, not {of_sha256[:12]}).\n"
            "Remedy: 'sharpscope fisher' computes that of this pair."
        )
    check_finite(read.tensors, label)
    for name, value in read.tensors.items():
        if value.is_floating_point() and value.numel() and float(value.min()) < 0:
            raise CheckpointError(f"{label}: '{shown(name)}' has negative values, so that it is no Fisher information.")
    return read.tensors, read.sha256
