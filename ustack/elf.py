# SPDX-License-Identifier: MIT
"""Bytes of an ELF file -> its headers, build id and debug link, 32 or 64 bits, both byte orders.

Pure: asks a Source for bytes, and never for more than a limit. Must not know what symbols are
used for, nor where files are found.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from struct import Struct
from typing import Protocol

from ustack.frame import FileOffset, VirtOffset

__all__ = [
    "MAGIC", "PF_X", "SHF_COMPRESSED", "SHF_EXECINSTR", "SHT_DYNSYM", "SHT_NOBITS", "SHT_SYMTAB",
    "BytesSource", "DamagedError", "Elf", "FileSource", "Section", "Segment", "Source",
    "debug_link", "read_elf", "section_bytes", "to_virtual",
]  # fmt: skip

MAGIC = b"\x7fELF"

# elf.h
_PT_LOAD, _PT_NOTE, PF_X = 1, 4, 1
SHT_SYMTAB, _SHT_NOTE, SHT_NOBITS, SHT_DYNSYM = 2, 7, 8, 11
SHF_EXECINSTR, SHF_COMPRESSED = 4, 0x800
_SHN_XINDEX, _PN_XNUM = 0xFFFF, 0xFFFF
_NT_GNU_BUILD_ID = 3

# What a file may make us read at once; the largest known are the names in browsers' debug files.
_MAX_BYTES = 512 << 20
_MAX_SEGMENTS, _MAX_SECTIONS, _MAX_NOTES = 1 << 12, 1 << 16, 1 << 16

_EHDR = {32: "16sHHIIIIIHHHHHH", 64: "16sHHIQQQIHHHHHH"}
_PHDR = {32: "IIIIIIII", 64: "IIQQQQQQ"}
_SHDR = {32: "IIIIIIIIII", 64: "IIQQQQIIQQ"}


class DamagedError(ValueError):
    """Bytes that contradict their format; the message names the place, not the file."""


class Source(Protocol):
    """Something with a size that can be read at an offset; raises DamagedError outside of it."""

    def read(self, offset: int, size: int, what: str) -> bytes: ...


class BytesSource:
    """An image in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int, what: str) -> bytes:
        _check(offset, size, len(self._data), what)
        return self._data[offset : offset + size]


class FileSource:
    """An open file, whose descriptor stays the caller's.

    Read, not mapped: a file that is cut short under a mapping kills the process that looks.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size

    def read(self, offset: int, size: int, what: str) -> bytes:
        _check(offset, size, self._size, what)
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise DamagedError(f"{what} is cut short")
        return data


def _check(offset: int, size: int, end: int, what: str) -> None:
    if offset + size > end:
        raise DamagedError(f"{what} lies outside the file's {end} bytes")
    if size > _MAX_BYTES:
        raise DamagedError(f"{what} has {size} bytes, more than any real one")


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD program header: which bytes of the file lie at which of its addresses."""

    flags: int
    offset: int
    address: int
    file_size: int


@dataclass(frozen=True, slots=True)
class Section:
    """A section header; `type` is elf.h's SHT_ number, sizes in bytes."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    entry_size: int


@dataclass(frozen=True, slots=True)
class Elf:
    """The headers of one file. order: "<" or ">"; machine: elf.h's EM_ number; build_id: hex."""

    bits: int
    order: str
    machine: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    build_id: str

    def section(self, name: str) -> Section | None:
        """The first section of that name that has bytes in the file."""
        for section in self.sections:
            if section.name == name and section.type != SHT_NOBITS:
                return section
        return None


def to_virtual(elf: Elf, offset: FileOffset) -> VirtOffset | None:
    """Where the file itself places the byte at that offset; None where it loads it nowhere."""
    found = None
    for segment in elf.segments:
        if segment.offset <= offset < segment.offset + segment.file_size:
            found = VirtOffset(offset - segment.offset + segment.address)
            if segment.flags & PF_X:  # two segments may share a page: code is what runs
                break
    return found


def read_elf(source: Source) -> Elf:
    """The headers. Raises DamagedError, whatever the bytes are."""
    ident = source.read(0, 16, "the ELF header")
    if ident[:4] != MAGIC:
        raise DamagedError("it is not an ELF file")
    bits, order = {1: 32, 2: 64}.get(ident[4], 0), {1: "<", 2: ">"}.get(ident[5], "")
    if not bits or not order:
        raise DamagedError(f"its class {ident[4]} or byte order {ident[5]} is not in elf.h")
    ehdr = Struct(order + _EHDR[bits])
    fields = ehdr.unpack(source.read(0, ehdr.size, "the ELF header"))
    machine, phoff, shoff = fields[2], fields[5], fields[6]
    phentsize, phnum, shentsize, shnum, shstrndx = fields[9:14]

    shdr = Struct(order + _SHDR[bits])
    raw: list[tuple[int, ...]] = []
    if shoff:  # gABI, "ELF Header": what does not fit the e_ fields is in section header 0
        first = shdr.unpack(source.read(shoff, shdr.size, "the section header 0"))
        shnum = shnum or first[5]
        shstrndx = first[6] if shstrndx == _SHN_XINDEX else shstrndx
        phnum = first[7] if phnum == _PN_XNUM else phnum
        raw = _rows(source, shdr, shoff, shnum, shentsize, _MAX_SECTIONS, "section headers")
    phdr = Struct(order + _PHDR[bits])
    programs = _rows(source, phdr, phoff, phnum, phentsize, _MAX_SEGMENTS, "program headers")
    if bits == 32:  # the same fields in another order
        programs = [(r[0], r[6], r[1], r[2], r[3], r[4], r[5], r[7]) for r in programs]

    sections = _sections(source, raw, shstrndx)
    notes = [(s.offset, s.size) for s in sections if s.type == _SHT_NOTE]
    notes += [(r[2], r[5]) for r in programs if r[0] == _PT_NOTE]
    return Elf(
        bits=bits,
        order=order,
        machine=machine,
        segments=tuple(Segment(r[1], r[2], r[3], r[5]) for r in programs if r[0] == _PT_LOAD),
        sections=sections,
        build_id=_build_id(source, notes, order),
    )


def _rows(
    source: Source, row: Struct, start: int, count: int, size: int, most: int, what: str
) -> list[tuple[int, ...]]:
    if not count:
        return []
    if count > most:
        raise DamagedError(f"it has {count} {what}, more than any real one")
    if size != row.size:
        raise DamagedError(f"its {what} have {size} bytes each, not {row.size}")
    return list(row.iter_unpack(source.read(start, count * size, f"the table of {what}")))


def _sections(source: Source, raw: list[tuple[int, ...]], names_index: int) -> tuple[Section, ...]:
    if names_index >= len(raw):
        if raw:
            raise DamagedError(f"its section names are in section {names_index} of {len(raw)}")
        return ()
    table = raw[names_index]
    names = b"" if table[1] == SHT_NOBITS else source.read(table[4], table[5], "the section names")
    sections = []
    for name, type_, flags, address, offset, size, link, _info, _align, entry_size in raw:
        end = names.find(b"\0", name)
        text = names[name:end] if end >= 0 else b""
        sections.append(
            Section(
                text[:64].decode("utf-8", "replace"), type_, flags, address, offset, size, link,
                entry_size,
            )
        )  # fmt: skip
    return tuple(sections)


def _build_id(source: Source, notes: list[tuple[int, int]], order: str) -> str:
    """elf(5), "Notes (Nhdr)": namesz, descsz, type; name and desc padded to 4 bytes."""
    header = Struct(order + "III")
    for offset, size in notes:
        if size > _MAX_NOTES:
            continue
        try:
            data = source.read(offset, size, "a note")
        except DamagedError:  # of a debug file, whose notes may have no bytes
            continue
        at = 0
        while at + header.size <= len(data):
            name_size, desc_size, type_ = header.unpack_from(data, at)
            name = at + header.size
            desc = name + (name_size + 3 & ~3)
            if type_ == _NT_GNU_BUILD_ID and data[name : name + name_size] == b"GNU\0":
                return data[desc : desc + desc_size].hex()
            at = desc + (desc_size + 3 & ~3)
    return ""


def section_bytes(source: Source, section: Section) -> bytes:
    """What the section holds. Raises DamagedError; a compressed one counts as such."""
    if section.flags & SHF_COMPRESSED:
        raise DamagedError(
            f"its {section.name} is compressed: objcopy --decompress-debug-sections FILE"
        )
    if section.type == SHT_NOBITS:
        return b""
    return source.read(section.offset, section.size, f"the section {section.name}")


def debug_link(source: Source, elf: Elf) -> tuple[str, int] | None:
    """File name and CRC-32 of .gnu_debuglink: gdb's manual, "Separate Debug Files"."""
    section = elf.section(".gnu_debuglink")
    if section is None or section.size > 4096:
        return None
    try:
        data = section_bytes(source, section)
        name = data[: data.index(b"\0")]
        (crc,) = Struct(elf.order + "I").unpack_from(data, len(name) + 4 & ~3)
    except (ValueError, struct.error):
        return None
    if not name or b"/" in name or name in (b".", b".."):  # it names a file, not a way to one
        return None
    return os.fsdecode(name), crc
