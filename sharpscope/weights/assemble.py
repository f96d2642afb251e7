"""What a file holds becomes named tensors and facts: names translated, adapters merged, partial files laid over a base.

Every tensor is checked here, one after the other, as it is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import torch

from sharpscope.errors import CheckpointError, CorruptCheckpoint, shown
from sharpscope.weights.adapters import (
    Lora,
    adapter_settings,
    has_residual,
    merge_residual,
    split_adapters,
    unfolded,
)
from sharpscope.weights.containers import Content
from sharpscope.weights.inert import OddTensor, PendingTensor
from sharpscope.weights.modules import ModuleFacts
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
from sharpscope.weights.producers import told_producer
from sharpscope.weights.schemes import Recipe

__all__ = ["assemble", "checked", "read_head", "tied_names"]

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

Tensors = dict[str, torch.Tensor]


def assemble(
    content: Content,
    source: str,
    config: Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
    base: tuple[Mapping[str, torch.Tensor], str] | None = None,
    partial: bool = False,
    whole: bool = True,
    adapter_scale: float | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """``(tensors in open_clip's names, facts)`` of a file's content.

    ``config``: of the folder it lies in; ``base``: tensors and sha256 of the weights that a partial file is laid over;
    ``partial``: without them, give what there is; ``whole``: an image tower has to be there; ``adapter_scale``: see
    ``read_checkpoint``. Raises CheckpointError.
    """
    found = unwrap(unfolded(content.value, source), source)
    _check_sizes(found.state, source)
    settings = adapter_settings(
        config or {}, content.metadata, found.beside, adapter_scale, found.module.eval_scale if found.module else None
    )
    plain, loras = split_adapters(found.state, settings, source, checked)
    names = normalise([*plain, *(n for n in loras if n not in plain)], source)
    own: Tensors = {}
    changes: dict[str, Recipe] = {}
    for new, recipe in names.recipes.items():
        olds = [old for old, _ in recipe.sources if old]
        if all(old in loras and old not in plain for old in olds):
            changes[new] = recipe
        elif len(olds) < len(recipe.sources):
            raise CheckpointError(f"{source}: '{shown(new)}' is q, k and v together; there is only {listing(olds)}.")
        else:
            own[new] = recipe.make(lambda old: _value(old, plain, loras, source))
    incomplete = names.partial or bool(changes)
    incomplete |= any(map(has_residual, own)) and not any(n.endswith("conv1.weight") for n in own)
    overlay = None
    if incomplete and base is not None:
        own_count = len(own) + len(changes)
        own, overlay = _laid_over(own, changes, loras, base, source), {"base_sha256": base[1], "own": own_count}
    elif incomplete and not partial:
        raise CheckpointError(
            f"{source}: holds only what was tuned ({len(own) + len(changes)} tensors, {names.naming} names); the "
            "zero-shot weights below are missing.\nPass them: --base FILE (convert), or --zeroshot FILE (run)."
        )
    laid = overlay is not None or not incomplete
    merged = len(loras)
    if laid and any(map(has_residual, own)):
        own, merged = merge_residual(own, settings, source)
    if whole and laid and not any(tower_of(n) == "image" for n in own):
        raise CheckpointError(f"{source}: holds no image tower of a CLIP (no visual.* among {listing(own, 3)}).")
    facts = _facts(own, content, names, found.module, source)
    if facts["head"] and facts["head"]["classnames"] is None:
        facts["head"]["classnames"] = _names_beside(found.beside, len(own[HEAD_WEIGHT]))
    facts |= {
        "wrapper": ".".join(found.path),
        "ignored": list(found.ignored),
        "producer": told_producer(
            content.container, names.naming, names.prefix, found.state, found.module, map(str, found.beside)
        ),
        "quick_gelu": _quick_gelu(content, found.module, facts, quick_gelu),
        "adapter": merged,
        "partial": not laid,
        "overlay": overlay,
    }
    return own, facts


def read_head(content: Content, source: str) -> tuple[Tensors, dict[str, Any]]:
    """``(head.weight and head.bias, what is known of them)`` of a file that holds a classification head alone."""
    found = unwrap(content.value, source)
    _check_sizes(found.state, source)
    prefixes = ("module.", "classification_head.", "head.")
    tensors: Tensors = {}
    for old, value in found.state.items():
        new = old
        for prefix in prefixes:
            new = new.removeprefix(prefix)
        if new not in ("weight", "bias"):
            raise CheckpointError(f"{source}: '{shown(old)}' is no part of a linear head (weight, bias).")
        tensors[f"head.{new}"] = checked(old, value, source)
    renamed = {f"classification_head.{n}": n for n in tensors} if found.module else {}
    facts = _head_facts(tensors, renamed, content.metadata, found.module, source)
    if facts is None:
        raise CheckpointError(f"{source}: holds no head (weight, bias).")
    return tensors, facts


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


def checked(name: object, value: object, source: str) -> torch.Tensor:
    """``value`` detached, if it is a dense tensor of plain numbers; otherwise a CheckpointError naming the key."""
    if not isinstance(name, str):
        raise CheckpointError(f"{source}: key {shown(repr(name))} is a {type(name).__name__}; tensors need names.")
    if isinstance(value, OddTensor):
        raise CheckpointError(f"{source}: '{shown(name)}' is {value.problem}.")
    if not isinstance(value, (torch.Tensor, PendingTensor)):
        raise CheckpointError(f"{source}: '{shown(name)}' is a {type(value).__name__}, not a tensor.")
    problem = None if isinstance(value, PendingTensor) else _odd_layout(value)
    dtype = value.dtype
    if problem is None and dtype not in ACCEPTED:
        if dtype.is_complex:
            problem = f"complex ({dtype}); a CLIP's weights are real"
        elif str(dtype).startswith(("torch.float8", "torch.float4", "torch.q")):
            problem = f"quantised ({dtype}); dequantise it, curvature needs the original weights"
        else:
            problem = f"of dtype {dtype}, which no CLIP has"
    if problem:
        raise CheckpointError(f"{source}: '{shown(name)}' is {problem}.")
    return value.read() if isinstance(value, PendingTensor) else value.detach()


def _odd_layout(value: torch.Tensor) -> str | None:
    """What makes a live tensor more, or less, than a block of numbers; None for one that is just that."""
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return "a sparse tensor; store it dense (.to_dense())"
    if value.device.type == "meta":
        return "a meta tensor, a shape without values; save the weights themselves"
    return None


def _names_beside(beside: Mapping[Any, Any], classes: int) -> list[str] | None:
    """Class names kept beside the state dict, where they are one text a class."""
    for key in ("classnames", "class_names", "classes"):
        names = beside.get(key)
        if isinstance(names, (list, tuple)) and len(names) == classes and all(isinstance(n, str) for n in names):
            return list(names)
    return None


def _value(name: str, plain: Mapping[str, Any], loras: Mapping[str, Lora], source: str) -> torch.Tensor:
    """Tensor ``name`` of the file with its LoRA change."""
    if name not in plain:
        raise CheckpointError(f"{source}: '{shown(name)}' has a LoRA change, but its neighbours are weights; merge it.")
    tensor = checked(name, plain[name], source)
    if name not in loras:
        return tensor
    if loras[name].shape != tuple(tensor.shape):
        raise CheckpointError(
            f"{source}: the LoRA change of '{shown(name)}' has shape {list(loras[name].shape)}, "
            f"not {list(tensor.shape)}."
        )
    return loras[name].added_to(tensor)


def _laid_over(
    own: Tensors,
    changes: Mapping[str, Recipe],
    loras: Mapping[str, Lora],
    base: tuple[Mapping[str, torch.Tensor], str],
    source: str,
) -> Tensors:
    tensors = dict(base[0]) | own
    for name, tensor in own.items():
        if name in base[0] and base[0][name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: '{shown(name)}' has shape {list(tensor.shape)}, in the base {list(base[0][name].shape)}."
            )
    for name, recipe in changes.items():
        under, shape = tensors.get(name), _change_shape(recipe, loras)
        if under is None or tuple(under.shape) != shape:  # told before any change is made: small files claim large ones
            raise CheckpointError(f"{source}: its change of '{shown(name)}' {shape} fits nothing in the base.")
        wide = torch.promote_types(under.dtype, torch.float32)
        change = recipe.make(lambda old: loras[old].delta())
        tensors[name] = (under.to(wide) + change.to(wide)).to(under.dtype)
    return tensors


def _change_shape(recipe: Recipe, loras: Mapping[str, Lora]) -> tuple[int, ...]:
    """Shape of what ``recipe`` makes of LoRA changes; empty where its parts differ."""
    shapes = {loras[old].shape[:: -1 if how == "T" else 1] for old, how in recipe.sources if old}
    if len(shapes) > 1:
        return ()
    out, into = shapes.pop()
    return out * len(recipe.sources), into


def _check_sizes(state: Mapping[str, Any], source: str) -> None:
    """Refuse tensors that claim more than their bytes in the file hold (stride 0, overlaps), before any is made."""
    seen: set[tuple[Any, ...]] = set()
    stored: dict[int, int] = {}
    claimed = 0
    for name, value in state.items():
        if not isinstance(value, PendingTensor):
            continue
        size, held = value.numel() * value.dtype.itemsize, value.storage.nbytes
        if size > held:
            raise CorruptCheckpoint(
                f"{source}: '{shown(name)}' claims {list(value.shape)}, {size} bytes; the file has {held}."
            )
        view = (id(value.storage), value.offset, value.shape, value.stride, value.dtype)
        claimed += 0 if view in seen else size
        seen.add(view)
        stored[id(value.storage)] = held
    if claimed > 2 * sum(stored.values()):  # a transposed or sliced view or two are no attack
        raise CorruptCheckpoint(
            f"{source}: its tensors overlap: they claim {claimed} bytes, the file has {sum(stored.values())}."
        )


def _quick_gelu(
    content: Content, module: ModuleFacts | None, facts: Mapping[str, Any], config: bool | None
) -> bool | None:
    """What the file tells of the activation: its folder's config, its metadata, its pickled classes, its maker."""
    written = content.metadata.get("sharpscope.quick_gelu")
    if config is not None or written in ("true", "false"):
        return config if config is not None else written == "true"
    if module is not None and module.quick_gelu is not None:
        return module.quick_gelu
    constants = {n.rpartition(".")[2] for n in facts["dropped"]}
    if content.container == "TorchScript archive" and {"input_resolution", "context_length"} <= constants:
        return True  # OpenAI's own releases, all of them
    return None


def _facts(tensors: Tensors, content: Content, names: Names, module: ModuleFacts | None, source: str) -> dict[str, Any]:
    ties = tied_names(tensors)
    towers = {tower_of(n) for n in tensors}
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())
    report = content.report
    return {
        "container": content.container,
        "naming": names.naming,
        "prefix": names.prefix,
        "dropped": list(names.dropped),
        "dtypes": dict(sorted(dtypes.items())),
        "num_tensors": len(tensors),
        "num_params": sum(t.numel() for n, t in tensors.items() if n not in ties and not is_buffer(n)),
        "towers": [t for t in TOWERS if t in towers],
        "tied": ties,
        "head": _head_facts(tensors, names.renamed, content.metadata, module, source),
        "metadata": dict(sorted(content.metadata.items())),
        "safe": not report.classes and not report.calls,
        "classes": list(report.classes),
        "calls": list(report.calls),
    }


def _head_facts(
    tensors: Tensors,
    renamed: Mapping[str, str],
    metadata: Mapping[str, str],
    module: ModuleFacts | None,
    source: str,
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
    lipsum = any(old.partition(".")[0] in ("cls", "params") for old in renamed)
    named = "names" if wise_ft or lipsum else "length of the class vectors"
    told_by = "metadata" if baked is not None else named
    if normalize is None and module is not None:
        said = [h["normalize"] for h in module.heads.values() if isinstance(h.get("normalize"), bool)]
        normalize = said[0] if said else None
    if baked is None:
        baked = False if lipsum else wise_ft or bool(weight.double().norm(dim=1).median() >= BAKED_NORM)
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
