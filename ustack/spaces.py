# SPDX-License-Identifier: MIT
"""All address spaces, and the Frame of an address in one of them at a time.

Joins what /proc shows with what the kernel recorded, and with files and notes. Must not know how
records are read, nor what notes look like inside.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from ustack.binaries import Binaries, Binary, Unread
from ustack.demangle import demangle
from ustack.frame import AbsAddr, FileOffset, Frame, Reason
from ustack.maps import (
    Change,
    Executed,
    Exited,
    Forked,
    Mapped,
    Renamed,
    Time,
    file_path,
    parse_maps,
)
from ustack.objects import Objects
from ustack.space import Row, Space

__all__ = ["Notes", "Spaces", "now"]

# Processes kept after their end; an exec churn of 1000 a second keeps its last four seconds.
_MAX_ENDED = 4096

# Programs kept of one process that goes on and on with exec, and neighbours asked for a file.
_MAX_PROGRAMS, _MAX_NEIGHBOURS = 64, 4

# Reads of one process's maps are this far apart: stacks without frame pointers are full of
# addresses that no look will explain.
_PATIENCE_NS = 100_000_000

# proc(5), starttime: in ticks, cut; the record of the fork is exact.
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

# arch/x86/entry/vsyscall/vsyscall_emu_64.S: the page is the same in every process.
_VSYSCALL, _PAGE = 0xFFFFFFFFFF600000, 4096
_VSYSCALLS = {0x000: "gettimeofday", 0x400: "time", 0x800: "getcpu"}


class Notes(Protocol):
    """What a JIT said about a process's addresses; None where it said nothing."""

    def lookup(self, pid: int, address: AbsAddr, time: Time | None) -> Frame | None: ...


def now() -> Time:
    """The clock of every time here: CLOCK_BOOTTIME, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Spaces:
    """Apply changes, scan processes, resolve addresses; pids are this pid namespace's."""

    def __init__(
        self, *, notes: Notes | None = None, binaries: Binaries | None = None, proc: str = "/proc"
    ) -> None:
        self._notes = notes
        self._binaries = Binaries() if binaries is None else binaries
        self._proc = proc
        self._objects = Objects(self._binaries, proc=proc)
        self._spaces: dict[int, deque[Space]] = {}
        self._ended: OrderedDict[int, None] = OrderedDict()
        self._mounts: dict[str, deque[int]] = {}
        self._denied: set[int] = set()
        #: Sentences on files whose symbols could not be read, in the order met.
        self.problems: dict[str, None] = {}

    # What happened

    def apply(self, changes: Iterable[Change]) -> None:
        """Records of the kernel, by time."""
        for change in changes:
            match change:
                case Mapped(pid, mapping, time):
                    self._at_or_new(pid, time).add(mapping, time)
                case Renamed(pid, comm, time):
                    self._at_or_new(pid, time).comm = comm
                case Forked(pid, parent, time):
                    self._fork(pid, parent, time)
                case Executed(pid, comm, time):
                    self._execute(pid, comm, time)
                case Exited(pid, time):
                    self._exit(pid, time)

    def _at_or_new(self, pid: int, time: Time) -> Space:
        space = self._at(pid, time)
        if space is None:
            space = Space(pid, born=0, since=0, known=False)
            self._append(space)
        return space

    def _append(self, space: Space) -> None:
        self._spaces.setdefault(space.pid, deque(maxlen=_MAX_PROGRAMS)).append(space)
        self._ended.pop(space.pid, None)

    def _fork(self, pid: int, parent: int, time: Time) -> None:
        last = self._last(pid)
        if last is not None and last.scanned > time:  # /proc showed this very process
            last.born, last.since = time, max(last.since, time)
            return
        origin = self._at(parent, time)
        if origin is None:
            self._append(Space(pid, born=time, since=time, known=False))
        else:
            self._append(origin.fork(pid, time))

    def _execute(self, pid: int, comm: str, time: Time) -> None:
        last = self._last(pid)
        if last is None:
            self._append(Space(pid, born=0, since=time, known=True, comm=comm))
        elif last.scanned > time:
            before = last.split(time)
            self._spaces[pid].insert(len(self._spaces[pid]) - 1, before)
            last.comm = comm
        else:
            space = Space(pid, born=last.born, since=time, known=True, comm=comm)
            space.mount = last.mount
            self._append(space)

    def _exit(self, pid: int, time: Time) -> None:
        space = self._at(pid, time)
        if space is None:
            return
        space.exited = time
        self._ended[pid] = None
        if len(self._ended) > _MAX_ENDED:
            oldest, _ = self._ended.popitem(last=False)
            del self._spaces[oldest]

    # What is there

    def scan_all(self) -> int:
        """Read every process's maps once; how many there were."""
        pids = [int(name) for name in os.listdir(self._proc) if name.isdigit()]
        return sum(self.scan(pid) is None for pid in pids)

    def scan(self, pid: int) -> Reason | None:
        """Read the process's maps now. A reason, where that is impossible."""
        process = f"{self._proc}/{pid}"
        try:
            born = self._born(pid)
            with open(f"{process}/maps", "rb") as file:
                text = file.read()
            with open(f"{process}/comm", "rb") as file:
                comm = file.read().rstrip(b"\n").decode("utf-8", "replace")
            if self._born(pid) != born:
                return Reason.EXITED
        except PermissionError:
            self._denied.add(pid)
            return Reason.UNREADABLE
        except (OSError, ValueError, IndexError):
            return Reason.EXITED
        last = self._last(pid)
        if not text and last is not None:  # a zombie: what it had is gone, not what we know
            return Reason.EXITED
        if last is None or (last.born and not -_TICK_NS < last.born - born < 2 * _TICK_NS):
            last = Space(pid, born=born, since=born, known=False)
            self._append(last)
        last.born = last.born or born
        last.comm = comm
        last.replace(parse_maps(text), now())
        with suppress(OSError):
            last.mount = os.readlink(f"{process}/ns/mnt")
            peers = self._mounts.setdefault(last.mount, deque(maxlen=_MAX_NEIGHBOURS))
            if pid not in peers:
                peers.append(pid)
        return None

    def _born(self, pid: int) -> Time:
        with open(f"{self._proc}/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19]) * _TICK_NS

    # Who was where

    def _last(self, pid: int) -> Space | None:
        programs = self._spaces.get(pid)
        return programs[-1] if programs else None

    def _at(self, pid: int, time: Time | None) -> Space | None:
        for space in reversed(self._spaces.get(pid, ())):
            if time is None or space.since <= time:
                return space
        return None

    def comm(self, pid: int, time: Time | None = None) -> str:
        """The name of the program that ran then; "" where nobody knows."""
        space = self._at(pid, time)
        return "" if space is None else space.comm

    def resolve(self, pid: int, address: AbsAddr, time: Time | None = None) -> Frame:
        """The frame of a user-space address at a time; None: now. Never raises."""
        space = self._at(pid, time)
        if space is None or self._worth_a_look(space, address, time):
            self.scan(pid)
            space = self._at(pid, time)
        row = None if space is None else space.find(address, time)
        if space is None or row is None:
            return self._unmapped(space, pid, address, time)
        mapping = row.mapping
        # By identity: a mapping's hash takes longer than the rest of a look-up.
        known = space.loaded.get(id(mapping))
        if known is None:
            known = space.loaded[id(mapping)] = (mapping, self._read(space, row))
        found = known[1]
        module = None if mapping.path in ("", "//anon") else mapping.path
        offset = None
        why = Reason.NO_SYMBOLS
        if isinstance(found, Binary):
            where = FileOffset(address - mapping.start + mapping.offset)
            symbol, offset = found.find(where)
            if symbol is not None and offset is not None:
                return Frame(
                    "native", demangle(symbol.name), module=file_path(mapping) or module,
                    offset=offset - symbol.start, address=address,
                )  # fmt: skip
            if found.problem:
                why = Reason.DAMAGED
        else:
            why = found.why
        note = self._noted(pid, address, time)
        return note or Frame("native", None, module=module, offset=offset, address=address, why=why)

    def _worth_a_look(self, space: Space, address: AbsAddr, time: Time | None) -> bool:
        if space.exited is not None or space is not self._last(space.pid):
            return False
        if space.scanned and now() - space.scanned < _PATIENCE_NS:
            return False
        if not space.known:
            return True
        return space.find(address, time) is None and (time is None or time > space.scanned)

    def _unmapped(
        self, space: Space | None, pid: int, address: AbsAddr, time: Time | None
    ) -> Frame:
        note = self._noted(pid, address, time)
        if note is not None:
            return note
        if _VSYSCALL <= address < _VSYSCALL + _PAGE:
            name = _VSYSCALLS.get(address - _VSYSCALL & ~0x3FF)
            if name is not None:
                offset = address & 0x3FF
                return Frame("native", name, module="[vsyscall]", offset=offset, address=address)
        why = Reason.UNMAPPED
        if space is None or not space.known:
            why = Reason.UNREADABLE if pid in self._denied else Reason.EXITED
        return Frame("native", None, address=address, why=why)

    def _noted(self, pid: int, address: AbsAddr, time: Time | None) -> Frame | None:
        return None if self._notes is None else self._notes.lookup(pid, address, time)

    def _read(self, space: Space, row: Row) -> Binary | Unread:
        pid: int | None = None
        if space.exited is None and space is self._last(space.pid):
            with suppress(OSError, ValueError, IndexError):
                if -_TICK_NS < space.born - self._born(space.pid) < 2 * _TICK_NS:
                    pid = space.pid
        found = self._objects.read(
            row.mapping, pid, neighbours=self._mounts.get(space.mount, ()), since=row.since
        )
        if found.problem:
            self.problems[found.problem] = None
        return found
