"""The architectures that ``--model`` may name, known before open_clip is imported."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from sharpscope.errors import ConfigError, did_you_mean, shown

__all__ = ["MINI", "architectures", "check_model", "described", "unknown_model"]

MINI: Final = "mini"
"""The name of the embedded world's architecture."""
_PARTS: Final = ("embed_dim", "vision_cfg", "text_cfg")
"""What a config file of open_clip has to hold to count as a model."""


@cache
def architectures() -> Mapping[str, Mapping[str, Any]]:
    """Name -> config of every architecture that the installed open_clip ships: those of ``open_clip.list_models``."""
    try:
        folder = Path(str(distribution("open_clip_torch").locate_file("open_clip/model_configs")))
    except PackageNotFoundError:  # installed in another way: the loader will tell
        return {}
    found = {}
    for file in sorted(folder.glob("*.json")):
        config = json.loads(file.read_text("utf-8"))
        if all(part in config for part in _PARTS):
            found[file.stem] = config
    return found


def check_model(model: str) -> None:
    """Raise ConfigError for a word that is no architecture of open_clip's and looks like no file and no ``mini``."""
    path = Path(model.removeprefix("local-dir:"))
    if model == MINI or path.suffix == ".json" or path.exists():
        return
    if (known := architectures()) and model.replace("/", "-") not in known:
        raise unknown_model(model, known)


def unknown_model(model: str, known: Collection[str]) -> ConfigError:
    """The error for a word that is no architecture."""
    spelt = {_letters(name): name for name in known}  # vitb32 or vit_b_32 is ViT-B-32 to whoever writes it
    near = did_you_mean(spelt.get(_letters(model), model.replace("/", "-")), known)
    return ConfigError(
        f"model: '{shown(model)}' is neither an open_clip model name nor a config JSON nor '{MINI}'.{near}\n"
        "Names: sharpscope list models"
    )


def _letters(name: str) -> str:
    """A name without its case and punctuation."""
    return "".join(c for c in name.lower() if c.isalnum())


def described(config: Mapping[str, Any]) -> str:
    """One line on an architecture: image size, both towers, size of the embedding."""
    image, text = config["vision_cfg"], config["text_cfg"]
    parts = [f"{image['image_size']} px" if "image_size" in image else ""]
    layers = image.get("layers")
    if "timm_model_name" in image:
        parts.append(image["timm_model_name"])
    elif isinstance(layers, list):
        parts.append(f"ResNet of width {image.get('width')} with {'-'.join(map(str, layers))} blocks")
    else:
        parts.append(f"ViT of width {image.get('width')} with {layers} blocks, patches of {image.get('patch_size')}")
    words = text.get("hf_model_name") or f"width {text.get('width')}, {text.get('layers')} blocks"
    parts += [f"text: {words}", f"embedding {config['embed_dim']}"]
    if config.get("quick_gelu"):
        parts.append("QuickGELU")
    return ", ".join(filter(None, parts))
