"""Training: one method a file, and the loop they share (``trainer``); ``sharpscope.finetune(...)`` runs one."""

from __future__ import annotations

import sys
import types
from typing import Any

__all__ = ["finetune"]


class _Room(types.ModuleType):
    """This package, callable: ``sharpscope.finetune`` is the room and, for notebooks, what it is for."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from sharpscope.finetune.run import finetune

        return finetune(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
finetune = sys.modules[__name__]
