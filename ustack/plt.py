# SPDX-License-Identifier: MIT
"""The stubs of an ELF file's procedure linkage table, named after what they jump to: `read@plt`.

Reads the stubs' instructions, so that no linker's order of them matters. Must not know the symbols
that the file defines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import NamedTuple

from ustack.elf import SHF_COMPRESSED, DamagedError, Elf, Section, Source, section_bytes

__all__ = ["PltStub", "plt_stubs"]

# elf.h
_EM_X86_64, _EM_AARCH64 = 62, 183
_SHT_RELA = 4

_STUB_SECTIONS = (".plt", ".plt.sec", ".plt.got")
_RELOCATIONS = (".rela.plt", ".rela.dyn")

# The largest programs import some ten thousand functions.
_MAX_SIZE = 16 << 20

_Slots = Callable[[bytes, int], Iterator[tuple[int, int, int]]]


class PltStub(NamedTuple):
    """name: with `@plt` and the NUL that ends it in a string table."""

    address: int
    size: int
    name: bytes


def plt_stubs(source: Source, elf: Elf) -> list[PltStub]:
    """Every stub that can be named; damage makes the list short, not the file unreadable."""
    slots = _SLOTS.get(elf.machine)
    if slots is None or elf.bits != 64 or elf.order != "<":
        return []
    sections = [s for name in _STUB_SECTIONS if (s := elf.section(name)) and s.size <= _MAX_SIZE]
    try:
        names = _slot_names(source, elf) if sections else {}
        return [
            PltStub(address, size, names[slot] + b"@plt\0")
            for section in sections
            for address, size, slot in slots(section_bytes(source, section), section.address)
            if slot in names
        ]
    except DamagedError:
        return []


def _slot_names(source: Source, elf: Elf) -> dict[int, bytes]:
    """Which symbol's address the loader writes into which slot: r_offset -> name."""
    row, symbol = Struct("<QQq"), Struct("<IBBHQQ")
    found: dict[int, bytes] = {}
    for name in _RELOCATIONS:
        section = elf.section(name)
        if section is None or section.type != _SHT_RELA or section.size > _MAX_SIZE:
            continue
        symbols, texts = _linked(source, elf, section)
        data = section_bytes(source, section)
        for offset, info, _ in row.iter_unpack(data[: len(data) // row.size * row.size]):
            at = (info >> 32) * symbol.size
            if at and at + symbol.size <= len(symbols):
                start = symbol.unpack_from(symbols, at)[0]
                text = texts[start : max(texts.find(b"\0", start), start)]
                if text:
                    found[offset] = text
    return found


def _linked(source: Source, elf: Elf, relocations: Section) -> tuple[bytes, bytes]:
    """The symbol table that the relocations count in, and its names."""
    try:
        table = elf.sections[relocations.link]
        texts = elf.sections[table.link]
    except IndexError:
        raise DamagedError("its relocations name no symbol table") from None
    if (table.flags | texts.flags) & SHF_COMPRESSED:
        raise DamagedError("its dynamic symbols are compressed")
    return section_bytes(source, table), section_bytes(source, texts)


def _x86_64_slots(code: bytes, address: int) -> Iterator[tuple[int, int, int]]:
    """Address, size and slot of each stub: ff 25 disp32 is `jmp *disp32(%rip)`."""
    displacement = Struct("<i")
    at = code.find(b"\xff\x25")
    while 0 <= at <= len(code) - 6:
        (distance,) = displacement.unpack_from(code, at + 2)
        begin = at & ~7  # .plt.got has stubs of 8 bytes, the others of 16
        if code[at - 4 : at] in (b"\xf3\x0f\x1e\xfa", b"\xf2\xff\x25"):
            begin = at - 4 & ~7
        size = 8 if begin & 8 or code[begin + 8 : begin + 10] == b"\xff\x25" else 16
        yield address + begin, min(size, len(code) - begin), address + at + 6 + distance
        at = code.find(b"\xff\x25", at + 6)


def _aarch64_slots(code: bytes, address: int) -> Iterator[tuple[int, int, int]]:
    """The same for `adrp x16, page; ldr x17, [x16, #offset]`, 16 bytes a stub."""
    words = Struct("<II")
    for at in range(0, len(code) - 15, 4):
        adrp, ldr = words.unpack_from(code, at)
        if adrp & 0x9F00001F == 0x90000010 and ldr & 0xFFC003FF == 0xF9400211:
            pages = (adrp >> 29 & 3) | (adrp >> 5 & 0x7FFFF) << 2
            pages -= (pages & 1 << 20) << 1
            slot = (address + at & ~0xFFF) + (pages << 12) + (ldr >> 10 & 0xFFF) * 8
            yield address + at, 16, slot


_SLOTS: dict[int, _Slots] = {_EM_X86_64: _x86_64_slots, _EM_AARCH64: _aarch64_slots}
