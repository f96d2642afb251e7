"""Where a checkpoint lies: a file, a folder as open_clip and transformers write it, an index of shards, a hub id."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sharpscope.errors import CheckpointError, CorruptCheckpoint, listing, shown
from sharpscope.weights.files.safetensorsfile import unique_keys

__all__ = ["DISTRIBUTED", "Located", "locate", "shards"]

DISTRIBUTED: Final = (
    "is a distributed checkpoint (torch.distributed.checkpoint) or a piece of one.\n"
    "Convert its folder to one file: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER OUT.pt"
)
"""What a folder of ``torch.distributed.checkpoint`` and its files are, and what to do."""

WEIGHTS: Final = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
CONFIGS: Final = ("open_clip_config.json", "config.json", "adapter_config.json")
MAX_JSON: Final = 2 * 2**20


@dataclass(frozen=True)
class Located:
    """The file of a checkpoint and what the configuration files beside it say (folders and hub ids only)."""

    path: str
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def quick_gelu(self) -> bool | None:
        """What the configuration says of the activation; None where there is none."""
        model = self.config.get("model_cfg", self.config)
        if "vision_cfg" in model:
            return bool(model.get("quick_gelu", False))
        vision = model.get("vision_config")
        if isinstance(vision, dict) and model.get("model_type") == "clip":
            return bool(vision.get("hidden_act", "quick_gelu") == "quick_gelu")
        return None


def locate(spec: str | os.PathLike[str]) -> Located:
    """The file that ``spec`` means: a path, ``local-dir:FOLDER``, or ``hf-hub:OWNER/NAME`` (downloaded when missing).

    Raises CheckpointError: no weights there, or a hub id that is not in the cache when there is no network.
    """
    text = os.fspath(spec)
    if text.startswith("local-dir:"):
        folder = Path(text.removeprefix("local-dir:")).expanduser()
        found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{shown(text, 200)}: no weights in it (looked for {listing(WEIGHTS, 3)}).")
        return Located(str(found), _configs(folder))
    if text.startswith(("hf-hub:", "hf_hub:")):
        return _hub(text)
    return Located(text)


def _configs(folder: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in CONFIGS:
        if (folder / name).is_file():
            merged = {**_json(folder / name), **merged}
    return merged


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in the regular file ``path``."""
    try:
        with open(path, "rb") as handle:
            data = handle.read(MAX_JSON + 1)
    except OSError as error:
        raise CorruptCheckpoint(f"{shown(path, 200)}: cannot be read ({shown(error.strerror)}).") from None
    return _parsed(data, path)


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    try:
        if len(data) > MAX_JSON:
            raise ValueError("it is too long")
        parsed = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{shown(path, 200)}: cannot be read as JSON ({shown(error)}).") from None
    if not isinstance(parsed, dict):
        raise CorruptCheckpoint(f"{shown(path, 200)}: is a JSON {type(parsed).__name__}, not an object.")
    return parsed


def _hub(spec: str) -> Located:
    """One attempt, no retries: a file of the cache, else a download."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    identity, _, revision = spec.partition(":")[2].partition("@")
    reason = "it has none of the known files"
    for name in WEIGHTS:
        try:
            found = hf_hub_download(identity, name, revision=revision or None, etag_timeout=5)
        except LocalEntryNotFoundError:  # also an EntryNotFoundError, but it means that there is no network
            reason = "it is not in the cache, and there is no network"
            break
        except EntryNotFoundError:
            continue
        except Exception as error:  # httpx, OS, validation: whatever, it is one line for the user
            reason = shown(str(error).strip().split("\n", 1)[0] or type(error).__name__, 150)
            break
        index = sorted({*_weight_map(_json(Path(found)), Path(found)).values()}) if name.endswith("index.json") else []
        for beside in (*index, *CONFIGS):  # a file that is missing is reported where it is needed
            if _in_same_folder(beside):
                with contextlib.suppress(Exception):
                    hf_hub_download(identity, beside, revision=revision or None, etag_timeout=5)
        return Located(found, _configs(Path(found).parent))
    raise CheckpointError(
        f"{shown(spec, 200)}: cannot be downloaded from the Hugging Face hub: {reason}.\n"
        "Download it on another machine and pass the file."
    )


def _weight_map(index: dict[str, Any], path: Path) -> dict[str, str]:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
        raise CorruptCheckpoint(f"{shown(path, 200)}: has no weight_map; it is not the index of a sharded checkpoint.")
    return names


def _in_same_folder(shard: str) -> bool:
    """Whether ``shard`` is the name of a file in the same folder."""
    return os.path.basename(shard) == shard and shard not in ("", ".", "..") and not {"\\", "\0"} & set(shard)


def shards(path: str | os.PathLike[str], data: bytes) -> dict[str, list[str]]:
    """``{path of a shard: names of the tensors it holds}`` of the index.json at ``path`` that reads ``data``.

    Raises CorruptCheckpoint for a shard outside the index's own folder, by ``../`` or by a link (links into the blobs
    of the same repository, as the hub's cache has them, are fine).
    """
    path = Path(path).expanduser()
    folder = path.resolve().parent if not path.is_symlink() else path.parent.resolve()
    held: dict[str, list[str]] = {}
    for name, shard in _weight_map(_parsed(data, path), path).items():
        held.setdefault(shard, []).append(name)
    if len(held) > 500:
        raise CorruptCheckpoint(f"{shown(path, 200)}: names {len(held)} shards; no CLIP has as many.")
    found: dict[str, list[str]] = {}
    for shard, names in sorted(held.items()):
        if not _in_same_folder(shard):
            raise CorruptCheckpoint(
                f"{shown(path, 200)}: its shard '{shown(shard)}' lies in another folder; do not use it."
            )
        target = (folder / shard).resolve()
        blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
        if target.parent not in (folder, blobs):
            raise CorruptCheckpoint(
                f"{shown(path, 200)}: its shard '{shown(shard)}' is a link that leads out of its folder; do not use it."
            )
        found[str(target)] = names
    return found
