# SPDX-License-Identifier: MIT
"""What a raw address became: a Frame with a name, or a Frame with the Reason why it has none.

Owns the nouns every other module of `ustack` hands around, and how one is written as text. Must
not know where names come from.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import Literal, NewType

__all__ = ["AbsAddr", "FileOffset", "Frame", "Kind", "Reason", "VirtOffset"]

#: An address in a process (or in the kernel) while it ran.
AbsAddr = NewType("AbsAddr", int)

#: Bytes from the beginning of a file.
FileOffset = NewType("FileOffset", int)

#: An address in an ELF file's own terms: what st_value and p_vaddr count in.
VirtOffset = NewType("VirtOffset", int)

Kind = Literal["kernel", "native", "jit", "python", "ruby"]


class Reason(Enum):
    """Why a frame has no name; `word` is what is shown, `hint` what to type or to do next."""

    UNMAPPED = (
        "unmapped",
        "nothing was mapped there: a program without frame pointers gives such addresses",
    )
    NO_SYMBOLS = (
        "no symbols",
        "install the file's debug symbols (apt-get install NAME-dbgsym; dnf debuginfo-install "
        "NAME), or see what it has: readelf -sW FILE",
    )
    NO_NOTE = (
        "no note",
        "start the program so that it writes a perf map: node --perf-basic-prof; python3 -X perf; "
        "java -XX:+PreserveFramePointer, then jcmd PID Compiler.perfmap",
    )
    EXITED = (
        "exited",
        "the process ended before its maps were read: start ustack before the process",
    )
    STALE = (
        "stale",
        "the file was replaced after the program mapped it: restart the program",
    )
    FILE_GONE = (
        "file gone",
        "no file is left to read: the process ended, or its container did; name its frames while "
        "it runs",
    )
    UNREADABLE = ("unreadable", "the kernel refused: run again with sudo")
    DAMAGED = ("damaged", "the file contradicts its format: look at it with: readelf -hSlW FILE")
    RESTRICTED = (
        "restricted",
        "the kernel hides its addresses: run again with sudo, after: "
        "sysctl -w kernel.kptr_restrict=1",
    )
    CUT = ("cut", "frames are missing from here on")

    def __init__(self, word: str, hint: str) -> None:
        self.word = word
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stack.

    name:     None if, and only if, `why` says why
    module:   the file, or the kernel module, that has the address; file: the source file
    line:     of the source, from 1
    offset:   bytes from the beginning of the function; from the beginning of the mapped file's
              own addresses (VirtOffset) where the function is not known
    address:  as it was given; None for interpreter frames
    """

    kind: Kind
    name: str | None
    _: KW_ONLY
    module: str | None = None
    file: str | None = None
    line: int | None = None
    offset: int | None = None
    address: AbsAddr | None = None
    why: Reason | None = None

    def __post_init__(self) -> None:
        if (self.name is None) is not (self.why is not None):
            raise ValueError("a frame has either a name or a reason")

    def __str__(self) -> str:
        """The name alone, as flame graphs want it; or the address and the reason."""
        if self.why is None:
            return str(self.name)
        word = self.why.word
        if self.address is None:
            return f"({word})"
        if self.module is None:
            return f"{self.address:#x} ({word})"
        return f"{self.address:#x} ({word}: {self.module.rpartition('/')[2]})"
