"""A pickle machine that cannot run anything: opcodes in, inert values out.

It is no unpickler with a filter: it has no ``import`` and no call in it. ``GLOBAL`` gives a name, ``REDUCE`` gives an
:class:`~sharpscope.weights.files.inert.Inert` (or, for torch's tensor rebuilders, our own :mod:`.rebuild`), ``BUILD``
stores.
Everything is bounded: opcodes, memory, the length of numbers and keys; long strings of bytes stay in the file.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, Final

from sharpscope.weights.files.inert import (
    MAX_NAME,
    DamagedPickleError,
    Inert,
    LongLineError,
    Name,
    PendingTensor,
    Report,
    key_of,
)
from sharpscope.weights.files.regions import LINE, Blob, Budget, LongText, Region

__all__ = ["Machine"]

BLOB: Final = 1024
"""Strings of bytes of at least this length stay in the file and are not copied into memory."""
TEXT: Final = 64 * 1024
"""Texts of at least this length stay in the file too. No name is as long."""

_OPCODES: Final = {ord(o.code): o for o in pickletools.opcodes}
_MARK: Final = object()
_LENGTHS: Final = {
    "BINBYTES": ("<I", bytes), "BINBYTES8": ("<Q", bytes), "BYTEARRAY8": ("<Q", bytes), "BINSTRING": ("<i", str),
    "BINUNICODE": ("<I", str), "BINUNICODE8": ("<Q", str),
}  # fmt: skip
_EMPTY: Final[dict[str, tuple[Callable[[], Any], int]]] = {
    "EMPTY_TUPLE": (tuple, 8), "EMPTY_LIST": (list, 100), "EMPTY_DICT": (dict, 260), "EMPTY_SET": (list, 260),
    "NONE": (lambda: None, 8), "NEWTRUE": (lambda: True, 8), "NEWFALSE": (lambda: False, 8),
}  # fmt: skip


class Machine:
    """Runs one pickle of ``region`` up to its STOP and leaves ``region`` positioned after it.

    ``persistent(pid)`` gives the value of a persistent id (the storages of torch's files), ``reduce(name, args)`` that
    of a call, or ``NotImplemented``. Whatever the bytes are, the only error is DamagedPickleError; unsafe names are in
    ``report`` even then.
    """

    def __init__(
        self,
        region: Region,
        report: Report,
        budget: Budget,
        reduce: Callable[[str, tuple[Any, ...]], Any],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.region, self.report, self.budget = region, report, budget
        self.reduce, self.persistent = reduce, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of the pickle."""
        try:
            while True:
                code = self.region.exactly(1)
                opcode = _OPCODES.get(code[0])
                if opcode is None:
                    raise DamagedPickleError(f"opcode {code.hex()} does not exist")
                name = opcode.name
                self.budget.spend(40)
                if name == "STOP":
                    return self._pop()
                step = _STEPS.get(name)
                if step is None:
                    raise DamagedPickleError(f"opcode {name} cannot be in a file")
                step(self, name, None if opcode.arg is None else self._argument(opcode))
        except DamagedPickleError:
            raise
        except Exception as error:  # stack underflow, bad text, foreign types where others belong ...
            raise DamagedPickleError(f"{type(error).__name__} in its pickle") from None

    def _argument(self, opcode: Any) -> Any:
        if opcode.name in _LENGTHS:
            form, kind = _LENGTHS[opcode.name]
            length = struct.unpack(form, self.region.exactly(struct.calcsize(form)))[0]
            if kind is bytes and length >= BLOB:
                return Blob(self.region.skip(length))
            if kind is str and "UNI" in opcode.name and length >= TEXT:
                return LongText(self.region.skip(length))
            if length < 0:
                raise DamagedPickleError("a negative length")
            self.budget.spend((1 if kind is bytes else 4) * length + 60)
            data = self.region.exactly(length)
            return data if kind is bytes else data.decode("utf-8" if "UNI" in opcode.name else "latin-1")
        if opcode.name == "LONG4":
            length = struct.unpack("<i", self.region.exactly(4))[0]
            if not 0 <= length <= 64:
                raise DamagedPickleError("a number of thousands of digits")
            return int.from_bytes(self.region.exactly(length), "little", signed=True)
        before = self.region.position
        try:
            value = opcode.arg.reader(self.region)
        except ValueError:
            if opcode.name == "UNICODE" and self.region.position - before == LINE:
                raise LongLineError("a text that is very long") from None
            raise
        self.budget.spend(4 * (self.region.position - before) + 60)
        return value

    # ------------------------------------------------------------------ the stack
    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise DamagedPickleError("a mark where a value belongs")
        return value

    def _to_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                self.budget.spend(16 * len(items))
                return items
        raise DamagedPickleError("a mark is missing")

    def _constant(self, name: str, _: Any) -> None:
        make, cost = _EMPTY[name]
        self.budget.spend(cost)
        self.stack.append(make())

    def _push(self, name: str, value: Any) -> None:
        if type(value) is int and value.bit_length() > 512:
            raise DamagedPickleError("a number of hundreds of digits")
        self.stack.append(value)

    def _put(self, name: str, index: Any) -> None:
        self.budget.spend(100)
        self.memo[len(self.memo) if name == "MEMOIZE" else index] = self.stack[-1]

    def _get(self, name: str, index: Any) -> None:
        self.stack.append(self.memo[index])

    def _mark(self, name: str, _: Any) -> None:
        self.stack.append(_MARK)

    def _nothing(self, name: str, _: Any) -> None:
        pass

    def _drop(self, name: str, _: Any) -> None:
        if name == "POP":
            self.stack.pop()
        else:
            self._to_mark()

    def _again(self, name: str, _: Any) -> None:
        self.stack.append(self.stack[-1])

    # ------------------------------------------------------------------ containers
    def _tuple(self, name: str, _: Any) -> None:
        items = self._to_mark() if name == "TUPLE" else [self._pop() for _ in range(int(name[5:]))][::-1]
        self.budget.spend(60)
        self.stack.append(tuple(items))

    def _list(self, name: str, _: Any) -> None:
        self.stack.append(self._to_mark())

    def _dict(self, name: str, _: Any) -> None:
        items = self._to_mark()
        self.stack.append({})
        self._put_in(items)

    def _items(self, name: str, _: Any) -> None:
        self._put_in([self._pop(), self._pop()][::-1] if name == "SETITEM" else self._to_mark())

    def _put_in(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise DamagedPickleError("a key without a value")
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if not isinstance(target, dict):
            raise DamagedPickleError("items for a value that is not a dictionary")
        self.budget.spend(60 * len(items))
        if any(isinstance(key, LongText) for key in items[::2]):
            raise DamagedPickleError("a key that is a very long text")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key_of(key)] = value

    def _extend(self, name: str, _: Any) -> None:
        items = [self._pop()] if name == "APPEND" else self._to_mark()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.entries = [] if target.entries is None else target.entries
            target = target.entries
        if not isinstance(target, list):
            raise DamagedPickleError("items for a value that is not a list")
        target.extend(items)

    def _persistent(self, name: str, argument: Any) -> None:
        if self.persistent is None:
            raise DamagedPickleError("a persistent id outside torch's own files")
        self.budget.spend(400)
        self.stack.append(self.persistent(argument if name == "PERSID" else self._pop()))

    # ------------------------------------------------------------------ objects that stay inert
    def _object(self, name: str, argument: Any) -> None:
        push = self.stack.append
        self.budget.spend(300)
        if name == "GLOBAL":
            push(self._name(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            what, module = self._pop(), self._pop()
            push(self._name(module, what))
        elif name == "INST":
            args = tuple(self._to_mark())
            push(self._called(self._name(*str(argument).split(" ", 1)), args))
        elif name == "OBJ":
            function, *rest = self._to_mark()
            push(self._called(function, tuple(rest)))
        elif name == "REDUCE":
            args = self._pop()
            push(self._called(self._pop(), args))
        elif name == "BUILD":
            state = self._pop()
            if isinstance(state, tuple):
                self.budget.spend(sum(100 * len(s) for s in state if isinstance(s, dict)))
            _build(self.stack[-1], state)
        else:
            if name == "NEWOBJ_EX":
                self._pop()
            args, kind = self._pop(), self._pop()
            push(self._instance(kind, args))

    def _extension(self, name: str, number: Any) -> None:
        self.report.unsafe[f"extension {number}"] = None
        self.stack.append(Inert("an extension"))

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise DamagedPickleError("a name that is not text, or is very long")
        found = Name(module, name)
        self.report.saw(found)
        return found

    def _instance(self, kind: Any, args: Any) -> Any:
        if not isinstance(kind, Name) or not isinstance(args, tuple):
            raise DamagedPickleError("an instance of something that is not a class")
        if str(kind) in ("collections.OrderedDict", "builtins.dict"):
            return {}
        self.report.made(str(kind), called=False)
        return Inert(str(kind), args)

    def _called(self, function: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            raise DamagedPickleError("a call without arguments")
        if isinstance(function, Inert):  # calls the result of a call: no checkpoint has a reason to
            self.report.unsafe[f"{function.kind}(...)"] = None
            return Inert(function.kind)
        if not isinstance(function, Name):
            raise DamagedPickleError("a call of something that is not a function")
        full = str(function)
        self.budget.spend(sum(100 * len(a) for a in args if isinstance(a, (list, dict, tuple))))
        self.budget.spend(sum(2 * len(a) for a in args if isinstance(a, (str, bytes))))
        if full in ("copyreg._reconstructor", "copyreg.__newobj__") and args and isinstance(args[0], Name):
            return self._instance(args[0], args[1:])
        known = self.reduce(full, args)
        if known is not NotImplemented:
            return known
        self.report.made(full, called=True)
        return Inert(full, args)


def _build(target: Any, state: Any) -> None:
    if isinstance(state, tuple) and len(state) == 2 and all(s is None or isinstance(s, dict) for s in state):
        state = {**(state[0] or {}), **(state[1] or {})}  # (attributes, slots)
    if isinstance(target, Inert):
        if isinstance(state, dict):
            target.state = state
        else:
            target.args = (*target.args[:1], state)
    elif not isinstance(target, (dict, PendingTensor)):  # attributes and hooks of those two are not needed
        raise DamagedPickleError("state for a value that has none")


_STEPS: Final[dict[str, Callable[[Machine, str, Any], None]]] = {
    name: step
    for names, step in (
        (" ".join(_EMPTY), Machine._constant),
        ("INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT", Machine._push),
        ("STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8", Machine._push),
        ("BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8", Machine._push),
        ("PUT BINPUT LONG_BINPUT MEMOIZE", Machine._put),
        ("GET BINGET LONG_BINGET", Machine._get),
        ("MARK", Machine._mark),
        ("PROTO FRAME", Machine._nothing),
        ("POP POP_MARK", Machine._drop),
        ("DUP", Machine._again),
        ("TUPLE TUPLE1 TUPLE2 TUPLE3", Machine._tuple),
        ("LIST FROZENSET", Machine._list),
        ("DICT", Machine._dict),
        ("SETITEM SETITEMS", Machine._items),
        ("APPEND APPENDS ADDITEMS", Machine._extend),
        ("PERSID BINPERSID", Machine._persistent),
        ("GLOBAL STACK_GLOBAL INST OBJ NEWOBJ NEWOBJ_EX REDUCE BUILD", Machine._object),
        ("EXT1 EXT2 EXT4", Machine._extension),
    )
    for name in names.split()
}
"""Every opcode of pickle but STOP and the two for buffers outside the file, which a file cannot have."""
