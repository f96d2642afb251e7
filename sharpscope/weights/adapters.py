"""Adapters are merged into the weights that they change; a file that does not say enough for that is refused.

LoRA (Hu et al. 2021, arXiv 2106.09685): W' = W + scale B A, with A [r, in] and B [out, r]. scale is alpha / r (peft,
loralib) or alpha / sqrt(r) (rsLoRA, and later versions of CLIP-LoRA, whose files do not say which).
R-Adapter (Kim et al. 2024, arXiv 2408.05749): h = z + scale (F z + c) behind attention and MLP, F one matrix or the
product of two, so that W' = (I + scale F) W and b' = (I + scale F) b + scale c. scale is the learnt ``s`` times the
``eval_scale`` of the evaluation (0.5 for classification and 0.8 for retrieval in its scripts), which only whole pickled
modules keep. Where a file holds an adapter twice, the moving average (``_cache``) is merged, as in its evaluation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from sharpscope.errors import CheckpointError, shown
from sharpscope.weights.files.inert import Inert

__all__ = ["Lora", "Settings", "adapter_settings", "has_residual", "merge_residual", "split_adapters", "unfolded"]

_LORA: Final = re.compile(r"(.+)\.(?:w_)?lora_(A|B|down|up)(?:\.default)?(?:\.weight)?")
_RESIDUAL: Final = re.compile(r"(.*resblocks\.\d+)\.adapter_(attn|mlp)(_cache)?\.(s|[fdu]\.weight|[fdu]\.bias)")
_BEHIND: Final = {"attn": "attn.out_proj", "mlp": "mlp.c_proj"}
_CONVERT: Final = "sharpscope convert FILE OUT.safetensors"

Checked = Callable[[object, object, str], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What is known of the adapters' scale: ``scale`` as the user gives it, ``alpha`` and ``sqrt`` (whether alpha
    is divided by the square root of r; None: the file does not say), R-Adapter's ``eval_scale``, and a reason to
    refuse."""

    scale: float | None = None
    alpha: float | None = None
    sqrt: bool | None = False
    eval_scale: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Lora:
    """The change of one weight: ``scale`` * B A."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        return len(self.up), self.down.shape[1]

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` with the change, in its own dtype."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        return (weight.to(wide) + self.delta().to(wide)).to(weight.dtype)

    def delta(self) -> torch.Tensor:
        """The change, float32 [out, in]. Small files can claim large ones: call it only if a weight has this shape."""
        return self.scale * (self.up.float() @ self.down.float())


# ---------------------------------------------------------------------- LoRA
def split_adapters(
    state: Mapping[str, Any], settings: Settings, source: str, checked: Checked
) -> tuple[dict[str, Any], dict[str, Lora]]:
    """``(state without LoRA matrices, {weight: its change})``; raises CheckpointError where the scale is unknown."""
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    plain: dict[str, Any] = {}
    for name, value in state.items():
        found = _LORA.fullmatch(name)
        if found:
            kind = {"down": "A", "up": "B"}.get(found[2], found[2])
            matrices.setdefault(found[1], {})[kind] = checked(name, value, source)
        elif "lora_" in name or ".modules_to_save." in name:
            raise CheckpointError(
                f"{source}: '{shown(name)}' belongs to an adapter of a kind that cannot be merged here."
            )
        else:
            plain[name.replace(".base_layer.", ".")] = value
    if matrices and settings.refused:
        raise CheckpointError(f"{source}: its LoRA {settings.refused}; merge it with the code that trained it.")
    changes: dict[str, Lora] = {}
    for target, pair in matrices.items():
        alpha = plain.pop(f"{target}.alpha", None)
        alphas = None if alpha is None else checked(f"{target}.alpha", alpha, source)
        changes[f"{target}.weight"] = _lora(target, pair, alphas, settings, source)
    return plain, changes


def _lora(
    target: str, pair: Mapping[str, torch.Tensor], own: torch.Tensor | None, settings: Settings, source: str
) -> Lora:
    if len(pair) != 2:
        raise CheckpointError(f"{source}: '{shown(target)}' has only one of its two LoRA matrices.")
    down, up = pair["A"], pair["B"]
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down) or not len(down):
        raise CheckpointError(f"{source}: the LoRA matrices of '{shown(target)}' do not fit each other.")
    if settings.scale is not None:
        return Lora(down, up, settings.scale)
    alpha, rank = float(own) if own is not None and own.numel() == 1 else settings.alpha, len(down)
    if alpha is None or (settings.sqrt is None and rank > 1):
        what = "alpha" if alpha is None else "the rule that divides alpha (by r or by its square root)"
        raise CheckpointError(
            f"{source}: its LoRA matrices ('{shown(target, 60)}') come without {what}: their scale is unknown.\n"
            f"Pass the folder of adapter_config.json (local-dir:FOLDER), or the scale: {_CONVERT} --adapter-scale S."
        )
    return Lora(down, up, alpha / (math.sqrt(rank) if settings.sqrt else rank))


def adapter_settings(
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    beside: Mapping[Any, Any],
    scale: float | None = None,
    eval_scale: float | None = None,
) -> Settings:
    """What the folder's config, the metadata and what lies beside the state dict say of the adapters' scale.

    ``scale``: the user's, which wins; ``eval_scale``: a pickled R-Adapter module's own.
    """
    keys = ("args", "config", "peft_config", "lora_config", "metadata")
    places = [config, metadata, beside, *(beside.get(k) for k in keys)]
    places = [p.state if isinstance(p, Inert) else p for p in places]
    alpha, sqrt, refused = None, False, ""
    for place in (p for p in places if isinstance(p, Mapping)):
        refused = refused or _refused(place)
        told = _number(place.get("lora_alpha", place.get("ss_network_alpha")))
        if told is None and any(k in place for k in ("r", "rank", "lora_r")):  # alone, alpha may mean anything
            told = _number(place.get("alpha"))
        if alpha is None and told is not None:
            alpha, sqrt = told, place.get("use_rslora") is True
            if {"encoder", "params", "position"} <= set(place):  # CLIP-LoRA changed the rule between two versions
                return Settings(scale, alpha, None)
        eval_scale = _number(place.get("eval_scale")) if eval_scale is None else eval_scale
    return Settings(scale, alpha, sqrt, eval_scale, refused)


def _refused(place: Mapping[Any, Any]) -> str:
    """Why an adapter with these settings is more than W + scale B A; empty where it is not."""
    start = place.get("init_lora_weights")
    if place.get("alpha_pattern"):
        return "has an alpha for each module (alpha_pattern)"
    if isinstance(start, str) and start.startswith(("pissa", "olora", "loftq", "corda")):
        return f"was initialised by '{shown(start, 30)}', which changes the base weights too"
    for key in ("fan_in_fan_out", "use_dora"):
        if place.get(key) is True:
            return f"has the setting {key}"
    return ""


def _number(value: Any) -> float | None:
    try:
        found = None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return found if found is None or math.isfinite(found) else None


def unfolded(content: Any, source: str) -> Any:
    """CLIP-LoRA's {weights: {layer_0: {q_proj: {w_lora_A, w_lora_B}}}, metadata} as a state dict; all else as it is.

    Layers are counted through the text tower's 12 blocks first, then the image tower's, as far as ``encoder`` names
    them. Raises CheckpointError where ``position`` leaves open which blocks these are.
    """
    weights, told = (content.get("weights"), content.get("metadata")) if isinstance(content, Mapping) else (None, None)
    if not isinstance(weights, Mapping) or not isinstance(told, Mapping) or "layer_0" not in weights:
        return content
    encoder, position = told.get("encoder"), told.get("position")
    if encoder not in ("text", "vision", "both") or position != "all":
        raise CheckpointError(
            f"{source}: its LoRA is on the blocks '{shown(position, 30)}' of '{shown(encoder, 30)}', and only position "
            "'all' says which blocks these are.\nMerge the adapter with the code that trained it."
        )
    state: dict[str, Any] = {}
    for layer, parts in weights.items():
        number = int(layer[6:]) if isinstance(layer, str) and re.fullmatch(r"layer_\d{1,3}", layer) else -1
        if number < 0 or not isinstance(parts, Mapping):
            raise CheckpointError(f"{source}: '{shown(layer)}' is not the name of a LoRA layer (layer_0, layer_1 ...).")
        text = encoder == "text" or (encoder == "both" and number < 12)
        block = f"transformer.resblocks.{number if text or encoder == 'vision' else number - 12}.attn"
        for part, pair in parts.items():
            for name, value in pair.items() if isinstance(pair, Mapping) else ():
                state[f"{'' if text else 'visual.'}{block}.{part}.{name}"] = value
    return {"state_dict": state, "metadata": told}


# ---------------------------------------------------------------------- R-Adapter
def has_residual(name: str) -> bool:
    """Whether ``name`` is that of an adapter behind a layer (R-Adapter's, or one of another kind)."""
    return ".adapter_" in name


def merge_residual(
    tensors: dict[str, torch.Tensor], settings: Settings, source: str
) -> tuple[dict[str, torch.Tensor], int]:
    """``(tensors with R-Adapter's matrices merged, how many layers)``, in open_clip's names; raises CheckpointError."""
    merged = {n: t for n, t in tensors.items() if not has_residual(n)}
    adapters: dict[tuple[str, str], dict[str, dict[str, torch.Tensor]]] = {}
    for name in (n for n in tensors if has_residual(n)):
        found = _RESIDUAL.fullmatch(name)
        if found is None:
            raise CheckpointError(
                f"{source}: '{shown(name)}' belongs to an adapter that does not say where it acts (known: R-Adapter's "
                "adapter_attn, adapter_mlp).\nMerge it into the weights with the code that trained it."
            )
        copies = adapters.setdefault((found[1], _BEHIND[found[2]]), {})
        copies.setdefault(found[3] or "", {})[found[4]] = tensors[name]
    for (block, behind), copies in adapters.items():
        _merge_one(merged, f"{block}.{behind}", copies.get("_cache", copies.get("", {})), settings, source)
    return merged, len(adapters)


def _merge_one(
    merged: dict[str, torch.Tensor], layer: str, adapter: Mapping[str, torch.Tensor], settings: Settings, source: str
) -> None:
    weight, bias, learnt = merged.get(f"{layer}.weight"), merged.get(f"{layer}.bias"), adapter.get("s")
    factor = settings.eval_scale if settings.scale is None else settings.scale
    if factor is None or learnt is None or learnt.numel() != 1:
        what = "its learnt scale s" if factor is not None else "eval_scale, the factor of that scale at evaluation"
        raise CheckpointError(
            f"{source}: the R-Adapter behind '{shown(layer, 60)}' comes without {what}.\nPass it: {_CONVERT} "
            "--adapter-scale S (its scripts evaluate with 0.5 in classification, 0.8 in retrieval)."
        )
    parts = ("f",) if "f.weight" in adapter else ("d", "u")
    matrices = [adapter.get(f"{p}.weight") for p in parts]
    fits = weight is not None and bias is not None and all(m is not None and m.ndim == 2 for m in matrices)
    shapes = [tuple(m.shape) for m in matrices if m is not None]
    size = 0 if bias is None else len(bias)
    if weight is None or bias is None or not fits or shapes[0][1] != size or shapes[-1][0] != size:
        raise CheckpointError(f"{source}: its adapter of shapes {shapes} does not fit behind '{shown(layer)}'.")
    if len(shapes) == 2 and shapes[0][0] != shapes[1][1]:
        raise CheckpointError(f"{source}: the adapter behind '{shown(layer)}' has two matrices that do not fit.")
    whole, shift = torch.eye(size), torch.zeros(size)
    matrix = torch.eye(size)
    for part in parts:
        own = adapter.get(f"{part}.bias")
        matrix = adapter[f"{part}.weight"].float() @ matrix
        shift = adapter[f"{part}.weight"].float() @ shift + (0 if own is None else own.float())
    scale = factor * float(learnt)
    whole += scale * matrix
    merged[f"{layer}.weight"] = (whole @ weight.float()).to(weight.dtype)
    merged[f"{layer}.bias"] = (whole @ bias.float() + scale * shift).to(bias.dtype)
