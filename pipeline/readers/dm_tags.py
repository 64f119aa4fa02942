"""The tag tree of a DigitalMicrograph file (DM3, DM4), read without its pixels.

Own code rather than a library: the tree is small, and a file that is cut short or damaged must neither
raise at random nor hide that it is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from ..errors import InputError
from .rawfile import RawFile

_GROUP, _VALUE = 20, 21
_STRING, _STRUCT, _ARRAY = 18, 15, 20
_SIMPLE = {2: "h", 3: "i", 4: "H", 5: "I", 6: "f", 7: "d", 8: "?", 9: "b", 10: "B", 11: "q", 12: "Q"}
_MAX_DEPTH = 64
_MAX_FIELDS = 10_000  # of a structure; real ones have fewer than 20
_SMALL = 20_000  # arrays up to this size are kept, as most of them are texts [bytes]
_WINDOW = 2**16


@dataclass(frozen=True)
class TagArray:
    """An array in a tag: where it lies, and its bytes if it is small."""

    offset: int  # [bytes]
    n_bytes: int
    content: bytes | None

    def text(self, byte_order: str) -> str:
        """The array read as UTF-16, which is how DigitalMicrograph stores texts."""
        codec = "utf-16-le" if byte_order == "<" else "utf-16-be"
        return (self.content or b"").decode(codec, errors="replace").strip("\0")


@dataclass(frozen=True)
class TagTree:
    """What the tags of a file say; groups are dicts, and entries without a name are numbered from "0"."""

    version: int  # 3 or 4
    byte_order: str  # of values and pixels, "<" or ">"
    root: dict[str, Any]
    complete: bool  # False where the file ends within its tags


def read_tags(file: RawFile) -> TagTree:
    """Read the tag tree of a DM3 or DM4 file.

    Raises
    ------
    InputError
        If the tags are damaged. A file that merely ends too early gives the tags before its end.
    """
    return _Parser(file).parse()


class _EndOfFile(Exception):
    """The file ends within its tags."""


class _Parser:
    def __init__(self, file: RawFile) -> None:
        self._file = file
        self._window = BytesIO()
        self._start = 0  # position of the window in the file
        self._order = "<"
        self._word = "I"  # DM4 widened the sizes in the tree to 64 bit

    def parse(self) -> TagTree:
        root: dict[str, Any] = {}
        complete = True
        version = 0
        try:
            version = self._number("I")
            self._word = "Q" if version == 4 else "I"
            self._number(self._word)
            little = self._number("I")
            if little not in {0, 1}:
                raise self._damaged("an impossible byte order")
            self._order = "<" if little else ">"
            self._group(root, 0)
        except _EndOfFile:
            complete = False
        return TagTree(version, self._order, root, complete)

    def _group(self, group: dict[str, Any], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self._damaged("groups nested too deeply")
        self._take(2)  # sorted, open
        for number in range(self._number(self._word)):
            kind = self._take(1)[0]
            label = self._take(self._number("H")).decode("latin-1")
            if kind not in {_GROUP, _VALUE}:
                raise self._damaged(f"a tag of kind {kind}")
            if self._word == "Q":
                self._take(8)  # size of the entry
            name = label or str(number)
            if kind == _GROUP:
                self._group(group.setdefault(name, {}), depth + 1)
            else:
                group[name] = self._value()

    def _value(self) -> Any:
        if self._take(4) != b"%%%%":
            raise self._damaged("a tag without its delimiter")
        n_words = self._number(self._word)
        if not 0 < n_words <= _MAX_FIELDS:
            raise self._damaged(f"a tag description of {n_words} words")
        size = struct.calcsize(f">{self._word}")
        description = struct.unpack(f">{n_words}{self._word}", self._take(n_words * size))
        kind = description[0]
        if kind == _STRUCT:
            return [self._simple(code) for code in self._fields(description)]
        if kind == _ARRAY:
            return self._array(self._item_size(description[1:-1]) * description[-1])
        if kind == _STRING:
            return self._array(2 * description[1]).text(self._order)
        return self._simple(kind)

    def _item_size(self, description: tuple[int, ...]) -> int:
        """Bytes of one item of an array; items may be structures or arrays themselves."""
        kind = description[0]
        if kind == _STRUCT:
            return sum(struct.calcsize(f"={self._code(code)}") for code in self._fields(description))
        if kind == _ARRAY:
            return self._item_size(description[1:-1]) * description[-1]
        return struct.calcsize(f"={self._code(kind)}")

    def _fields(self, description: tuple[int, ...]) -> tuple[int, ...]:
        codes = description[4::2]
        if len(codes) != description[2]:
            raise self._damaged("a structure of another size than it says")
        return codes

    def _array(self, n_bytes: int) -> TagArray:
        offset = self._start + self._window.tell()
        content = self._take(n_bytes) if n_bytes <= _SMALL else None
        if content is None:
            self._seek(offset + n_bytes)
        return TagArray(offset, n_bytes, content)

    def _simple(self, code: int) -> Any:
        layout = self._order + self._code(code)
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _code(self, code: int) -> str:
        if code not in _SIMPLE:
            raise self._damaged(f"a value of type {code}")
        return _SIMPLE[code]

    def _number(self, code: str) -> int:
        return int(struct.unpack(f">{code}", self._take(struct.calcsize(f">{code}")))[0])

    def _take(self, n_bytes: int) -> bytes:
        taken = self._window.read(n_bytes)
        if len(taken) < n_bytes:
            self._seek(self._start + self._window.tell() - len(taken))
            taken = self._window.read(n_bytes)
            if len(taken) < n_bytes:
                raise _EndOfFile
        return taken

    def _seek(self, offset: int) -> None:
        if offset > self._file.size:
            raise _EndOfFile
        self._start = offset
        self._window = BytesIO(self._file.read_at(offset, min(_WINDOW, self._file.size - offset)))

    def _damaged(self, what: str) -> InputError:
        return InputError(
            self._file.path, f"damaged: its tags hold {what} before byte {self._start + self._window.tell()}."
        )
