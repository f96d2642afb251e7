"""All fine-tuning methods by name."""

from __future__ import annotations

from typing import Final

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.finetune.method import Method
from sharpscope.finetune.wise_ft import WiseFT

__all__ = ["METHODS", "method_named"]

METHODS: Final[dict[str, type[Method]]] = {
    m.name: m
    for m in (
        WiseFT,
    )
}  # fmt: skip


def method_named(name: str) -> type[Method]:
    """The method called ``name``; ConfigError with the nearest for an unknown one."""
    if name not in METHODS:
        raise ConfigError(f"method: '{shown(name)}' is none of {', '.join(METHODS)}.{did_you_mean(name, METHODS)}")
    return METHODS[name]
