# SPDX-License-Identifier: MIT
"""What can happen to an address space: a Mapping appears, a process forks, execs, exits.

Owns these nouns and the parser of /proc/PID/maps; takes bytes. Must not know what they add up to.
"""

from __future__ import annotations

import os
import re
from dataclasses import KW_ONLY, dataclass

from ustack.frame import AbsAddr, FileOffset

__all__ = [
    "Change", "Executed", "Exited", "Forked", "Lost", "Mapped", "Mapping", "Renamed", "file_path",
    "parse_maps",
]  # fmt: skip

#: Times are nanoseconds of CLOCK_BOOTTIME: what bpftrace's `nsecs` counts since Linux 5.8.
Time = int

_LINE = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-])([w-])([x-])[sp] ([0-9a-f]{1,16})"
    rb" ([0-9a-f]{1,8}):([0-9a-f]{1,8}) ([0-9]{1,20})(?: *| +(\S.*))$",
    re.MULTILINE,
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One executable range of an address space.

    path:      as the kernel writes it; "" for anonymous memory, [vdso] and the like for its own
    offset:    of the file, at `start`
    device:    (major, minor) and inode as the kernel counts them, which on overlay filesystems is
               not what stat(2) says; 0 where a build id was recorded instead
    build_id:  hex, "" where nobody recorded it
    """

    start: AbsAddr
    end: AbsAddr
    offset: FileOffset
    path: str
    _: KW_ONLY
    device: tuple[int, int] = (0, 0)
    inode: int = 0
    build_id: str = ""


@dataclass(frozen=True, slots=True)
class Mapped:
    pid: int
    mapping: Mapping
    time: Time


@dataclass(frozen=True, slots=True)
class Renamed:
    """A process has another comm."""

    pid: int
    comm: str
    time: Time


@dataclass(frozen=True, slots=True)
class Executed:
    """A process starts another program: it has no mapping left."""

    pid: int
    comm: str
    time: Time


@dataclass(frozen=True, slots=True)
class Forked:
    """A process (no thread) begins as a copy of its parent."""

    pid: int
    parent: int
    time: Time


@dataclass(frozen=True, slots=True)
class Exited:
    """The main thread of a process ended."""

    pid: int
    time: Time


@dataclass(frozen=True, slots=True)
class Lost:
    """The kernel had no room for that many records."""

    count: int
    time: Time


Change = Mapped | Renamed | Executed | Forked | Exited | Lost


def parse_maps(text: bytes) -> list[Mapping]:
    """The executable mappings in the text of /proc/PID/maps (proc(5)), by address.

    A line that is none, such as the half of one, is left out.
    """
    found = []
    for match in _LINE.finditer(text):
        start, end, _, _, execute, offset, major, minor, inode, path = match.groups()
        if execute != b"x":
            continue
        found.append(
            Mapping(
                AbsAddr(int(start, 16)),
                AbsAddr(int(end, 16)),
                FileOffset(int(offset, 16)),
                os.fsdecode(_ESCAPE.sub(_unescape, path or b"")),
                device=(int(major, 16), int(minor, 16)),
                inode=int(inode),
            )
        )
    return [mapping for mapping in found if mapping.start < mapping.end]


def _unescape(match: re.Match[bytes]) -> bytes:
    """The kernel escapes newlines (seq_file_path), and nothing else: a path may have any \\ooo."""
    return b"\n" if match[1] == b"012" else match[0]


def file_path(mapping: Mapping) -> str | None:
    """Path of the file that was mapped, as the process saw it; None for memory of no file."""
    path = mapping.path
    if not path.startswith("/") or path.startswith(("//anon", "/memfd:", "/dev/zero", "/SYSV")):
        return None
    return path.removesuffix(_DELETED)
