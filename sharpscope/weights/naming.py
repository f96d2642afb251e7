"""Names of tensors: what every system calls the parts of a CLIP, turned into open_clip's names.

One table does it. A prefix is stripped only when every key carries it: stripped from some keys only, as generic loaders
do, it silently renames tensors (``logit_scale`` became ``cale``) and leaves the model half loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from sharpscope.errors import CheckpointError, CorruptCheckpoint, listing, shown
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT, is_derived
from sharpscope.weights.files.inert import MAX_NAME, DamagedPickleError, like_tensor
from sharpscope.weights.files.modules import ModuleFacts, is_module, module_state
from sharpscope.weights.schemes import Place, Recipe, gather, open_clip_place, scheme_of

__all__ = ["Names", "Unwrapped", "normalise", "unwrap"]

WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""The keys under which training scripts keep the state dict, beside the epoch, the optimizer and the like."""

MAX_WRAPPERS: Final = 5
"""The most levels of such keys that are opened. No training script nests deeper, and a dictionary may hold itself."""

_LAUNCHER_PREFIXES: Final = ("module.", "_orig_mod.", "base_model.model.")
"""The prefixes that DataParallel, torch.compile and PEFT leave on every key of a file, the head's included."""

_ENCODER_PREFIXES: Final[dict[str, str]] = {"image_encoder.model.": "WiSE-FT", "model.": "model-soups"}
"""The prefixes that wrapper classes leave on every key but the head's, each with the system that writes it."""

_HEAD_PREFIXES: Final = ("classification_head.", "head.")

_CONSTANTS: Final = ("input_resolution", "context_length", "vocab_size")
"""Integers that OpenAI's files keep among the tensors. open_clip has no such names and needs none of them."""


@dataclass(frozen=True)
class Unwrapped:
    """A state dict taken out of its wrapper: ``path`` of keys that led to it, and the neighbours that were not read.

    ``module``: what is known of the pickled module that it was walked out of; ``beside``: the neighbours themselves.
    """

    state: Mapping[str, Any]
    path: tuple[str, ...]
    ignored: tuple[str, ...]
    module: ModuleFacts | None = None
    beside: Mapping[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """``recipes``: open_clip's name -> how it is made, in the file's order; ``dropped``: names open_clip does not have.

    ``partial``: files of this scheme hold the tuned parts only, the rest is the zero-shot base's.
    """

    recipes: dict[str, Recipe]
    naming: str
    prefix: str
    dropped: tuple[str, ...]
    partial: bool = False

    @property
    def renamed(self) -> dict[str, str]:
        """Name in the file -> open_clip's."""
        return {old: new for new, recipe in self.recipes.items() for old, _ in recipe.sources if old}


def unwrap(content: object, source: str) -> Unwrapped:
    """The state dict inside ``content``: itself, or what it keeps under ``state_dict``, ``model`` ... (nested too).

    Raises CheckpointError when there is none, when two different ones compete, or when a key is not text or a value not
    a tensor.
    """
    path: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    beside: dict[Any, Any] = {}
    for _ in range(MAX_WRAPPERS):
        if isinstance(content, torch.nn.Module):
            raise CheckpointError(f"{source}: holds a whole module, not its weights; save module.state_dict() instead.")
        if is_module(content):
            state, facts = _walked(content, source)
            return Unwrapped(
                _only_tensors({**state, **_head_beside(state, beside, source)}, source), path, ignored, facts, beside
            )
        if not isinstance(content, Mapping):
            kind = getattr(content, "kind", type(content).__name__)
            kind = "Tensor" if like_tensor(content) else shown(kind)
            raise CheckpointError(f"{source}: holds a {kind}, not a dictionary of named tensors (a state dict).")
        inner = [k for k in WRAPPERS if _holds_tensors(content.get(k))]
        if not inner:
            state = dict(_only_tensors(content, source))
            return Unwrapped({**state, **_head_beside(state, beside, source)}, path, ignored, None, beside)
        if len(inner) > 1:
            raise CheckpointError(
                f"{source}: holds several candidates for the weights ({listing(inner)}); save only the right one."
            )
        ignored += tuple(shown(k) for k in content if k != inner[0])
        beside |= {k: v for k, v in content.items() if k != inner[0]}
        path += (inner[0],)
        content = content[inner[0]]
    raise CheckpointError(f"{source}: the weights are wrapped too deeply ({'.'.join(path)}...).")


def _walked(module: Any, source: str) -> tuple[dict[str, Any], ModuleFacts]:
    try:
        return module_state(module)
    except DamagedPickleError as error:
        raise CorruptCheckpoint(f"{source}: its pickled module is damaged ({shown(error)}); save it again.") from None


def _head_beside(state: Mapping[str, Any], beside: Mapping[Any, Any], source: str) -> dict[str, Any]:
    """A head kept beside the state dict (StarFT), under the name that it has inside one."""
    for key in ("classification_head", "head"):
        head = beside.get(key)
        if is_module(head):
            head = _walked(head, source)[0]
        if isinstance(head, Mapping) and not any(n.startswith(_HEAD_PREFIXES) for n in state):
            lead = next((p for p in _LAUNCHER_PREFIXES if state and all(n.startswith(p) for n in state)), "")
            return {
                f"{lead}classification_head.{n}": t for n, t in head.items() if isinstance(n, str) and like_tensor(t)
            }
    return {}


def normalise(names: Iterable[str], source: str) -> Names:
    """Map ``names`` to open_clip's: prefixes stripped, the head called ``head.weight`` and ``head.bias``.

    Raises CheckpointError if only some keys carry a prefix, if two keys get the same name, if the head has tensors
    other than weight and bias, or if a name has no place in open_clip's CLIP.
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
    scheme = scheme_of([n for n in current.values() if not n.startswith(_HEAD_PREFIXES)])
    if scheme is None:
        places = {
            old: None if new in _CONSTANTS else open_clip_place(_head_name(new, source)) for old, new in current.items()
        }
    else:
        places = {
            old: Place(_head_name(new, source)) if new.startswith(_HEAD_PREFIXES) else scheme.place(new)
            for old, new in current.items()
        }
        naming = scheme.name
    dropped = tuple(old for old, place in places.items() if place is None)
    kept = {old: place for old, place in places.items() if place is not None}
    if not kept:
        _refuse_prompts(current.values(), source)
    unknown = [old for old in dropped if scheme and not scheme.may_lack(current[old]) and not is_derived(current[old])]
    if unknown and scheme:
        raise CheckpointError(
            f"{source}: {listing(unknown, 3)} has no place in open_clip's CLIP (the other names are {scheme.name}'s)."
        )
    try:
        recipes = gather(kept)
    except KeyError as twice:
        raise CheckpointError(f"{source}: two keys mean the same tensor: {shown(twice.args[0])}.") from None
    return Names(recipes, naming, prefix, dropped, scheme is not None and scheme.partial)


def _holds_tensors(content: object, depth: int = MAX_WRAPPERS, seen: set[int] | None = None) -> bool:
    seen = set() if seen is None else seen
    if is_module(content):
        return True
    if not isinstance(content, Mapping) or id(content) in seen:  # once: it may hold itself
        return False
    seen.add(id(content))
    if any(like_tensor(v) for v in content.values()):
        return True
    return depth > 0 and any(_holds_tensors(content.get(k), depth - 1, seen) for k in WRAPPERS)


def _only_tensors(content: Mapping[Any, Any], source: str) -> Mapping[str, Any]:
    if not content:
        raise CheckpointError(f"{source}: holds an empty dictionary; there are no weights in it.")
    if not any(like_tensor(v) for v in content.values()):
        keys = listing(str(k) for k in content)
        raise CheckpointError(
            f"{source}: holds no tensors; its keys are {keys}. Weights are looked for under {', '.join(WRAPPERS)}."
        )
    for key, value in content.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{source}: key {shown(repr(key))} is a {type(key).__name__}; tensors need names.")
        if len(key) > MAX_NAME:
            raise CheckpointError(f"{source}: '{shown(key, 60)}' has {len(key)} characters, too many for a name.")
        if not like_tensor(value):
            kind = shown(getattr(value, "kind", type(value).__name__))
            raise CheckpointError(f"{source}: '{shown(key)}' is a {kind}, not a tensor; save the state dict alone.")
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


def _refuse_prompts(names: Iterable[str], source: str) -> None:
    raise CheckpointError(
        f"{source}: holds {listing(names, 3)}: learnt prompts only (CoOp and similar methods), or no part of a CLIP.\n"
        "Prompts leave the encoders as they are, so there is no path between encoders."
    )


def _head_name(name: str, source: str) -> str:
    for prefix in _HEAD_PREFIXES:
        if name.startswith(prefix):
            new = "head." + name.removeprefix(prefix)
            if new not in (HEAD_WEIGHT, HEAD_BIAS):
                raise CheckpointError(f"{source}: '{shown(name)}' is not part of a linear head (weight, bias).")
            return new
    return name
