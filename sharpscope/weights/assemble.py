"""What a file holds becomes named tensors and facts: names translated, adapters merged, partial files laid over a base.

Every tensor is checked here, one after the other, as it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sharpscope.errors import CheckpointError, listing, shown
from sharpscope.layers import HEAD_WEIGHT, TOWERS, is_buffer, tower_of
from sharpscope.weights.adapters import (
    Lora,
    adapter_settings,
    already_merged,
    has_residual,
    merge_residual,
    split_adapters,
    unfolded,
)
from sharpscope.weights.files.containers import Content
from sharpscope.weights.files.modules import ModuleFacts
from sharpscope.weights.files.tensors import check_sizes, checked, tied_names
from sharpscope.weights.heads import head_facts, names_beside
from sharpscope.weights.naming import Names, normalise, unwrap
from sharpscope.weights.producers import told_producer
from sharpscope.weights.schemes import Recipe

__all__ = ["Base", "assemble"]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Base:
    """The weights that a partial file is laid over, and what is known of them."""

    tensors: Mapping[str, torch.Tensor]
    sha256: str
    facts: Mapping[str, Any]


def assemble(
    content: Content,
    source: str,
    config: Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
    base: Base | None = None,
    partial: bool = False,
    whole: bool = True,
    adapter_scale: float | None = None,
    adapter_merged: bool | None = None,
    weights: str | None = None,
) -> tuple[Tensors, dict[str, Any]]:
    """``(tensors in open_clip's names, facts)`` of a file's content.

    ``config``: the configuration in the file's folder; ``base``: the weights that a partial file is laid over;
    ``partial``: return a partial file without ``base`` as it is; ``whole``: require an image tower;
    ``adapter_scale``, ``adapter_merged``, ``weights``: see ``read_checkpoint``. Raises CheckpointError.
    """
    found = unwrap(unfolded(content.value, source), source, weights)
    check_sizes(found.state, source)
    module = found.module or ModuleFacts()
    merged_already = module.merged if adapter_merged is None else adapter_merged
    settings = adapter_settings(
        config or {}, content.metadata, found.beside, adapter_scale, module.eval_scale, merged_already
    )
    plain, loras, below = split_adapters(found.state, settings, source, checked)
    names = normalise([*plain, *(n for n in loras if n not in plain)], source)
    inside = _inside(names, plain, loras, below, settings.merged, base, source)
    if inside is None and not partial:
        raise CheckpointError(
            f"{source}: holds LoRA matrices beside whole weights and does not say whether the weights already contain "
            "their change (loralib merges it on model.eval()).\nSay it: sharpscope convert FILE OUT.safetensors "
            "--adapter-merged, or --no-adapter-merged to add it; or pass the weights before training (--base FILE)."
        )
    added = {} if inside is not False else loras
    own: Tensors = {}
    changes: dict[str, Recipe] = {}
    for new, recipe in names.recipes.items():
        olds = [old for old, _ in recipe.sources if old]
        if all(old in loras and old not in plain for old in olds):
            changes[new] = recipe
        elif len(olds) < len(recipe.sources):
            raise CheckpointError(f"{source}: '{shown(new)}' needs q, k and v; the file has only {listing(olds)}.")
        else:
            own[new] = recipe.make(lambda old: _value(old, plain, added, source))
    incomplete = names.partial or bool(changes)
    incomplete |= any(map(has_residual, own)) and not any(n.endswith("conv1.weight") for n in own)
    overlay = None
    if incomplete and base is not None:
        own_count = len(own) + len(changes)
        own, overlay = _laid_over(own, changes, loras, base, source), {"base_sha256": base.sha256, "own": own_count}
    elif incomplete and not partial:
        raise CheckpointError(
            f"{source}: holds only what was tuned ({len(own) + len(changes)} tensors, {names.naming} names); the "
            "zero-shot weights that complete it are missing.\n"
            "Pass them: --base FILE (convert), or --zeroshot FILE (run)."
        )
    laid = overlay is not None or not incomplete
    merged = len(loras)
    if laid and any(map(has_residual, own)):
        own, merged = merge_residual(own, settings, source)
    own, scalars = _with_scalars(own)
    if whole and laid and not any(tower_of(n) == "image" for n in own):
        raise CheckpointError(f"{source}: holds no image tower of a CLIP (no visual.* among {listing(own, 3)}).")
    facts = _facts(own, content, names, found.module, source)
    under = base.facts if base is not None and overlay is not None else {}
    if under.get("head") and not any(n.startswith("head.") for n in names.recipes):
        facts["head"] = under["head"]  # the head is the base's, so what the base says of it still holds
    if facts["head"] and facts["head"]["classnames"] is None:
        facts["head"]["classnames"] = names_beside(found.beside, len(own[HEAD_WEIGHT]))
    facts |= {
        "wrapper": ".".join(found.path),
        "ignored": list(found.ignored),
        "producer": told_producer(
            content.container,
            names.naming,
            names.prefix,
            found.state,
            found.module,
            map(str, found.beside),
            content.metadata,
            config or {},
        ),
        "quick_gelu": _agreed(_quick_gelu(content, found.module, facts, quick_gelu), under.get("quick_gelu"), source),
        "others": list(found.others),
        "scalars": scalars,
        "adapter": merged,
        "adapter_inside": inside,
        "partial": not laid,
        "overlay": overlay,
    }
    return own, facts


def _inside(
    names: Names,
    plain: Mapping[str, Any],
    loras: Mapping[str, Lora],
    below: set[str],
    told: bool | None,
    base: Base | None,
    source: str,
) -> bool | None:
    """Whether the weights in the file already contain the changes of the LoRA matrices beside them; None: unknown.

    The evidence is taken in this order: ``told`` (the user's word or a pickled module's), the base weights, and the
    name: peft calls a weight that it adapts ``base_layer`` and merges the change into it only when asked to.
    """
    changed = [n for n in loras if n in plain]
    if not changed or told is not None:
        return bool(changed) and told
    if base is not None:
        both = {
            new: tuple(recipe.make(lambda old, on=on: _value(old, plain, on, source)) for on in ({}, loras))  # type: ignore[misc]
            for new, recipe in names.recipes.items()
            if new in base.tensors and any(old in loras and old in plain for old, _ in recipe.sources)
        }
        found = already_merged(both, base.tensors)  # type: ignore[arg-type]
        if found is not None:
            return found
    return False if base is None and all(n in below for n in changed) else None


def _with_scalars(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """``tensors`` with a logit scale or bias of shape [1], which sharded training leaves, as a scalar; and its name."""
    found = [n for n, t in tensors.items() if tower_of(n) == "scale" and tuple(t.shape) == (1,)]
    return {n: t.reshape(()) if n in found else t for n, t in tensors.items()}, found


def _agreed(own: bool | None, base: bool | None, source: str) -> bool | None:
    """The activation of parts laid over a base, from either file; raises CheckpointError where they disagree."""
    if own is not None and base is not None and own != base:
        first, second = (("GELU", "QuickGELU")[x] for x in (own, base))
        raise CheckpointError(
            f"{source}: was tuned with {first}, but the base was trained with {second}: this is another base."
        )
    return base if own is None else own


def _value(name: str, plain: Mapping[str, Any], loras: Mapping[str, Lora], source: str) -> torch.Tensor:
    """Tensor ``name`` of the file with its LoRA change."""
    if name not in plain:
        raise CheckpointError(f"{source}: '{shown(name)}' has a LoRA change but no weight in the file; merge the LoRA.")
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
    base: Base,
    source: str,
) -> Tensors:
    own = _with_scalars(own)[0]
    tensors = dict(base.tensors) | own
    for name, tensor in own.items():
        if name in base.tensors and base.tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: '{shown(name)}' has shape {list(tensor.shape)}, in the base "
                f"{list(base.tensors[name].shape)}."
            )
    for name, recipe in changes.items():
        under, shape = tensors.get(name), _change_shape(recipe, loras)
        if under is None or tuple(under.shape) != shape:  # before any change is made: small files claim large ones
            raise CheckpointError(f"{source}: its change of '{shown(name)}' {shape} fits no weight of the base.")
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


def _quick_gelu(
    content: Content, module: ModuleFacts | None, facts: Mapping[str, Any], config: bool | None
) -> bool | None:
    """Whether the model uses QuickGELU, by config, metadata, pickled classes or producer; None where none tells."""
    written = content.metadata.get("sharpscope.quick_gelu")
    if config is not None or written in ("true", "false"):
        return config if config is not None else written == "true"
    if module is not None and module.quick_gelu is not None:
        return module.quick_gelu
    constants = {n.rpartition(".")[2] for n in facts["dropped"]}
    if content.container == "TorchScript archive" and {"input_resolution", "context_length"} <= constants:
        return True  # all of OpenAI's own releases use it
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
        "head": head_facts(tensors, names.renamed, content.metadata, module, source),
        "metadata": dict(sorted(content.metadata.items())),
        "safe": not report.classes and not report.calls,
        "classes": list(report.classes),
        "calls": list(report.calls),
    }
