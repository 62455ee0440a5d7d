# SPDX-License-Identifier: MIT
"""`ustack record`: an event -> a script for stock bpftrace -> samples -> a Profile with names.

Joins the walker, the address spaces, the notes and the kernel's symbols. Must not know how a
Profile is written, nor what its names look like.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ustack import gil
from ustack.bpftrace import Bpftrace, Lost, Running, TracerError, complaints, locate, read_line
from ustack.frame import AbsAddr, Frame
from ustack.jit import LiveNotes
from ustack.kernel import load_kernel
from ustack.perfring import PerfRing
from ustack.render.profile import Profile, Sample
from ustack.spaces import Spaces
from ustack.splice import splice
from ustack.walk.cpython import Decoder, Target, fragment, futex_words, gil_probes, rows
from ustack.walk.cpython.target import read_memory
from ustack.walk.errors import WalkError

__all__ = ["GIL", "Progress", "Recording", "Request", "record"]

#: Frames of a native stack; PERF_MAX_STACK_DEPTH of linux/perf_event.h.
_DEPTH = 127

#: The event that is not a probe: threads that wait for CPython's GIL.
GIL = "gil"

#: Seconds after which the records around a sample are in: CPUs do not print in order.
_SETTLED = 0.5

#: Seconds between two looks at what is new; and that bpftrace may take to end.
_TURN, _END = 0.1, 20.0


@dataclass(frozen=True, slots=True)
class Request:
    """What to record. event: a bpftrace probe, or GIL; pid: one process, None for all; duration:
    seconds, None until `stop`."""

    event: str = "profile:hz:99"
    pid: int | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """problems: sentences on what is missing, in the order met; facts: lines that a profile has no
    room for."""

    profile: Profile
    problems: tuple[str, ...]
    facts: tuple[str, ...] = ()


#: Called with the samples so far and the seconds since the start; True ends the recording.
Progress = Callable[[int, float], bool]


class _Raw(NamedTuple):
    """One sample as bpftrace prints it; addresses leaf first."""

    time: int
    pid: int
    tid: int
    space: int
    key: int
    user: tuple[int, ...]
    kernel: tuple[int, ...]


def record(request: Request, progress: Progress) -> Recording:
    """Record until the duration is over, the process has ended, or `progress` says so.

    Raises TracerError where nothing can be recorded.
    """
    tracer = locate()
    recorder = _Recorder(request, _targets(request.pid))
    started = time.time_ns()
    with PerfRing() as ring:
        recorder.spaces.scan_all() if request.pid is None else recorder.spaces.scan(request.pid)
        running = Running(tracer, recorder.script(tracer))
        try:
            seconds = recorder.follow(running, ring, progress)
        finally:
            running.close()
    return recorder.result(started, int(seconds * 1e9), tracer)


def _targets(pid: int | None) -> tuple[dict[int, Target], list[str]]:
    """The CPython processes there are, and why one that was asked for is none."""
    found: dict[int, Target] = {}
    problems = []
    pids = [pid] if pid else [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for one in pids:
        try:
            found[one] = Target.of(one)
        except WalkError as error:
            if pid is not None and "no CPython" not in str(error):
                problems.append(str(error))
    return found, problems


class _Recorder:
    """What is known while recording; `spaces`: the address spaces of the processes seen."""

    def __init__(self, request: Request, targets: tuple[dict[int, Target], list[str]]) -> None:
        self._request = request
        self._targets, self._problems = targets
        self._decoder = Decoder({p: t.layout for p, t in self._targets.items()}, read_memory)
        self._notes = LiveNotes()
        self.spaces = Spaces(notes=self._notes)
        self._kernel = load_kernel()
        self._rest = b""
        self._errors = b""
        self._raw: list[_Raw | gil.Wait] = []
        self._waits: list[gil.Wait] = []
        self._samples: list[Sample] = []
        self._lost = 0
        self._attached = False
        self._names: dict[tuple[int, int, int], Frame] = {}

    def script(self, tracer: Bpftrace) -> str:
        """BEGIN's record says that the event is attached: bpftrace prints nothing before."""
        if self._request.event == GIL:
            return self._gil_script(tracer)
        python = fragment(tracer.limits) if self._targets else ""
        table = {pid: target.row() for pid, target in self._targets.items()}
        condition = "" if self._request.pid is None else f" /pid == {self._request.pid}/"
        where = "$space, $key" if python else "(uint64)0, (uint64)0"
        stacks = f"{tracer.stack('ustack', _DEPTH)}, {tracer.stack('kstack', _DEPTH)}"
        return (
            f'BEGIN {{\n{rows(table) if python else ""}  printf("B\\n");\n}}\n'
            f"{self._request.event}{condition} {{\n{python}"
            f'  printf("S %llx %d %d %lx %lx %s|%s\\n", nsecs, pid, tid, {where}, {stacks});\n}}\n'
        )

    def _gil_script(self, tracer: Bpftrace) -> str:
        words = {}
        for pid, target in self._targets.items():
            try:
                words[pid] = futex_words(target, read_memory)
            except WalkError as error:
                self._problems.append(f"process {pid}: {error}")
            except OSError as error:
                self._problems.append(f"process {pid}: its GIL cannot be read: {error}")
        if not words:
            why = self._problems[0] if self._problems else "there is no CPython 3.10 to 3.13 in it"
            raise TracerError(f"{GIL}: {why}: see what runs with: ps -e")
        begin, probes = gil_probes(tracer.limits, words, self._request.pid)
        table = {pid: self._targets[pid].row() for pid in words}
        return f'BEGIN {{\n{rows(table)}{begin}  printf("B\\n");\n}}\n{probes}'

    def follow(self, running: Running, ring: PerfRing, progress: Progress) -> float:
        """Read until the end; returns the seconds that were recorded."""
        begun = ended = time.monotonic()
        stopping = False
        deadline = float("inf")
        open_ = {running.stdout, running.stderr}
        poller = select.poll()
        for fd in open_:
            poller.register(fd, select.POLLIN)
        while open_:
            for fd, _ in poller.poll(_TURN * 1000):
                data = os.read(fd, 1 << 20)
                if not data:
                    poller.unregister(fd)
                    open_.discard(fd)
                elif fd == running.stdout:
                    self._read(data)
                else:
                    self._errors = (self._errors + data)[-65536:]
            now = time.monotonic()
            if not self._attached:
                begun = now
            self.spaces.apply(ring.poll())
            self._notes.poll()
            self._name(_SETTLED)
            over = self._request.duration is not None and now - begun > self._request.duration
            gone = self._request.pid is not None and not _lives(self._request.pid)
            if not stopping and (progress(self.count, now - begun) or over or gone):
                stopping, ended, deadline = True, now, now + _END
                running.end()
            if now > deadline:
                break
        if not self._attached:
            raise TracerError(self._refused())
        self.spaces.apply(ring.poll(all=True))
        self._name(0)
        return (ended if stopping else time.monotonic()) - begun

    @property
    def count(self) -> int:
        return len(self._samples) + len(self._raw)

    def result(self, started: int, duration: int, tracer: Bpftrace) -> Recording:
        problems = [*self._problems, *self.spaces.problems]
        request = self._request
        rate = request.event.removeprefix("profile:hz:")
        version = ".".join(map(str, tracer.version))
        what = f"process {request.pid}" if request.pid is not None else "all processes"
        profile = Profile(
            tuple(self._samples),
            unit="ns" if request.event == GIL else "samples",
            title=f"{what}, {request.event}, bpftrace {version}",
            event=request.event,
            started=started,
            duration=duration,
            period=1_000_000_000 // int(rate) if rate.isdigit() and int(rate) else 0,
            lost=self._lost,
        )
        self._notes.close()
        return Recording(profile, tuple(problems), tuple(gil.lines(self._waits)))

    def _refused(self) -> str:
        said = complaints(self._errors)
        reason = said[0] if said else "bpftrace ended before it had attached"
        return f"{self._request.event}: {reason}: see what there is with: bpftrace -l"

    def _read(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                record = read_line(line)
                if record is None:
                    continue
                if isinstance(record, Lost):
                    self._lost += record.records
                elif record.startswith(b"S "):
                    self._raw.append(_parse(record))
                elif record.startswith(b"G "):
                    self._raw.append(gil.parse(record))
                elif record == b"B":
                    self._attached = True
                else:
                    self._decoder.feed(record)
            except (ValueError, KeyError, IndexError, TypeError):
                self._lost += 1  # a line that bpftrace did not finish

    def _name(self, settled: float) -> None:
        """Name the samples whose records are in."""
        until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(settled * 1e9)
        late: list[_Raw | gil.Wait] = []
        for raw in self._raw:
            if raw.time > until:
                late.append(raw)
            elif isinstance(raw, gil.Wait):
                self._samples.append(self._wait(raw))
                self._waits.append(raw)
            else:
                self._samples.append(self._sample(raw))
        self._raw = late

    def _wait(self, wait: gil.Wait) -> Sample:
        """The waiter's Python stack, and on it who had the GIL."""
        stack = self._decoder.stack(wait.pid, wait.space, wait.key)
        holder = self._decoder.stack(wait.pid, wait.space, wait.holder_key)
        by = gil.holder_frame(wait.holder, [one.frame for one in holder])
        return Sample(
            (*(one.frame for one in reversed(stack)), by),
            wait.time - wait.began,
            pid=wait.pid,
            tid=wait.tid,
            comm=self.spaces.comm(wait.pid, wait.time),
            time=wait.began,
        )

    def _sample(self, raw: _Raw) -> Sample:
        native = [self._user(raw, address) for address in raw.user]
        kernel = [self._kernel.resolve(AbsAddr(address)) for address in raw.kernel]
        python: list[Frame] = []
        if raw.pid in self._targets:
            stack = self._decoder.stack(raw.pid, raw.space, raw.key)
            python = [one.frame for one in stack]
        return Sample(
            splice(kernel, native, python),
            1,
            pid=raw.pid,
            tid=raw.tid,
            comm=self.spaces.comm(raw.pid, raw.time),
            time=raw.time,
        )

    def _user(self, raw: _Raw, address: int) -> Frame:
        """Code that has a symbol stays where it is; what a JIT wrote is asked about each time."""
        key = raw.pid, raw.space, address
        frame = self._names.get(key)
        if frame is None:
            frame = self.spaces.resolve(raw.pid, AbsAddr(address), raw.time)
            if frame.kind == "native" and frame.why is None:
                self._names[key] = frame
        return frame


def _lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not (proc(5), state)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def _parse(record: bytes) -> _Raw:
    """`S time pid tid space key user|kernel`: stacks are lines that begin with an address."""
    _, when, pid, tid, space, key, stacks = record.split(b" ", 6)
    user, _, kernel = stacks.partition(b"|")
    return _Raw(
        int(when, 16), int(pid), int(tid), int(space, 16), int(key, 16),
        _addresses(user), _addresses(kernel),
    )  # fmt: skip


def _addresses(text: bytes) -> tuple[int, ...]:
    return tuple(int(line.split()[0], 16) for line in text.splitlines() if line.strip())
