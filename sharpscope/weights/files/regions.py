"""Reading bytes that may come from anyone: pieces of an open file, and a budget for the values made of them."""

from __future__ import annotations

import codecs
from typing import IO, Final

from sharpscope.weights.files.inert import DamagedPickleError

__all__ = ["LINE", "Blob", "Budget", "LongText", "Region"]

MAX_OPCODES: Final = 800_000
"""The most opcodes that a file's pickles may have. A training checkpoint of 1,000 tensors with its optimizer has
100,000, a raw pickle of a ViT-L module 171,000."""
MAX_MEMORY: Final = 48 * 2**20
"""The most bytes that the values of a file's pickles may take in memory, tensors aside, by a generous estimate."""
LINE: Final = 65_536
"""The most bytes of a line that are read; pickles of protocol 0 have names and numbers on lines of their own."""
AHEAD: Final = 4096
"""Bytes that are read from the file at once."""


class Region:
    """The bytes ``[start, end)`` of an open file, read in order; never more than there are."""

    def __init__(self, handle: IO[bytes], start: int, end: int) -> None:
        self.handle, self.position, self.end = handle, start, end
        self._ahead, self._from = b"", start

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes (pickletools' own readers notice when there are fewer)."""
        count = max(0, min(count, self.end - self.position))
        at = self.position - self._from
        if at + count > len(self._ahead):
            self.handle.seek(self.position)
            self._ahead = self.handle.read(max(count, min(AHEAD, self.end - self.position)))
            self._from, at = self.position, 0
        data = self._ahead[at : at + count]
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
        data = self.handle.readline(min(self.end - self.position, LINE))
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


class LongText:
    """Text that stayed in the file. Pickles up to protocol 2 have no bytes: they keep them as Latin-1 in UTF-8."""

    __slots__ = ("region",)

    def __init__(self, region: Region) -> None:
        self.region = region

    def as_bytes(self) -> bytearray:
        """The bytes that the text stands for, decoded piece by piece; ValueError where it stands for none."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        data = bytearray()
        self.region.handle.seek(self.region.position)
        left = self.region.end - self.region.position
        while left:
            piece = self.region.handle.read(min(left, 2**20))
            if not piece:
                raise DamagedPickleError("cut off")
            left -= len(piece)
            data += decoder.decode(piece, final=not left).encode("latin-1")
        return data


class Budget:
    """What all pickles of one file may cost together."""

    def __init__(self) -> None:
        self.opcodes, self.memory = MAX_OPCODES, MAX_MEMORY

    def spend(self, memory: int) -> None:
        """Spend one opcode and ``memory`` bytes; raises DamagedPickleError when either budget is used up."""
        self.opcodes -= 1
        self.memory -= memory
        if self.opcodes < 0 or self.memory < 0:
            raise DamagedPickleError("more objects than any checkpoint has")
