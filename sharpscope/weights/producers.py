"""Which system wrote a file, guessed from its content: for ``inspect``, and for what such files do not say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from sharpscope.layers import HEAD_WEIGHT
from sharpscope.weights.files.modules import ModuleFacts
from sharpscope.weights.naming import WISE_FT

__all__ = ["told_producer", "trains_openai_weights"]

_OPENAI_S: Final = (
    "OpenAI CLIP",
    "WiSE-FT",
    "FLYP",
    "model-soups",
    "StarFT",
    "Dassl",
    "CoOp",
    "Lipsum-FT",
    "R-Adapter",
    "CLIP-LoRA",
)
"""Systems that start from OpenAI's weights, or do so unless told otherwise."""


def trains_openai_weights(producer: str) -> bool:
    """Whether the files of ``producer`` descend as a rule from OpenAI's weights, which use QuickGELU."""
    return producer.startswith(_OPENAI_S)


def told_producer(
    container: str,
    naming: str,
    prefix: str,
    names: Collection[str],
    module: ModuleFacts | None,
    beside: Iterable[str],
    metadata: Mapping[str, str] = MappingProxyType({}),
    config: Mapping[str, Any] | None = None,
) -> str:
    """The system that writes such files, or the closest description of them.

    ``names``: of the tensors in the file; ``prefix``: what was removed from them; ``beside``: the keys beside its state
    dict; ``metadata``: that of its header; ``config``: that of its folder. It is a guess, not a check, but for files of
    sharpscope, which say what they were made from. Where many systems write such files, none of them is named.
    """
    if "sharpscope.finetuning" in metadata and naming != "Dassl":
        return "sharpscope finetune"
    if command := _own_command(metadata):
        return command
    keys = set(beside)
    kind = module.kind.rpartition(".")[2] if module else ""
    if any(".adapter_attn" in n or ".adapter_mlp" in n for n in names):
        return "R-Adapter"
    if any(n.endswith("w_lora_A") for n in names):
        return "CLIP-LoRA"
    if container == "TorchScript archive":
        return "OpenAI CLIP" if {"input_resolution", "context_length", "vocab_size"} & set(names) else "TorchScript"
    if naming == "Hugging Face Flax":
        return "Lipsum-FT" if any(n.partition(".")[0] in ("ext", "cls") for n in names) else "Hugging Face Flax"
    if naming == "Hugging Face":
        return "Hugging Face transformers"
    if naming == "Dassl" and HEAD_WEIGHT in names:
        return "sharpscope finetune (learnt prompts and the head that they make)"
    if naming == "Dassl":
        return "Dassl (CoOp, CLIPFit, ContCoOp)"
    if kind:
        return {
            "ImageClassifier": "WiSE-FT (VRF, PAINT)",
            "CLIPEncoder": "FLYP",
            "ImageEncoder": "task_vectors (LiNeS)",
            "ClassificationHead": "a classification head of WiSE-FT or task_vectors",
        }.get(kind, f"a pickled {kind}")
    if "pytorch-lightning_version" in keys:
        return f"PyTorch Lightning; which module kept the CLIP as '{prefix}' is not told"
    head = any(n.startswith("classification_head.") for n in names)
    if prefix.endswith(WISE_FT) and head:
        return "WiSE-FT, its state dict"
    if "classification_head" in keys:
        return "StarFT or another DataParallel training"
    if prefix == "model." and head and not keys:
        return "model-soups"
    if {"epoch", "name", "optimizer"} <= keys:
        return "open_clip training"
    if config and "model_cfg" in config:
        return "open_clip"
    return "not told" + (f": a wrapper around the CLIP, which it calls '{prefix}'" if prefix else "")


def _own_command(metadata: Mapping[str, str]) -> str:
    """The command of sharpscope that wrote a file with this header, and from what; empty where none did."""
    told = {key.removeprefix("sharpscope."): text for key, text in metadata.items() if key.startswith("sharpscope.")}
    if "converted_from" in told:
        return "sharpscope convert"
    if "merge" in told:
        return f"sharpscope merge, method {told['merge']}"
    ends = [(end, told.get(f"{end}_sha256")) for end in ("zeroshot", "finetuned")]
    if not all(digest for _, digest in ends) or not {"alpha", "layer_alphas"} & set(told):
        return ""
    command = "sparsify" if "sparse_layers" in told else "interpolate"
    where = f"alpha {_short(told['alpha'])}" if "alpha" in told else "an alpha of its own for every layer"
    parents = " and ".join(f"{end} {str(digest)[:12]}" for end, digest in ends)
    return f"sharpscope {command}, {where}, from {parents} (sha256)"


def _short(number: str) -> str:
    """A number as short as it can be written; any other text as it is."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number
