"""What a pickle is turned into here: values that hold data and do nothing, and a verdict on every name it mentions.

Nothing a pickle names is ever imported or called. A class becomes an :class:`Inert` that keeps its state, a tensor a
:class:`PendingTensor` that knows where its bytes lie. Three kinds of names are told apart:

* **rebuilders** (``torch._utils._rebuild_tensor_v2``, ``collections.OrderedDict`` ...): their meaning is known, and
  done here by our own few lines;
* **unsafe** names (``os.system``, ``builtins.eval``, ``torch.load`` ...; :mod:`.power` says which): names with power
  over the machine, or of packages that have it and not known to be without. The file is refused as a whole, with exit
  code 3 and these names, even though nothing would have run;
* all others (``src.models.modeling.ImageClassifier``): classes that are not installed, or are not to be trusted. Their
  instances are inert, and so is what a call of them would have given. They are listed in ``facts``, and by ``inspect``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from sharpscope.weights.files.dangerous import is_unsafe

__all__ = [
    "DamagedPickleError",
    "Inert",
    "Name",
    "OddTensor",
    "PendingTensor",
    "Report",
    "Storage",
    "dtype_named",
    "key_of",
    "like_tensor",
]

MAX_DIMENSIONS: Final = 16
MAX_NAME: Final = 1000
"""The most characters that the name of a tensor, class or function may have. A longer name that a file shares many
times would be copied and searched without end."""


class DamagedPickleError(ValueError):
    """A pickle that is malformed, or larger than that of any checkpoint. It becomes a CorruptCheckpoint."""


class LongLineError(DamagedPickleError):
    """A text on one line of a pickle of protocol 0 that is longer than any name: the bytes of a tensor."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pickle wants to import, by name; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """An object of a class that is not loaded: its name, its state, what was put into it. It has no behaviour."""

    __slots__ = ("args", "entries", "kind", "state")

    def __init__(self, kind: str, args: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.args = args
        self.state: dict[Any, Any] = {}
        self.entries: Any = None

    def __repr__(self) -> str:
        return f"Inert({self.kind!r})"


class Storage:
    """Bytes of a file that tensors are views of. They are read once, when the first of these tensors is."""

    def __init__(self, dtype: torch.dtype | None, nbytes: int, read: Callable[[], torch.Tensor]) -> None:
        self.dtype = dtype
        self.nbytes = nbytes
        self._read = read
        self._data: torch.Tensor | None = None

    def data(self) -> torch.Tensor:
        """The bytes, uint8 [nbytes]."""
        if self._data is None:
            self._data = self._read()
        return self._data

    def fresh(self) -> torch.Tensor:
        """The bytes without keeping them: for pieces that are copied into a larger tensor at once."""
        return self._read() if self._data is None else self._data


@dataclass(frozen=True, eq=False, repr=False)
class PendingTensor:
    """A tensor whose bytes are still in the file: ``read()`` gives it. Offset and stride count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        for number in (self.offset, *self.shape, *self.stride):
            if type(number) is not int or not 0 <= number < 2**48:
                raise DamagedPickleError("a tensor with an impossible shape")
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_DIMENSIONS or self.numel() > 2**50:
            raise DamagedPickleError("a tensor with an impossible shape")
        end = self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if self.numel() and end * self.dtype.itemsize > self.storage.nbytes:
            raise DamagedPickleError("a tensor that ends outside its storage")

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> torch.Tensor:
        """The tensor itself; those of one storage share its memory."""
        if not self.numel():
            return torch.empty(self.shape, dtype=self.dtype)
        whole = self.storage.data()
        usable = len(whole) // self.dtype.itemsize * self.dtype.itemsize
        return whole[:usable].view(self.dtype).as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True, slots=True)
class OddTensor:
    """A tensor of a kind that no CLIP has (sparse, quantised, without values) and what is wrong with it."""

    problem: str


def like_tensor(value: object) -> bool:
    """Whether ``value`` is a tensor, or stands for one."""
    return isinstance(value, (torch.Tensor, PendingTensor, OddTensor))


def key_of(key: Any) -> Any:
    """``key`` for a dictionary. A key that hashes slowly or can be made to collide is replaced by a new object."""
    if key is None or isinstance(key, (str, bool, bytes, Name, Inert)) or (type(key) is int and abs(key) < 2**60):
        return key
    if isinstance(key, tuple) and len(key) <= 8 and all(isinstance(k, str) for k in key):
        return key
    if isinstance(key, (int, float)):
        return repr(key)
    if isinstance(key, (list, dict)):
        raise DamagedPickleError(f"a {type(key).__name__} as a key")
    return Inert(f"a key of type {type(key).__name__}")


@dataclass
class Report:
    """What a file wanted to import and to call, in order; ``unsafe``: the part that gets it refused."""

    classes: dict[str, None] = field(default_factory=dict)
    calls: dict[str, None] = field(default_factory=dict)
    unsafe: dict[str, None] = field(default_factory=dict)

    MAX: Final = 200

    def saw(self, name: Name) -> None:
        """A name is mentioned."""
        if is_unsafe(name.module, name.name) and len(self.unsafe) < self.MAX:
            self.unsafe[str(name)] = None

    def made(self, kind: str, *, called: bool) -> None:
        """An instance of a foreign class was made (inertly), or something foreign should have been called."""
        names = self.calls if called else self.classes
        if len(names) < self.MAX:
            names[kind] = None


def dtype_named(name: str) -> torch.dtype | None:
    """``torch.float32`` for ``"float32"``; None for a name that is not a dtype."""
    found = getattr(torch, name, None) if re.fullmatch(r"[a-z]\w*", name) else None
    return found if isinstance(found, torch.dtype) else None
