"""What a pickle would import, read off its opcodes without running any of them.

The walk is linear (a pickle has no jumps) and bounded; it reads what is there, never what a length field promises.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from typing import IO, Any, Final

__all__ = ["PickleScan", "scan_pickle", "unsafe_names"]

MAX_OPCODES: Final = 1_000_000
"""A training checkpoint of 1,000 tensors with its optimizer has about 100,000; each costs some 60 bytes when loaded."""
MAX_NAMES: Final = 200

_REBUILDERS: Final = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "__builtin__.set",
        "_codecs.encode",
        "torch.Size",
        "torch.device",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_meta_tensor_no_storage",
    }
)
_SCALARS: Final = re.compile(
    r"torch\.(storage\.)?(\w+Storage|(b?float|q?u?int|b?complex)\d\w*|bool|per_(tensor|channel)_(affine|symmetric)\w*)$"
)


@dataclass(frozen=True)
class PickleScan:
    """``names``: everything the pickle would import, in order; ``complete``: it was read to its end, unharmed."""

    names: tuple[str, ...]
    complete: bool


class _Bounded:
    """A file that gives at most what it still has: a length field of gigabytes then allocates nothing."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, count: int = -1) -> bytes:
        wanted = self._left if count < 0 else min(count, self._left)
        data = self._stream.read(wanted)
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        data = self._stream.readline(min(self._left, 65536))
        self._left -= len(data)
        return data


def scan_pickle(stream: IO[bytes], size: int, pickles: int = 1) -> PickleScan:
    """Names that up to ``pickles`` pickles, one after the other in ``size`` bytes of ``stream``, would import.

    Never imports, never executes. A name built from pieces that cannot be told is listed as ``?``.
    """
    names: dict[str, None] = {}
    bounded = _Bounded(stream, size)
    complete = True
    for _ in range(pickles):
        try:
            _walk(bounded, names)
        except Exception:  # pickletools raises whatever the damaged bytes provoke: ValueError, UnicodeDecodeError ...
            complete = False
            break
    return PickleScan(tuple(names), complete)


def unsafe_names(scan: PickleScan) -> tuple[str, ...]:
    """Those names of ``scan`` that rebuild no plain tensor."""
    return tuple(n for n in scan.names if n not in _REBUILDERS and not _SCALARS.match(n))


def _walk(stream: _Bounded, names: dict[str, None]) -> None:
    strings: list[Any] = []  # what was pushed last: STACK_GLOBAL takes module and name from it
    memo: dict[int, Any] = {}
    last: Any = None
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
        if number > MAX_OPCODES or len(names) > MAX_NAMES:
            raise ValueError("too long")
        code = opcode.name
        if code in ("GLOBAL", "INST"):
            names[".".join(str(argument).split(" ", 1))] = None
            last = None
        elif code == "STACK_GLOBAL":
            pair = strings[-2:]
            known = len(pair) == 2 and all(isinstance(p, str) for p in pair)
            names[".".join(pair) if known else "?"] = None
            last = None
        elif code in ("EXT1", "EXT2", "EXT4"):
            names[f"extension {argument}"] = None
            last = None
        elif code in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(str(argument))] = last
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            last = memo.get(int(str(argument)))
            strings = [*strings[-1:], last]
        elif code not in ("PROTO", "FRAME"):
            last = argument if isinstance(argument, str) else None
            strings = [*strings[-1:], last]
