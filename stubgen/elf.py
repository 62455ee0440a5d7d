# SPDX-License-Identifier: MIT
"""ELF64 shared-object writer: reserve sections, lay them out, fill them, write.

Knows sections, segments and header fields; nothing of probes or of what sections contain.
Every number is from elf.h; the field names are those of the System V gABI, chapters 4 and 5.
"""

from __future__ import annotations

from struct import Struct

__all__ = ["Section", "SharedObject", "StringTable", "sysv_hash_table"]

SHT_PROGBITS, SHT_STRTAB, SHT_HASH, SHT_DYNAMIC, SHT_NOTE, SHT_DYNSYM = 1, 3, 5, 6, 7, 11
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
PT_GNU_EH_FRAME, PT_GNU_STACK = 0x6474E550, 0x6474E551
PF_X, PF_W, PF_R = 1, 2, 4

# e_ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize,
# e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
EHDR = Struct("<16sHHIQQQIHHHHHH")
# p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
PHDR = Struct("<IIQQQQQQ")
# sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign,
# sh_entsize
SHDR = Struct("<IIQQQQIIQQ")
# st_name, st_info, st_other, st_shndx, st_value, st_size
SYM = Struct("<IBBHQQ")

_IDENT = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)  # ELFCLASS64, ELFDATA2LSB, EV_CURRENT, SYSV
_ET_DYN = 3

#: Segments start on their own file page, so that no byte of one is mapped with another's rights.
_FILE_PAGE = 0x1000


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` (a power of two) that is >= `value`."""
    return (value + alignment - 1) & -alignment


class StringTable:
    """NUL-terminated strings, each stored once; `add` returns the offset of a whole string."""

    def __init__(self) -> None:
        self._offsets: dict[str, int] = {"": 0}
        self._data = bytearray(1)

    def add(self, text: str) -> int:
        if text not in self._offsets:
            self._offsets[text] = len(self._data)
            self._data += text.encode("ascii") + b"\0"
        return self._offsets[text]

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    def __len__(self) -> int:
        return len(self._data)


def sysv_hash_table(names: list[str]) -> bytes:
    """DT_HASH for a symbol table of the null symbol and then `names` (gABI, "Hash Table")."""
    buckets = [0] * max(1, len(names))
    chains = [0] * (len(names) + 1)
    for index in range(len(names), 0, -1):
        value = 0
        for byte in names[index - 1].encode("ascii"):
            value = (value << 4) + byte
            value = (value ^ (value >> 24 & 0xF0)) & 0x0FFFFFFF
        slot = value % len(buckets)
        chains[index] = buckets[slot]
        buckets[slot] = index
    words = [len(buckets), len(chains), *buckets, *chains]
    return Struct(f"<{len(words)}I").pack(*words)


class Section:
    """One section: reserved with a size, given an address by the layout, filled with data."""

    __slots__ = (
        "address", "align", "data", "entsize", "flags", "index", "info", "link", "name", "offset",
        "size", "type",
    )  # fmt: skip

    def __init__(
        self, name: str, type: int, flags: int, size: int, *, align: int = 1, entsize: int = 0
    ) -> None:
        self.name = name
        self.type = type
        self.flags = flags
        self.size = size
        self.align = align
        self.entsize = entsize
        self.link: Section | None = None
        self.info = 0
        self.index = self.offset = self.address = 0
        self.data = b""

    @property
    def permissions(self) -> int:
        """The p_flags of the segment this section belongs to; 0 for one that is not loaded."""
        if not self.flags & SHF_ALLOC:
            return 0
        write = PF_W if self.flags & SHF_WRITE else 0
        return PF_R | write | (PF_X if self.flags & SHF_EXECINSTR else 0)


class SharedObject:
    """Sections in, the bytes of an ET_DYN file out.

    Use: reserve every section in file order (loaded ones first, grouped by permission), call
    `layout()`, fill each `section.data` now that addresses are known, call `write()`.
    """

    def __init__(self, e_machine: int, page: int) -> None:
        self.e_machine = e_machine
        self.page = page
        self.sections: list[Section] = []
        self._end = 0

    def reserve(self, section: Section) -> Section:
        self.sections.append(section)
        section.index = len(self.sections)  # index 0 is the null section
        return section

    def layout(self) -> None:
        """Give every section its file offset and address, and group loaded ones in segments."""
        names = StringTable()
        for section in self.sections:
            names.add(section.name)
        shstrtab = self.reserve(Section(".shstrtab", SHT_STRTAB, 0, 0))
        names.add(shstrtab.name)
        shstrtab.data = bytes(names)
        shstrtab.size = len(shstrtab.data)
        self._names = names

        loads: list[list[int]] = []  # p_flags, p_offset, p_vaddr, p_filesz
        permissions = [section.permissions for section in self.sections]
        load_count = len(dict.fromkeys(flags for flags in permissions if flags))
        self._phnum = load_count + 4
        offset = EHDR.size + PHDR.size * self._phnum
        address = offset
        for section in self.sections:
            flags = section.permissions
            if flags and not loads:
                loads.append([flags, 0, 0, 0])  # the first segment holds the headers too
            elif flags and flags != loads[-1][0]:
                offset = align_up(offset, _FILE_PAGE)
                address = align_up(address, self.page) + offset % self.page
                loads.append([flags, offset, address, 0])
            start = align_up(offset, section.align)
            section.offset = start
            if flags:
                section.address = address + start - offset
                address = section.address + section.size
                loads[-1][3] = start + section.size - loads[-1][1]
            offset = start + section.size
        self._loads = loads
        self._end = align_up(offset, 8)

    def write(self) -> bytearray:
        """The file. Every section's data must have the size that was reserved for it."""
        out = bytearray(self._end + SHDR.size * (len(self.sections) + 1))
        EHDR.pack_into(
            out, 0, _IDENT, _ET_DYN, self.e_machine, 1, 0, EHDR.size, self._end, 0, EHDR.size,
            PHDR.size, self._phnum, SHDR.size, len(self.sections) + 1, self.sections[-1].index,
        )  # fmt: skip
        for slot, header in enumerate(self._program_headers()):
            PHDR.pack_into(out, EHDR.size + slot * PHDR.size, *header)
        for section in self.sections:
            if len(section.data) != section.size:
                raise AssertionError(f"{section.name}: {len(section.data)} != {section.size}")
            out[section.offset : section.offset + section.size] = section.data
            SHDR.pack_into(
                out, self._end + section.index * SHDR.size, self._names.add(section.name),
                section.type, section.flags, section.address, section.offset, section.size,
                section.link.index if section.link else 0, section.info, section.align,
                section.entsize,
            )  # fmt: skip
        return out

    def _program_headers(self) -> list[tuple[int, int, int, int, int, int, int, int]]:
        headers = [
            (PT_LOAD, flags, offset, vaddr, vaddr, size, size, self.page)
            for flags, offset, vaddr, size in self._loads
        ]
        for section in self.sections:
            kind = _SEGMENT_OF.get(section.name)
            if kind:
                headers.append((
                    kind, section.permissions, section.offset, section.address, section.address,
                    section.size, section.size, section.align,
                ))  # fmt: skip
        headers.append((PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16))
        return headers


# Sections that a loader or an unwinder finds through a program header of their own.
_SEGMENT_OF = {
    ".dynamic": PT_DYNAMIC,
    ".note.gnu.build-id": PT_NOTE,
    ".eh_frame_hdr": PT_GNU_EH_FRAME,
}
