"""Adapters are merged into the weights they change, where the file says enough, and refused by what is missing.

LoRA (Hu et al. 2021, arXiv 2106.09685): W' = W + (alpha / r) B A, with A [r, in] and B [out, r]; ``alpha`` is in the
metadata, beside the state dict, in ``adapter_config.json`` of a folder, or a tensor of its own; r is A's.
R-Adapter (Kim et al. 2024, arXiv 2408.05749): a linear adapter behind a layer, h = z + W_a z, so that
W' = (W_a + I) W and b' = (W_a + I) b (in the row convention of the paper: W_rep = W_org (W + I)).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from sharpscope.errors import CheckpointError, shown
from sharpscope.weights.inert import Inert, PendingTensor
from sharpscope.weights.naming import listing

__all__ = ["Lora", "adapter_settings", "merge_residual", "split_adapters"]

MAX_CHANGE: Final = 2**24
"""Largest number of entries that a change of one weight may have; ViT-bigG has 13.6 million."""
_LORA: Final = re.compile(r"(.+)\.lora_(A|B|down|up)(?:\.default)?(?:\.weight)?$")
_RESIDUAL: Final = re.compile(r"(.*resblocks\.\d+)\.adapter_(attn|mlp|ffn)\.(weight|bias)$")
_BEHIND: Final = {"attn": "attn.out_proj", "mlp": "mlp.c_proj", "ffn": "mlp.c_proj"}


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

    def delta(self) -> torch.Tensor:
        """The change, float32 [out, in]."""
        return self.scale * (self.up.float() @ self.down.float())


def split_adapters(
    state: Mapping[str, Any], settings: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Lora]]:
    """``(state without LoRA matrices, {weight: its change})``; raises CheckpointError where alpha is unknown."""
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    plain: dict[str, Any] = {}
    for name, value in state.items():
        found = _LORA.fullmatch(name)
        if found:
            kind = {"down": "A", "up": "B"}.get(found[2], found[2])
            matrices.setdefault(found[1], {})[kind] = value.read() if isinstance(value, PendingTensor) else value
        elif "lora_" in name or ".modules_to_save." in name:
            raise CheckpointError(
                f"{source}: '{shown(name)}' belongs to an adapter of a kind that cannot be merged here."
            )
        else:
            plain[name.replace(".base_layer.", ".")] = value
    changes: dict[str, Lora] = {}
    for target, pair in matrices.items():
        alphas = plain.pop(f"{target}.alpha", None)
        changes[f"{target}.weight"] = _lora(target, pair, _alpha(alphas, settings), settings, source)
    return plain, changes


def _lora(target: str, pair: Mapping[str, Any], alpha: float | None, settings: Mapping[str, Any], source: str) -> Lora:
    down, up = pair.get("A"), pair.get("B")
    if not isinstance(down, torch.Tensor) or not isinstance(up, torch.Tensor):
        raise CheckpointError(f"{source}: '{shown(target)}' has only one of its two LoRA matrices.")
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down):
        raise CheckpointError(f"{source}: the LoRA matrices of '{shown(target)}' do not fit each other.")
    if alpha is None:
        raise CheckpointError(
            f"{source}: its LoRA matrices ('{shown(target)}') come without alpha: the scale alpha / r is unknown.\n"
            "Merge the adapter where it was trained, or pass its folder with adapter_config.json (local-dir:FOLDER)."
        )
    if len(up) * down.shape[1] > MAX_CHANGE:
        raise CheckpointError(
            f"{source}: the LoRA matrices of '{shown(target)}' change more than any CLIP's weight has."
        )
    rank = max(1, len(down))
    return Lora(down, up, alpha / (math.sqrt(rank) if settings.get("use_rslora") is True else rank))


def _alpha(tensor: Any, settings: Mapping[str, Any]) -> float | None:
    if isinstance(tensor, PendingTensor):
        tensor = tensor.read()
    if isinstance(tensor, torch.Tensor) and tensor.numel() == 1:
        return float(tensor)
    for key in ("lora_alpha", "alpha", "ss_network_alpha"):
        try:
            return float(settings[key])
        except (KeyError, TypeError, ValueError):
            continue
    return None


def adapter_settings(
    config: Mapping[str, Any], metadata: Mapping[str, str], beside: Mapping[Any, Any]
) -> dict[str, Any]:
    """Everything that may name alpha: the folder's config, the metadata, what lies beside the state dict."""
    found: dict[str, Any] = {}
    for value in (beside, *(beside.get(k) for k in ("args", "config", "peft_config", "lora_config"))):
        value = value.state if isinstance(value, Inert) else value
        if isinstance(value, Mapping):
            found |= {str(k): v for k, v in value.items() if isinstance(v, (bool, int, float, str))}
    return {**found, **metadata, **config}


def merge_residual(tensors: dict[str, torch.Tensor], source: str) -> tuple[dict[str, torch.Tensor], int]:
    """``(tensors with R-Adapter's matrices merged, their number)``, in open_clip's names; raises CheckpointError."""
    adapters = [n for n in tensors if "adapter_" in n]
    merged = {n: t for n, t in tensors.items() if n not in adapters}
    unknown = [n for n in adapters if not _RESIDUAL.fullmatch(n)]
    if unknown:
        raise CheckpointError(
            f"{source}: {listing(unknown, 3)} belong to an adapter that does not say where it acts (known: R-Adapter's "
            "adapter_attn, adapter_mlp).\nMerge it into the weights where it was trained."
        )
    for name in [n for n in adapters if n.endswith(".weight")]:
        found = _RESIDUAL.fullmatch(name)
        assert found is not None
        matrix, layer = tensors[name].float(), f"{found[1]}.{_BEHIND[found[2]]}"
        weight, bias = merged.get(f"{layer}.weight"), merged.get(f"{layer}.bias")
        if weight is None or bias is None or matrix.shape != (len(weight), len(weight)):
            raise CheckpointError(
                f"{source}: '{shown(name)}' {list(matrix.shape)} does not fit behind '{shown(layer)}'; needed: [d, d]."
            )
        whole = matrix + torch.eye(len(matrix))
        shift = tensors.get(name.removesuffix("weight") + "bias")
        merged[f"{layer}.weight"] = (whole @ weight.float()).to(weight.dtype)
        merged[f"{layer}.bias"] = (whole @ bias.float() + (0 if shift is None else shift.float())).to(bias.dtype)
    return merged, len(adapters)
