# SPDX-License-Identifier: MIT
"""What bpftrace prints for a script of ours -> events, tables and losses.

Pure: bytes in, values out. Nothing that a traced program puts into its arguments can look like
another record, or like a part of another event.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stubgen.argtypes import BY_NAME
from usdt.script import STRING_MAX, STRING_ROOM, Target

__all__ = ["Assembler", "Begin", "Blob", "Event", "Lost", "Pointer", "Table", "Text", "Value"]


@dataclass(frozen=True, slots=True)
class Text:
    """A string's bytes; `truncated` if it went on behind them."""

    data: bytes
    truncated: bool


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes that arrived of `length` ones."""

    data: bytes
    length: int

    @property
    def truncated(self) -> bool:
        return len(self.data) < self.length


class Pointer(int):
    """An address."""


Value = int | float | Text | Blob | None


@dataclass(frozen=True, slots=True)
class Begin:
    """Every probe is attached: bpftrace prints nothing before. pid: bpftrace's own, as its BPF
    programs see it."""

    pid: int


@dataclass(frozen=True, slots=True)
class Event:
    """One firing. time: nanoseconds since boot. values: one per argument of the target; None
    for what cannot be read."""

    target: Target
    time: int
    pid: int
    tid: int
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A bpftrace map as JSON: 'fired', 'count', 'hist' or 'value'; keys are exact bytes."""

    name: str
    rows: dict[bytes, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """So many records were lost on their way from the kernel."""

    records: int


class _Shape:
    """What the records of one target hold, worked out once."""

    __slots__ = ("fields", "joined", "strings", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.fields = 3 + len(target.integers)  # time, tid, pid
        self.joined = target.joined
        self.strings = len(target.strings)


class _Pending:
    """An event whose head has come and whose strings have not, all of them."""

    __slots__ = ("integers", "pid", "shape", "strings")

    def __init__(self, shape: _Shape, pid: int, integers: list[int]) -> None:
        self.shape = shape
        self.pid = pid
        self.integers = integers
        self.strings: dict[int, Text | bytes] = {}


# bpftrace writes a byte from 0x80 up as a sign-extended \uffffffXX, or as it is. Read as
# Latin-1, in which no byte is U+FFFF, both give back the byte.
_SIGN_EXTENDED = re.compile("\uffffff([0-9a-f]{2})")

# How the line of a record starts; one without a backslash has no escape in it.
_PLAIN = b'{"type": "printf", "data": "'

#: Events that wait for a record. One that was lost never comes: the oldest is given up.
_PENDING_MAX = 4096


class Assembler:
    """Lines of `bpftrace -f json` in, values out. `incomplete` counts events given up."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._shapes = [_Shape(target) for target in targets]
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._given_up = 0

    @property
    def incomplete(self) -> int:
        return self._given_up + len(self._pending)

    def feed(self, line: bytes) -> Event | Table | Lost | Begin | None:
        """One line; None if it completes nothing. Raises ValueError for what bpftrace never
        prints."""
        if not line.strip():
            return None
        if line.startswith(_PLAIN) and line.endswith(b'"}') and b"\\" not in line:
            return self._printed(line[len(_PLAIN) : -2])  # the same, at a third of the time
        record = json.loads(line.decode("latin-1"), strict=False)
        kind, data = record["type"], record["data"]
        if kind == "printf":
            return self._printed(_exact(data))
        if kind == "lost_events":
            return Lost(int(data["events"]))
        if kind in ("map", "hist"):
            ((name, rows),) = data.items()
            return Table(name[1:], {_exact(key): value for key, value in rows.items()})
        return None

    def _printed(self, record: bytes) -> Event | Begin | None:
        kind, _, rest = record.partition(b" ")
        if kind == b"B":
            return Begin(int(rest))
        if kind == b"E":
            return self._head(rest)
        number, place, time, tid, value = rest.split(b" ", 4)
        key = int(tid), int(time)
        pending = self._pending.get(key)
        if pending is None or self._shapes[int(number)] is not pending.shape:
            return None  # its head was lost
        pending.strings[int(place)] = _text(value) if kind == b"S" else _unhex(value)
        return self._complete(key, pending)

    def _head(self, rest: bytes) -> Event | None:
        number, rest = rest.split(b" ", 1)
        shape = self._shapes[int(number)]
        fields = rest.split(b" ", shape.fields)
        time, tid, pid, *integers = map(int, fields[: shape.fields])
        pending = _Pending(shape, pid, integers)
        if shape.joined:
            pending.strings[0] = _text(fields[shape.fields])
        return self._complete((tid, time), pending)

    def _complete(self, key: tuple[int, int], pending: _Pending) -> Event | None:
        if len(pending.strings) < pending.shape.strings:
            self._pending[key] = pending
            if len(self._pending) > _PENDING_MAX:
                del self._pending[next(iter(self._pending))]
                self._given_up += 1
            return None
        self._pending.pop(key, None)
        tid, time = key
        return Event(pending.shape.target, time, pending.pid, tid, tuple(_values(pending)))


def _values(pending: _Pending) -> Iterator[Value]:
    integers = iter(pending.integers)
    strings = iter([pending.strings[i] for i in range(len(pending.strings))])
    for arg in pending.shape.target.args:
        if arg.type == "":
            yield None
        elif arg.type == "str":
            text = next(strings)
            assert isinstance(text, Text)
            yield text
        elif arg.type == "bytes":
            data = next(strings)
            assert isinstance(data, bytes)
            yield Blob(data, next(integers) & _MASK[8])
        else:
            yield _DECODE[arg.type](next(integers))


def _exact(text: str) -> bytes:
    """The bytes behind a JSON string of bpftrace, read as Latin-1."""
    return _SIGN_EXTENDED.sub(_one_byte, text).encode("latin-1")


def _one_byte(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


def _text(field: bytes) -> Text:
    more, _, data = field.partition(b" ")
    return Text(data[:STRING_MAX], len(data) >= STRING_MAX and more != b"0")


def _unhex(field: bytes) -> bytes:
    """The bytes of `%rx`: `\\x61\\x64`."""
    return bytes.fromhex(field.decode("ascii").replace("\\x", ""))[:STRING_ROOM]


_MASK = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}


def _integer(size: int) -> Callable[[int], int]:
    # Whatever bpftrace made of the bits above the operand is cut off; then the sign is given.
    mask, sign = _MASK[abs(size)], (1 << 8 * abs(size) - 1) if size < 0 else 0
    return lambda value: ((value & mask) ^ sign) - sign


_DECODE: dict[str, Callable[[int], Value]] = {
    name: _integer(row.operands[0]) for name, row in BY_NAME.items() if len(row.operands) == 1
} | {
    "bool": lambda value: bool(value & 0xFF),
    "f32": lambda value: struct.unpack("<f", (value & _MASK[4]).to_bytes(4, "little"))[0],
    "f64": lambda value: struct.unpack("<d", (value & _MASK[8]).to_bytes(8, "little"))[0],
    "ptr": lambda value: Pointer(value & _MASK[8]),
}
