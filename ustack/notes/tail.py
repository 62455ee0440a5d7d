# SPDX-License-Identifier: MIT
"""The notes of one process while it writes them, or of one file: from files into a table.

Opens what `find` finds and reads what was added since; the parsers and the table do the rest.
Nothing here raises for what a file or process does: what is missing is a reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ustack.notes.find import Place, Process, RefusedError, find, open_place, process
from ustack.notes.jitdump import JitDump
from ustack.notes.note import End, Note
from ustack.notes.perfmap import PerfMap
from ustack.notes.table import Table

__all__ = ["MAX_ENTRIES", "Tail", "read_file"]

#: Notes and ends of one process, about 300 bytes each; what is written beyond is not read.
MAX_ENTRIES = 4_000_000

#: Bytes read at once. Larger ones are slower: the parsers' temporary objects leave the cache.
_CHUNK = 1 << 16
#: Bytes of one file that one poll reads at most; it takes less than a second.
_POLL = 1 << 26
#: How many of the bytes last read are looked at again, to notice a file that was rewritten.
_MEMORY = 64
#: The clock of file times lags behind by up to a timer tick, 10 ms at most.
_COARSE = 10_000_000

_GONE = "process {pid} is gone, and who wrote its perf map cannot be told any more"
_NOTHING = (
    "process {pid} has no perf map and no jitdump: start it with 'python -X perf' or "
    "'node --perf-basic-prof', or ask a JVM with 'jcmd {pid} Compiler.perfmap'"
)


class Parser(Protocol):
    """What PerfMap and JitDump have in common."""

    def feed(self, data: bytes, when: int, *, since: int = 0) -> Sequence[Note | End]: ...
    def finish(self, when: int, *, since: int = 0) -> Sequence[Note | End]: ...
    def problems(self) -> list[str]: ...


def read_file(path: str | Path) -> tuple[Table, list[str]]:
    """The notes of a perf map or jitdump that is complete, and what is wrong with it.

    Raises OSError. The notes of a perf map may have been true at any time.
    """
    table = Table()
    with open(path, "rb") as file:
        when = _monotonic(os.fstat(file.fileno()).st_mtime_ns)
        data = file.read(_CHUNK)
        dump = data[:4] in (b"JiTD", b"DTiJ")
        parser: Parser = JitDump(str(path)) if dump else PerfMap(str(path))
        while data and len(table) < MAX_ENTRIES:
            table.add(parser.feed(data, when))
            data = file.read(_CHUNK)
    table.add(parser.finish(when))
    return table, parser.problems() + ([_too_many(str(path))] if data else [])


class Tail:
    """The notes of a process, followed by calling `poll` from time to time.

    N.B. a perf map has no times. Its notes are known to be written between two polls, and not
    later than the file's time of change: poll often where code is replaced often.

    table: what `poll` fills
    gone:  the process has ended, and everything that it wrote has been read
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.table = Table()
        self.gone = False
        self._process: Process | None = None
        self._files: dict[bool, _File] = {}  # the perf map, the jitdump
        self._refused: dict[bool, str] = {}
        self._born = 0
        self._next_dumps = 0

    def poll(self) -> int:
        """Read what is new; how many notes and ends that was."""
        if self.gone:
            return 0
        before = len(self.table)
        now = time.monotonic_ns()
        try:
            one = process(self.pid)
        except (ProcessLookupError, PermissionError):
            self._finish(now)
            return len(self.table) - before
        if self._process is None or one.ticks != self._process.ticks:
            self._begin(one, now)
        self._look(one, now)
        for file in self._files.values():
            file.poll(self.table, now)
        return len(self.table) - before

    def reasons(self) -> list[str]:
        """Why there are no notes, or not all, a sentence each; empty where all is well."""
        found = [reason for file in self._files.values() for reason in file.reasons()]
        found += self._refused.values()
        if not found and not self._files:
            why = _GONE if self.gone else _NOTHING
            found.append(why.format(pid=self.pid))
        return found

    def close(self) -> None:
        """Close the files; the table stays."""
        for file in self._files.values():
            file.close()

    def _begin(self, one: Process, now: int) -> None:
        """Follow this process; if another had the pid until now, its notes end."""
        if self._process is not None:
            self.table.add([End(None, one.started)])
        self.close()
        self._files.clear()
        self._process = one
        self._born = self._next_dumps = now

    def _finish(self, now: int) -> None:
        for file in self._files.values():
            file.poll(self.table, now, last=True)
        self.gone = True
        self.close()

    def _look(self, one: Process, now: int) -> None:
        """Open files that are there by now.

        /proc/PID/maps may be long, so that it is read ever less often. Nothing is lost by a dump
        that is found late: its records have times.
        """
        dumps = True not in self._files and now >= self._next_dumps
        if dumps:
            self._next_dumps = now + (now - self._born) // 4
        if False in self._files and not dumps:
            return
        for place in find(one, dumps=dumps):
            if place.dump in self._files:
                continue
            try:
                file = _File(place, one, open_place(place, one))
            except FileNotFoundError:
                continue
            except RefusedError as error:
                self._refused.setdefault(place.dump, str(error))
                continue
            if file.stale and place.dump:
                self._refused[place.dump] = file.stale
                file.close()
                continue
            self._refused.pop(place.dump, None)
            self._files[place.dump] = file


class _File:
    """One file that may grow, be rewritten or be replaced.

    stale: '', or why what is in it up to now is left out
    """

    def __init__(self, place: Place, one: Process, descriptor: int) -> None:
        self._place = place
        self._process = one
        self._descriptor = descriptor
        self._new()
        self._since = one.started
        self._full = False
        self._failed = ""
        info = os.fstat(descriptor)
        self.stale = ""
        if not place.own and _monotonic(info.st_mtime_ns) + _COARSE < one.started:
            self.stale = (
                f"{place.shown} is older than process {one.pid}, so it is not about it: "
                "delete the file"
            )
            self._offset = info.st_size
            self._changed = info.st_mtime_ns

    def poll(self, table: Table, now: int, *, last: bool = False) -> None:
        """Read what was added; `last`: nothing more will be."""
        try:
            info = os.fstat(self._descriptor)
            if not self._same(info):
                self._restart(table, now)
            self._read(table, now, info, whole=last)
            if not last and not self._behind(info) and self._replace():
                self._restart(table, now)
                info = os.fstat(self._descriptor)
                self._read(table, now, info)
            if not self._behind(info):
                self._since = now
        except OSError as error:
            self._failed = f"{self._place.shown} cannot be read: {error.strerror}"
        if last:
            self._take(table, self._parser.finish(now, since=self._since))

    def reasons(self) -> list[str]:
        found = self._parser.problems()
        if self.stale:
            found.append(self.stale)
        if self._failed:
            found.append(self._failed)
        if self._full:
            found.append(_too_many(self._place.shown))
        return found

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _new(self) -> None:
        shown = self._place.shown
        self._parser: Parser = JitDump(shown) if self._place.dump else PerfMap(shown)
        self._offset = 0
        self._changed = 0
        self._memory = b""
        self._notes: list[Note] = []

    def _restart(self, table: Table, now: int) -> None:
        """The file begins anew: what it said before is over."""
        table.add([End(note, now) for note in self._notes])
        self._new()
        self.stale = ""

    def _same(self, info: os.stat_result) -> bool:
        """Whether what was read is still there: a file that changes, but does not grow, is new."""
        if info.st_size == self._offset:
            return info.st_mtime_ns == self._changed
        at = self._offset - len(self._memory)
        return os.pread(self._descriptor, len(self._memory), at) == self._memory

    def _replace(self) -> bool:
        """Open the file that has taken this one's place, if one has."""
        if self._place.own:
            return False
        try:
            descriptor = open_place(self._place, self._process)
        except (OSError, RefusedError):
            return False
        if os.path.sameopenfile(descriptor, self._descriptor):
            os.close(descriptor)
            return False
        os.close(self._descriptor)
        self._descriptor = descriptor
        return True

    def _read(self, table: Table, now: int, info: os.stat_result, *, whole: bool = False) -> None:
        """Read up to the size in `info`: what is there was written by its time of change."""
        when = max(self._since, min(now, _monotonic(info.st_mtime_ns)))
        end = info.st_size if whole else min(info.st_size, self._offset + _POLL)
        while self._offset < end and not self._full:
            size = min(_CHUNK, end - self._offset)
            data = os.pread(self._descriptor, size, self._offset)
            if not data:
                break
            self._offset += len(data)
            self._memory = (self._memory + data)[-_MEMORY:]
            self._take(table, self._parser.feed(data, when, since=self._since))
            self._full = len(table) >= MAX_ENTRIES
        self._changed = info.st_mtime_ns

    def _behind(self, info: os.stat_result) -> bool:
        """Whether the next poll has something to read already."""
        return self._offset < info.st_size and not self._full

    def _take(self, table: Table, entries: Sequence[Note | End]) -> None:
        if isinstance(self._parser, JitDump) and self._parser.pid != self._process.ns_pid:
            # The mapping was inherited: what the parent loaded before the fork is here, too.
            entries = [entry for entry in entries if entry.when <= self._process.started]
        table.add(entries)
        self._notes += [entry for entry in entries if isinstance(entry, Note)]


def _monotonic(real: int) -> int:
    """A file's time, ns of CLOCK_REALTIME, as CLOCK_MONOTONIC."""
    return real - time.time_ns() + time.monotonic_ns()


def _too_many(source: str) -> str:
    return f"{source}: more than {MAX_ENTRIES} notes; what follows is not read"
