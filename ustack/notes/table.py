# SPDX-License-Identifier: MIT
"""The interval table: which note was true at an address, now or at a time in the past.

Takes notes in any order of addresses; the later one wins each byte that both name. Knows nothing
of formats, files or processes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import pairwise

from ustack.notes.note import End, Note

__all__ = ["Table"]

#: Bits of the smallest size class of the history; smaller notes share it.
_SMALLEST = 8


class Table:
    """Notes and their ends, looked up by address and time.

    The entries are kept in order of time, and that order is the history: nothing is ever changed
    or removed. Two indexes are made from it when somebody asks. `_levels` is for the present:
    sorted, disjoint ranges of the last entry at each address, in few levels of falling size so
    that a small addition does not sort everything again. `_cells` is for the past: for each size
    class the entries that touch a cell of that size, so that few others are met on the way.
    """

    def __init__(self) -> None:
        self._new: list[Note | End] = []
        self._entries: list[Note | End] = []
        self._whens: list[int] = []
        self._levels: list[_Level] = []
        self._cells: dict[int, dict[int, list[int]]] = {}
        self._in_cells = 0

    def __len__(self) -> int:
        """Notes and ends so far."""
        return len(self._entries) + len(self._new)

    def add(self, entries: Iterable[Note | End]) -> None:
        """Take notes and ends, about in the order of time; of equal times the last one wins."""
        self._new.extend(entries)

    def lookup(self, address: int, time: int | None = None) -> tuple[Note, int] | None:
        """The note at `address` and the offset in it, at `time` or after everything; or None.

        A time before the first note there is answered by a note that may have been true then
        (`since`), if there is one: its exact time is not known.
        """
        if self._new:
            self._index()
        for level in self._levels:
            i = level.owners[bisect_right(level.bounds, address) - 1]
            if i >= 0:
                entry = self._entries[i]
                if type(entry) is Note and (time is None or entry.when <= time):
                    return entry, address - entry.start
                return self._then(address, time)
        return None

    def current(self) -> list[tuple[int, int, Note]]:
        """What is true after everything: (start, end, note), by address; a note may come twice."""
        if self._new:
            self._index()
        bounds = {bound for level in self._levels for bound in level.bounds}
        if any(type(entry) is End for entry in self._entries):
            for entry in self._entries:  # below an End, levels do not see where owners change
                bounds |= {entry.start, entry.start + entry.size}
        found: list[tuple[int, int, Note]] = []
        for start, end in pairwise(sorted(bounds)):
            here = self.lookup(start)
            if here and found and found[-1][1] == start and found[-1][2] is here[0]:
                found[-1] = (found[-1][0], end, here[0])
            elif here:
                found.append((start, end, here[0]))
        return found

    def _index(self) -> None:
        """Make `_levels` cover the new entries."""
        new, self._new = self._new, []
        whens = [entry.when for entry in new]
        if self._whens and min(whens) < self._whens[-1]:
            cut = bisect_right(self._whens, min(whens))
            new = self._entries[cut:] + new
            self._forget(cut)
            whens = [entry.when for entry in new]
        ordered = sorted(whens)
        if ordered != whens:
            new.sort(key=lambda entry: entry.when)  # stable: of equal times, the last stays last
        self._entries += new
        self._whens += ordered
        low = self._levels[0].high if self._levels else 0
        high = len(self._entries)
        while self._levels and self._levels[0].high - self._levels[0].low <= 2 * (high - low):
            low = self._levels.pop(0).low
        self._levels.insert(0, _Level(self._entries, low, high))

    def _forget(self, cut: int) -> None:
        """Take the entries from `cut` on out of the indexes."""
        del self._entries[cut:], self._whens[cut:]
        self._levels = [level for level in self._levels if level.high <= cut]
        if self._in_cells > cut:
            self._cells.clear()
            self._in_cells = 0

    def _then(self, address: int, time: int | None) -> tuple[Note, int] | None:
        """`lookup` by the history."""
        self._fill_cells()
        before = len(self._entries) if time is None else bisect_right(self._whens, time)
        ended: list[Note] = []
        i = self._last(address, before)
        while i >= 0:
            entry = self._entries[i]
            if isinstance(entry, Note):
                if any(entry is note for note in ended):
                    break
                return entry, address - entry.start
            if entry.note is None:
                break
            ended.append(entry.note)
            i = self._last(address, i)
        return None if time is None else self._perhaps(address, before, time)

    def _last(self, address: int, before: int) -> int:
        """The last entry at `address` of those before that number, or -1."""
        best = -1
        for bits, cells in self._cells.items():
            cell = cells.get(address >> bits, ())
            for i in reversed(range(bisect_left(cell, before))):
                number = cell[i]
                if number <= best:
                    break
                entry = self._entries[number]
                if entry.start <= address < entry.start + entry.size:
                    best = number
                    break
        return best

    def _perhaps(self, address: int, before: int, time: int) -> tuple[Note, int] | None:
        """The last note at `address`, from number `before` on, that may have been true."""
        i = self._last(address, len(self._entries))
        while i >= before:
            entry = self._entries[i]
            if isinstance(entry, Note) and entry.since <= time:
                return entry, address - entry.start
            i = self._last(address, i)
        return None

    def _fill_cells(self) -> None:
        """Make `_cells` cover all entries. N.B. a note touches at most two cells of its class."""
        for number in range(self._in_cells, len(self._entries)):
            entry = self._entries[number]
            if not entry.size:
                continue
            bits = max(entry.size.bit_length(), _SMALLEST)
            cells = self._cells.setdefault(bits, {})
            first, last = entry.start >> bits, (entry.start + entry.size - 1) >> bits
            cells.setdefault(first, []).append(number)
            if last != first:
                cells.setdefault(last, []).append(number)
        self._in_cells = len(self._entries)


class _Level:
    """The entries `low` to `high`: from `bounds[i]` to the next, `owners[i]` is the last, or -1."""

    __slots__ = ("bounds", "high", "low", "owners")

    def __init__(self, entries: Sequence[Note | End], low: int, high: int) -> None:
        self.low = low
        self.high = high
        chosen = entries[low:high]
        starts = [entry.start for entry in chosen]
        ends = [entry.start + entry.size for entry in chosen]
        self.bounds, owners = _sweep(starts, ends)
        self.owners = [owner + low if owner >= 0 else -1 for owner in owners] if low else owners


def _sweep(starts: list[int], ends: list[int]) -> tuple[list[int], list[int]]:
    """The bounds and owners of a level whose entries have these ranges, in the order of time.

    Goes up through the addresses and keeps the entry that owns the current one. Those that it
    hides, and that reach further up than it, wait in a heap.
    """
    bounds, owners = [0], [-1]
    owner, end = -1, 0
    hidden: list[int] = []  # negated: the last entry comes first
    infinity = max(ends, default=0) + 1
    for i in (*sorted(range(len(starts)), key=starts.__getitem__), -1):
        start = starts[i] if i >= 0 else infinity
        while owner >= 0 and end <= start:
            while hidden and ends[-hidden[0]] <= end:
                heappop(hidden)
            owner = -heappop(hidden) if hidden else -1
            if bounds[-1] == end:
                owners[-1] = owner
            else:
                bounds.append(end)
                owners.append(owner)
            end = ends[owner]
        if i < 0 or ends[i] <= start:
            continue
        if owner < i:
            if owner >= 0 and end > ends[i]:
                heappush(hidden, -owner)
            owner, end = i, ends[i]
            if bounds[-1] == start:
                owners[-1] = owner
            else:
                bounds.append(start)
                owners.append(owner)
        elif ends[i] > end:
            heappush(hidden, -i)
    return bounds, owners
