"""A checkpoint file becomes named tensors: the only reader of strangers' bytes.

A file is accepted whole or refused by one typed error; nothing in it is executed, resized, cast or filled. What was
understood on the way (container, names, head, dtypes) is kept in ``Checkpoint.facts`` and goes into the manifest.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import torch

from sharpscope.errors import CheckpointError, ConfigError, CorruptCheckpoint, shown
from sharpscope.weights.containers import open_regular, read_container, serialise
from sharpscope.weights.naming import (
    HEAD_BIAS,
    HEAD_WEIGHT,
    TOWERS,
    Names,
    is_buffer,
    listing,
    normalise,
    tower_of,
    unwrap,
)

__all__ = ["Checkpoint", "Source", "as_theta", "checkpoint_of", "read_checkpoint", "tied_names", "write_checkpoint"]

ACCEPTED: Final = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)
BAKED_NORM: Final = 2.0
"""Class vectors of at least this median length carry exp(logit_scale) (1 without, 14 to 100 with)."""


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """Named tensors of one model and what is known about where they come from.

    ``tensors``: in open_clip's names, CPU, the file's own dtypes, plus ``head.weight`` [C, D] and ``head.bias`` [C]
    where there is a classification head. ``sha256``: of the file's bytes (of names and values, for weights that came
    from memory). ``facts``: container, naming, prefix, dtypes, num_tensors, num_params (elements of the parameters,
    tied tensors once), towers, head (None or scale_baked, normalize, classnames, told_by), metadata, safe; also
    wrapper, ignored (neighbours of the state dict), dropped (names open_clip does not have), tied ({other name: first
    name}), num_bytes.
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

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


Source = Checkpoint | torch.nn.Module | Mapping[str, torch.Tensor]
"""Whatever holds named tensors: a checkpoint, a live module, a plain dictionary."""


def read_checkpoint(path: str | os.PathLike[str], *, expected_sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint file of a CLIP (safetensors, or torch.save's zip with a state dict in it).

    The content decides, never the extension. Costs at most about twice the file's size in memory; runs none of its
    code. ``expected_sha256``: 64 hex digits that the file's bytes must have (safetensors has no checksum of its own).

    Raises CheckpointError (missing, no checkpoint, unknown names, sparse, quantised, complex or meta tensors),
    CorruptCheckpoint (damaged, truncated, another sha256), UnsafeCheckpoint (would import code; exit code 3).
    """
    if expected_sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expected_sha256):
        raise ConfigError(f"expected_sha256: '{shown(expected_sha256)}' is no sha256 (64 hex digits).")
    with open_regular(path) as (handle, size, source):
        digest = _sha256(handle)
        if expected_sha256 is not None and digest != expected_sha256.lower():
            raise CorruptCheckpoint(
                f"{source}: its sha256 is {digest}, expected {expected_sha256.lower()}; download it again."
            )
        container, content, metadata = read_container(handle, size, source)
    found = unwrap(content, source)
    names = normalise(found.state, source)
    tensors = _renamed(found.state, names, source)
    _check_sizes(tensors, source)
    if not any(tower_of(n) == "image" for n in tensors):
        raise CheckpointError(f"{source}: holds no image tower of a CLIP (no visual.* among {listing(tensors, 3)}).")
    facts = _facts(tensors, container, names, metadata, source)
    facts |= {"wrapper": ".".join(found.path), "ignored": list(found.ignored), "num_bytes": size}
    return Checkpoint(tensors, facts, digest, os.path.expanduser(os.fspath(path)))


def checkpoint_of(source: Source, label: str = "memory") -> Checkpoint:
    """A Checkpoint of weights in memory: copied from a live module, detached from a dictionary; neither is modified.

    Names are normalised and tensors checked as for a file; ``sha256`` is over names, dtypes, shapes and values.
    """
    if isinstance(source, Checkpoint):
        return source
    live = isinstance(source, torch.nn.Module)
    found = unwrap(source.state_dict() if isinstance(source, torch.nn.Module) else source, label)
    names = normalise(found.state, label)
    tensors = _renamed(found.state, names, label)
    ties = tied_names(tensors)
    if live:
        copies = {n: t.to("cpu", copy=True) for n, t in tensors.items() if n not in ties}
        tensors = {n: copies[ties.get(n, n)] for n in tensors}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        digest.update(_raw(t))
    facts = _facts(tensors, "memory", names, {}, label)
    facts |= {"wrapper": "", "ignored": [], "num_bytes": sum(t.numel() * t.element_size() for t in tensors.values())}
    return Checkpoint(tensors, facts, digest.hexdigest(), label)


def as_theta(source: Source, label: str = "weights") -> dict[str, torch.Tensor]:
    """Detached named tensors of ``source``; a live module's are copies, so that training it on changes nothing here."""
    if isinstance(source, Checkpoint):
        return dict(source.tensors)
    if isinstance(source, torch.nn.Module):
        return checkpoint_of(source, label).tensors
    state = unwrap(source, label).state
    return {n: _checked(n, t, label) for n, t in state.items()}


def write_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write ``tensors`` as safetensors, whole or not at all: a temporary file beside ``path``, then one rename.

    ``metadata``: kept as text in the header; what is no string is written as JSON. ``sharpscope.head.scale_baked``,
    ``sharpscope.head.normalize`` and ``sharpscope.classnames`` are read back into ``facts["head"]``. Equal input gives
    equal bytes. Tied tensors are written once each under every name. Raises CheckpointError when the disk refuses.
    """
    target = Path(os.path.expanduser(os.fspath(path)))
    checked = {n: _checked(n, t, str(target)) for n, t in tensors.items()}
    text = {str(k): v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in (metadata or {}).items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as handle:
            for piece in serialise(checked, text):
                handle.write(piece)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"{shown(target)}: cannot be written: {shown(error.strerror or error)}.") from None
    finally:
        temporary.unlink(missing_ok=True)


def tied_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """``{other name: first name}`` of the tensors that are one and the same memory, seen the same way."""
    first: dict[tuple[Any, ...], str] = {}
    ties: dict[str, str] = {}
    for name, t in tensors.items():
        if t.numel() == 0:
            continue
        known = first.setdefault((t.device, t.data_ptr(), t.dtype, t.shape, t.stride()), name)
        if known != name:
            ties[name] = known
    return ties


def _sha256(handle: IO[bytes]) -> str:
    digest = hashlib.sha256()
    handle.seek(0)
    while piece := handle.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


def _raw(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _renamed(state: Mapping[str, Any], names: Names, source: str) -> dict[str, torch.Tensor]:
    return {new: _checked(old, state[old], source) for old, new in names.renamed.items()}


def _checked(name: object, value: object, source: str) -> torch.Tensor:
    """``value`` detached, if it is a dense tensor of plain numbers; otherwise a CheckpointError naming the key."""
    if not isinstance(name, str):
        raise CheckpointError(f"{source}: key {shown(repr(name))} is a {type(name).__name__}; tensors need names.")
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{source}: '{shown(name)}' is a {type(value).__name__}, not a tensor.")
    problem = None
    if value.is_nested:
        problem = "a nested tensor"
    elif value.layout != torch.strided:
        problem = "a sparse tensor; store it dense (.to_dense())"
    elif value.device.type == "meta":
        problem = "a meta tensor, a shape without values; save the weights themselves"
    elif value.is_quantized or "float8" in str(value.dtype) or "float4" in str(value.dtype):
        problem = f"quantised ({value.dtype}); dequantise it, curvature needs the original weights"
    elif value.is_complex():
        problem = f"complex ({value.dtype}); a CLIP's weights are real"
    elif value.dtype not in ACCEPTED:
        problem = f"of dtype {value.dtype}, which no CLIP has"
    if problem:
        raise CheckpointError(f"{source}: '{shown(name)}' is {problem}.")
    return value.detach()


def _check_sizes(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse tensors that claim more elements than their bytes in the file hold (stride 0, overlaps)."""
    stored: dict[int, int] = {}
    claimed = 0
    ties = tied_names(tensors)
    for name, t in tensors.items():
        storage = t.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        size = t.numel() * t.element_size()
        claimed += 0 if name in ties else size
        if size > storage.nbytes():
            raise CorruptCheckpoint(
                f"{source}: '{shown(name)}' claims {list(t.shape)}, {size} bytes; the file has {storage.nbytes()}."
            )
    held = sum(stored.values())
    if claimed > 2 * held:  # a transposed or sliced view or two are no attack
        raise CorruptCheckpoint(f"{source}: its tensors overlap: they claim {claimed} bytes, the file has {held}.")


def _facts(
    tensors: Mapping[str, torch.Tensor], container: str, names: Names, metadata: Mapping[str, str], source: str
) -> dict[str, Any]:
    ties = tied_names(tensors)
    towers = {tower_of(n) for n in tensors}
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())
    return {
        "container": container,
        "naming": names.naming,
        "prefix": names.prefix,
        "dropped": list(names.dropped),
        "dtypes": dict(sorted(dtypes.items())),
        "num_tensors": len(tensors),
        "num_params": sum(t.numel() for n, t in tensors.items() if n not in ties and not is_buffer(n)),
        "towers": [t for t in TOWERS if t in towers],
        "tied": ties,
        "head": _head_facts(tensors, names.renamed, metadata, source),
        "metadata": dict(sorted(metadata.items())),
        "safe": True,
    }


def _head_facts(
    tensors: Mapping[str, torch.Tensor], renamed: Mapping[str, str], metadata: Mapping[str, str], source: str
) -> dict[str, Any] | None:
    """What is known about the head: written in the metadata, or implied by its name, or else told by its length."""
    weight, bias = tensors.get(HEAD_WEIGHT), tensors.get(HEAD_BIAS)
    if weight is None:
        if bias is not None:
            raise CheckpointError(f"{source}: holds {HEAD_BIAS} but no {HEAD_WEIGHT}.")
        return None
    if weight.ndim != 2 or len(weight) == 0 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = f"{list(weight.shape)}" + ("" if bias is None else f" and {list(bias.shape)}")
        raise CheckpointError(f"{source}: its head has shape {shapes}; expected [classes, embedding] and [classes].")
    classnames = _from_json(metadata, "sharpscope.classnames", list, source)
    if classnames is not None and (len(classnames) != len(weight) or not all(isinstance(c, str) for c in classnames)):
        raise CheckpointError(
            f"{source}: metadata sharpscope.classnames does not give {len(weight)} names, one a class."
        )
    baked = _from_json(metadata, "sharpscope.head.scale_baked", bool, source)
    normalize = _from_json(metadata, "sharpscope.head.normalize", bool, source)
    wise_ft = any("classification_head." in old for old in renamed)
    told_by = "metadata" if baked is not None else "names" if wise_ft else "length of the class vectors"
    if baked is None:
        baked = wise_ft or bool(weight.double().norm(dim=1).median() >= BAKED_NORM)
    return {
        "scale_baked": baked,
        "normalize": True if normalize is None else normalize,
        "classnames": classnames,
        "told_by": told_by,
    }


def _from_json(metadata: Mapping[str, str], key: str, kind: type, source: str) -> Any:
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise CheckpointError(f"{source}: metadata {key} is no JSON {kind.__name__}: {shown(metadata[key])}.")
    return value
