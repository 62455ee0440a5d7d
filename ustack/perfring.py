# SPDX-License-Identifier: MIT
"""Rings of perf_event_open(2) that record every mmap, exec, fork and exit of the machine.

Owns the system call, the ring and the record formats. Must not know what changes add up to.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from struct import Struct
from types import TracebackType

from ustack.frame import AbsAddr, FileOffset, Reason
from ustack.maps import Change, Executed, Exited, Forked, Lost, Mapped, Mapping, Renamed, Time

__all__ = ["PerfRing", "parse_records"]

_NR_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}

# linux/perf_event.h
_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_DUMMY = 1, 9
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_SAMPLE_TID, _PERF_SAMPLE_TIME = 1 << 1, 1 << 2
_LOST, _COMM, _EXIT, _FORK, _MMAP2 = 2, 3, 4, 7, 10
_MISC_COMM_EXEC, _MISC_MMAP_BUILD_ID = 1 << 13, 1 << 14
_PROT_EXEC = 4

# Bits of perf_event_attr behind read_format; the one left out before 5.12 is the last.
_MMAP, _COMM_BIT, _TASK, _SAMPLE_ID_ALL = 1 << 8, 1 << 9, 1 << 13, 1 << 18
_MMAP2_BIT, _COMM_EXEC, _USE_CLOCKID, _BUILD_ID = 1 << 23, 1 << 24, 1 << 25, 1 << 34

# type, size, config, sample_period, sample_type, read_format, flags, wakeup, bp_type, config1,
# config2, branch_sample_type, sample_regs_user, sample_stack_user, clockid, sample_regs_intr,
# aux_watermark, sample_max_stack and reserved: PERF_ATTR_SIZE_VER5
_ATTR = Struct("=IIQQQQQIIQQQQIiQIHH")

_HEADER, _TWO, _TASK_RECORD = Struct("=IHH"), Struct("=II"), Struct("=IIIIQ")
_MMAP2_RECORD, _DEVICE = Struct("=IIQQQ24sII"), Struct("=IIQQ")
_TRAILER = Struct("=IIQ")  # pid, tid, time: what sample_id_all adds

# perf_event_mmap_page; struct offsets of data_head and data_tail.
_HEAD, _TAIL = 1024, 1032

#: Of one ring: 4000 records or so, the mmaps of some hundred process starts, between two polls.
_RING_BYTES = 512 << 10

# A record may still be on its way to its ring when a later one can be read from another.
_SETTLED_NS = 5_000_000

_Raw = tuple[int, int, bytes]  # type, misc, what follows the header


def parse_records(data: bytes) -> Iterator[Change]:
    """Records of one ring, one after the other, each with the trailer of sample_id_all.

    The kernel's structures: perf_event_open(2), "MMAP layout". Unknown types are passed over.
    """
    at = 0
    while at + _HEADER.size <= len(data):
        type_, misc, size = _HEADER.unpack_from(data, at)
        if size < _HEADER.size or at + size > len(data):
            return
        with suppress(struct.error):  # shorter than its type: of no use, and none is known
            change = _change(type_, misc, data[at + _HEADER.size : at + size])
            if change is not None:
                yield change
        at += size


def _change(type: int, misc: int, body: bytes) -> Change | None:
    if type in (_FORK, _EXIT):
        pid, parent, tid, _, time = _TASK_RECORD.unpack_from(body)
        if type == _EXIT:
            return Exited(pid, time) if pid == tid else None
        return Forked(pid, parent, time) if pid == tid and pid != parent else None
    if type not in (_MMAP2, _COMM, _LOST):
        return None
    _, _, time = _TRAILER.unpack_from(body, len(body) - _TRAILER.size)
    if type == _MMAP2:
        return _mapped(misc, body[: -_TRAILER.size], time)
    if type == _COMM:
        pid, tid = _TWO.unpack_from(body)
        comm = _text(body[_TWO.size : -_TRAILER.size])
        if misc & _MISC_COMM_EXEC:
            return Executed(pid, comm, time)
        return Renamed(pid, comm, time) if pid == tid else None
    return Lost(Struct("=QQ").unpack_from(body)[1], time)


def _mapped(misc: int, body: bytes, time: Time) -> Mapped | None:
    pid, _, start, size, offset, file, prot, _ = _MMAP2_RECORD.unpack_from(body)
    if not prot & _PROT_EXEC:
        return None
    path = _text(body[_MMAP2_RECORD.size :])
    place = AbsAddr(start), AbsAddr(start + size), FileOffset(offset), path
    if misc & _MISC_MMAP_BUILD_ID:
        return Mapped(pid, Mapping(*place, build_id=file[4 : 4 + min(file[0], 20)].hex()), time)
    major, minor, inode, _ = _DEVICE.unpack(file)
    return Mapped(pid, Mapping(*place, device=(major, minor), inode=inode), time)


def _text(data: bytes) -> str:
    return os.fsdecode(data.partition(b"\0")[0])


class PerfRing:
    """Records of all CPUs from now on; a context manager. `why_not`: why there are none.

    N.B. pids are those of the pid namespace that opened it.
    """

    def __init__(self) -> None:
        #: Records that the kernel had no room for: what they told is missing.
        self.lost = 0
        self.why_not: Reason | None = None
        self.problem = ""
        self._rings: list[_Ring] = []
        self._late: list[Change] = []
        try:
            for cpu in _online():
                self._rings.append(_Ring(cpu))
        except OSError as error:
            self.close()
            self.why_not = Reason.UNREADABLE
            self.problem = _explained(error)

    def __enter__(self) -> PerfRing:
        return self

    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """No more records; what is in the rings is gone."""
        while self._rings:
            self._rings.pop().close()

    def poll(self, *, all: bool = False) -> list[Change]:
        """What happened, by time. Takes what is there and does not wait.

        all: the last few milliseconds too, which may still lack a record of another CPU.
        """
        until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _SETTLED_NS
        changes, self._late = self._late, []
        for ring in self._rings:
            changes += parse_records(ring.read())
        changes.sort(key=lambda change: change.time)
        self.lost += sum(change.count for change in changes if isinstance(change, Lost))
        if not all and changes and changes[-1].time > until:
            ready = [change for change in changes if change.time <= until]
            self._late = changes[len(ready) :]
            changes = ready
        return [change for change in changes if not isinstance(change, Lost)]


class _Ring:
    """The records of one CPU."""

    def __init__(self, cpu: int) -> None:
        self._fd = _open(cpu)
        try:
            self._pages = mmap.mmap(self._fd, mmap.PAGESIZE + _RING_BYTES)
        except OSError:
            os.close(self._fd)
            raise
        self._view = memoryview(self._pages)
        self._words = self._view[: mmap.PAGESIZE].cast("Q")

    def read(self) -> bytes:
        """What came since the last call; the kernel may write there again."""
        head, tail = self._words[_HEAD // 8], self._words[_TAIL // 8]
        begin, size = tail % _RING_BYTES, head - tail
        data = bytes(self._view[mmap.PAGESIZE + begin :][:size])
        if len(data) < size:
            data += bytes(self._view[mmap.PAGESIZE :][: size - len(data)])
        self._words[_TAIL // 8] = head
        return data

    def close(self) -> None:
        self._words.release()
        self._view.release()
        self._pages.close()
        os.close(self._fd)


def _open(cpu: int) -> int:
    number = _NR_PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    flags = _MMAP | _MMAP2_BIT | _COMM_BIT | _COMM_EXEC | _TASK | _SAMPLE_ID_ALL | _USE_CLOCKID
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    for bits in (flags | _BUILD_ID, flags):  # the kernel knows build ids since 5.12
        attr = _ATTR.pack(
            _PERF_TYPE_SOFTWARE, _ATTR.size, _PERF_COUNT_SW_DUMMY, 0,
            _PERF_SAMPLE_TID | _PERF_SAMPLE_TIME, 0, bits, 0, 0, 0, 0, 0, 0, 0,
            time.CLOCK_BOOTTIME, 0, 0, 0, 0,
        )  # fmt: skip
        long = ctypes.c_long
        fd = syscall(
            long(number), attr, long(-1), long(cpu), long(-1), ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC)
        )
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _online() -> list[int]:
    """CPUs that run now: a list such as 0-3,6."""
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        ranges = [part.split("-") for part in file.read().strip().split(",")]
    return [cpu for bounds in ranges for cpu in range(int(bounds[0]), int(bounds[-1]) + 1)]


def _explained(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "perf_event_open: permission denied: run again with sudo (CAP_PERFMON)"
    if error.errno == errno.ENOSYS:
        return "perf_event_open: this kernel or machine type has none"
    return f"perf_event_open: {error.strerror}: see the kernel's log: dmesg"
