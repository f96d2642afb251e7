"""Names of tensors: what every system calls the parts of a CLIP, turned into open_clip's names.

One table does it. A prefix, whatever it is called, is stripped only when every key of the CLIP carries it: stripped
from some keys only, as generic loaders do, it silently renames tensors (``logit_scale`` became ``cale``) and leaves the
model half loaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from sharpscope.errors import CheckpointError, CorruptCheckpoint, listing, shown
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT, is_derived
from sharpscope.weights.files.inert import MAX_NAME, DamagedPickleError, like_tensor
from sharpscope.weights.files.locations import DISTRIBUTED
from sharpscope.weights.files.modules import ModuleFacts, is_module, module_state
from sharpscope.weights.schemes import SCHEMES, Place, Recipe, gather, open_clip_place, scheme_of

__all__ = ["WISE_FT", "Names", "Unwrapped", "normalise", "unwrap"]

WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""The keys under which training scripts keep the state dict, beside the epoch, the optimizer and the like."""

AVERAGED: Final = (
    "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "model_ema_state_dict", "ema", "ema_weights",
    "swa_state_dict", "swa_model", "averaged_model", "model_averaged", "average_model", "shadow",
)  # fmt: skip
"""Keys under which they keep a running average of it; read where it is the only one, or where it is asked for."""

MAX_KEY: Final = 100
"""Longest key that a further set of weights is looked for under."""

MAX_WRAPPERS: Final = 5
"""The most levels of such keys that are opened. No training script nests deeper, and a dictionary may hold itself."""

_LAUNCHER_PREFIXES: Final = ("module.", "_orig_mod.", "base_model.model.")
"""The prefixes that DataParallel, torch.compile and PEFT leave on every key of a file, the head's included."""

WISE_FT: Final = "image_encoder.model."
_ENCODER_PREFIXES: Final = (WISE_FT, "model.")
"""The prefixes that wrapper classes leave on every key but the head's."""

_ANCHORS: Final = ("visual.", "vision_model.", "text_model.")
"""The beginnings of a CLIP's own names. What stands before them on every key is the prefix of a wrapper class."""

_HEAD_PREFIXES: Final = ("classification_head.", "head.")
_OTHER_HEADS: Final = ("classifier.",)
"""Further names of a head, beside towers in open_clip's names (in transformers' it reads other features)."""

_COUNTERS: Final = ("n_averaged",)
"""torch's AveragedModel keeps it beside a module of which every key begins with ``module.``."""

_PARTS: Final = frozenset((
    "visual", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "attn_mask",
    "cls_emb", "text", "text_decoder", "logit_scale", "logit_bias",
))  # fmt: skip
"""The parts of open_clip's models."""

_CONSTANTS: Final = ("input_resolution", "context_length", "vocab_size")
"""Integers that OpenAI's files keep among the tensors. open_clip has no such names and needs none of them."""


@dataclass(frozen=True)
class Unwrapped:
    """A state dict taken out of its wrapper: ``path`` of keys that led to it, and the neighbours that were not read.

    ``module``: what is known of the pickled module that it was walked out of; ``beside``: the neighbours themselves;
    ``others``: keys of further sets of weights with the same names (averaged ones), which were not read.
    """

    state: Mapping[str, Any]
    path: tuple[str, ...]
    ignored: tuple[str, ...]
    module: ModuleFacts | None = None
    beside: Mapping[Any, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()


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


def unwrap(content: object, source: str, weights: str | None = None) -> Unwrapped:
    """The state dict inside ``content``: itself, or what it keeps under ``state_dict``, ``model`` ... (nested too).

    ``weights``: the key, or several keys joined by dots, of the set to read where a file holds several.

    Raises CheckpointError when there is none, when two different ones compete, or when a key is not text or a value not
    a tensor.
    """
    path: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    beside: dict[Any, Any] = {}
    for key in () if weights is None else weights.split("."):
        if not isinstance(content, Mapping) or key not in content:
            held = listing(shown(k) for k in content) if isinstance(content, Mapping) else "no keys"
            raise CheckpointError(f"{source}: has no '{shown(weights)}' to read the weights from; it holds {held}.")
        ignored += tuple(shown(k) for k in content if k != key)
        beside |= {k: v for k, v in content.items() if k != key}
        path += (key,)
        content = content[key]
    for _ in range(MAX_WRAPPERS):
        if isinstance(content, torch.nn.Module):
            raise CheckpointError(f"{source}: holds a whole module, not its weights; save module.state_dict() instead.")
        if is_module(content):
            state, facts = _walked(content, source)
            state = dict(_only_tensors({**state, **_head_beside(state, beside, source)}, source))
            return Unwrapped(state, path, ignored, facts, beside, _also(beside, state))
        if not isinstance(content, Mapping):
            raise _no_state_dict(content, source)
        inner = _wrapped(content)
        if not inner:
            state = dict(_only_tensors(content, source))
            whole = {**state, **_head_beside(state, beside, source)}
            return Unwrapped(whole, path, ignored, None, beside, _also(beside, state))
        if len(inner) > 1:
            raise CheckpointError(
                f"{source}: holds several candidates for the weights ({listing(inner)}).\n"
                f"Say which: sharpscope convert FILE OUT.safetensors --weights {shown(inner[0], 30)}"
            )
        ignored += tuple(shown(k) for k in content if k != inner[0])
        beside |= {k: v for k, v in content.items() if k != inner[0]}
        path += (inner[0],)
        content = content[inner[0]]
    raise CheckpointError(f"{source}: the weights are wrapped too deeply ({'.'.join(path)}...).")


def _wrapped(content: Mapping[Any, Any]) -> list[str]:
    """The keys that may hold the state dict: a usual one, else an averaged one, else whatever holds named tensors.

    Empty where ``content`` holds tensors itself and no usual key does, or nothing does.
    """
    inner = [k for k in WRAPPERS if _holds_tensors(content.get(k))]
    if inner or any(like_tensor(v) for v in content.values()):
        return inner
    inner = [k for k in AVERAGED if _holds_tensors(content.get(k))]
    values = {
        id(v): k for k, v in content.items() if isinstance(k, str) and isinstance(v, Mapping)
    }  # each looked at once
    return inner or [k for k in values.values() if any(_is_named(n, t) for n, t in content[k].items())]


def _is_named(name: object, value: object) -> bool:
    return isinstance(name, str) and like_tensor(value)


def _no_state_dict(content: object, source: str) -> CheckpointError:
    """What is wrong with a file whose content is no dictionary, and what to do about it."""
    kind = getattr(content, "kind", type(content).__name__)
    kind = "Tensor" if like_tensor(content) else shown(kind)
    if kind.startswith("torch.distributed.checkpoint.") or source.endswith(".distcp"):
        return CheckpointError(f"{source}: {DISTRIBUTED}")
    return CheckpointError(f"{source}: holds a {kind}, not a dictionary of named tensors (a state dict).")


def _also(beside: Mapping[Any, Any], state: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys, joined by dots, of neighbours that hold another set of these weights: at least half as many tensors, most
    of them under the same names up to a prefix; or a whole module; or a list of as many tensors."""
    tails = {_tail(n) for n in state}
    found: list[str] = []
    seen: set[int] = set()  # a file may name one dictionary a thousand times; it is looked at once
    places = deque((k, v, True) for k, v in beside.items() if isinstance(k, str) and len(k) <= MAX_KEY)
    while places:
        key, value, outer = places.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if not isinstance(value, (Mapping, list)):
            found += [shown(key)] if is_module(value) else []
            continue
        if isinstance(value, list):
            found += [shown(key)] if sum(map(like_tensor, value)) * 2 > len(state) else []
            continue
        names = [n for n, t in value.items() if _is_named(n, t)]
        if 2 * len(names) > len(state) and 2 * sum(_tail(n) in tails for n in names) > len(names):
            found.append(shown(key))
        elif outer:
            places += [(f"{key}.{k}", v, False) for k, v in value.items() if isinstance(k, str) and len(k) <= MAX_KEY]
    return tuple(found)


def _tail(name: str) -> str:
    """The last two parts of a name: what a prefix leaves as it is."""
    return ".".join(name.rsplit(".", 2)[-2:])


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
        prefix += found
        current = {old: new.removeprefix(found) for old, new in current.items()}
    scheme = scheme_of([n for n in current.values() if not n.startswith(_HEAD_PREFIXES)])
    if scheme is None:
        _check_parts(current.values(), source)
        places = {
            old: None if new in (*_CONSTANTS, *_COUNTERS) else open_clip_place(_head_name(new, source))
            for old, new in current.items()
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
    return depth > 0 and any(_holds_tensors(content.get(k), depth - 1, seen) for k in (*WRAPPERS, *AVERAGED))


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
    every = [n for n in names if n not in _COUNTERS]
    body = [n for n in every if not n.startswith((*_HEAD_PREFIXES, *_OTHER_HEADS))]
    for prefix in (*_LAUNCHER_PREFIXES, *_ENCODER_PREFIXES):
        if _carried(prefix, every if prefix in _LAUNCHER_PREFIXES else body, source):
            return prefix
    if scheme_of(body) is None:
        outside = (n for n in body if n.partition(".")[0] not in _PARTS)
        found = next(((n, a) for n in outside for a in _ANCHORS if f".{a}" in n), None)
        if found is not None:
            prefix = found[0][: found[0].index(f".{found[1]}") + 1]
            return prefix if _carried(prefix, body, source) else None
    return None


def _carried(prefix: str, names: Sequence[str], source: str) -> bool:
    """Whether all ``names`` begin with ``prefix``, or none does; raises CheckpointError where only some do."""
    without = [n for n in names if not n.startswith(prefix)]
    if without and len(without) < len(names):
        raise CheckpointError(
            f"{source}: {len(names) - len(without)} of {len(names)} keys carry the prefix '{shown(prefix, 60)}', "
            f"but not {listing(without)}.\n"
            "A prefix is stripped only when all keys carry it; save the model's own state_dict()."
        )
    return not without and bool(names)


def _check_parts(names: Iterable[str], source: str) -> None:
    """Refuse what stands beside an image tower in open_clip's names and is no part of a CLIP: it may be a layer."""
    every = [n for n in names if n not in (*_CONSTANTS, *_COUNTERS)]
    heads = (*_HEAD_PREFIXES, *_OTHER_HEADS)
    odd = [n for n in every if n.partition(".")[0] not in _PARTS and not n.startswith(heads)]
    if odd and len(odd) < len(every) and any(n.startswith("visual.") for n in every):
        raise CheckpointError(
            f"{source}: {listing(odd, 3)} belongs to no part of a CLIP (visual.*, a text tower, logit_scale) and to no "
            "head.\nA head is called head.*, classification_head.* or classifier.*; leave out what the logits do not "
            "depend on."
        )


def _refuse_prompts(names: Iterable[str], source: str) -> None:
    every = list(names)
    others = [n for n in every if not SCHEMES["dassl"].may_lack(n)]
    if others and len(others) < len(every):
        raise CheckpointError(
            f"{source}: {listing(others, 3)} has no place in open_clip's CLIP and stands beside learnt prompts; the "
            "prompts alone would be another model.\nRemedy: call the towers image_encoder.* and text_encoder.*, as "
            "CoOp's code does, and save the file again."
        )
    if not others:
        raise CheckpointError(
            f"{source}: holds {listing(every, 3)}: learnt prompts only (CoOp and similar methods).\n"
            "They need the zero-shot weights: pass both to sharpscope run, as --zeroshot and --finetuned."
        )
    raise CheckpointError(
        f"{source}: holds {listing(every, 3)}: no part of a CLIP.\n"
        "Pass the file with its weights; the known names are open_clip's, transformers', flax's and Dassl's."
    )


def _head_name(name: str, source: str) -> str:
    for prefix in (*_HEAD_PREFIXES, *_OTHER_HEADS):
        if name.startswith(prefix):
            new = "head." + name.removeprefix(prefix)
            if new not in (HEAD_WEIGHT, HEAD_BIAS):
                raise CheckpointError(f"{source}: '{shown(name)}' is not part of a linear head (weight, bias).")
            return new
    return name
