"""A pickle machine that cannot run anything: opcodes in, inert values out.

It is no unpickler with a filter: it has no ``import`` and no call in it. ``GLOBAL`` gives a name, ``REDUCE`` gives an
:class:`~sharpscope.weights.inert.Inert` (or, for torch's tensor rebuilders, our own :mod:`.rebuild`), ``BUILD`` stores.
Everything is bounded: opcodes, memory, the length of numbers and keys; long strings of bytes stay in the file.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any, Final

from sharpscope.weights.inert import DamagedPickleError, Inert, Name, PendingTensor, Report, key_of

__all__ = ["Blob", "Budget", "Machine", "Region"]

MAX_OPCODES: Final = 800_000
"""A training checkpoint of 1,000 tensors with its optimizer has 100,000, a raw pickle of a ViT-L module 171,000."""
MAX_MEMORY: Final = 48 * 2**20
"""Bytes that the values of a file's pickles may take, tensors aside, reckoned generously."""
BLOB: Final = 1024
"""Strings of bytes of this length or more are left in the file."""


class Region:
    """The bytes ``[start, end)`` of an open file, read in order; never more than there are."""

    def __init__(self, handle: IO[bytes], start: int, end: int) -> None:
        self.handle, self.position, self.end = handle, start, end

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes (pickletools' own readers notice when there are fewer)."""
        count = min(count, self.end - self.position)
        self.handle.seek(self.position)
        data = self.handle.read(max(count, 0))
        self.position += len(data)
        return data

    def exactly(self, count: int) -> bytes:
        """``count`` bytes; DamagedPickleError where there are fewer."""
        if count > self.end - self.position:
            raise DamagedPickleError("cut off")
        return self.read(count)

    def readline(self) -> bytes:
        """Up to and including the next newline."""
        self.handle.seek(self.position)
        data = self.handle.readline(min(self.end - self.position, 65_536))
        self.position += len(data)
        return data

    def skip(self, count: int) -> Region:
        """The next ``count`` bytes as a region of their own, passed over."""
        if count > self.end - self.position:
            raise DamagedPickleError("cut off")
        part = Region(self.handle, self.position, self.position + count)
        self.position += count
        return part


class Blob:
    """Bytes that stayed in the file."""

    __slots__ = ("region",)

    def __init__(self, region: Region) -> None:
        self.region = region


class Budget:
    """What all pickles of one file may cost together."""

    def __init__(self) -> None:
        self.opcodes, self.memory = MAX_OPCODES, MAX_MEMORY

    def spend(self, memory: int) -> None:
        """One opcode and ``memory`` bytes; DamagedPickleError where there are none left."""
        self.opcodes -= 1
        self.memory -= memory
        if self.opcodes < 0 or self.memory < 0:
            raise DamagedPickleError("more objects than any checkpoint has")


_OPCODES: Final = {o.code: o for o in pickletools.opcodes}
_MARK: Final = object()
_LENGTHS: Final = {
    "BINBYTES": ("<I", bytes), "BINBYTES8": ("<Q", bytes), "BYTEARRAY8": ("<Q", bytes), "BINSTRING": ("<i", str),
    "BINUNICODE": ("<I", str), "BINUNICODE8": ("<Q", str),
}  # fmt: skip
_EMPTY: Final[dict[str, tuple[Callable[[], Any], int]]] = {
    "EMPTY_TUPLE": (tuple, 8), "EMPTY_LIST": (list, 100), "EMPTY_DICT": (dict, 260), "EMPTY_SET": (list, 260),
    "NONE": (lambda: None, 8), "NEWTRUE": (lambda: True, 8), "NEWFALSE": (lambda: False, 8),
}  # fmt: skip
_NUMBERS: Final = frozenset({"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2"})


class Machine:
    """Runs one pickle of ``region`` to its STOP; ``region`` then stands behind it.

    ``persistent(pid)`` answers PERSID (storages of torch's files), ``reduce(name, args)`` a call of something known, or
    ``NotImplemented``. Raises DamagedPickleError, whatever the bytes are; unsafe names are in ``report`` even then.
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
                opcode = _OPCODES.get(code.decode("latin-1"))
                if opcode is None:
                    raise DamagedPickleError(f"opcode {code.hex()} does not exist")
                self.budget.spend(40)
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, self._argument(opcode))
        except DamagedPickleError:
            raise
        except Exception as error:  # stack underflow, bad text, foreign types where others belong ...
            raise DamagedPickleError(f"{type(error).__name__} in its pickle") from None

    # ------------------------------------------------------------------ reading an opcode's argument
    def _argument(self, opcode: Any) -> Any:
        if opcode.name in _LENGTHS:
            form, kind = _LENGTHS[opcode.name]
            length = struct.unpack(form, self.region.exactly(struct.calcsize(form)))[0]
            if kind is bytes and length >= BLOB:
                return Blob(self.region.skip(length))
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
        if opcode.arg is None:
            return None
        before = self.region.position
        value = opcode.arg.reader(self.region)
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

    def _step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in _EMPTY:
            make, cost = _EMPTY[name]
            self.budget.spend(cost)
            push(make())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.budget.spend(100)
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif name == "MARK":
            push(_MARK)
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            items = self._to_mark() if name == "TUPLE" else [self._pop() for _ in range(int(name[5:]))][::-1]
            self.budget.spend(60)
            push(tuple(items))
        elif name in ("LIST", "FROZENSET"):
            push(self._to_mark())
        elif name == "DICT":
            items = self._to_mark()
            push({})
            self._set(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set([self._pop(), self._pop()][::-1] if name == "SETITEM" else self._to_mark())
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            self._extend([self._pop()] if name == "APPEND" else self._to_mark())
        elif name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"):
            self._object(name, argument)
        elif name in ("EXT1", "EXT2", "EXT4"):
            self.report.unsafe[f"extension {argument}"] = None
            push(Inert("an extension"))
        elif name in ("PERSID", "BINPERSID"):
            if self.persistent is None:
                raise DamagedPickleError("a persistent id outside torch's own files")
            self.budget.spend(400)
            push(self.persistent(argument if name == "PERSID" else self._pop()))
        elif name == "POP":
            self.stack.pop()
        elif name == "POP_MARK":
            self._to_mark()
        elif name == "DUP":
            push(self.stack[-1])
        elif isinstance(argument, (int, float, str, bytes, Blob)) and not name.endswith("BUFFER"):
            if name in _NUMBERS and isinstance(argument, int) and argument.bit_length() > 512:
                raise DamagedPickleError("a number of hundreds of digits")
            push(argument)
        else:
            raise DamagedPickleError(f"opcode {name} has no place in a file")

    # ------------------------------------------------------------------ containers
    def _set(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise DamagedPickleError("a key without a value")
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if not isinstance(target, dict):
            raise DamagedPickleError("items for what is no dictionary")
        self.budget.spend(60 * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key_of(key)] = value

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.entries = [] if target.entries is None else target.entries
            target = target.entries
        if not isinstance(target, list):
            raise DamagedPickleError("items for what is no list")
        target.extend(items)

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

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedPickleError("a name that is no text")
        found = Name(module, name)
        self.report.saw(found)
        return found

    def _instance(self, kind: Any, args: Any) -> Any:
        if not isinstance(kind, Name) or not isinstance(args, tuple):
            raise DamagedPickleError("an instance of what is no class")
        if str(kind) in ("collections.OrderedDict", "builtins.dict"):
            return {}
        self.report.made(str(kind), called=False)
        return Inert(str(kind), args)

    def _called(self, function: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            raise DamagedPickleError("a call without arguments")
        if isinstance(function, Inert):  # the result of a call, called: no checkpoint has a reason to
            self.report.unsafe[f"{function.kind}(...)"] = None
            return Inert(function.kind)
        if not isinstance(function, Name):
            raise DamagedPickleError("a call of what is no function")
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
    elif not isinstance(target, (dict, PendingTensor)):  # those two: attributes, hooks; nothing we need
        raise DamagedPickleError("state for what has none")
