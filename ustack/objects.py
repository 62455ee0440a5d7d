# SPDX-License-Identifier: MIT
"""Which file of this machine is the one that a process mapped, and is it still that file?

Owns the ways to it: map_files, the process's root, its neighbours' roots, the host. Must not know
times or frames.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

from ustack.binaries import Binaries, Binary, Unread, open_regular
from ustack.elf import BytesSource
from ustack.frame import Reason
from ustack.maps import Mapping, file_path, parse_maps

__all__ = ["Objects"]

# Two pages today; a hostile maps file does not make us read more.
_MAX_VDSO = 1 << 20


class Objects:
    """Mappings -> binaries, on this machine as it is now."""

    def __init__(self, binaries: Binaries, *, proc: str = "/proc") -> None:
        self._binaries = binaries
        self._proc = proc
        self._vdso: Binary | Unread | None = None

    def read(
        self, mapping: Mapping, pid: int | None, *, neighbours: Iterable[int] = (), since: int = 0
    ) -> Binary | Unread:
        """What the mapping shows a part of.

        pid:         None where that process runs no more, or runs another program
        neighbours:  processes of the same mount namespace
        since:       when the file was mapped, in nanoseconds of CLOCK_BOOTTIME; 0: not known
        """
        if mapping.path == "[vdso]":
            return self._read_vdso(mapping)
        path = file_path(mapping)
        if path is None:
            return Unread(Reason.NO_NOTE)
        known = self._binaries.known(mapping.build_id) if mapping.build_id else None
        if known is not None:
            return known
        seen = denied = False
        for candidate, root, exact in self._candidates(mapping, path, pid, neighbours):
            fd = open_regular(candidate)
            if fd is None:
                denied = denied or _denied(candidate)
                continue
            try:
                seen = True
                same = exact or _is(fd, mapping, since)
                if not same and not mapping.build_id:
                    continue
                found = self._binaries.read(fd, path, root=root)
                if same or (isinstance(found, Binary) and _built(found, mapping)):
                    return found
            finally:
                os.close(fd)
        if seen:
            return Unread(
                Reason.STALE, f"{path}: is not the file that was mapped: restart the program"
            )
        return Unread(Reason.UNREADABLE if denied else Reason.FILE_GONE)

    def _candidates(
        self, mapping: Mapping, path: str, pid: int | None, neighbours: Iterable[int]
    ) -> Iterator[tuple[str, str, bool]]:
        """Path, the root that it is below, and whether the kernel vouches for it."""
        if pid is not None:
            process = f"{self._proc}/{pid}"
            part = f"{mapping.start:x}-{mapping.end:x}"
            yield f"{process}/map_files/{part}", f"{process}/root", not mapping.build_id
            yield f"{process}/root{path}", f"{process}/root", False
            yield f"{process}/exe", f"{process}/root", False
        for other in neighbours:
            if other != pid:
                yield f"{self._proc}/{other}/root{path}", f"{self._proc}/{other}/root", False
        yield path, "", False

    def _read_vdso(self, mapping: Mapping) -> Binary | Unread:
        """From our own memory: the kernel gives all processes of a machine type the same one."""
        if self._vdso is None:
            self._vdso = self._own_vdso(mapping.end - mapping.start)
        return self._vdso

    def _own_vdso(self, size: int) -> Binary | Unread:
        try:
            with open("/proc/self/maps", "rb") as maps, open("/proc/self/mem", "rb", 0) as memory:
                for own in parse_maps(maps.read()):
                    if own.path == "[vdso]" and own.end - own.start == size <= _MAX_VDSO:
                        memory.seek(own.start)
                        return self._binaries.parse(BytesSource(memory.read(size)), "[vdso]")
        except OSError:
            pass
        return Unread(Reason.UNREADABLE, "[vdso]: not this process's: another machine type")


def _is(fd: int, mapping: Mapping, since: int) -> bool:
    """By inode, if nobody wrote to the file (or to its successor on that inode) since."""
    if not mapping.inode:
        return False
    status = os.fstat(fd)
    if status.st_ino != mapping.inode:
        return False
    booted = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return not since or status.st_mtime_ns <= booted + since


def _built(found: Binary, mapping: Mapping) -> bool:
    return bool(mapping.build_id) and found.elf.build_id == mapping.build_id


def _denied(path: str) -> bool:
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return not os.access(path, os.R_OK)
