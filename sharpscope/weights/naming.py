"""Names of tensors: what every system calls the parts of a CLIP, turned into open_clip's names.

One table does it. A prefix is stripped only when every key carries it: stripped from some keys only, as generic loaders
do, it silently renames tensors (``logit_scale`` became ``cale``) and leaves the model half loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

from sharpscope.errors import CheckpointError, shown

__all__ = [
    "HEAD_BIAS",
    "HEAD_WEIGHT",
    "MAX_NAMES",
    "TOWERS",
    "Names",
    "Tower",
    "Unwrapped",
    "is_buffer",
    "is_derived",
    "listing",
    "normalise",
    "tower_of",
    "unwrap",
]

Tower = Literal["image", "text", "head", "scale"]
TOWERS: Final[tuple[Tower, ...]] = ("image", "text", "head", "scale")
HEAD_WEIGHT: Final = "head.weight"
HEAD_BIAS: Final = "head.bias"
MAX_NAMES: Final = 10
"""A message names at most this many tensors."""

WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Keys under which training scripts keep the state dict, beside epoch, optimizer and the like."""

MAX_WRAPPERS: Final = 5
"""Deeper nesting is no training script's (and a dictionary may hold itself)."""

_LAUNCHER_PREFIXES: Final = ("module.", "_orig_mod.")
"""Left by DataParallel and torch.compile: on every key of a file, the head's included."""

_ENCODER_PREFIXES: Final[dict[str, str]] = {"image_encoder.model.": "WiSE-FT", "model.": "model-soups"}
"""Left by wrapper classes around the CLIP: on every key but the head's. Prefix -> the system that writes it."""

_HEAD_PREFIXES: Final = ("classification_head.", "head.")

_CONSTANTS: Final = ("input_resolution", "context_length", "vocab_size")
"""Integers that OpenAI's files keep among the tensors; open_clip has no such names and needs none of them."""

_FOREIGN: Final[dict[str, str]] = {
    "vision_model.": "Hugging Face's CLIP names; convert the weights to open_clip's names first",
    "text_model.": "Hugging Face's CLIP names; convert the weights to open_clip's names first",
    "prompt_learner.": "learnt prompts (CoOp and its kin): the encoders do not move, so there is no path between them",
    "image_encoder.transformer.": "Dassl's names (CLIPFit, ContCoOp); save it as one open_clip state dict first",
    "text_encoder.": "Dassl's names (CLIPFit, ContCoOp); save it as one open_clip state dict first",
    "base_model.model.": "a PEFT adapter around a model; merge the adapter and save the merged state dict",
}

_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_DERIVED = re.compile(
    r"(^|\.)(attn_mask|position_ids|relative_position_index|relative_coords_table|input_resolution|context_length|vocab_size)$"
)


@dataclass(frozen=True)
class Unwrapped:
    """A state dict taken out of its wrapper: ``path`` of keys that led to it, and the neighbours that were not read."""

    state: Mapping[str, Any]
    path: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Names:
    """``renamed``: name in the file -> open_clip's, in the file's order; ``dropped``: names open_clip does not have."""

    renamed: dict[str, str]
    naming: str
    prefix: str
    dropped: tuple[str, ...]


def tower_of(name: str) -> Tower:
    """The part of the CLIP that tensor ``name`` belongs to (what is neither image, head nor scale is text).

    >>> [tower_of(n) for n in ("visual.proj", "ln_final.weight", "head.bias", "logit_scale")]
    ['image', 'text', 'head', 'scale']
    """
    if name.startswith("visual."):
        return "image"
    if name.startswith("head."):
        return "head"
    return "scale" if name in ("logit_scale", "logit_bias") else "text"


def is_derived(name: str) -> bool:
    """Whether ``name`` is a constant that the architecture determines (masks, index tables): a file may lack it."""
    return _DERIVED.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether ``name`` is a buffer by its name (normalisation statistics, constants): state, but no parameter."""
    return _STATISTICS.search(name) is not None or is_derived(name)


def listing(names: Iterable[str], limit: int = MAX_NAMES) -> str:
    """``names`` for a message: at most ``limit`` of them, made safe for the terminal, then how many more there are."""
    every = list(names)
    text = ", ".join(shown(n, 90) for n in every[:limit])
    return text if len(every) <= limit else f"{text} and {len(every) - limit} more"


def unwrap(content: object, source: str) -> Unwrapped:
    """The state dict inside ``content``: itself, or what it keeps under ``state_dict``, ``model`` ... (nested too).

    Raises CheckpointError when there is none, when two different ones compete, or when a key or a value is foreign.
    """
    path: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    for _ in range(MAX_WRAPPERS):
        if isinstance(content, torch.nn.Module):
            raise CheckpointError(f"{source}: holds a whole module, not its weights; save module.state_dict() instead.")
        if not isinstance(content, Mapping):
            kind = type(content).__name__
            raise CheckpointError(f"{source}: holds a {kind}, not a dictionary of named tensors (a state dict).")
        inner = [k for k in WRAPPERS if _holds_tensors(content.get(k))]
        if not inner:
            return Unwrapped(_only_tensors(content, source), path, ignored)
        if len(inner) > 1:
            raise CheckpointError(
                f"{source}: holds several candidates for the weights ({listing(inner)}); save only the right one."
            )
        ignored += tuple(shown(k) for k in content if k != inner[0])
        path += (inner[0],)
        content = content[inner[0]]
    raise CheckpointError(f"{source}: the weights are wrapped too deeply ({'.'.join(path)}...).")


def normalise(names: Iterable[str], source: str) -> Names:
    """Map ``names`` to open_clip's: prefixes stripped, the head called ``head.weight`` and ``head.bias``.

    Raises CheckpointError when only some keys carry a prefix, when two keys end up with one name, when the head has
    tensors other than weight and bias, or when the names are those of a system that has to be converted first.
    """
    current = {name: name for name in names}
    naming, prefix = "open_clip", ""
    while True:
        found = _next_prefix(current.values(), source)
        if found is None:
            break
        naming = _ENCODER_PREFIXES.get(found, naming)
        prefix += found
        current = {old: new.removeprefix(found) for old, new in current.items()}
    _refuse_foreign(current.values(), source)
    dropped = tuple(old for old, new in current.items() if new in _CONSTANTS)
    renamed = {old: _head_name(new, source) for old, new in current.items() if new not in _CONSTANTS}
    if len(set(renamed.values())) < len(renamed):
        twice = sorted({new for new in renamed.values() if list(renamed.values()).count(new) > 1})
        raise CheckpointError(f"{source}: two keys mean the same tensor: {listing(twice)}.")
    return Names(renamed, naming, prefix, dropped)


def _holds_tensors(content: object, depth: int = MAX_WRAPPERS) -> bool:
    if not isinstance(content, Mapping):
        return False
    if any(isinstance(v, torch.Tensor) for v in content.values()):
        return True
    return depth > 0 and any(_holds_tensors(content.get(k), depth - 1) for k in WRAPPERS)


def _only_tensors(content: Mapping[Any, Any], source: str) -> Mapping[str, Any]:
    if not content:
        raise CheckpointError(f"{source}: holds an empty dictionary; there are no weights in it.")
    if not any(isinstance(v, torch.Tensor) for v in content.values()):
        keys = listing(str(k) for k in content)
        raise CheckpointError(
            f"{source}: holds no tensors; its keys are {keys}. Weights are looked for under {', '.join(WRAPPERS)}."
        )
    for key, value in content.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{source}: key {shown(repr(key))} is a {type(key).__name__}; tensors need names.")
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{source}: '{shown(key)}' is a {type(value).__name__}, not a tensor; save the state dict alone."
            )
    return content


def _next_prefix(names: Iterable[str], source: str) -> str | None:
    every = list(names)
    body = [n for n in every if not n.startswith(_HEAD_PREFIXES)]
    for prefix in (*_LAUNCHER_PREFIXES, *_ENCODER_PREFIXES):
        expected = every if prefix in _LAUNCHER_PREFIXES else body
        without = [n for n in expected if not n.startswith(prefix)]
        if len(without) == len(expected):
            continue
        if without:
            raise CheckpointError(
                f"{source}: {len(expected) - len(without)} of {len(expected)} keys carry the prefix '{prefix}', "
                f"but not {listing(without)}.\n"
                "A prefix is stripped only when all keys carry it; save the model's own state_dict()."
            )
        return prefix
    return None


def _refuse_foreign(names: Iterable[str], source: str) -> None:
    for name in names:
        for start, meaning in _FOREIGN.items():
            if name.startswith(start):
                raise CheckpointError(f"{source}: '{shown(name)}' is one of {meaning}.")
        if ".lora_" in name or "adapter_" in name:
            raise CheckpointError(f"{source}: '{shown(name)}' belongs to an adapter; merge it into the weights first.")


def _head_name(name: str, source: str) -> str:
    for prefix in _HEAD_PREFIXES:
        if name.startswith(prefix):
            new = "head." + name.removeprefix(prefix)
            if new not in (HEAD_WEIGHT, HEAD_BIAS):
                raise CheckpointError(f"{source}: '{shown(name)}' is no part of a linear head (weight, bias).")
            return new
    return name
