# SPDX-License-Identifier: MIT
"""Where a process's perf map and jitdumps are, and whether they are really its own.

Reads /proc and opens files; what is in the files is the parsers' business. /tmp is shared, and
pids come again: a file is taken only where owner, kind and age say that the process wrote it.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Place", "Process", "RefusedError", "find", "open_place", "process"]

_DUMP = re.compile(r"jit-[0-9]+\.dump")  # tools/perf/util/jitdump.c, jit_detect()
_HERTZ = os.sysconf("SC_CLK_TCK")


class RefusedError(Exception):
    """A file that is not read; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Process:
    """What files are compared with.

    ns_pid:  its pid as it knows it itself, in the innermost pid namespace
    users:   real, effective, saved and file system user
    started: ns of CLOCK_MONOTONIC, never later than true; the kernel counts in 10 ms
    ticks:   the same as the kernel writes it; with `pid`, it is one process and no other
    """

    pid: int
    ns_pid: int
    users: tuple[int, ...]
    started: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Place:
    """A path where notes may be.

    shown: how to name it to people
    dump:  a jitdump, else a perf map
    own:   the process has it mapped: whoever owns it, it is the process's
    """

    path: str
    shown: str
    dump: bool = False
    own: bool = False


def process(pid: int) -> Process:
    """The process now. Raises ProcessLookupError or PermissionError."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name, in parentheses, may hold anything: proc_pid_stat(5).
            state, *fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            status = dict(line.split(":", 1) for line in file if ":" in line)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"process {pid} is gone") from None
    if state in (b"Z", b"X"):
        raise ProcessLookupError(f"process {pid} has ended")
    ticks = int(fields[18])
    suspended = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return Process(
        pid=pid,
        ns_pid=int(status.get("NStgid", str(pid)).split()[-1]),
        users=tuple(map(int, status["Uid"].split())),
        started=ticks * 1_000_000_000 // _HERTZ - suspended,
        ticks=ticks,
    )


def find(one: Process, *, dumps: bool = True) -> list[Place]:
    """The places to look at, the best first. N.B. a file need not be there, or not yet.

    Perf maps: the process's own /tmp under the pid it knows, then ours under the pid we know.
    Jitdumps, with `dumps`: those that it has mapped, as perf finds them, then its directory.
    """
    name = f"perf-{one.ns_pid}.map"
    places = [
        Place(f"/proc/{one.pid}/root/tmp/{name}", f"/proc/{one.pid}/root/tmp/{name}"),
        Place(f"/tmp/perf-{one.pid}.map", f"/tmp/perf-{one.pid}.map"),
    ]
    if dumps:
        places += _mapped(one.pid)
        path = f"/proc/{one.pid}/cwd/jit-{one.ns_pid}.dump"
        places.append(Place(path, path, dump=True))
    return places


def _mapped(pid: int) -> Iterator[Place]:
    """The jitdumps in /proc/PID/maps: a page of each is mapped executable, for perf to notice."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return
    seen = set()
    for line in lines:
        fields = line.rstrip("\n").split(None, 5)
        if len(fields) < 6 or "x" not in fields[1] or fields[5] in seen:
            continue
        path = fields[5]
        if _DUMP.fullmatch(os.path.basename(path.removesuffix(" (deleted)"))):
            seen.add(path)
            low, high = (int(bound, 16) for bound in fields[0].split("-"))
            # Also right for a deleted file and in another mount namespace; needs CAP_SYS_ADMIN.
            exact = f"/proc/{pid}/map_files/{low:x}-{high:x}"
            if os.access(exact, os.R_OK):
                yield Place(exact, path, dump=True, own=True)
            else:
                yield Place(f"/proc/{pid}/root{path}", path, dump=True)


def open_place(place: Place, one: Process) -> int:
    """A descriptor to read the place with.

    Raises FileNotFoundError, and RefusedError for a file that may not be the process's.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO would block
    try:
        if place.own:
            return os.open(place.path, flags)
        # Nothing below may be a link: an absolute one, in a container, would lead to our files.
        parent, name = os.path.split(place.path)
        follow = 0 if parent.endswith("/cwd") else os.O_NOFOLLOW
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | follow)
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
        finally:
            os.close(directory)
    except FileNotFoundError:
        raise
    except PermissionError:
        raise RefusedError(
            f"{place.shown} is not readable: run this as root or as user {one.users[1]}"
        ) from None
    except OSError as error:
        if os.path.islink(place.path) or os.path.islink(os.path.dirname(place.path)):
            why = "is a symbolic link, or its directory is: put the file itself there"
        else:
            why = f"cannot be opened: {error.strerror}"
        raise RefusedError(f"{place.shown} {why}") from None
    try:
        _check(os.fstat(descriptor), place, one)
    except RefusedError:
        os.close(descriptor)
        raise
    return descriptor


def _check(info: os.stat_result, place: Place, one: Process) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise RefusedError(f"{place.shown} is no regular file: delete it")
    if info.st_uid not in (*one.users, 0):
        raise RefusedError(
            f"{place.shown} belongs to user {info.st_uid}, process {one.pid} runs as "
            f"{one.users[1]}: delete the file and restart the process"
        )
