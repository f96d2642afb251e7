"""A checkpoint file becomes named tensors. Only this module reads files that may come from anyone.

A file is accepted whole or refused by one typed error; nothing in it is executed, resized, cast or filled. What was
understood on the way (container, names, head, dtypes) is kept in ``Checkpoint.facts`` and goes into the manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import torch

from sharpscope.card import card
from sharpscope.errors import CheckpointError, ConfigError, CorruptCheckpoint, listing, shown
from sharpscope.layers import HEAD_WEIGHT, TOWERS
from sharpscope.weights.assemble import Base, assemble
from sharpscope.weights.files.containers import Content, open_regular, read_container
from sharpscope.weights.files.inert import Report
from sharpscope.weights.files.locations import locate, shards
from sharpscope.weights.files.safetensorsfile import serialise
from sharpscope.weights.files.tensors import checked, tied_names
from sharpscope.weights.heads import read_head
from sharpscope.weights.naming import unwrap

__all__ = [
    "Checkpoint",
    "Weights",
    "as_theta",
    "checkpoint_of",
    "read_checkpoint",
    "read_head_file",
    "with_head",
    "write_checkpoint",
]

MAX_INDEX: Final = 2 * 2**20
"""The most bytes that the index.json of a sharded checkpoint may have."""


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """Named tensors of one model and what is known about where they come from.

    ``tensors``: in open_clip's names, CPU, the file's own dtypes, plus ``head.weight`` [C, D] and ``head.bias`` [C]
    where there is a classification head. ``sha256``: of the file's bytes (of names and values, for weights that came
    from memory). ``facts``: container, naming, prefix, dtypes, num_tensors, num_params (elements of the parameters,
    tied tensors once), towers, head (None or scale_baked, normalize, classnames, told_by, and assumed: which of the
    first two are guesses), metadata, safe (no other program would run code of the file); also wrapper, ignored
    (neighbours of the state dict), others (those of them that are further sets of the same weights), dropped (names
    open_clip does not have), tied ({other name: first name}), num_bytes, producer, quick_gelu (True, False, None: the
    file does not tell), classes and calls (foreign names in its pickle: never imported, never called), adapter (how
    many changes there are), adapter_inside (whether the weights held them already; None: nothing tells), scalars
    (tensors of shape [1] read as scalars), partial (laid over no base), overlay (None or the base's sha256 and how many
    tensors are the file's own).
    """

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]
    sha256: str
    source: str

    def __repr__(self) -> str:
        count = sum(t.numel() for t in self.tensors.values())
        return (
            f"Checkpoint({shown(self.source)!r}, {self.facts.get('container', 'memory')}, {len(self.tensors)} tensors, "
            f"{count:,} values, sha256 {self.sha256[:12] or 'unknown'})"
        )

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What is assumed of the file because it does not say, one full sentence each."""
        facts, name, found = self.facts, shown(Path(self.source).name, 100), []
        head = facts.get("head") or {}
        if (others := facts.get("others")) and facts.get("container") != "prompts":  # those facts are the base's
            found.append(
                f"{name} also holds {listing(others, 3)}, another set of weights, which was not read (sharpscope "
                "convert --weights KEY reads it)."
            )
        if "normalize" in head.get("assumed", ()):
            unit = "of unit length" if head["normalize"] else "as they are"
            found.append(
                f"{name} does not say which features its head reads; features {unit} are assumed (sharpscope convert "
                "--[no-]head-normalize settles it)."
            )
        if "scale_baked" in head.get("assumed", ()):
            factor = "contain" if head["scale_baked"] else "do not contain"
            found.append(
                f"{name} does not say whether its head contains exp(logit_scale); that its weights {factor} it is "
                "assumed (sharpscope convert --[no-]head-scale-baked settles it)."
            )
        if head.get("told_by") == "prompts" and not head.get("class_position"):
            found.append(
                f"{name} does not say where its class names stand; behind the learnt context is assumed "
                "(--class-position settles it)."
            )
        return tuple(found)

    def _repr_html_(self) -> str:
        facts = {
            "source": self.source, "container": self.facts.get("container", "memory"), "tensors": len(self.tensors),
            "values": sum(t.numel() for t in self.tensors.values()), "sha256": self.sha256 or None,
            "made by": self.facts.get("producer"), "assumed": " ".join(self.assumptions) or None,
        }  # fmt: skip
        return card("Checkpoint", facts)


Weights = Checkpoint | torch.nn.Module | Mapping[str, torch.Tensor]
"""Whatever holds named tensors: a checkpoint, a live module, a plain dictionary."""


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    expected_sha256: str | None = None,
    base: Checkpoint | None = None,
    head: str | os.PathLike[str] | None = None,
    partial: bool = False,
    adapter_scale: float | None = None,
    adapter_merged: bool | None = None,
    weights: str | None = None,
) -> Checkpoint:
    """Read a checkpoint of a CLIP, in any format of the field; the content decides, never the extension.

    Costs at most about twice the file's size in memory; runs none of its code.

    Args:
        path: a file, ``local-dir:FOLDER``, or ``hf-hub:OWNER/NAME`` (the only one that may use the network).
        expected_sha256: 64 hex digits that the file's bytes must have (safetensors, pickles and msgpack have no
            checksum of their own); for a sharded file that of the index and its shards, one after the other.
        base: zero-shot weights that a partial file (Dassl, adapters) is laid over. Of a whole file with LoRA matrices
            beside its weights, they tell whether these hold the change already; all other whole files ignore them.
        head: a classification head kept in a file of its own (task_vectors).
        partial: return a partial file without base as it is, with ``facts["partial"]`` set, instead of refusing it.
        adapter_scale: factor of an adapter's change, for a file that does not say: LoRA's alpha / r,
            R-Adapter's eval_scale (its learnt scale is in the file).
        adapter_merged: whether the whole weights of a file hold the change of the LoRA matrices beside them already
            (loralib merges it in on ``model.eval()``), where neither the file nor ``base`` tells.
        weights: key, or keys joined by dots, of the set that is meant where a file holds several (averaged ones
            beside raw ones: ``state_dict_ema``); default: the raw ones.

    Raises:
        CheckpointError: missing, no checkpoint, unknown names, sparse, quantised, complex or meta tensors.
        CorruptCheckpoint: damaged, truncated, or another sha256 than expected.
        UnsafeCheckpoint: would run code when another program opens it (exit code 3).
        ConfigError: ``expected_sha256`` is not a sha256.
    """
    if expected_sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expected_sha256):
        raise ConfigError(f"expected_sha256: '{shown(expected_sha256)}' is not a sha256 (64 hex digits).")
    located = locate(path)
    under = None if base is None else Base(base.tensors, base.sha256, base.facts)
    with contextlib.ExitStack() as files:
        content, digest, size, source = _open(files, located.path, expected_sha256)
        tensors, facts = assemble(
            content,
            source,
            located.config,
            located.quick_gelu,
            under,
            partial,
            True,
            adapter_scale,
            adapter_merged,
            weights,
        )
        facts["num_bytes"] = size
    read = Checkpoint(tensors, facts, digest, os.path.expanduser(os.fspath(path)))
    return read if head is None else with_head(read, head)


def _open(files: contextlib.ExitStack, path: str, expected: str | None) -> tuple[Content, str, int, str]:
    """(content, sha256, bytes, path as shown); files stay open on ``files``."""
    handle, size, source = files.enter_context(open_regular(path))
    hasher = hashlib.sha256()
    _hash(handle, hasher)
    handle.seek(0)
    opened = []
    if size <= MAX_INDEX and handle.read(64).lstrip().startswith(b"{"):
        handle.seek(0)
        index = handle.read()
        if b'"weight_map"' in index:
            for shard, names in shards(path, index).items():
                part, length, label = files.enter_context(open_regular(shard))
                _hash(part, hasher)
                size += length
                opened.append((part, length, label, names))
    digest = hasher.hexdigest()
    if expected is not None and digest != expected.lower():
        raise CorruptCheckpoint(f"{source}: its sha256 is {digest}, expected {expected.lower()}; download it again.")
    if not opened:
        return read_container(handle, size, source), digest, size, source
    merged: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    report = Report()
    for part, length, label, names in opened:
        content = read_container(part, length, label)
        held = unwrap(content.value, label).state
        if content.container == "flax msgpack":  # transformers joins a tree's names with slashes in the index
            names = [n.replace("/", ".") for n in names]
        if set(held) != set(names):
            odd = sorted(set(held) ^ set(names))
            raise CorruptCheckpoint(f"{label}: does not hold the tensors that its index names: {listing(odd, 3)}.")
        merged |= held
        metadata |= content.metadata
        report.classes |= content.report.classes
        report.calls |= content.report.calls
    return Content(f"sharded {content.container}", merged, metadata, report), digest, size, source


def with_head(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> Checkpoint:
    """``checkpoint`` with the classification head that the file ``path`` holds; its sha256 is in ``facts["head"]``.

    Raises CheckpointError where it has one already, or where the file holds anything but weight and bias.
    """
    head, told = read_head_file(path)
    label = shown(path, 200)
    told = {k: told[k] for k in ("scale_baked", "normalize", "classnames", "told_by", "assumed", "file_sha256")}
    tensors, facts = checkpoint.tensors, checkpoint.facts
    if HEAD_WEIGHT in tensors:
        raise CheckpointError(f"{shown(checkpoint.source, 200)}: already holds a head; {label} is not needed.")
    towers = [t for t in TOWERS if t in facts["towers"] or t == "head"]
    added = {"head": told, "towers": towers, "num_tensors": len(tensors) + len(head)}
    added["num_params"] = facts["num_params"] + sum(t.numel() for t in head.values())
    return dataclasses.replace(checkpoint, tensors={**tensors, **head}, facts={**facts, **added})


def read_head_file(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """``(head.weight and head.bias, facts)`` of a file that holds a classification head alone (task_vectors').

    ``facts``: scale_baked, normalize, classnames, told_by, file_sha256; container, safe, classes, calls as of a
    checkpoint. Raises CheckpointError for a file with anything else in it.
    """
    with contextlib.ExitStack() as files:
        content, digest, _, label = _open(files, os.fspath(path), None)
        head, told = read_head(content, label)
    report = content.report
    seen = {"classes": list(report.classes), "calls": list(report.calls), "container": content.container}
    safe = not report.classes and not report.calls
    return head, {**told, "file_sha256": digest, "safe": safe, **seen}


def _hash(handle: IO[bytes], hasher: Any) -> None:
    handle.seek(0)
    while piece := handle.read(2**20):
        hasher.update(piece)


def checkpoint_of(source: Weights, label: str = "memory") -> Checkpoint:
    """A Checkpoint of weights in memory: copied from a live module, detached from a dictionary; neither is modified.

    Names are normalised and tensors checked as for a file; ``sha256`` is over names, dtypes, shapes and values.

    Raises CheckpointError for names that are not those of a CLIP, and for sparse, quantised, complex or meta tensors.
    """
    if isinstance(source, Checkpoint):
        return source
    live = isinstance(source, torch.nn.Module)
    content = Content("memory", source.state_dict() if isinstance(source, torch.nn.Module) else source)
    tensors, facts = assemble(content, label, partial=True, whole=False)
    if live:
        ties = tied_names(tensors)
        copies = {n: t.to("cpu", copy=True) for n, t in tensors.items() if n not in ties}
        tensors = {n: copies[ties.get(n, n)] for n in tensors}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        digest.update(_raw(t))
    facts |= {"num_bytes": sum(t.numel() * t.element_size() for t in tensors.values())}
    return Checkpoint(tensors, facts, digest.hexdigest(), label)


def as_theta(source: Weights, label: str = "weights") -> dict[str, torch.Tensor]:
    """Detached named tensors of ``source``; those of a live module are copies, so its training does not change them."""
    if isinstance(source, Checkpoint):
        return dict(source.tensors)
    if isinstance(source, torch.nn.Module):
        return checkpoint_of(source, label).tensors
    state = unwrap(source, label).state
    return {n: checked(n, t, label) for n, t in state.items()}


def write_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write ``tensors`` as safetensors, whole or not at all: a temporary file beside ``path``, then one rename.

    ``metadata``: kept as text in the header; a value that is not a string is written as JSON.
    ``sharpscope.head.scale_baked``, ``sharpscope.head.normalize`` and ``sharpscope.classnames`` are read back into
    ``facts["head"]``. Equal input gives equal bytes. Tied tensors are written in full under every name. Raises
    CheckpointError when the disk refuses.
    """
    target = Path(os.path.expanduser(os.fspath(path)))
    ready = {n: checked(n, t, str(target)) for n, t in tensors.items()}
    text = {str(k): v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in (metadata or {}).items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as handle:
            for piece in serialise(ready, text):
                handle.write(piece)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"{shown(target)}: cannot be written: {shown(error.strerror or error)}.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _raw(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
