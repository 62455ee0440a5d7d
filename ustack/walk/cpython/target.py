# SPDX-License-Identifier: MIT
"""A process that runs CPython: where its `_PyRuntime` is, and the layout of its structures.

Reads /proc; must not know what is done with the addresses.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ustack.elf import SHT_DYNSYM, DamagedError, Elf, FileSource, read_elf, section_bytes
from ustack.walk.cpython.layout import DEBUG_OFFSETS, Layout, Version, layout_of
from ustack.walk.cpython.script import row
from ustack.walk.errors import WalkError

__all__ = ["Target", "read_memory"]

_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym of elf.h
_WANTED = {b"_PyRuntime", b"Py_Version", b"PyIter_Send"}


@dataclass(frozen=True, slots=True)
class Target:
    """pid: as the tracer sees it; runtime: the address of `_PyRuntime` in it; path: of the file
    that has the interpreter."""

    pid: int
    version: Version
    runtime: int
    path: str
    layout: Layout

    @classmethod
    def of(cls, pid: int) -> Target:
        """Raises WalkError where there is no CPython that can be walked."""
        try:
            for start, path, area in _candidates(pid):
                symbols = _symbols(f"/proc/{pid}/map_files/{area}", start)
                if "_PyRuntime" in symbols:
                    return cls._at(pid, path, symbols)
        except (FileNotFoundError, ProcessLookupError):
            raise WalkError(f"process {pid} is gone: its stacks stay native") from None
        except PermissionError:
            raise WalkError(f"process {pid} cannot be read: run again with sudo") from None
        except (OSError, DamagedError) as error:
            raise WalkError(f"process {pid} cannot be read: {error}") from None
        raise WalkError(f"process {pid} has no CPython: no file of its has _PyRuntime in .dynsym")

    @classmethod
    def _at(cls, pid: int, path: str, symbols: dict[str, int]) -> Target:
        runtime = symbols["_PyRuntime"]
        version, table = (3, 10), b""
        if "Py_Version" in symbols:  # PY_VERSION_HEX, exported from 3.11 on
            data = read_memory(pid, symbols["Py_Version"], 4)
            version = data[3], data[2]
            table = read_memory(pid, runtime, DEBUG_OFFSETS)
        elif "PyIter_Send" not in symbols:  # exported from 3.10 on
            raise WalkError(f"{path}: CPython before 3.10 is not supported: its stacks stay native")
        return cls(pid, version, runtime, path, layout_of(version, table))

    def row(self) -> tuple[int, ...]:
        """Its numbers for the script."""
        return row(self.runtime, self.layout)


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Raises OSError; may be short at the end of a mapping."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, address)
    finally:
        os.close(fd)


def _candidates(pid: int) -> Iterator[tuple[int, str, str]]:
    """Start, path and range of mapped files that may have the interpreter."""
    exe = os.readlink(f"/proc/{pid}/exe")
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) < 6 or int(fields[2], 16) != 0:
                continue
            path = fields[5]
            if path == exe or "python" in path.rpartition("/")[2]:
                start, end = (int(bound, 16) for bound in fields[0].split("-"))
                yield start, path, f"{start:x}-{end:x}"  # maps pads with zeros, map_files not


def _symbols(path: str, start: int) -> dict[str, int]:
    """Name -> address in the process, of those wanted; the file's beginning lies at `start`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        source = FileSource(fd)
        elf = read_elf(source)
        if (elf.bits, elf.order) != (64, "<"):
            return {}
        return {name: value + _bias(elf, start) for name, value in _dynamic(source, elf)}
    except DamagedError:  # a data file of that name
        return {}
    finally:
        os.close(fd)


def _bias(elf: Elf, start: int) -> int:
    """What the loader added: 0 for a program that is not position-independent."""
    first = min(elf.segments, key=lambda segment: segment.offset)
    return start - (first.address - first.offset)


def _dynamic(source: FileSource, elf: Elf) -> Iterator[tuple[str, int]]:
    for section in elf.sections:
        if section.type != SHT_DYNSYM or section.link >= len(elf.sections):
            continue
        names = section_bytes(source, elf.sections[section.link])
        data = section_bytes(source, section)
        rest = len(data) % _SYMBOL.size
        for name, _, _, index, value, _ in _SYMBOL.iter_unpack(data[: len(data) - rest]):
            text = names[name : name + 12].partition(b"\0")[0]
            if index and text in _WANTED:
                yield text.decode("ascii"), value
