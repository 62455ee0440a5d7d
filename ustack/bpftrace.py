# SPDX-License-Identifier: MIT
"""The stock bpftrace: which one is there, what this version needs to be told, one running script.

Knows the program's options, environment, spellings and noises; must not know what scripts say.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TypeVar

from ustack.walk.cpython import Limits

__all__ = ["Bpftrace", "Lost", "Running", "TracerError", "complaints", "locate", "read_line"]

OLDEST = (0, 17)
_INSTALL = "sudo apt-get install bpftrace"
_PIPE_SIZE = 1 << 20
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

#: Versions from which rows hold, the newest last: measured with the kernel's verifier, with room
#: for a probe of one's own around the walker.
_LIMITS = {
    (0, 17): Limits(frames=3150, named=32, threads=96, chunk=64, pieces=(2, 3, 6)),
    (0, 23): Limits(frames=300, named=24, threads=64, chunk=512, pieces=(1, 1, 1)),
}

# Names before and after 0.20, which do not mind each other. 4 MiB per CPU take the first sight
# of a large program.
_ENVIRONMENT = {
    "BPFTRACE_NO_USER_SYMBOLS": "1",
    "BPFTRACE_MAP_KEYS_MAX": "65536",
    "BPFTRACE_MAX_MAP_KEYS": "65536",
    "BPFTRACE_PERF_RB_PAGES": "1024",
    "BPFTRACE_STR_TRUNC_TRAILER": "",
}
_STRING_ROOM = {(0, 17): {"BPFTRACE_STRLEN": "128"}, (0, 23): {"BPFTRACE_MAX_STRLEN": "1024"}}

# What it says although all is well.
_HARMLESS = re.compile(
    r"RLIMIT_MEMLOCK|WARNING|available_filter_functions|failed to detach probe|^\s*$|^\s+~+$"
)


class TracerError(Exception):
    """One line: what of the tracer is missing, and the next command."""


@dataclass(frozen=True, slots=True)
class Lost:
    """So many records were lost on their way from the kernel."""

    records: int


@dataclass(frozen=True, slots=True)
class Bpftrace:
    """The bpftrace at `command`, a path or a path behind a chroot; version: (0, 17, 0)."""

    command: tuple[str, ...]
    version: tuple[int, ...]

    @property
    def limits(self) -> Limits:
        return _row(_LIMITS, self.version)

    def stack(self, which: str, depth: int) -> str:
        """A stack of raw addresses; which: "ustack" or "kstack"."""
        mode = "raw" if self.version >= (0, 18) else "perf"
        return f"{which}({mode}, {depth})"

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | _ENVIRONMENT | _row(_STRING_ROOM, self.version)


_T = TypeVar("_T")


def _row(table: dict[tuple[int, int], _T], version: tuple[int, ...]) -> _T:
    return table[max(since for since in table if since <= version[:2])]


def locate(command: Sequence[str] = ("bpftrace",)) -> Bpftrace:
    """The bpftrace that this user can run. Raises TracerError."""
    if shutil.which(command[0]) is None:
        raise TracerError(f"{command[0]} is not installed: {_INSTALL}")
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=20)
        said = done.stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    match = re.search(r"v?(\d+)\.(\d+)\.?(\d*)", said)
    version = tuple(int(part) for part in match.groups() if part) if match else ()
    if version[:2] < OLDEST:
        shown = ".".join(map(str, version)) or "unknown"
        raise TracerError(
            f"{' '.join(command)} has version {shown} and {OLDEST[0]}.{OLDEST[1]} or later is "
            f"needed: {_INSTALL}"
        )
    if os.geteuid() != 0:
        raise TracerError("bpftrace runs as root only: run again with sudo")
    return Bpftrace(tuple(command), version)


class Running:
    """One running script: `stdout` and `stderr` are descriptors to poll. Always `close()` it.

    It ends when this process does, also by SIGKILL.
    """

    def __init__(self, tracer: Bpftrace, script: str) -> None:
        libc = ctypes.CDLL(None)
        parent = os.getpid()

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        # A session of its own: Ctrl-C reaches it through `end()` only.
        self._process = subprocess.Popen(
            [*tracer.command, "--no-warnings", "-f", "json", "-B", "line", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=tracer.environment(),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.pid = self._process.pid
        stdin, *self._streams = _pipes(self._process)
        with suppress(OSError):
            fcntl.fcntl(self._streams[0], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self.stdout, self.stderr = (stream.fileno() for stream in self._streams)
        with suppress(BrokenPipeError):
            stdin.write(script.encode("ascii"))
        with suppress(BrokenPipeError):
            stdin.close()

    def end(self) -> None:
        """Ask it to detach and exit; read `stdout` to its end after that."""
        self._process.terminate()

    def close(self) -> int:
        """Its exit status; it is killed if it has not ended by itself."""
        try:
            return self._process.wait(2)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            for stream in self._streams:
                stream.close()


def _pipes(process: subprocess.Popen[bytes]) -> list[IO[bytes]]:
    return [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe is not None]


_PLAIN = b'{"type": "printf", "data": "'


def read_line(line: bytes) -> bytes | Lost | None:
    """What a printf of the script printed, without its newline; Lost; None for anything else.

    Raises ValueError for a line that bpftrace did not finish.
    """
    if line.startswith(_PLAIN) and line.endswith(b'\\n"}') and line.count(b"\\") == 1:
        return line[len(_PLAIN) : -4]
    if not line.startswith(b"{"):
        return None
    record = json.loads(line.decode("latin-1"), strict=False)
    if record["type"] == "printf":
        text: str = record["data"]
        return text.rstrip("\n").encode("latin-1")
    if record["type"] == "lost_events":
        return Lost(int(record["data"]["events"]))
    return None


def complaints(stderr: bytes) -> list[str]:
    """The lines of its stderr that mean something."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    return [line for line in lines if not _HARMLESS.search(line)]
