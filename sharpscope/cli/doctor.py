"""The command ``doctor``: what this machine has, and whether curvature is right on it."""

from __future__ import annotations

from dataclasses import dataclass

from sharpscope.cli.options import Plugins, given
from sharpscope.cli.outcome import Outcome
from sharpscope.vocabulary import Device

__all__ = ["Doctor"]


@dataclass(frozen=True)
class Doctor(Plugins):
    """Say what this machine has (versions, cores, GPUs, memory) and whether a Hessian-vector product is right on it."""

    device: Device = "auto"
    """Where the product is computed: auto (a GPU where there is one) | cpu | cuda."""

    def __call__(self) -> Outcome:
        from sharpscope.study.doctor import doctor

        found = doctor(**given(self))
        wrong = [x.what for x in found if x.wrong]
        return Outcome(
            "\n".join(map(str, found)), code=int(bool(wrong)), complaint=f"wrong: {', '.join(wrong)}." if wrong else ""
        )
