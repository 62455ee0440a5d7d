# SPDX-License-Identifier: MIT
"""Traced services and real tracers as processes: start them, talk to them, look into their memory.

Knows processes, pipes and semaphores; what is declared, fired and expected is each test's.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from stubgen.read import read_pid
from usdt import _probe

ROOT = Path(__file__).resolve().parents[2]

#: Seconds that anything here may take before it is a failure. Two tests of bpftrace at once on
#: a small machine spend most of it compiling.
PATIENCE = 30.0

# Numbers of epoll_wait(2) and epoll_pwait(2) on x86-64, and of the latter on aarch64.
_EPOLL_WAIT = {"232", "281", "22"}

_STUB_NAME = re.compile(r"-[0-9a-f]{16}\.so( \(deleted\))?$")

# What every service starts with. `started()` and `done()` are for the harness; `wait()` is
# where the service stands until the test says `go()`.
PRELUDE = """\
import sys
def started(): print("STARTED!", flush=True)
def done(): print("DONE!", flush=True)
def wait(): return bool(sys.stdin.readline())
"""


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = PATIENCE) -> None:
    """Poll `condition` until it is true; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


class _Child:
    """A child process whose output is collected by threads, so that no pipe ever fills."""

    def __init__(self, argv: list[str], *, env: dict[str, str], user: int | None = None) -> None:
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        self.pid = self.process.pid
        self._out: list[bytes] = []
        self._err: list[bytes] = []
        self._threads = [
            threading.Thread(target=self._collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self._out), (self.process.stderr, self._err))
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self, stream: object, into: list[bytes]) -> None:
        into.extend(iter(stream.readline, b""))  # type: ignore[attr-defined]

    @property
    def output(self) -> bytes:
        """What it has written to stdout so far."""
        return b"".join(self._out)

    @property
    def text(self) -> str:
        """`output` as text; what is not UTF-8 is shown as \\xNN."""
        return self.output.decode("utf-8", "backslashreplace")

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return b"".join(self._err).decode("utf-8", "backslashreplace")

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, *, seconds: float = PATIENCE) -> int:
        """Its exit status, once it has ended and all of its output is collected."""
        status = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(seconds)
        return status

    def kill(self) -> None:
        if self.running():
            self.process.kill()
        self.process.wait(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            for thread in self._threads:
                thread.join(1)
            with suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]


class Service(_Child):
    """A Python process that runs `PRELUDE` and then a test's source."""

    def started(self) -> Service:
        """Return once it said STARTED!"""
        self._sentinel(b"STARTED!")
        return self

    def go(self) -> None:
        """Let its `wait()` return True, once."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def done(self) -> Service:
        """Return once it said DONE!"""
        self._sentinel(b"DONE!")
        return self

    def _sentinel(self, word: bytes) -> None:
        wait_until(lambda: word in self.output or not self.running(), f"{word!r} of a service")
        if word not in self.output:
            self.wait()
            raise AssertionError(f"the service ended without {word!r}:\n{self.errors}")

    def semaphores(self) -> dict[str, list[int]]:
        """Stub path as in its maps -> the semaphores' values, read from its memory."""
        return read_semaphores(self.pid)

    def listening(self) -> int:
        """How many of its probes have a listener."""
        return sum(value != 0 for values in self.semaphores().values() for value in values)


class Bpftrace(_Child):
    """A running bpftrace; `text` is what it printed."""

    def polling(self) -> bool:
        """Whether it waits for events: every probe is attached, each with its program.

        N.B. A semaphore rises a little before its site is patched and the program is there.
        """
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/syscall").read_text().split()[0] in _EPOLL_WAIT
        return False

    def stop(self) -> str:
        """End it as Ctrl-C does, maps printed; returns `text`."""
        if self.running():
            self.process.terminate()
        self.wait()
        return self.text


def need_mount_namespaces() -> None:
    """Skip where none can be made: in a plain chroot `/` is no mount point (unshare(1))."""
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"unshare -m: {done.stderr.strip()}")


StartService = Callable[..., Service]
StartBpftrace = Callable[..., Bpftrace]


def read_semaphores(pid: int) -> dict[str, list[int]]:
    """Stub path as in /proc/PID/maps -> the u16 values of its `.probes` section."""
    found: dict[str, list[int]] = {}
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape")
    bases: dict[str, tuple[int, str]] = {}
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and _STUB_NAME.search(fields[5]) and int(fields[2], 16) == 0:
            bases.setdefault(fields[5], (int(fields[0].split("-")[0], 16), fields[0]))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for path, (base, area) in bases.items():
            try:
                section = _stub_probes(Path(f"/proc/{pid}/map_files/{area}"))
            except PermissionError:  # CAP_CHECKPOINT_RESTORE is needed to follow it
                section = _stub_probes(Path(path))
            if section is not None:
                address, size = section
                memory.seek(base + address)
                found[path] = list(struct.unpack(f"<{size // 2}H", memory.read(size)))
    return found


def _stub_probes(path: Path) -> tuple[int, int] | None:
    """Address and size of `.probes` in one of our stubs; None for every other file."""
    image = path.read_bytes()
    if b"\0usdt 1\0" not in image:
        return None
    shoff = struct.unpack_from("<Q", image, 40)[0]
    shnum, shstrndx = struct.unpack_from("<HH", image, 60)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, shoff + 64 * i) for i in range(shnum)]
    names = headers[shstrndx][4]
    for name, _, _, address, _, size, *_ in headers:
        if image[names + name :].startswith(b".probes\0"):
            return address, size
    return None


def sites(pid: int, provider: str) -> set[int]:
    """The first byte of what stands at the sites of a provider now, in the process's memory."""
    found = set()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for mapped in read_pid(pid):
            for probe in mapped.elf.probes:
                if probe.provider == provider:
                    memory.seek(mapped.bias + probe.site)
                    found.add(memory.read(1)[0])
    return found


def optimizes() -> bool:
    """Whether this kernel turns traced 5-byte sites into calls."""
    return _probe.uprobe_syscall() == errno.ENXIO


def patched(nop: str) -> int:
    """The first byte of a site that is traced: a trap, or a call where the kernel optimizes."""
    return 0xE8 if nop == "nop5" and optimizes() else 0xCC


def environment() -> dict[str, str]:
    """This process's environment, with this checkout first on the path of imports."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return dict(os.environ) | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
