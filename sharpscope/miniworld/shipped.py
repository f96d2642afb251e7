"""The packaged files of the embedded world: checkpoints, tokenizer, tables. Neither torch nor numpy is needed."""

from __future__ import annotations

import functools
import importlib.resources
import json
from pathlib import Path
from typing import Any

from sharpscope.errors import ConfigError, did_you_mean, shown

__all__ = [
    "checkpoint_names",
    "checkpoint_path",
    "config_path",
    "manifest",
    "pairs_table",
    "tokenizer_path",
]


def _data() -> Path:
    """The folder of the packaged files; a wheel is installed unpacked, so it is a real folder."""
    return Path(str(importlib.resources.files("sharpscope.clip").joinpath("miniworld_data")))


def config_path() -> Path:
    """open_clip config JSON of the world's CLIP (``model_cfg`` and ``preprocess_cfg``)."""
    return _data() / "open_clip_config.json"


def tokenizer_path() -> Path:
    """BPE merges of the world's tokenizer, in the format of open_clip's own file."""
    return _data() / "mini_bpe.txt.gz"


@functools.cache
def _manifest_text() -> str:
    return (_data() / "manifest.json").read_text(encoding="utf-8")


def manifest() -> dict[str, Any]:
    """What ships: name -> file, sha256, bytes, recipe, seed, accuracies; and the data and versions they came from."""
    result: dict[str, Any] = json.loads(_manifest_text())
    return result


def checkpoint_names() -> tuple[str, ...]:
    """Names that ``mini:NAME`` may take, the zero-shot one first."""
    return tuple(manifest()["checkpoints"])


def checkpoint_path(name: str) -> Path:
    """File of the checkpoint ``mini:NAME``; raises ConfigError with the nearest name for an unknown one."""
    known = manifest()["checkpoints"]
    name = name.removeprefix("mini:")
    if name not in known:
        raise ConfigError(
            f"mini:{shown(name)}: no such checkpoint.{did_you_mean(name, known)} Known: {', '.join(known)}."
        )
    return _data() / str(known[name]["file"])


def pairs_table(name: str) -> Path:
    """CSV file of the shipped across-pair table ``name``: sharpness, accuracy, path or stragglers of all pairs."""
    return _data() / f"pairs_{name}.csv.gz"
