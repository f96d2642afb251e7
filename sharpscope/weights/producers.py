"""Which system wrote a file, guessed from its content: for ``inspect``, and for what such files do not say."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from sharpscope.layers import HEAD_WEIGHT
from sharpscope.weights.files.modules import ModuleFacts

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
    metadata: Collection[str] = (),
) -> str:
    """The system that writes such files, or the closest description of them.

    ``names``: of the tensors in the file; ``beside``: the keys beside its state dict; ``metadata``: those of its
    header. It is a guess, not a check.
    """
    if "sharpscope.finetuning" in metadata and naming != "Dassl":
        return "sharpscope finetune"
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
    if naming == "WiSE-FT":
        return "WiSE-FT, its state dict"
    if prefix.startswith("module.model.") or {"classification_head"} & keys:
        return "StarFT or another DataParallel training"
    if naming == "model-soups":
        return "model-soups"
    if {"epoch", "name", "optimizer"} <= keys:
        return "open_clip training"
    return "open_clip" if naming == "open_clip" else naming
