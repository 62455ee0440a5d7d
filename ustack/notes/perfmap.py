# SPDX-License-Identifier: MIT
"""Perf maps, bytes in and notes out: one line `START SIZE NAME` for each piece of code.

Knows no file, process or clock. The format, which has no version and no times, is
tools/perf/Documentation/jit-interface.txt of Linux; some writers add `0x`, or end lines in CRLF.
"""

from __future__ import annotations

import re
from itertools import repeat
from operator import add

from ustack.notes.note import ADDRESSES, Note

__all__ = ["MAX_NAME", "PerfMap"]

#: Longest name, in bytes. A Java class name may have 65 535, and a method's signature several.
MAX_NAME = 1 << 20

_LINE = re.compile(
    rb"^(?:0[xX])?([0-9a-fA-F]{1,16})[ \t](?:0[xX])?([0-9a-fA-F]{1,16})(?:[ \t]([^\n]{0,%d})\r?)?$"
    % MAX_NAME,
    re.MULTILINE,
)
_LONGEST = 2 + 16 + 1 + 2 + 16 + 1 + MAX_NAME + 1  # what _LINE can match


class PerfMap:
    """A perf map as it grows. However it is cut into pieces, the notes are the same.

    garbage: lines that are not `START SIZE NAME`, or name no byte of memory; they are left out
    first:   number of the first such line, from 1; 0 without
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.garbage = 0
        self.first = 0
        self._lines = 0
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes, when: int, *, since: int = 0) -> list[Note]:
        """The notes of all lines completed by `data`, which was written in `since` to `when`."""
        head, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._keep(self._rest + rest)
            return []
        text = self._rest + head + newline
        if self._skipping:
            self._garbage(self._lines + 1)
            self._lines += 1
            text = text[text.index(b"\n") + 1 :]
            self._skipping = False
        self._keep(rest)
        return self._parse(text, since, when)

    def finish(self, when: int, *, since: int = 0) -> list[Note]:
        """The note of a last line that has no newline: for files that will not grow any more."""
        return self.feed(b"\n", when, since=since) if self._rest or self._skipping else []

    def problems(self) -> list[str]:
        """What is wrong with the map, a sentence each."""
        if not self.garbage:
            return []
        lines = "1 line is" if self.garbage == 1 else f"{self.garbage} lines are"
        return [f"{self.source}: {lines} not 'START SIZE NAME', the first is line {self.first}"]

    def _keep(self, rest: bytes) -> None:
        if len(rest) > _LONGEST:
            self._skipping = True
        self._rest = b"" if self._skipping else rest

    def _garbage(self, line: int) -> None:
        self.garbage += 1
        self.first = self.first or line

    def _parse(self, text: bytes, since: int, when: int) -> list[Note]:
        """The notes of complete lines."""
        found = _LINE.findall(text)
        count = text.count(b"\n")
        if not found:
            self._look_for_garbage(text)
            self._lines += count
            return []
        # One decoder call for all names: a name has no newline.
        names = b"\n".join([name for _, _, name in found]) + b"\n"
        starts = [int(start, 16) for start, _, _ in found]
        sizes = [int(size, 16) for _, size, _ in found]
        rows = zip(
            starts,
            sizes,
            names.decode("utf-8", "backslashreplace").replace("\r\n", "\n").split("\n"),
            repeat(since),
            repeat(when),
            repeat(self.source),
            repeat(None),
        )
        notes = list(map(Note._make, rows))
        if min(sizes) == 0 or max(map(add, starts, sizes)) > ADDRESSES:
            notes = [note for note in notes if 0 < note.size <= ADDRESSES - note.start]
        if len(notes) != count:
            self._look_for_garbage(text)
        self._lines += count
        return notes

    def _look_for_garbage(self, text: bytes) -> None:
        """Count what `_parse` leaves out. Empty lines are nobody's fault."""
        for number, line in enumerate(text.split(b"\n")[:-1], self._lines + 1):
            match = _LINE.match(line)
            if match and 0 < int(match[2], 16) <= ADDRESSES - int(match[1], 16):
                continue
            if line.strip():
                self._garbage(number)
