# SPDX-License-Identifier: MIT
"""One run of bpftrace under `usdt trace`, from its start to the last line.

Knows signals, time and descriptors: what ends a trace, and that nothing is left behind. Must not
know what is traced, nor how it is shown.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from usdt import bpftrace
from usdt._command import CANNOT, FAILED, CommandError, printable
from usdt.bpftrace import PIPE_SIZE, Bpftrace
from usdt.events import Assembler, Begin, Event, Lost, Table
from usdt.report import Report
from usdt.script import Target

__all__ = ["Session"]

#: Seconds that bpftrace may say nothing while it ends.
_END = 10.0

#: Seconds that the kernel may take to detach one probe, before bpftrace prints its maps.
_DETACH = 0.5

#: Probes from which on the wait for that is announced.
_MANY = 20

#: Seconds of silence after which a process that has ended has nothing left in the buffers: asked
#: to end, bpftrace drops what it has not read.
_QUIET = 0.3

#: Milliseconds until something may be due; a signal's handler does not end a poll.
_TURN = 100


class Session:
    """pid: the one process that is traced, whose end ends the trace; duration: seconds."""

    def __init__(
        self,
        targets: Sequence[Target],
        report: Report,
        *,
        pid: int | None,
        duration: float | None,
    ) -> None:
        self._report = report
        self._pid = pid
        self._duration = duration
        self._assembler = Assembler(targets)
        self._errors = b""
        self._rest = b""
        self._probes = len(targets)
        self._patience = _END + _DETACH * len(targets)
        self._deadline = 0.0
        self._asked = self._gone = False
        self._tracer_pid = 0
        self._attached = False
        self._ending = False

    def run(self, program: str, script: str) -> None:
        """Until Ctrl-C, SIGTERM or another end. Raises CommandError."""
        tracer = Bpftrace(program, script)
        self._tracer_pid = tracer.pid
        status = -1
        try:
            with self._signals(tracer), ExitStack() as stack:
                self._loop(tracer, stack)
        except BrokenPipeError:
            # Whoever read us is gone: nothing is left to say, and nobody to say it to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            tracer.kill()
            return
        finally:
            status = tracer.close()
        if not self._attached and not self._ending:
            self._failed(status)
        self._report.finish(incomplete=self._assembler.incomplete)

    @contextmanager
    def _signals(self, tracer: Bpftrace) -> Iterator[None]:
        def end(signum: int, frame: object) -> None:
            if self._asked:
                tracer.kill()  # asked twice: at once, whatever is lost
            self._asked = True

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, tracer: Bpftrace) -> None:
        """Ask bpftrace to end, at a moment when it is not waiting for room in the pipe: a signal
        would break that write off, and it would print nothing more, not even its maps."""
        self._ending = True
        if self._attached and self._probes >= _MANY:
            self._report.note(f"detaching {self._probes} probes, one at a time")
        waiting = select.poll()
        waiting.register(tracer.stdout, select.POLLIN)
        data = os.read(tracer.stdout, PIPE_SIZE) if waiting.poll(0) else b""
        tracer.end()
        self._deadline = time.monotonic() + self._patience
        self._read(data)

    def _loop(self, tracer: Bpftrace, stack: ExitStack) -> None:
        poller = select.poll()
        poller.register(tracer.stdout, select.POLLIN)
        poller.register(tracer.stderr, select.POLLIN)
        with suppress(OSError, ValueError):  # closed, or no descriptor at all
            poller.register(sys.stdout.fileno(), 0)  # an error tells that its reader is gone
        process = -1
        if self._pid is not None:
            with suppress(OSError):
                process = os.pidfd_open(self._pid)
                stack.callback(os.close, process)
                poller.register(process, select.POLLIN)
        open_ = {tracer.stdout, tracer.stderr}
        while open_:
            for fd, _ in poller.poll(_TURN):
                if fd in open_:
                    data = os.read(fd, PIPE_SIZE)
                    if not data:
                        poller.unregister(fd)
                        open_.discard(fd)
                    elif fd == tracer.stdout:
                        self._read(data)
                        self._heard()
                    else:
                        self._errors = (self._errors + data)[-65536:]
                elif fd == process:
                    poller.unregister(fd)
                    self._gone = True
                    self._heard()
                else:
                    raise BrokenPipeError
            self._progress(tracer)

    def _heard(self) -> None:
        """Put off what waits for silence."""
        if self._ending:
            self._deadline = time.monotonic() + self._patience
        elif self._gone and self._attached:
            self._deadline = time.monotonic() + _QUIET

    def _progress(self, tracer: Bpftrace) -> None:
        now = time.monotonic()
        if self._ending:
            if now > self._deadline:
                tracer.kill()
        elif self._asked or (self._attached and self._bounded and now > self._deadline):
            self._end(tracer)

    @property
    def _bounded(self) -> bool:
        """Whether the deadline is that of the whole trace."""
        return self._gone or self._duration is not None

    def _read(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._one(line)
        self._report.flush()

    def _one(self, line: bytes) -> None:
        try:
            value = self._assembler.feed(line)
        except (ValueError, KeyError, IndexError, TypeError, AssertionError):
            value = Lost(1)  # a line that bpftrace did not finish
        match value:
            case Event():
                self._report.event(value)
            case Table():
                self._report.table(value)
            case Lost():
                self._report.lost(value)
            case Begin():
                self._begin(value)

    def _begin(self, value: Begin) -> None:
        if value.pid != self._tracer_pid:
            # Older versions see the pids of the machine, whatever the container.
            if self._pid is not None:
                raise CommandError(
                    "bpftrace sees other pids than this container: run again on the host, or "
                    "without -p",
                    CANNOT,
                )
            self._report.note("the pids are those of the host")
        self._attached = True
        if not self._ending:
            self._report.start()
            self._deadline = time.monotonic() + (self._duration or _QUIET)

    def _failed(self, status: int) -> None:
        """bpftrace ended before it had attached."""
        said = bpftrace.complaints(self._errors)
        reason = printable(said[0]) if said else f"it ended with status {status}"
        denied = any("ermission" in line or "not permitted" in line for line in said)
        raise CommandError(
            f"bpftrace could not attach: {reason}: see what is missing: usdt doctor",
            CANNOT if denied else FAILED,
        )
