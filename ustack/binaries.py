# SPDX-License-Identifier: MIT
"""Paths -> ELF files with their function symbols, each read once, wherever their symbols are.

Owns the search for split-off debug symbols and the cache. Must not know processes: which paths
may hold what a process mapped is `objects`' to say.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ustack.elf import (
    MAGIC,
    DamagedError,
    Elf,
    FileSource,
    Source,
    debug_link,
    read_elf,
    to_virtual,
)
from ustack.elfsym import FunctionSymbol, Symbols, function_symbols, is_complete
from ustack.frame import FileOffset, Reason, VirtOffset

__all__ = ["Binaries", "Binary", "Unread", "open_regular"]

# gdb's manual, "Separate Debug Files"
_DEBUG_DIRECTORY = "/usr/lib/debug"

# Files kept; exec churn of fresh builds would otherwise grow without end.
_MAX_BINARIES = 512


@dataclass(frozen=True, slots=True)
class Binary:
    """An ELF file. problem: why symbols that it has or names could not be read, or ""."""

    elf: Elf
    symbols: Symbols
    problem: str = ""

    def find(self, offset: FileOffset) -> tuple[FunctionSymbol | None, VirtOffset | None]:
        """The function at an offset of the file, and that offset as the file counts addresses."""
        address = to_virtual(self.elf, offset)
        return (None if address is None else self.symbols.find(address)), address


@dataclass(frozen=True, slots=True)
class Unread:
    """No ELF file, and why; `problem` is a sentence, or ""."""

    why: Reason
    problem: str = ""


class Binaries:
    """What was read, by identity of the file and by build id."""

    def __init__(self) -> None:
        self._by_file: OrderedDict[tuple[int, ...], Binary | Unread] = OrderedDict()
        self._by_build_id: OrderedDict[str, Binary] = OrderedDict()

    def known(self, build_id: str) -> Binary | None:
        """A file that was read before, found again by its build id."""
        return self._by_build_id.get(build_id)

    def read(self, fd: int, path: str, *, root: str = "") -> Binary | Unread:
        """The ELF file behind the descriptor, which stays the caller's.

        path, root: where its split-off symbols are looked for: below `root`, then below "/".
        """
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        found = self._by_file.get(key)
        if found is None:
            found = self.parse(FileSource(fd), path, root=root)
            self._by_file[key] = found
            if len(self._by_file) > _MAX_BINARIES:
                self._by_file.popitem(last=False)
        else:
            self._by_file.move_to_end(key)
        return found

    def parse(self, source: Source, path: str, *, root: str = "") -> Binary | Unread:
        """The same for any source of bytes, not kept by file."""
        try:
            if source.read(0, 4, "its beginning") != MAGIC:  # some runtimes map data to run it
                return Unread(Reason.NO_SYMBOLS, f"{path}: it is not an ELF file")
            elf = read_elf(source)
        except (DamagedError, OSError) as error:
            return Unread(Reason.DAMAGED, f"{path}: {error}")
        # A stripped copy has the build id of the full one, and other headers.
        found = self._by_build_id.get(elf.build_id)
        if found is None or found.elf != elf:
            richer, found = found, _with_symbols(source, elf, path, root)
            if elf.build_id and (richer is None or len(richer.symbols) <= len(found.symbols)):
                self._by_build_id[elf.build_id] = found
                if len(self._by_build_id) > _MAX_BINARIES:
                    self._by_build_id.popitem(last=False)
        return found


def _with_symbols(source: Source, elf: Elf, path: str, root: str) -> Binary:
    problem = ""
    with _debug_file(source, elf, path, root) as extra:
        for tried in dict.fromkeys((extra, None)):
            try:
                return Binary(elf, function_symbols(source, elf, extra=tried), problem)
            except (DamagedError, OSError) as error:
                problem = f"{path}: {'its debug file: ' if tried else ''}{error}"
    return Binary(elf, Symbols([], b"", []), problem)


@contextmanager
def _debug_file(
    source: Source, elf: Elf, path: str, root: str
) -> Iterator[tuple[Source, Elf] | None]:
    """The file that the symbols were split off to, open; None where the file has its own."""
    if is_complete(elf):
        yield None
        return
    link = debug_link(source, elf)
    for candidate, crc in _candidates(elf, link, path, root):
        fd = open_regular(candidate)
        if fd is None:
            continue
        try:
            other = _matching(fd, elf, crc)
            if other is not None:
                yield other
                return
        finally:
            os.close(fd)
    yield None


def _candidates(
    elf: Elf, link: tuple[str, int] | None, path: str, root: str
) -> Iterator[tuple[str, int | None]]:
    """Paths in gdb's order, each with the CRC it must have if it was found by name."""
    for top in dict.fromkeys((root, "")):
        if len(elf.build_id) > 2:
            head, tail = elf.build_id[:2], elf.build_id[2:]
            yield f"{top}{_DEBUG_DIRECTORY}/.build-id/{head}/{tail}.debug", None
    if link is not None:
        name, crc = link
        directory = os.path.dirname(path)
        for top in dict.fromkeys((root, "")):
            yield f"{top}{directory}/{name}", crc
            yield f"{top}{directory}/.debug/{name}", crc
            yield f"{top}{_DEBUG_DIRECTORY}{directory}/{name}", crc


def _matching(fd: int, elf: Elf, crc: int | None) -> tuple[Source, Elf] | None:
    source = FileSource(fd)
    try:
        other = read_elf(source)
    except (DamagedError, OSError):
        return None
    if other.build_id != elf.build_id or (other.bits, other.order) != (elf.bits, elf.order):
        return None
    if crc is not None and _crc32(fd) != crc:
        return None
    return source, other


def _crc32(fd: int) -> int:
    crc, at = 0, 0
    while block := os.pread(fd, 1 << 20, at):
        crc = zlib.crc32(block, crc)
        at += len(block)
    return crc


def open_regular(path: str) -> int | None:
    """A descriptor of the file; None where there is none, or where it is not a regular file."""
    try:
        # Asked before and after: opening a device may do things, and a FIFO waits for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None
