# SPDX-License-Identifier: MIT
"""An ELF file's function symbols as a table that is asked by address.

Owns which symbol speaks for an address: aliases, nesting, sizes that are not there. Must not know
where files are found, nor what loaded them where.
"""

from __future__ import annotations

import lzma
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import compress, count, islice
from operator import add, eq, gt
from struct import Struct
from typing import NamedTuple

from ustack.elf import (
    SHF_EXECINSTR,
    SHT_DYNSYM,
    SHT_SYMTAB,
    BytesSource,
    DamagedError,
    Elf,
    Section,
    Source,
    read_elf,
    section_bytes,
)
from ustack.frame import VirtOffset
from ustack.plt import plt_stubs

__all__ = ["FunctionSymbol", "Symbols", "function_symbols", "is_complete"]

# elf.h
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_STB_LOCAL, _STB_WEAK = 0, 2
_EM_ARM = 40

_SYM = {32: "IIIBBH", 64: "IBBHQQ"}

#: st_info of every function symbol, and which binding speaks first.
_RANK = {
    bind << 4 | type_: {_STB_WEAK: 1, _STB_LOCAL: 2}.get(bind, 0)
    for bind in range(16)
    for type_ in (_STT_FUNC, _STT_GNU_IFUNC)
}

# What .gnu_debugdata may unpack to, and the memory that its filters may ask for.
_MAX_UNPACKED, _MAX_FILTER = 256 << 20, 128 << 20

_MAX_TABLE = 128 << 20  # some five million symbols
_MAX_NAME = 1 << 16
_MAX_ADDRESS = (1 << 64) - 1

_Row = tuple[int, int, int, int]  # address, size, st_info, offset of the name


class FunctionSymbol(NamedTuple):
    """A function: its name as the linker knows it, and its first address."""

    name: str
    start: VirtOffset


class Symbols:
    """Functions by address. Names are read, and aliases weighed, when they are asked for."""

    __slots__ = ("_aliases", "_ends", "_names", "_outer", "_shown", "_starts", "_texts")

    def __init__(self, rows: list[_Row], texts: bytes, executable: Sequence[Section]) -> None:
        rows, self._aliases = _unique(sorted(rows))
        starts, sizes = [row[0] for row in rows], [row[1] for row in rows]
        ends = list(map(add, starts, sizes))
        if max(ends, default=0) > _MAX_ADDRESS:
            ends = [min(end, _MAX_ADDRESS) for end in ends]
        if 0 in sizes:
            _close(starts, ends, executable)
        self._starts, self._ends = array("Q", starts), array("Q", ends)
        self._names, self._texts = array("Q", [row[3] for row in rows]), texts
        self._outer = _nesting(starts, ends)
        self._shown: list[FunctionSymbol | None] = [None] * len(rows)

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, address: VirtOffset) -> FunctionSymbol | None:
        """The innermost function that has the address."""
        index = bisect_right(self._starts, address) - 1
        while index >= 0:
            if address < self._ends[index]:
                return self._shown[index] or self._show(index)
            index = self._outer.get(index, -1)
        return None

    def _show(self, index: int) -> FunctionSymbol:
        start = self._starts[index]
        name = _name(self._texts, self._names[index])
        if start in self._aliases:
            name = min(_preference(row, self._texts) for row in self._aliases[start])[-1]
        found = FunctionSymbol(name.decode("utf-8", "backslashreplace"), VirtOffset(start))
        self._shown[index] = found
        return found


def function_symbols(
    source: Source, elf: Elf, *, extra: tuple[Source, Elf] | None = None
) -> Symbols:
    """Functions of the file, and of `extra`: the file its debug symbols were split off to.

    Raises DamagedError.
    """
    rows: list[_Row] = []
    texts: list[bytes] = []
    _read_tables(source, elf, SHT_SYMTAB, rows, texts)
    if not is_complete(elf):
        _read_tables(source, elf, SHT_DYNSYM, rows, texts)
        packed = elf.section(".gnu_debugdata")
        if extra is not None:
            _read_tables(*extra, SHT_SYMTAB, rows, texts)
        elif packed is not None:
            inner = BytesSource(_unpack(section_bytes(source, packed)))
            _read_tables(inner, read_elf(inner), SHT_SYMTAB, rows, texts)
    base = sum(map(len, texts))
    for stub in plt_stubs(source, elf):
        texts.append(stub.name)
        rows.append((stub.address, stub.size, _STT_FUNC, base))
        base += len(stub.name)
    executable = [s for s in elf.sections if s.flags & SHF_EXECINSTR]
    return Symbols(rows, b"".join(texts), executable)


def is_complete(elf: Elf) -> bool:
    """Whether the file's .symtab has all there is to know: then it has all of .dynsym too.

    `strip --keep-symbol` leaves a few symbols of the many.
    """
    full, dynamic = (
        sum(s.size for s in elf.sections if s.type == kind) for kind in (SHT_SYMTAB, SHT_DYNSYM)
    )
    return full > 0 and full >= dynamic


def _read_tables(source: Source, elf: Elf, type: int, rows: list[_Row], texts: list[bytes]) -> None:
    """Add what the tables of that type say."""
    for section in elf.sections:
        if section.type != type or not section.size:
            continue
        symbol = Struct(elf.order + _SYM[elf.bits])
        if section.entry_size != symbol.size or section.link >= len(elf.sections):
            raise DamagedError(f"its {section.name} has no rows or no names")
        if section.size > _MAX_TABLE:
            raise DamagedError(f"its {section.name} has {section.size} bytes, more than any real")
        data = section_bytes(source, section)
        data = data[: len(data) // symbol.size * symbol.size]
        base = sum(map(len, texts))
        texts.append(section_bytes(source, elf.sections[section.link]) + b"\0")
        # 32 bits: name, value, size, info, other, shndx; 64 bits: name, info, other, shndx, ...
        if elf.bits == 64:
            rows += [
                (value, size, info, base + name)
                for name, info, _, index, value, size in symbol.iter_unpack(data)
                if info in _RANK and index and name
            ]
        else:
            thumb = 1 if elf.machine == _EM_ARM else 0
            rows += [
                (value & ~thumb, size, info, base + name)
                for name, value, size, info, _, index in symbol.iter_unpack(data)
                if info in _RANK and index and name
            ]


def _unpack(data: bytes) -> bytes:
    """The ELF file in .gnu_debugdata: gdb's manual, "MiniDebugInfo"."""
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_FILTER)
        unpacked = unpacker.decompress(data, max_length=_MAX_UNPACKED)
    except (lzma.LZMAError, EOFError) as error:
        raise DamagedError(f"its .gnu_debugdata cannot be unpacked: {error}") from None
    if not unpacker.eof:
        raise DamagedError("its .gnu_debugdata is cut short, or larger than any real one")
    return unpacked


def _unique(rows: list[_Row]) -> tuple[list[_Row], dict[int, list[_Row]]]:
    """One row an address, with the largest size of all; and all the rows of the others."""
    starts = [row[0] for row in rows]
    again = list(compress(count(1), map(eq, starts, islice(starts, 1, None))))
    aliases: dict[int, list[_Row]] = {}
    last = bytearray(b"\1") * len(rows)  # which has the largest size: rows are sorted
    for index in again:
        aliases.setdefault(starts[index], [rows[index - 1]]).append(rows[index])
        last[index - 1] = 0
    return list(compress(rows, last)), aliases


def _preference(row: _Row, texts: bytes) -> tuple[int, int, bytes]:
    """Global over weak over local, then fewest leading underscores, then the alphabet."""
    name = _name(texts, row[3])
    return _RANK[row[2]], len(name) - len(name.lstrip(b"_")), name


def _close(starts: list[int], ends: list[int], executable: Sequence[Section]) -> None:
    """Sizes of 0 (assembly's habit) end where the next function or the section does."""
    for index in [
        i for i, (start, end) in enumerate(zip(starts, ends, strict=True)) if start == end
    ]:
        start = starts[index]
        for section in executable:
            if section.address <= start < section.address + section.size:
                ends[index] = section.address + section.size
                if index + 1 < len(starts):
                    ends[index] = min(ends[index], starts[index + 1])
                break


def _nesting(starts: list[int], ends: list[int]) -> dict[int, int]:
    """For each function behind whose end an earlier one may still go on: which one."""
    if not any(map(gt, ends, starts[1:])):  # nearly every file
        return {}
    outer: dict[int, int] = {}
    open_: list[int] = []
    for index, start in enumerate(starts):
        while open_ and ends[open_[-1]] <= start:
            open_.pop()
        if open_:
            outer[index] = open_[-1]
        open_.append(index)
    return outer


def _name(texts: bytes, offset: int) -> bytes:
    end = texts.find(b"\0", offset, offset + _MAX_NAME)
    name = texts[offset : end if end >= 0 else offset + _MAX_NAME]
    if name.endswith(b"@plt"):
        return name
    return name.partition(b"@")[0] or name  # a version: memcpy@@GLIBC_2.14
