"""Tiny models with towers of other kinds than open_clip's own."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

_TEXT = {
    "context_length": 16, "vocab_size": 708, "width": 16, "heads": 2, "layers": 1,
    "tokenizer_kwargs": {"bpe_path": "mini_bpe.txt.gz"},
}  # fmt: skip
_TOWERS: dict[str, dict[str, Any]] = {
    "eva02": {
        "timm_model_name": "eva02_tiny_patch14_224",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 28,
    },
    "siglip": {"timm_model_name": "test_vit3", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
    "timm resnet": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
}


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """EVA's and SigLIP's kinds of tower (timm's smallest: rotary positions; a pool of attention), timm's ResNet and
    ConvNeXt: kind -> ClipModel."""
    from sharpscope.clip.model import ClipModel
    from sharpscope.miniworld import world as miniworld

    folder = tmp_path_factory.mktemp("towers")
    shutil.copy(miniworld.tokenizer_path(), folder / "mini_bpe.txt.gz")
    made = {}
    for name, tower in _TOWERS.items():
        vision = {**tower, "timm_model_pretrained": False}
        config = {"embed_dim": 12, "custom_text": True, "vision_cfg": vision, "text_cfg": _TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
        made[name] = ClipModel.load(str(folder / f"{name}.json"))
    return made
