# SPDX-License-Identifier: MIT
"""The Space of one program in one process: what was mapped where, and from when until when.

Owns how mappings replace each other, whatever order they become known in. Must not know where
they come from, nor any file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from ustack.binaries import Binary, Unread
from ustack.frame import AbsAddr, FileOffset
from ustack.maps import Mapping, Time, file_path

__all__ = ["Row", "Space"]

# Mappings kept of one space after something else came in their place.
_MAX_PAST = 4096


class Row(NamedTuple):
    """A mapping and when it was there; since 0: before anybody looked."""

    mapping: Mapping
    since: Time
    until: Time | None = None


class Space:
    """One program in one process, from fork or exec to its successor.

    born:     when the process began, as against pid reuse; since: when this program began in it
    known:    False where mappings from before the first record are missing
    scanned:  when /proc was last read, 0: never
    loaded:   id(mapping) -> the mapping, and what it shows
    """

    __slots__ = (
        "_now", "_past", "_starts", "born", "comm", "exited", "known", "loaded", "mount", "pid",
        "scanned", "since",
    )  # fmt: skip

    def __init__(self, pid: int, *, born: Time, since: Time, known: bool, comm: str = "") -> None:
        self.pid, self.comm = pid, comm
        self.born, self.since = born, since
        self.known = known
        self.scanned: Time = 0
        self.exited: Time | None = None
        self.mount = ""
        self.loaded: dict[int, tuple[Mapping, Binary | Unread]] = {}
        self._now: list[Row] = []
        self._starts: list[int] = []
        self._past: deque[Row] = deque(maxlen=_MAX_PAST)

    def find(self, address: AbsAddr, time: Time | None) -> Row | None:
        """The mapping that had the address at that time; None: the latest."""
        at = bisect_right(self._starts, address) - 1
        row = self._now[at] if at >= 0 and address < self._now[at].mapping.end else None
        if time is None or (row is not None and row.since <= time):
            return row
        for past in reversed(self._past):
            mapping, since, until = past
            if mapping.start <= address < mapping.end and since <= time and time < (until or 0):
                return past
        return None

    def add(self, mapping: Mapping, time: Time) -> None:
        """It is there from `time` on; whatever it overlaps is not any more."""
        if time < self.scanned:  # /proc was read after it came: what was there then, stays
            same = [row for row in self._overlapped(mapping) if _same(row.mapping, mapping)]
            for row in same:
                self._now[self._now.index(row)] = row._replace(since=min(row.since, time))
            if not same:
                self._past.append(Row(mapping, time, self.scanned))
            return
        overlapped = self._overlapped(mapping)
        if len(overlapped) == 1 and _same(overlapped[0].mapping, mapping):
            old = overlapped[0].mapping
            if old.start <= mapping.start and mapping.end <= old.end:
                return
        for row in overlapped:
            self._now.remove(row)
            self._past.append(row._replace(until=time))
            self._now += [row._replace(mapping=rest) for rest in _around(row.mapping, mapping)]
        self._now.append(Row(mapping, time))
        self._sort()

    def replace(self, mappings: list[Mapping], time: Time) -> None:
        """/proc showed exactly these at `time`."""
        rows, kept = [], set()
        for mapping in mappings:
            since = time if self.known else 0
            for row in self._overlapped(mapping):
                if _same(row.mapping, mapping):
                    since = min(since, row.since)
                    kept.add(row)
                    mapping = _joined(mapping, row.mapping)
            rows.append(Row(mapping, since))
        self._past.extend(row._replace(until=time) for row in self._now if row not in kept)
        self._now = rows
        self._sort()
        self.known, self.scanned = True, time

    def fork(self, pid: int, time: Time) -> Space:
        """A child that begins with the same mappings."""
        child = Space(pid, born=time, since=time, known=self.known, comm=self.comm)
        child.mount = self.mount
        child._now = [Row(row.mapping, time) for row in self._now]
        child._starts = list(self._starts)
        return child

    def split(self, time: Time) -> Space:
        """An exec at `time`, told after /proc was read: what came before it, as another space."""
        before = Space(self.pid, born=self.born, since=self.since, known=self.known, comm=self.comm)
        before.mount = self.mount
        before._now = [row for row in self._now if 0 < row.since < time]
        before._past.extend(row for row in self._past if row.since < time)
        before._sort()
        self._past = deque((row for row in self._past if row.since >= time), maxlen=_MAX_PAST)
        self._now = [
            row if time <= row.since < self.scanned else row._replace(since=time)
            for row in self._now
        ]
        self.since = time
        return before

    def _overlapped(self, mapping: Mapping) -> list[Row]:
        first = max(bisect_right(self._starts, mapping.start) - 1, 0)
        return [
            row
            for row in self._now[first : bisect_right(self._starts, mapping.end - 1)]
            if row.mapping.end > mapping.start
        ]

    def _sort(self) -> None:
        self._now.sort(key=lambda row: row.mapping.start)
        self._starts = [row.mapping.start for row in self._now]


def _same(one: Mapping, other: Mapping) -> bool:
    """The same file at the same place, as far as both say; build ids replace inodes in records."""
    return (
        _plain(one.path) == _plain(other.path)
        and (one.start - one.offset == other.start - other.offset or not file_path(one))
        and (not one.inode or not other.inode or one.inode == other.inode)
        and (not one.build_id or not other.build_id or one.build_id == other.build_id)
    )


def _plain(path: str) -> str:
    return "" if path == "//anon" else path.removesuffix(" (deleted)")


def _joined(seen: Mapping, recorded: Mapping) -> Mapping:
    if seen.build_id or not recorded.build_id:
        return seen
    return Mapping(
        seen.start, seen.end, seen.offset, seen.path,
        device=seen.device, inode=seen.inode, build_id=recorded.build_id,
    )  # fmt: skip


def _around(old: Mapping, new: Mapping) -> Iterator[Mapping]:
    """What is left of a mapping on both sides of one that took a part of it."""
    for start, end in ((old.start, min(old.end, new.start)), (max(old.start, new.end), old.end)):
        if start < end:
            offset = FileOffset(old.offset + (start - old.start))
            yield Mapping(
                start, end, offset, old.path,
                device=old.device, inode=old.inode, build_id=old.build_id,
            )  # fmt: skip
