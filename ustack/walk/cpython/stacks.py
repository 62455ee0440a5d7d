# SPDX-License-Identifier: MIT
"""Records of the script -> Python stacks with names and lines.

Keeps what was printed once for many samples: frames by key, code objects by identity. Reads a
process's memory only for what was too long to be printed; must not know how records arrive.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from ustack.frame import Frame, Reason
from ustack.walk.cpython import code
from ustack.walk.cpython.layout import Layout
from ustack.walk.cpython.script import (
    END_CUT,
    END_NO_THREAD,
    END_NOT_PYTHON,
    END_UNREADABLE,
    PARTS,
    PIECES_START,
    identity,
)

__all__ = ["Decoder", "Mark", "PythonFrame"]

#: Reads (pid, address, size); raises OSError.
ReadMemory = Callable[[int, int, int], bytes]


class Mark(Enum):
    """How a frame was called, for whoever splices: by C, or by the Python frame below it."""

    FROM_C = "from C"
    FROM_PYTHON = "from Python"


@dataclass(frozen=True, slots=True)
class PythonFrame:
    """A frame, leaf first in its stack, and how it was called."""

    frame: Frame
    mark: Mark


@dataclass(slots=True)
class _Node:
    """A frame with its callers."""

    parent: int
    code: int
    address: int
    instr: int
    mark: int


@dataclass(slots=True)
class _Code:
    """A code object as it was at first sight. objects: addresses of the objects of PARTS."""

    pid: int
    address: int = 0
    first: int = 0
    objects: dict[str, int] = field(default_factory=dict)
    pieces: dict[str, dict[int, bytes]] = field(default_factory=lambda: {p: {} for p in PARTS})
    whole: dict[str, bytes] = field(default_factory=dict)
    name: str | None = None
    file: str | None = None


#: Bytes that hold the sizes of a str or bytes object.
_HEAD = 36

_CUT = PythonFrame(Frame("python", None, why=Reason.CUT), Mark.FROM_C)
_UNREADABLE = PythonFrame(Frame("python", None, why=Reason.UNREADABLE), Mark.FROM_C)
_ENDS = {
    0: (),
    END_CUT: (_CUT,),
    END_UNREADABLE: (_UNREADABLE, _CUT),
    END_NO_THREAD: (),
    END_NOT_PYTHON: (),
}


class Decoder:
    """layouts: by pid; a process may be added while records come."""

    def __init__(self, layouts: Mapping[int, Layout], read: ReadMemory) -> None:
        self._layouts = layouts
        self._read = read
        self._nodes: dict[tuple[int, int], _Node] = {}
        self._codes: dict[tuple[int, int], _Code] = {}
        self._stacks: dict[tuple[int, int], tuple[PythonFrame, ...]] = {}

    def feed(self, record: bytes) -> bool:
        """One line; False if it is not one of ours. Raises ValueError if it is a torn one."""
        kind, *fields = record.split(b" ")
        if kind == b"N":
            space, key, parent, identity, address, instr, mark = (int(f, 16) for f in fields)
            self._nodes[space, key] = _Node(parent, identity, address, instr, mark & 0xFF)
        elif kind == b"C":
            self._code(fields)
        elif kind == b"P":
            space, identity = int(fields[0], 16), int(fields[1], 16)
            known = self._codes.get((space, identity))
            if known is not None:
                data = bytes.fromhex(fields[4].decode("ascii").replace("\\x", ""))
                known.pieces[fields[2].decode("ascii")][int(fields[3])] = data
        else:
            return False
        return True

    def _code(self, fields: list[bytes]) -> None:
        space, identity = int(fields[0], 16), int(fields[1], 16)
        address, name, lines, file, first = (int(f, 16) for f in fields[3:])
        self._codes[space, identity] = _Code(
            int(fields[2]),
            address,
            struct.unpack("<i", struct.pack("<I", first & 0xFFFFFFFF))[0],
            {"n": name, "f": file, "l": lines},
        )

    def stack(self, pid: int, space: int, key: int) -> tuple[PythonFrame, ...]:
        """Leaf first. A frame whose record was lost, or that lies too deep, is marked as cut.

        N.B. Ask when the records around the sample are in: CPUs do not print in order.
        """
        known = self._stacks.get((space, key))
        if known is not None:
            return known
        layout = self._layouts.get(pid)
        if layout is None:
            return ()
        path: list[int] = []
        frames: tuple[PythonFrame, ...] | None = None
        complete = True
        while frames is None:
            frames = _ENDS.get(key)
            if frames is None:
                frames = self._stacks.get((space, key))
            if frames is not None:
                break
            node = self._nodes.get((space, key))
            if node is None or len(path) > 1 << 14:
                frames, complete = (_CUT,), False
                break
            path.append(key)
            key = node.parent
        # Named leaf to root, so that a deep stack is built once and not once per frame.
        mine: list[PythonFrame] = []
        shim = False
        for place in reversed(path):
            node = self._nodes[space, place]
            if layout.is_shim(node.mark):
                shim = True
                continue
            named, sure = self._frame(pid, space, node, layout)
            complete = complete and sure
            from_c = shim or layout.entered_by_c(node.mark)
            mine.append(PythonFrame(named, Mark.FROM_C if from_c else Mark.FROM_PYTHON))
            shim = False
        stack = (*reversed(mine), *frames)
        if complete and path:
            self._stacks[space, path[0]] = stack
        return stack

    def _frame(self, pid: int, space: int, node: _Node, layout: Layout) -> tuple[Frame, bool]:
        """The frame, and whether it will never be known better."""
        known = self._codes.get((space, node.code))
        if known is None:
            known = self._remembered(pid, node, layout)
            if known is None:
                return Frame("python", None, why=Reason.EXITED), False
            self._codes[space, node.code] = known
        if known.name is None:
            known.name = self._text(known, "n", layout)
            known.file = self._text(known, "f", layout)
        if known.name is None:
            return Frame("python", None, why=Reason.UNREADABLE), False
        line = self._line(known, node, layout)
        return Frame("python", known.name, file=known.file, line=line), True

    def _remembered(self, pid: int, node: _Node, layout: Layout) -> _Code | None:
        """A code object that was not printed, from the process while it lives and has it."""
        known = _Code(pid, node.address)
        try:
            for part, offset in _where(layout).items():
                known.objects[part] = self._word(pid, node.address + offset)
            first = self._read(pid, node.address + layout.code_first, 4)
            for part, address in known.objects.items():
                head = bytes(self._read(pid, address, _HEAD))
                size = code.needed_bytes(head) if part == "l" else code.needed_str(head, layout)
                known.whole[part] = self._read(pid, address, size)
            known.first = struct.unpack("<i", first)[0]
            same = all(
                self._word(pid, node.address + offset) == known.objects[part]
                for part, offset in _where(layout).items()
            )
        except (OSError, struct.error):
            return None
        if not same or identity(node.address, known.objects["n"], known.objects["l"]) != node.code:
            return None
        return known

    def _word(self, pid: int, address: int) -> int:
        word: int = struct.unpack("<Q", self._read(pid, address, 8))[0]
        return word

    def _line(self, known: _Code, node: _Node, layout: Layout) -> int | None:
        if layout.code_start is None:
            number = node.instr & 0xFFFFFFFF
            number -= (number & 0x80000000) << 1
        else:
            number = (node.instr - node.address - layout.code_start) // 2
        return code.line_at(self._object(known, "l", layout), known.first, number, layout)

    def _text(self, known: _Code, part: str, layout: Layout) -> str | None:
        text = code.to_text(self._object(known, part, layout), layout)
        if text is None:
            return None
        return text.value if text.whole else text.value + "…"

    def _object(self, known: _Code, part: str, layout: Layout) -> bytes:
        """As many of the object's bytes as there are to be had, from its beginning."""
        memory = known.whole.get(part)
        if memory is not None:
            return memory
        memory = bytes(PIECES_START)
        pieces = known.pieces[part]
        for index in range(len(pieces)):
            piece = pieces.get(index)
            if piece is None:
                break
            memory += piece
        size = code.needed_bytes(memory) if part == "l" else code.needed_str(memory, layout)
        if size > len(memory):
            memory = self._longer(known, part, size, layout) or memory
        known.whole[part] = memory
        return memory

    def _longer(self, known: _Code, part: str, size: int, layout: Layout) -> bytes | None:
        """The whole object from the process, if it still is the one that was seen."""
        try:
            memory = self._read(known.pid, known.objects[part], size)
            for other, offset in _where(layout).items():
                if self._word(known.pid, known.address + offset) != known.objects[other]:
                    return None
        except (OSError, struct.error):
            return None
        seen = b"".join(piece for _, piece in sorted(known.pieces[part].items()))
        if memory[PIECES_START:][: len(seen)] != seen[: size - PIECES_START]:
            return None
        return memory if len(memory) == size else None


def _where(layout: Layout) -> dict[str, int]:
    """Where a code object points at the objects of PARTS."""
    return {"n": layout.code_name, "f": layout.code_file, "l": layout.code_lines}
