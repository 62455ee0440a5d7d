# SPDX-License-Identifier: MIT
"""`usdt trace`: a pattern -> the files to attach to -> a script for bpftrace -> a session.

Decides what is traced, and by which path; must not know bpftrace's output, nor ours.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from stubgen.found import Elf, FoundProbe
from usdt import bpftrace, find, script
from usdt._command import USAGE, CommandError
from usdt.report import Report
from usdt.script import Target
from usdt.session import Session

__all__ = ["Request", "trace"]


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for. hist: the argument's name; duration: seconds."""

    pattern: str
    pid: int | None = None
    json: bool = False
    count: bool = False
    hist: str | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """A file to attach to. path: the name by which bpftrace is told of it."""

    path: str
    elf: Elf
    probes: tuple[FoundProbe, ...]


def trace(request: Request) -> None:
    """Print what matches until Ctrl-C, SIGTERM, `duration`, or the end of the reader or of the
    one process traced. Raises CommandError."""
    if request.pattern.count(":") != 1:
        raise CommandError(
            f"{request.pattern!r} is no PROVIDER:PROBE: try 'shop:*', or see: usdt list", USAGE
        )
    program = bpftrace.locate()
    with ExitStack() as stack:
        files = _files(request, stack)
        targets = [
            script.plan(file.path, probe, machine=file.elf.machine)
            for file in files
            for probe in file.probes
        ]
        if not targets:
            where = "" if request.pid is None else f" in process {request.pid}"
            also = "" if request.pid is None else f" -p {request.pid}"
            raise CommandError(
                f"no probe matches {request.pattern!r}{where}: see what there is: usdt list{also}"
            )
        if request.hist is not None:
            targets = _with_argument(targets, request.hist)
        mode = "count" if request.count else "hist" if request.hist is not None else "events"
        report = Report(targets, json=request.json, mode=mode, arg=request.hist)
        text = _text(request, targets, refresh=report.live)
        session = Session(targets, report, pid=request.pid, duration=request.duration)
        session.run(program, text)


def _text(request: Request, targets: list[Target], *, refresh: bool) -> str:
    if request.count:
        return script.count(targets, pid=request.pid, refresh=refresh)
    if request.hist is not None:
        return script.histogram(targets, request.hist, pid=request.pid, refresh=refresh)
    return script.events(targets, pid=request.pid)


def _files(request: Request, stack: ExitStack) -> list[_File]:
    """Each file with matching probes once, however many processes map it."""
    files = []
    seen = set()
    for path, reach, elf in _candidates(request.pid):
        try:
            # O_NONBLOCK: what lies there now may be somebody's FIFO.
            fd = os.open(reach, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # it is gone, or its process is
        stack.callback(os.close, fd)
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        # By its own name where that is the very same file for us too: not in another mount
        # namespace, not deleted. Else by a name that lasts as long as we hold it open.
        name = f"/proc/{os.getpid()}/fd/{fd}"
        with suppress(OSError):
            if os.path.samestat(os.stat(path), info):
                name = path
        probes = {
            probe.full_name: probe for probe in elf.probes if _matches(request.pattern, probe)
        }
        if not all(script.usable(name, probe) for probe in probes.values()):
            name = f"/proc/{os.getpid()}/fd/{fd}"
        usable = tuple(probe for probe in probes.values() if script.usable(name, probe))
        if usable:
            files.append(_File(name, elf, usable))
    return files


def _candidates(pid: int | None) -> Iterator[tuple[str, str, Elf]]:
    """(path, a path that opens it, what it says)."""
    if pid is not None:
        for file in find.process(pid).files:
            yield file.path, file.reach, file.elf
        return
    # Also what nobody maps yet: attached by path, it is traced in processes that start later.
    for elf in find.stubs_on_disk():
        yield elf.path, elf.path, elf
    for process in find.survey().processes:
        for file in process.files:
            yield file.path, file.reach, file.elf


def _matches(pattern: str, probe: FoundProbe) -> bool:
    provider, _, name = pattern.partition(":")
    return fnmatch.fnmatchcase(probe.provider, provider) and fnmatch.fnmatchcase(probe.name, name)


def _with_argument(targets: list[Target], name: str) -> list[Target]:
    """The targets that have it, if a histogram of it can be made. Raises CommandError."""
    chosen = [target for target in targets if any(arg.name == name for arg in target.args)]
    if not chosen:
        known = sorted({arg.name for target in targets for arg in target.args})
        raise CommandError(
            f"no argument {name!r} there: use one of {', '.join(known) or '(none has any)'}", USAGE
        )
    for target in chosen:
        (arg,) = (arg for arg in target.args if arg.name == name)
        if arg.type in ("f32", "f64"):
            raise CommandError(
                f"{target.full_name} {name} is {arg.type}, of which bpftrace can make no "
                "histogram: declare an integer, such as nanoseconds as u64",
                USAGE,
            )
        if arg.type in ("bytes", ""):
            reason = "is bytes" if arg.type else "cannot be read by this bpftrace"
            raise CommandError(
                f"{target.full_name} {name} {reason}: choose an integer or a string", USAGE
            )
    return chosen
