"""What a file holds becomes named tensors and facts: names translated, adapters merged, partial files laid over a base.

Every tensor is checked here, one after the other, as it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from sharpscope.errors import CheckpointError, listing, shown
from sharpscope.layers import HEAD_WEIGHT, TOWERS, is_buffer, tower_of
from sharpscope.weights.adapters import Lora, adapter_settings, has_residual, merge_residual, split_adapters, unfolded
from sharpscope.weights.files.containers import Content
from sharpscope.weights.files.modules import ModuleFacts
from sharpscope.weights.files.tensors import check_sizes, checked, tied_names
from sharpscope.weights.heads import head_facts, names_beside
from sharpscope.weights.naming import Names, normalise, unwrap
from sharpscope.weights.producers import told_producer
from sharpscope.weights.schemes import Recipe

__all__ = ["assemble"]

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

    ``config``: the configuration in the file's folder; ``base``: tensors and sha256 of the weights that a partial file
    is laid over; ``partial``: return a partial file without ``base`` as it is; ``whole``: require an image tower;
    ``adapter_scale``: see ``read_checkpoint``. Raises CheckpointError.
    """
    found = unwrap(unfolded(content.value, source), source)
    check_sizes(found.state, source)
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
            raise CheckpointError(f"{source}: '{shown(new)}' needs q, k and v; the file has only {listing(olds)}.")
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
            "zero-shot weights that complete it are missing.\n"
            "Pass them: --base FILE (convert), or --zeroshot FILE (run)."
        )
    laid = overlay is not None or not incomplete
    merged = len(loras)
    if laid and any(map(has_residual, own)):
        own, merged = merge_residual(own, settings, source)
    if whole and laid and not any(tower_of(n) == "image" for n in own):
        raise CheckpointError(f"{source}: holds no image tower of a CLIP (no visual.* among {listing(own, 3)}).")
    facts = _facts(own, content, names, found.module, source)
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
        ),
        "quick_gelu": _quick_gelu(content, found.module, facts, quick_gelu),
        "adapter": merged,
        "partial": not laid,
        "overlay": overlay,
    }
    return own, facts


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
