# SPDX-License-Identifier: MIT
"""Bytes of CPython's objects -> text and line numbers.

Pure. Must not know where the bytes come from, nor which frame they belong to.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ustack.walk.cpython.layout import Layout

__all__ = ["Text", "line_at", "lines_3_10", "lines_3_11", "needed_bytes", "needed_str", "to_text"]

_CODECS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}

#: Names longer than this are nobody's.
_LONGEST = 1 << 12

# PyASCIIObject.state, and ob_size of bytes and str alike.
_SIZE, _STATE, _BYTES_DATA = 16, 32, 32


@dataclass(frozen=True, slots=True)
class Text:
    """A str's value; `whole` is False if it went on behind the bytes that were there."""

    value: str
    whole: bool


def needed_str(memory: bytes, layout: Layout) -> int:
    """How many bytes a str object has, by its first 36; 0 if they are none."""
    if len(memory) < _STATE + 4:
        return 0
    (length,) = struct.unpack_from("<Q", memory, _SIZE)
    kind, ascii_ = _kind(memory)
    if kind not in _CODECS or length > _LONGEST:
        return 0
    start: int = layout.str_data if ascii_ else layout.str_wide
    return start + int(length) * kind


def needed_bytes(memory: bytes) -> int:
    """How many bytes a bytes object has, by its first 24; 0 if they are none."""
    if len(memory) < _SIZE + 8:
        return 0
    (size,) = struct.unpack_from("<Q", memory, _SIZE)
    return _BYTES_DATA + int(size) if size < 1 << 24 else 0


def to_text(memory: bytes, layout: Layout) -> Text | None:
    """The value of a compact str object (PEP 393); None if the bytes are none."""
    size = needed_str(memory, layout)
    if not size:
        return None
    kind, ascii_ = _kind(memory)
    data = memory[layout.str_data if ascii_ else layout.str_wide : size]
    data = data[: len(data) // kind * kind]
    value = data.decode(_CODECS[kind], "replace")
    return Text(value, len(memory) >= size)


def _kind(memory: bytes) -> tuple[int, bool]:
    """Bytes per character, and whether the data follows the short header.

    Bits of state: interned 2, kind 3, compact 1, ascii 1 (cpython/unicodeobject.h, 3.10 to 3.15).
    """
    (state,) = struct.unpack_from("<I", memory, _STATE)
    return state >> 2 & 7, bool(state >> 6 & 1)


def line_at(memory: bytes, first: int, instruction: int, layout: Layout) -> int | None:
    """The line of instruction number `instruction` (2 bytes each; -1: not begun).

    memory: the linetable, a bytes object, as much as there is; None if the line is behind it, or
    there is none: compilers make instructions without.
    """
    if instruction < 0:
        return first
    table = memory[_BYTES_DATA : needed_bytes(memory)]
    lines = lines_3_10 if layout.code_start is None else lines_3_11
    return lines(table, first, instruction)


def lines_3_10(table: bytes, first: int, instruction: int) -> int | None:
    """Objects/lnotab_notes.txt of 3.10: pairs of (bytes of code, signed difference of lines)."""
    line, end = first, 0
    for at in range(0, len(table) - 1, 2):
        size, difference = table[at], table[at + 1]
        end += size
        if difference != 0x80:
            line += difference - 256 if difference > 127 else difference
        if instruction * 2 < end:
            return None if difference == 0x80 else line
    return None


def lines_3_11(table: bytes, first: int, instruction: int) -> int | None:
    """Objects/locations.md of 3.11: entries that begin with a byte from 0x80 up."""
    line, end, at = first, 0, 0
    while at < len(table):
        kind = table[at] >> 3 & 15
        end += (table[at] & 7) + 1
        at += 1
        if kind in (13, 14):
            difference, shift = 0, 0
            while at < len(table):
                byte = table[at]
                at += 1
                difference |= (byte & 63) << shift
                shift += 6
                if not byte & 64:
                    break
            else:
                return None
            line += -(difference >> 1) if difference & 1 else difference >> 1
        elif 10 <= kind <= 12:
            line += kind - 10
        if instruction < end:
            return None if kind == 15 else line
        while at < len(table) and not table[at] & 0x80:
            at += 1
    return None
