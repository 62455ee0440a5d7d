# SPDX-License-Identifier: MIT
"""The processes of a measurement: workers, the C caller and bpftrace, all on one CPU.

Starts, talks to and ends them; knows no row of the table.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.machine import Python

__all__ = ["Server", "Tracer", "UnavailableError", "compile_callers", "worker"]

HERE = Path(__file__).resolve().parent

#: The CPU of everything that is timed: the last one, as the first serves most interrupts.
_CPU = max(os.sched_getaffinity(0))

#: Seconds until a silent process counts as broken.
_PATIENCE = 60


class UnavailableError(Exception):
    """A row cannot be measured on this machine; the message says why."""


def _pin() -> None:
    """In the child: one CPU, and before other work of the machine where that is allowed."""
    os.sched_setaffinity(0, {_CPU})
    if os.geteuid() == 0:
        with suppress(PermissionError):  # a container's root
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def worker(python: Python, name: str, *args: str, stubs: Path) -> Any:
    """Run workers/NAME.py in an isolated interpreter; what it prints, from JSON."""
    return json.loads(
        run([python.executable, "-I", str(HERE / "workers" / f"{name}.py"), *args], stubs=stubs)
    )


def run(argv: list[str], *, stubs: Path) -> str:
    """Run a program on the CPU of the measurement. Raises CalledProcessError."""
    done = subprocess.run(
        argv,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(stubs),
        preexec_fn=_pin,
        check=True,
        timeout=_PATIENCE,
    )
    return done.stdout


def _environment(stubs: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "USDT_STUB_DIR": str(stubs), "LC_ALL": "C.UTF-8"}


def compile_callers(scratch: Path) -> tuple[Path, Path]:
    """callers.c as a program and as a shared object. Raises UnavailableError."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler (apt-get install gcc)")
    program, library = scratch / "callers", scratch / "libcallers.so"
    source = str(HERE / "callers.c")
    for flags, target in (((), program), (("-shared", "-fPIC"), library)):
        subprocess.run([compiler, "-O2", *flags, source, "-o", str(target), "-ldl"], check=True)
    return program, library


class Server:
    """A process that answers each line of input with a line of output; `first` was its greeting."""

    def __init__(self, argv: list[str], *, stubs: Path) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(stubs),
            preexec_fn=_pin,
        )
        self.first = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return line.strip()

    def ask(self, question: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._line()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()


class Tracer:
    """bpftrace counting every probe of some stubs, one counter a stub.

    paths: counter name -> path of the stub.  Raises UnavailableError where nothing can be traced.
    """

    def __init__(self, paths: dict[str, str]) -> None:
        if os.geteuid() != 0:
            raise UnavailableError("tracing needs root (sudo make bench)")
        tool = shutil.which("bpftrace")
        if tool is None:
            raise UnavailableError("no bpftrace (apt-get install bpftrace)")
        counters = (f"usdt:{path}:*:* {{ @{name} = count(); }}" for name, path in paths.items())
        script = " ".join((*counters, "interval:s:300 { exit(); }"))
        self._process = subprocess.Popen(
            [tool, "-e", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_until(self, attached: Any) -> None:
        """Poll until `attached()` is true. Raises UnavailableError with bpftrace's own words."""
        deadline = time.monotonic() + _PATIENCE
        while not attached():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                output = self._process.communicate()[0].strip().splitlines()
                raise UnavailableError(
                    f"bpftrace does not attach: {output[-1] if output else 'silent'}"
                )
            time.sleep(0.05)

    def counts(self) -> dict[str, int]:
        """End it; counter name -> events it saw."""
        self._process.terminate()
        output = self._process.communicate(timeout=_PATIENCE)[0]
        return {name: int(n) for name, n in re.findall(r"^@(\w+): (\d+)$", output, re.MULTILINE)}

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
