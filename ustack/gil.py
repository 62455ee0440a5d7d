# SPDX-License-Identifier: MIT
"""Waits for the GIL: a record of the script -> a Wait; the frame that names who had it; counts.

Pure. Must not know how the records come, nor how a stack is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ustack.frame import Frame

__all__ = ["Wait", "holder_frame", "lines", "parse"]


class Wait(NamedTuple):
    """One sleep of a thread that wants the GIL. Times in ns of CLOCK_BOOTTIME.

    again:       whether it slept before in the same wait, until just then
    holder_key:  the stack of the thread that had the GIL; holder: its thread id as the kernel
                 counts, 0 where that is not known; holder_self: as pthread_self says
    """

    time: int
    pid: int
    tid: int
    space: int
    key: int
    began: int
    again: bool
    holder_key: int
    holder_self: int
    holder: int


def parse(record: bytes) -> Wait:
    """Raises ValueError for a line that is not whole."""
    _, time, pid, tid, space, key, began, again, *holder = record.split(b" ")
    return Wait(
        int(time, 16), int(pid), int(tid), int(space, 16), int(key, 16), int(began, 16),
        again == b"1", int(holder[0], 16), int(holder[1], 16), int(holder[2]),
    )  # fmt: skip


def holder_frame(holder: int, stack: Sequence[Frame]) -> Frame:
    """Says who had the GIL, to stand on the waiter's stack; stack: the holder's, leaf first."""
    who = f"held by thread {holder}" if holder else "held by a thread not seen"
    for frame in stack:
        if frame.name is not None:
            return Frame("python", f"{who} in {frame.name}", file=frame.file)
    return Frame("python", who)


def lines(waits: Sequence[Wait]) -> Iterator[str]:
    """For people: waits, their sum and mean."""
    number = sum(not wait.again for wait in waits)
    if number:
        total = sum(wait.time - wait.began for wait in waits)
        yield (
            f"waits for the GIL: {number:,}, {total / 1e6:,.1f} ms in sum, "
            f"{total / number / 1e3:,.1f} us each"
        )
