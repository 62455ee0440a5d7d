# SPDX-License-Identifier: MIT
"""`ustack record --event gil` against a program that writes down its own waits and holders.

What the program says is the truth; the offsets are what a C compiler makes of CPython's headers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT

from ustack.walk.cpython import Target, futex_words
from ustack.walk.cpython.target import read_memory

# Reads the clock before it wants the GIL back.
NAP = """\
#include <time.h>
long nap(void) {
    struct timespec time = {0, 2000000};
    nanosleep(&time, 0);
    clock_gettime(CLOCK_BOOTTIME, &time);
    return time.tv_sec * 1000000000 + time.tv_nsec;
}
"""

# A wait is what passes from nap()'s clock until Python reads it. Two threads compute by turns.
PROGRAM = """\
import ctypes, json, sys, threading, time
waits, turns, stop = [], [], False
may = threading.Lock(), threading.Lock()
may[1].acquire()
nap = ctypes.CDLL("./nap.so").nap
nap.restype = ctypes.c_long
def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
def compute(me):
    while not stop:
        may[me].acquire()
        begun = now()
        spin(begun + 100_000_000)
        turns.append((threading.get_native_id(), begun, now()))
        may[1 - me].release()
def spin(until):
    n = 0
    while now() < until:
        for _ in range(1000):
            n += 1
def ask():
    me = threading.get_native_id()
    while not stop:
        since = nap()
        waits.append((me, since, now()))
threads = [threading.Thread(target=compute, args=(me,), daemon=True) for me in (0, 1)]
threads += [threading.Thread(target=ask) for _ in range(WAITERS)]
for thread in threads:
    thread.start()
print("STARTED!", flush=True)
sys.stdin.readline()
stop = True
for thread in threads[2:]:
    thread.join()
print(json.dumps([waits, turns]), flush=True)
"""


@pytest.fixture
def gcc() -> None:
    """A C compiler, for what must not have the GIL and for CPython's headers."""
    if shutil.which("gcc") is None:
        assert os.environ.get("CI") != "true", "gcc is not installed"
        pytest.skip("gcc is not installed")


@pytest.fixture
def measure(tracer: None, gcc: None, tmp_path: Path) -> Iterator[Callable[[int], tuple[Any, ...]]]:
    """Run the program and the command; waits and turns as the program saw them, the document, and
    what was printed."""
    running: list[subprocess.Popen[str]] = []

    def run(waiters: int) -> tuple[Any, ...]:
        program, output = tmp_path / "program.py", tmp_path / "o.json"
        (tmp_path / "nap.c").write_text(NAP)
        subprocess.run(["gcc", "-shared", "-o", "nap.so", "nap.c"], cwd=tmp_path, check=True)
        program.write_text(PROGRAM.replace("WAITERS", str(waiters)))
        process = subprocess.Popen(
            [sys.executable, program],
            cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "STARTED!\n"
        done = subprocess.run(
            [sys.executable, "-m", "ustack", "record", "-p", str(process.pid), "--event", "gil",
             "-d", "4", "-o", output],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said, _ = process.communicate("\n", timeout=20)
        return (*json.loads(said), json.loads(output.read_text()), done.stdout)

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("waiters", [1, 2])
def test_waits_and_holders_are_the_programs_own(
    measure: Callable[[int], tuple[Any, ...]], waiters: int
) -> None:
    """The sum of all waits, and who held the GIL, by time.

    The program's own clock is read after the wait, by a thread that may have been preempted in
    between: the bounds leave room for a busy machine. docs/walkers.md has what a quiet one shows.
    """
    waits, turns, document, printed = measure(waiters)
    assert document["unit"] == "ns"
    assert document["lost"] == 0
    asking = {tid for tid, _, _ in waits}
    samples = [s for s in document["samples"] if s["tid"] in asking]
    begin = int(min(s["time"] for s in samples)) + 100_000_000
    end = int(max(s["time"] + s["value"] for s in samples)) - 100_000_000

    def within(since: int, until: int) -> int:
        """Nanoseconds of it between `begin` and `end`."""
        return max(0, min(until, end) - max(since, begin))

    own = sum(within(since, until) for _, since, until in waits)
    seen = sum(within(s["time"], s["time"] + s["value"]) for s in samples)
    assert own > 1_000_000_000

    # Whose hold the wait began in; where two meet, both are right. A waiter has the GIL from the
    # end of its wait, a little before it reads the clock, to its next nap.
    holds = [(tid, since - 50_000, until + 50_000) for tid, since, until in turns]
    holds += [(tid, until - 200_000, until + 200_000) for tid, _, until in waits]
    names = dict.fromkeys(asking, "ask") | {tid: "spin" for tid, _, _ in turns}
    right = known = 0
    bad: Counter[str] = Counter()
    for sample in samples:
        there = {h[0] for h in holds if h[1] <= sample["time"] < h[2]} - {sample["tid"]}
        if not begin <= sample["time"] < end or not there:
            continue
        frames = [document["frames"][i]["name"] for i in document["stacks"][sample["stack"]]]
        known += sample["value"]
        may = {(tid, name) for tid in there for name in (names[tid], "now", "compute")}
        good = frames[-2] in ("ask", "now") and frames[-1] in {
            f"held by thread {tid} in {name}" for tid, name in may
        }
        right += good * sample["value"]
        bad[frames[-1]] += (not good) * sample["value"]
    figures = f"own {own}, seen {seen}, known {known}, right {right}, {bad.most_common(4)}"
    assert abs(seen - own) <= 0.15 * own, figures
    assert known > 0.9 * seen, figures
    assert right >= 0.95 * known, figures
    assert "waits for the GIL: " in printed
    assert " in spin" in printed


def test_a_program_without_a_gil_is_said(tracer: None, tmp_path: Path) -> None:
    """A process that is no CPython: one line, the exit code for it, no file."""
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ustack", "record", "-p", str(sleeper.pid), "--event", "gil",
             "-o", tmp_path / "o.html"],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        sleeper.kill()
        sleeper.wait()
    assert (done.returncode, done.stdout) == (3, "")
    assert "no CPython" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


OFFSETS = """\
#define Py_BUILD_CORE
#include "Python.h"
#include "internal/pycore_runtime.h"
#include "internal/pycore_interp.h"
#include "internal/pycore_gil.h"
#include <stddef.h>
#include <stdio.h>
#if PY_VERSION_HEX < 0x030c0000
# define IN_RUNTIME offsetof(_PyRuntimeState, ceval.gil)
# define IN_INTERPRETER ((size_t)0)
#else
# define IN_RUNTIME ((size_t)0)
# define IN_INTERPRETER offsetof(PyInterpreterState, ceval.gil)
#endif
#define IN_GIL(field) offsetof(struct _gil_runtime_state, field)
int main(void) {
    printf("%zu %zu %zu %zu %zu", IN_RUNTIME, IN_INTERPRETER, IN_GIL(last_holder),
           IN_GIL(cond), IN_GIL(mutex));
}
"""


def test_offsets_are_those_of_the_headers(tracer: None, gcc: None, tmp_path: Path) -> None:
    """What a C compiler makes of the headers of this interpreter is where its GIL is looked for."""
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "internal/pycore_gil.h").exists():
        assert os.environ.get("CI") != "true", f"{include} has no internal headers"
        pytest.skip(f"{include} has no internal headers of CPython")
    source, program = tmp_path / "offsets.c", tmp_path / "offsets"
    source.write_text(OFFSETS)
    subprocess.run(
        ["gcc", f"-I{include}", f"-I{include}/internal", source, "-o", program], check=True
    )
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    in_runtime, in_interpreter, holder, cond, mutex = map(int, said.split())
    target = Target.of(os.getpid())
    gil = target.runtime + in_runtime
    if in_interpreter:
        main = word(target.runtime + target.layout.interpreters_head)
        gil = word(main + in_interpreter)
    expected = {gil + at: gil + holder for at in (*range(cond, mutex, 4), mutex)}
    assert futex_words(target, read_memory) == expected


def word(address: int) -> int:
    """What is in this process's own memory."""
    return int.from_bytes(read_memory(os.getpid(), address, 8), "little")
