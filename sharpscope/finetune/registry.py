"""All fine-tuning methods by name."""

from __future__ import annotations

from typing import Final

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.finetune.clipfit import CLIPFit
from sharpscope.finetune.contcoop import ContCoOp
from sharpscope.finetune.coop import CoOp, KgCoOp
from sharpscope.finetune.flyp import Flyp
from sharpscope.finetune.l2_sp import L2SP
from sharpscope.finetune.linear_probe import LinearProbe
from sharpscope.finetune.lipsum_ft import LipsumFT
from sharpscope.finetune.lp_ft import LpFT
from sharpscope.finetune.method import Method
from sharpscope.finetune.r_adapter import RAdapter
from sharpscope.finetune.starft import StarFT
from sharpscope.finetune.wise_ft import WiseFT

__all__ = ["METHODS", "method_named"]

METHODS: Final[dict[str, type[Method]]] = {
    m.name: m
    for m in (
        WiseFT,
        LinearProbe,
        LpFT,
        L2SP,
        LipsumFT,
        Flyp,
        StarFT,
        CLIPFit,
        CoOp,
        KgCoOp,
        ContCoOp,
        RAdapter,
    )
}  # fmt: skip


def method_named(name: str) -> type[Method]:
    """The method called ``name``; ConfigError with the nearest for an unknown one."""
    if name not in METHODS:
        raise ConfigError(f"method: '{shown(name)}' is none of {', '.join(METHODS)}.{did_you_mean(name, METHODS)}")
    return METHODS[name]
