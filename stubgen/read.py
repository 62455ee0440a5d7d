# SPDX-License-Identifier: MIT
"""ELF file or PID -> probes: opens, bounds and fetches what `found` makes sense of.

The only importer of pyelftools, and the only module here that looks at processes. Must not know
how stubs are written, nor who prints what was read.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from struct import Struct
from typing import IO, TYPE_CHECKING, Any

from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from stubgen import found
from stubgen.arch import MACHINES
from stubgen.found import DamagedError, Elf, FoundProbe, Section, Segment
from stubgen.spec import Arg

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DeniedError", "Elf", "FoundProbe", "Mapped", "ReadError", "read_elf", "read_path", "read_pid",
]  # fmt: skip

# What a file may make us read and keep: real programs have a few hundred KiB of notes.
_MAX_BYTES = 16 << 20
_MAX_SECTION_NAME = 64
_MAX_SEGMENTS, _MAX_SECTIONS = 1 << 8, 1 << 16

_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_NT_GNU_BUILD_ID = _NT_STAPSDT = 3
_NOTE_SECTIONS = (".note.gnu.build-id", ".note.stapsdt")
_PF_X = 1


class ReadError(ValueError):
    """A file or a process that cannot be read; one line, with the next command."""


class DeniedError(ReadError):
    """... for lack of privilege."""


class _Source:
    """A stream whose size is known, read within it and within a budget."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.size = stream.seek(0, os.SEEK_END)
        self._budget = _MAX_BYTES

    def read(self, offset: int, size: int, what: str) -> bytes:
        self._budget -= size
        if self._budget < 0:
            raise DamagedError(f"{what} has {size} bytes, more than any real one")
        return self.read_all(offset, size, what)

    def read_all(self, offset: int, size: int, what: str) -> bytes:
        """Like `read`, for the few things that grow with the file."""
        if offset + size > self.size:
            raise DamagedError(f"{what} lies outside the file's {self.size} bytes")
        self.stream.seek(offset)
        data = self.stream.read(size)
        if len(data) != size:
            raise DamagedError(f"{what} is cut short")
        return data


def read_path(path: str | os.PathLike[str], *, functions: bool = False) -> Elf:
    """The probes of an ELF file. Raises ReadError, whatever the file is.

    functions: read the symbol tables too, which takes time that grows with the file.
    """
    name = os.fspath(path)
    try:
        # Asked before and after: opening a device may do things, and a FIFO waits for its writer.
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise ReadError(f"{name}: not a regular file: name an ELF file")
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ReadError(f"{name}: not a regular file: name an ELF file")
            return read_elf(file, path=name, functions=functions)
    except FileNotFoundError:
        where = os.path.dirname(name) or "."
        raise ReadError(f"{name}: no such file: see what is there: ls {where}") from None
    except PermissionError:
        raise DeniedError(f"{name}: permission denied: run again with sudo") from None
    except ReadError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ReadError(f"{name!r}: cannot read it: {error}: check with: ls -l") from None


def read_elf(data: bytes | IO[bytes], *, path: str = "<bytes>", functions: bool = False) -> Elf:
    """The probes of an ELF image, given as bytes or as a seekable stream. Raises ReadError."""
    source = _Source(BytesIO(data) if isinstance(data, bytes) else data)
    source.stream.seek(0)
    if source.stream.read(4) != b"\x7fELF":
        raise ReadError(f"{path}: not an ELF file: check with: file {path}")
    try:
        elf, links = _headers(source, path)
        order = "<" if elf.byte_order == "little" else ">"
        elf = _probes(source, elf, order)
        return _functions(source, elf, order, links) if functions else elf
    except DamagedError as error:
        reason = str(error)
    except Exception as error:  # pyelftools raises whatever its parsing trips over
        reason = f"its headers make no sense ({type(error).__name__}: {error})"
    reason = " ".join(reason.split())
    raise ReadError(f"{path}: damaged ELF: {reason}: look at it with: readelf -hSnW {path}")


def _headers(source: _Source, path: str) -> tuple[Elf, tuple[int, ...]]:
    """All but notes and probes, and each section's sh_link."""
    file = ELFFile(source.stream)
    header = file.header
    shoff, shnum, shstrndx = header["e_shoff"], 0, header["e_shstrndx"]
    phnum = header["e_phnum"]
    if shoff:  # gABI, "ELF Header": what does not fit the e_ fields is in section header 0
        first = struct_parse(file.structs.Elf_Shdr, source.stream, shoff)
        shnum = header["e_shnum"] or first["sh_size"]
        shstrndx = first["sh_link"] if shstrndx in (0xFFFF, "SHN_XINDEX") else shstrndx
        phnum = first["sh_info"] if phnum == 0xFFFF else phnum

    def rows(what: str, start: int, count: int, size: int) -> Iterator[dict[str, Any]]:
        construct, most = {
            "program": (file.structs.Elf_Phdr, _MAX_SEGMENTS),
            "section": (file.structs.Elf_Shdr, _MAX_SECTIONS),
        }[what]
        if count > most:
            raise DamagedError(f"it has {count} {what} headers, more than any real one")
        if count and (size < construct.sizeof() or start + count * size > source.size):
            raise DamagedError(f"its {count} {what} headers do not fit in {source.size} bytes")
        for index in range(count):
            yield struct_parse(construct, source.stream, start + index * size)

    segments = tuple(
        Segment(
            str(row["p_type"]), row["p_flags"], row["p_offset"], row["p_vaddr"], row["p_filesz"],
            row["p_memsz"], row["p_align"],
        )
        for row in rows("program", header["e_phoff"], phnum, header["e_phentsize"])
    )  # fmt: skip
    raw = list(rows("section", shoff, shnum, header["e_shentsize"]))
    names = b""
    if isinstance(shstrndx, int) and 0 < shstrndx < shnum:
        table = raw[shstrndx]
        names = source.read(table["sh_offset"], table["sh_size"], "the section name table")
    sections = tuple(
        Section(
            found.printable(names, row["sh_name"], limit=_MAX_SECTION_NAME),
            str(row["sh_type"]), row["sh_flags"], row["sh_addr"], row["sh_offset"],
            row["sh_size"], row["sh_addralign"],
        )
        for row in raw
    )  # fmt: skip
    elf = Elf(
        path=path,
        machine=str(header["e_machine"]).removeprefix("EM_").lower(),
        bits=file.elfclass,
        byte_order="little" if file.little_endian else "big",
        sections=sections,
        segments=segments,
    )
    return elf, tuple(row["sh_link"] for row in raw)


def _note_regions(elf: Elf) -> Iterator[tuple[int, int, int, str]]:
    """Offset, size, alignment and name of what may hold notes: sections first, as tracers do."""
    starts: list[int] = []
    missing = set(_NOTE_SECTIONS)
    for section in elf.sections:
        if section.name in _NOTE_SECTIONS and section.type != "SHT_NOBITS":
            missing.discard(section.name)
            starts.append(section.offset)
            yield section.offset, section.size, section.align, section.name
    starts.sort()
    for segment in elf.segments if missing else ():
        end = segment.offset + segment.file_size
        covered = bisect_left(starts, segment.offset) < bisect_left(starts, end)
        if segment.type == "PT_NOTE" and not covered:
            yield segment.offset, segment.file_size, segment.align, "PT_NOTE"


def _probes(source: _Source, elf: Elf, order: str) -> Elf:
    """`elf` with its build id, probes and their arguments."""
    build_id = None
    probes: list[FoundProbe] = []
    base = elf.section(".stapsdt.base")
    anchor = base.address if base else None
    for offset, size, align, where in _note_regions(elf):
        data = source.read(offset, size, where)
        for owner, kind, desc in found.notes(data, order=order, align=align, where=where):
            if owner == b"GNU" and kind == _NT_GNU_BUILD_ID:
                build_id = build_id or desc
            elif owner == b"stapsdt" and kind == _NT_STAPSDT:
                probe = found.note_probe(desc, elf, order=order, anchor=anchor)
                probes.append(replace(probe, nop=_nop(source, elf.machine, probe.site_offset)))
                if len(probes) > found.MAX_PROBES:
                    raise DamagedError(f"it has more than {found.MAX_PROBES} probes")
    description = elf.section(".usdt")
    args: list[tuple[Arg, ...]] | str | None = None
    if description and description.type != "SHT_NOBITS":
        text = source.read(description.offset, description.size, description.name)
        args = found.describe(text, probes)
    if isinstance(args, list):
        probes = [replace(probe, args=of) for probe, of in zip(probes, args, strict=True)]
    return replace(
        elf,
        build_id=build_id,
        probes=tuple(probes),
        is_stub=args is not None,
        why=args if isinstance(args, str) else None,
    )


def _nop(source: _Source, machine: str, offset: int | None) -> str | None:
    if offset is None or machine not in MACHINES:
        return None
    nops = MACHINES[machine].nops
    source.stream.seek(offset)
    code = source.stream.read(max(map(len, nops.values())))
    longest_first = sorted(nops, key=lambda kind: -len(nops[kind]))
    return next((kind for kind in longest_first if code.startswith(nops[kind])), None)


def _functions(source: _Source, elf: Elf, order: str, links: tuple[int, ...]) -> Elf:
    """`elf` with the name of the sized function symbol around each site."""
    is64 = elf.bits == 64
    # st_name, st_info, st_value, st_size; elf.h orders Elf32_Sym and Elf64_Sym differently
    symbol = Struct(f"{order}IB3xQQ" if is64 else f"{order}IIIB3x")
    sites = sorted({probe.site for probe in elf.probes})
    holders: dict[int, str] = {}
    for kind in ("SHT_DYNSYM", "SHT_SYMTAB"):
        index = next((i for i, s in enumerate(elf.sections) if s.type == kind), None)
        if index is None or not sites or links[index] >= len(elf.sections):
            continue
        table, strings = elf.sections[index], elf.sections[links[index]]
        size = table.size - table.size % symbol.size
        names = source.read_all(strings.offset, strings.size, strings.name)
        for row in symbol.iter_unpack(source.read_all(table.offset, size, table.name)):
            name, info, value, length = row if is64 else (row[0], row[3], row[1], row[2])
            if length and info & 15 in (_STT_FUNC, _STT_GNU_IFUNC):
                first, last = bisect_left(sites, value), bisect_left(sites, value + length)
                if first < last:
                    holders.update(dict.fromkeys(sites[first:last], found.printable(names, name)))
                    del sites[first:last]  # the first symbol wins, and the work stays bounded
    return replace(elf, functions=holders)


@dataclass(frozen=True, slots=True)
class Mapped:
    """One ELF file that a process has mapped to execute.

    path:     as the process sees it, in its own mount namespace
    reach:    a path under which this process can open the very same file
    deleted:  it has no name any more (or never had one, as a memfd)
    bias:     what to add to the file's virtual addresses to get the process's
    values:   the semaphore of each of `elf.probes`; None where there is none or it is unreadable
    """

    path: str
    reach: str
    deleted: bool
    bias: int
    elf: Elf
    values: tuple[int | None, ...]

    def listening(self, index: int) -> bool | None:
        """Does a tracer listen to probe `index`? None if it has no readable semaphore."""
        value = self.values[index]
        return None if value is None else value != 0


def read_pid(pid: int, cache: dict[tuple[str, str], Elf | None] | None = None) -> list[Mapped]:
    """Every ELF file that process `pid` has mapped to execute, once, in address order.

    Files that are no readable ELF are left out. `cache` carries what files say from one process
    to the next. Raises ReadError for a process that is gone or may not be looked at.
    N.B. The process runs on: what is returned was true while it was read.
    """
    cache = {} if cache is None else cache
    proc = f"/proc/{pid}"
    mapped: list[Mapped] = []
    seen = set()
    try:
        with open(f"{proc}/maps", "rb") as maps:
            lines = os.fsdecode(maps.read()).split("\n")[:-1]
        memory = os.open(f"{proc}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        next_ = "even root may not" if os.geteuid() == 0 else "run again as its user, or with sudo"
        raise DeniedError(f"may not look into process {pid}: {next_}") from None
    except (FileNotFoundError, ProcessLookupError):
        raise ReadError(
            f"process {pid} is gone, or a kernel thread: see what runs with: ps -e"
        ) from None
    with open(memory, "rb", buffering=0) as mem:
        for line in lines:
            span, rights, offset, device, inode, *rest = line.split(None, 5)
            key = device, inode
            if "x" not in rights or inode == "0" or not rest or key in seen:
                continue
            seen.add(key)
            path, deleted = rest[0].replace("\\012", "\n"), rest[0].endswith(" (deleted)")
            path = path.removesuffix(" (deleted)") if deleted else path
            reach = _descriptor(pid, rest[0], inode) or _reach(pid, path, span)
            if key not in cache:
                try:
                    cache[key] = read_path(reach)
                except ReadError:
                    cache[key] = None
            elf = cache[key]
            if elf is None:
                continue
            start = int(span.partition("-")[0], 16)
            bias = _bias(elf, start, int(offset, 16))
            mapped.append(
                Mapped(path, reach, deleted, bias, replace(elf, path=path), _values(mem, elf, bias))
            )
    return mapped


def _descriptor(pid: int, path: str, inode: str) -> str | None:
    """The process's own descriptor of a memfd, which its user may open too; None for a file."""
    if not path.startswith("/memfd:"):
        return None
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            reach = f"/proc/{pid}/fd/{name}"
            with suppress(OSError):
                if os.readlink(reach) == path and os.stat(reach).st_ino == int(inode):
                    return reach
    return None


def _reach(pid: int, path: str, span: str) -> str:
    """The plainest path that leads from here to the file mapped at `span`."""
    mapped = f"/proc/{pid}/map_files/{span}"  # memfds and deleted files have no other
    inside = f"/proc/{pid}/root{path}"
    candidates = [path, inside]
    for anchor in (mapped, inside):  # to follow the first one takes CAP_CHECKPOINT_RESTORE
        with suppress(OSError, ValueError):
            file = os.stat(anchor)
            for candidate in candidates:
                with suppress(OSError, ValueError):
                    if os.path.samestat(os.stat(candidate), file):
                        return candidate
            return anchor
    return mapped


def _bias(elf: Elf, start: int, offset: int) -> int:
    """The load bias of a file whose executable segment at `offset` is mapped at `start`."""
    for segment in elf.segments:
        page = segment.offset & -0x1000  # maps shows whole pages
        if (
            segment.type == "PT_LOAD"
            and segment.flags & _PF_X
            and page <= offset < segment.offset + segment.file_size
        ):
            return start - (segment.address - segment.offset + offset)
    return start - offset


def _values(mem: IO[bytes], elf: Elf, bias: int) -> tuple[int | None, ...]:
    values: list[int | None] = []
    for probe in elf.probes:
        data = b""
        if probe.semaphore is not None:
            with suppress(OSError, OverflowError):
                data = os.pread(mem.fileno(), 2, bias + probe.semaphore)
        order: Any = elf.byte_order
        values.append(int.from_bytes(data, order) if len(data) == 2 else None)
    return tuple(values)
