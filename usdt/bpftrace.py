# SPDX-License-Identifier: MIT
"""Runs the stock bpftrace: is it there and new enough, start it, know when it listens, end it.

Knows the program's options, environment and noises; must not know what its scripts say.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import IO

from usdt._command import CANNOT, CommandError
from usdt.script import STRING_ROOM

__all__ = ["OLDEST", "PIPE_SIZE", "Bpftrace", "complaints", "locate", "version_of"]

OLDEST = (0, 17)
_INSTALL = "sudo apt-get install bpftrace"
#: Bytes that may wait for us to read them; one read takes all.
PIPE_SIZE = 1 << 20

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Names before and after 0.20, which do not mind each other. A trace of many probes or pids is
# wanted as it is; a buffer of 4 MiB per CPU takes a burst of 30 000 events.
_ENVIRONMENT = {
    "BPFTRACE_STRLEN": str(STRING_ROOM),
    "BPFTRACE_MAX_STRLEN": str(STRING_ROOM),
    "BPFTRACE_MAP_KEYS_MAX": "65536",
    "BPFTRACE_MAX_MAP_KEYS": "65536",
    "BPFTRACE_MAX_PROBES": "65536",
    "BPFTRACE_MAX_BPF_PROGS": "65536",
    "BPFTRACE_PERF_RB_PAGES": "1024",
}

# What bpftrace says although all is well: it may lack CAP_SYS_RESOURCE, and asks tracefs to
# remove uprobes that it made in another way.
_HARMLESS = re.compile(r"RLIMIT_MEMLOCK|uprobe_events|failed to detach probe|^\s*$")


def version_of(path: str) -> tuple[int, ...]:
    """(0, 17, 0) for the bpftrace at `path`; () if it does not run or says nothing like it."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.search(r"v?(\d+)\.(\d+)\.?(\d*)", done.stdout)
    return tuple(int(part) for part in match.groups() if part) if match else ()


def locate() -> str:
    """The path of a bpftrace that this user can run. Raises CommandError."""
    path = shutil.which("bpftrace")
    if path is None:
        raise CommandError(f"bpftrace is not installed: {_INSTALL}", CANNOT)
    version = version_of(path)
    if version[:2] < OLDEST:
        shown = ".".join(map(str, version)) or "unknown"
        raise CommandError(
            f"{path} has version {shown} and {OLDEST[0]}.{OLDEST[1]} or later is needed: "
            f"{_INSTALL}",
            CANNOT,
        )
    if os.geteuid() != 0:
        raise CommandError("bpftrace runs as root only: run again with sudo", CANNOT)
    return path


class Bpftrace:
    """One running bpftrace: `stdout` and `stderr` are file descriptors to poll.

    It ends when this process does, also by SIGKILL. Always call `close()`.
    """

    def __init__(self, path: str, script: str) -> None:
        libc = ctypes.CDLL(None)
        parent = os.getpid()

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        # A session of its own: Ctrl-C must reach it through `end()` only, so that it prints its
        # maps once. The script goes by stdin, which has no length limit and leaves no file.
        self._process = subprocess.Popen(
            [path, "-f", "json", "-B", "line", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ) | _ENVIRONMENT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.pid = self._process.pid
        stdin, *self._streams = _pipes(self._process)
        with suppress(OSError):
            fcntl.fcntl(self._streams[0], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.stdout, self.stderr = (stream.fileno() for stream in self._streams)
        with suppress(BrokenPipeError):
            stdin.write(script.encode("ascii"))
        with suppress(BrokenPipeError):
            stdin.close()

    def end(self) -> None:
        """Ask it to detach, print its maps and exit; read `stdout` to its end after that."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once; what it has not printed is lost."""
        self._process.kill()

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
    """stdin, stdout and stderr of a process that was started with three pipes."""
    return [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe is not None]


def complaints(stderr: bytes) -> list[str]:
    """The lines of its stderr that mean something."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    return [line for line in lines if not _HARMLESS.search(line)]
