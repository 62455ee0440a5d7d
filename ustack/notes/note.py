# SPDX-License-Identifier: MIT
"""The nouns: Note, what a JIT or interpreter says about an address, and End, when that is over.

Knows neither the formats that notes are read from nor how they are looked up.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

__all__ = ["ADDRESSES", "End", "Lines", "Note"]

#: One past the largest address.
ADDRESSES = 1 << 64


class Lines(NamedTuple):
    """A line table: from `offsets[i]` on, the code belongs to `lines[i]` of `files[i]`.

    offsets: bytes from the note's start, ascending
    """

    offsets: tuple[int, ...]
    lines: tuple[int, ...]
    files: tuple[str, ...]

    def at(self, offset: int) -> tuple[str, int] | None:
        """File and line at `offset`, or None before the first row."""
        row = bisect_right(self.offsets, offset) - 1
        return (self.files[row], self.lines[row]) if row >= 0 else None


class Note(NamedTuple):
    """`size` bytes of code from `start` on have this name, from some time on.

    A tuple, because a busy runtime writes 100 000 of them and tuples are what Python makes fast.

    name:   as the runtime spells it; bytes that are not UTF-8 are shown as `\\xff`
    since:  the note may have been true from here on, and
    when:   was certainly true from here on: ns of CLOCK_MONOTONIC. They are equal where the
            source records the time; a perf map does not, see `perfmap`
    source: the file it was read from
    lines:  where the source has them
    """

    start: int
    size: int
    name: str
    since: int
    when: int
    source: str
    lines: Lines | None = None


class End(NamedTuple):
    """From `when` on, `note` is no longer true where it still was; None: nothing before is.

    N.B. it ends a note, not a range: what was written over the note since then stays.
    """

    note: Note | None
    when: int

    @property
    def start(self) -> int:
        return self.note.start if self.note else 0

    @property
    def size(self) -> int:
        return self.note.size if self.note else ADDRESSES
