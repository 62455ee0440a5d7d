# SPDX-License-Identifier: MIT
"""The notes of many processes as the Frames that `spaces` asks for.

Joins each process's live tail to the nouns of frames; must not know files or formats.
"""

from __future__ import annotations

import time

from ustack.frame import AbsAddr, Frame
from ustack.maps import Time
from ustack.notes.note import Note
from ustack.notes.spelling import split
from ustack.notes.tail import Tail

__all__ = ["LiveNotes", "frame_of"]


def frame_of(note: Note, offset: int, address: AbsAddr | None = None) -> Frame:
    """The frame of an address `offset` bytes into a note; its line, where the note has lines."""
    said = split(note.name)
    file, line = said.file, None
    if note.lines is not None:
        file, line = note.lines.at(offset) or (file, line)
    return Frame("jit", said.function, file=file, line=line, offset=offset, address=address)


class LiveNotes:
    """Follows the notes of every process it is asked about; call `poll` while recording."""

    def __init__(self) -> None:
        self._tails: dict[int, Tail] = {}

    def follow(self, pid: int) -> Tail:
        """The tail of one process, from now on read by `poll`."""
        tail = self._tails.get(pid)
        if tail is None:
            tail = self._tails[pid] = Tail(pid)
            tail.poll()
        return tail

    def poll(self) -> None:
        for tail in self._tails.values():
            tail.poll()

    def lookup(self, pid: int, address: AbsAddr, time: Time | None) -> Frame | None:
        """The frame of an address at a time (CLOCK_BOOTTIME); None where nobody noted it."""
        when = None if time is None else time - _boot_minus_monotonic()
        found = self.follow(pid).table.lookup(address, when)
        return None if found is None else frame_of(*found, address)

    def reasons(self, pid: int) -> list[str]:
        """Why notes of a process are missing, a sentence each."""
        return self.follow(pid).reasons()

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()


def _boot_minus_monotonic() -> int:
    """Notes are timed by CLOCK_MONOTONIC, which stands still while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
