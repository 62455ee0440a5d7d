# SPDX-License-Identifier: MIT
"""Jitdumps, bytes in and notes and their ends out: versions 1 and 2, both byte orders.

Knows no file, process or clock. The format is tools/perf/Documentation/jitdump-specification.txt
and tools/perf/util/jitdump.h of Linux. Code and unwind tables are skipped, never kept.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from ustack.notes.note import ADDRESSES, End, Lines, Note

__all__ = ["MAX_DEBUG_INFO", "MAX_NAME", "MAX_RECORD", "JitDump"]

#: Longest function name, in bytes, its end included.
MAX_NAME = 1 << 20
#: Largest record in bytes: beyond it, what is read is no record header.
MAX_RECORD = 1 << 26
#: Largest JIT_CODE_DEBUG_INFO record in bytes; line tables beyond it are left out.
MAX_DEBUG_INFO = 1 << 22

_MAGIC = 0x4A695444  # 'JiTD'
_VERSIONS = (1, 2)
_ARCH_TIMESTAMP = 1  # JITDUMP_FLAGS_ARCH_TIMESTAMP
_MAX_HEADER = 1 << 12
#: Types that a future version may add are below this; what is above it is no record header.
_MAX_TYPE = 1 << 10
#: 9 years of nanoseconds since boot.
_MAX_TIME = 1 << 58
_LOAD, _MOVE, _DEBUG_INFO, _CLOSE = 0, 1, 2, 3

#: A line table may be padded to 8 bytes. What does not end there was not written by the
#: specification: V8 in Node.js 20 writes file names from freed memory, zeros included.
_PADDING = 8

#: V8 marks its dumps in the header's padding. Its line tables start 0x40 bytes late, where
#: older perfs looked for them: src/diagnostics/perf-jit.cc, kElfHeaderSize.
_V8, _V8_LATE = 0xDEADBEEF, 0x40

#: By byte order: header, record prefix, load, move, debug info, debug entry.
_STRUCTS = {
    order: tuple(
        Struct(order + fields) for fields in ("IIIIIIQQ", "IIQ", "IIQQQQ", "IIQQQQQ", "QQ", "QII")
    )
    for order in "<>"
}


class _DamageError(Exception):
    """A record that does not hold what its header says."""


class JitDump:
    """A jitdump as it grows. However it is cut into pieces, the notes are the same.

    clock:   'monotonic', or 'arch' where the dump counts in units of the processor, which say
             nothing outside it: its notes then get the times that `feed` is given
    pid:     of the process, in its own pid namespace; 0 before the header is read
    machine: ELF's e_machine, 0 where the runtime does not say (CPython 3.13)
    closed:  the runtime wrote that nothing follows
    stopped: why nothing more can be read from this dump, or ''
    damaged: records that were left out
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.clock = "monotonic"
        self.pid = 0
        self.machine = 0
        self.version = 0
        self.closed = False
        self.stopped = ""
        self.damaged = 0
        self._first = ""
        self._data = b""
        self._skip = 0
        self._position = 0  # in the dump, of _data
        self._structs = _STRUCTS["<"]
        self._late = 0
        self._lost = False
        self._pid = b""  # as a load has it
        self._lines: tuple[int, Lines] | None = None
        self._loaded: dict[int, Note] = {}

    def feed(self, data: bytes, when: int, *, since: int = 0) -> list[Note | End]:
        """What the records completed by `data` say; it was written in `since` to `when`."""
        out: list[Note | End] = []
        if self.stopped:
            return out
        data = self._data + data
        at = 0
        while not self.stopped:
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
            if self._skip or not (size := self._step(data, at, out, since, when)):
                break
            self._skip = size
        self._position += at
        self._data = b"" if self.stopped else data[at:]
        return out

    def finish(self, when: int, *, since: int = 0) -> list[Note | End]:
        """Say what is missing at the end: for files that will not grow any more."""
        if not self.stopped and not self._lost and (self._data or self._skip or not self.version):
            self._damage(f"at byte {self._position}: the dump ends in it")
        return []

    def problems(self) -> list[str]:
        """What is wrong with the dump, a sentence each."""
        found = []
        if self.damaged:
            records = "1 record is" if self.damaged == 1 else f"{self.damaged} records are"
            found.append(f"{self.source}: {records} damaged, the first {self._first}")
        if self.stopped:
            found.append(f"{self.source}: {self.stopped}; what follows is not read")
        return found

    def _step(self, data: bytes, at: int, out: list[Note | End], since: int, when: int) -> int:
        """Read the header or record at `at`; its size, or 0 where more bytes are needed."""
        if not self.version:
            return self._header(data, at)
        prefix = self._structs[1]
        if len(data) - at < prefix.size:
            return 0
        position = self._position + at
        if self._lost:
            if len(data) - at < prefix.size + self._structs[2].size:
                return 0
            if gap := self._gap(data, at):
                return gap
        kind, size, time = prefix.unpack_from(data, at)
        if not self._plausible(kind, size, time):
            self._damage(f"at byte {position}: no record starts there")
            self._lost = True
            return self._gap(data, at)
        self._lost = False
        if self.clock == "monotonic":
            since = when = time
        read = _READERS.get(kind)
        if read is not None:
            limit, reader = read
            needed = min(size, limit)
            if len(data) - at < needed:
                return 0
            try:
                reader(self, data[at + prefix.size : at + needed], size, out, (since, when))
            except _DamageError as error:
                self._damage(f"at byte {position}: {error}")
        return int(size)

    def _header(self, data: bytes, at: int) -> int:
        for structs in _STRUCTS.values():
            if len(data) - at < structs[0].size:
                return 0
            magic, version, size, machine, padding, pid, _, flags = structs[0].unpack_from(data, at)
            if magic != _MAGIC:
                continue
            if version not in _VERSIONS:
                self.stopped = f"it is a jitdump of version {version}, not 1 or 2"
                return 0
            if not structs[0].size <= size <= _MAX_HEADER:
                self.stopped = f"its header claims {size} bytes"
                return 0
            self._structs = structs
            self.version, self.machine, self.pid = version, machine, pid
            self._pid = structs[0].pack(pid, *[0] * 7)[:4]
            self.clock = "arch" if flags & _ARCH_TIMESTAMP else "monotonic"
            self._late = _V8_LATE if padding == _V8 else 0
            return int(size)
        self.stopped = "it is no jitdump: its first bytes are not 'JiTD'"
        return 0

    def _plausible(self, kind: int, size: int, time: int) -> bool:
        """Whether a record may begin like this."""
        likely = kind < _MAX_TYPE and self._structs[1].size <= size <= MAX_RECORD
        return likely and (time < _MAX_TIME or self.clock != "monotonic")

    def _gap(self, data: bytes, at: int) -> int:
        """Bytes to the next load, which is known by its pid and by fields that agree.

        N.B. not only for broken disks: when a process forks between two flushes of its buffer,
        the child writes half a record into its parent's dump. CPython's do.
        """
        prefix, load = self._structs[1:3]
        pid = data.find(self._pid, at + prefix.size)
        while 0 <= pid <= len(data) - load.size:
            kind, size, time = prefix.unpack_from(data, pid - prefix.size)
            _, _, vma, address, length, _ = load.unpack_from(data, pid)
            fits = prefix.size + load.size + length < size and vma == address
            if kind == _LOAD and fits and self._plausible(kind, size, time):
                return pid - prefix.size - at
            pid = data.find(self._pid, pid + 1)
        return max(len(data) - at - prefix.size - load.size + 1, 0)

    def _damage(self, why: str) -> None:
        self.damaged += 1
        self._first = self._first or why

    def _load(self, data: bytes, size: int, out: list[Note | End], times: tuple[int, int]) -> None:
        load = self._structs[2]
        if len(data) < load.size:
            raise _DamageError("a load without its fields")
        _, _, _, address, length, index = load.unpack_from(data)
        name, end, _ = data[load.size :].partition(b"\0")
        left = size - self._structs[1].size - load.size - len(name) - 1
        lines, self._lines = self._lines, None
        offsets = lines[1].offsets if lines and lines[0] == address else ()
        if offsets and not 0 <= offsets[0] <= offsets[-1] <= length:
            lines = None
            self._damage(f"for {address:#x}: a line table that points outside the code")
        if not end:
            raise _DamageError("a load whose name does not end")
        if address + length > ADDRESSES:
            raise _DamageError("a load past the end of memory")
        if length > left:
            raise _DamageError(f"a load of {length} bytes of code, of which it has {max(left, 0)}")
        note = Note(
            address,
            length,
            name.decode("utf-8", "backslashreplace"),
            *times,
            self.source,
            lines[1] if lines and lines[0] == address else None,
        )
        self._loaded[index] = note
        out.append(note)

    def _move(self, data: bytes, size: int, out: list[Note | End], times: tuple[int, int]) -> None:
        move = self._structs[3]
        if len(data) < move.size:
            raise _DamageError("a move without its fields")
        _, _, _, _, address, length, index = move.unpack_from(data)
        old = self._loaded.get(index)
        if old is None:
            raise _DamageError(f"a move of function {index}, which was never loaded")
        if length != old.size or address + length > ADDRESSES:
            raise _DamageError(f"a move of {length} bytes of a function of {old.size}")
        new = old._replace(start=address, since=times[0], when=times[1])
        self._loaded[index] = new
        out += [End(old, times[1]), new]

    def _debug_info(
        self, data: bytes, size: int, out: list[Note | End], times: tuple[int, int]
    ) -> None:
        info, entry = self._structs[4:]
        self._lines = None
        if size > MAX_DEBUG_INFO:
            raise _DamageError(f"a line table of {size} bytes, at most {MAX_DEBUG_INFO} are read")
        if len(data) < info.size:
            raise _DamageError("a line table without its fields")
        address, count = info.unpack_from(data)
        at, file = info.size, ""
        rows: list[tuple[int, int, str]] = []
        for _ in range(count):
            end = data.find(b"\0", at + entry.size)
            if end < 0:
                raise _DamageError(f"a line table of {len(rows)} rows that claims {count}")
            place, line, _ = entry.unpack_from(data, at)
            name = data[at + entry.size : end]
            if name != b"\xff":  # as in the row before: jitdump.h, debug_entry
                file = name.decode("utf-8", "backslashreplace")
            rows.append((place - self._late - address, line, file))
            at = end + 1
        if len(data) - at >= _PADDING:
            raise _DamageError(f"a line table that goes on after its {count} rows")
        if rows:
            rows.sort(key=lambda row: row[0])  # stable: of rows at one place, the last one counts
            offsets, lines, files = zip(*rows, strict=True)
            self._lines = address, Lines(offsets, lines, files)

    def _close(self, data: bytes, size: int, out: list[Note | End], times: tuple[int, int]) -> None:
        self.closed = True


_Reader = Callable[[JitDump, bytes, int, "list[Note | End]", "tuple[int, int]"], None]

#: Record type -> how many of its bytes are needed, and what reads them. Others are skipped.
_READERS: dict[int, tuple[int, _Reader]] = {
    _LOAD: (16 + 40 + MAX_NAME, JitDump._load),
    _MOVE: (16 + 48, JitDump._move),
    _DEBUG_INFO: (MAX_DEBUG_INFO, JitDump._debug_info),
    _CLOSE: (16, JitDump._close),
}
