# SPDX-License-Identifier: MIT
"""Python stacks from a real bpftrace, against programs of which every possible stack is known.

Must not look into a target in any other way: what the records say is all there is.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import ROOT

from ustack.bpftrace import Lost, Running, complaints, locate, read_line
from ustack.walk.cpython import Decoder, Target, fragment, rows
from ustack.walk.cpython.stacks import Mark, PythonFrame
from ustack.walk.cpython.target import read_memory

# A comment names what its line calls; to make a coroutine is a short call of its function. `leaf`
# calls nothing that is Python.
TREE = """\
import sys, threading, time
def leaf(n):
    s = 0
    for i in range(n):
        s += i * i
    return s
def some(n):
    for i in range(3):
        yield leaf(n)  # > leaf
def both(n):
    a = leaf(n)  # > leaf
    b = sum(some(n))  # > some
    return a + b
class Shop:
    def order(self, n):
        return both(n)  # > both
    def __call__(self, n):
        return list(map(both, [n]))  # > both
    @property
    def café(self):
        inner = lambda: leaf(200)  # > leaf
        return inner()  # > <lambda>
async def later(n):
    return leaf(n)  # > leaf
def drive(coroutine):
    try:
        coroutine.send(None)  # > later
    except StopIteration:
        pass
def top():
    shop = Shop()
    while True:
        shop.order(200)  # > order
        shop(200)  # > __call__
        shop.café  # > café
        drive(later(100))  # > drive|later
def deep(n):
    if n:
        return deep(n - 1)  # > deep
    while True:
        both(200)  # > both
def long(n):
    x = 0
"""
# A table of lines that is longer than what is printed.
TREE += "".join(f"    x = n + {i}; x += n * {i}\n" for i in range(400))
TREE += """\
    while True:
        both(200)  # > both
print("STARTED!", flush=True)
"""

MODES = {
    "plain": "top()  # > top\n",
    "threads": (
        "for _ in range(3):\n    threading.Thread(target=top, daemon=True).start()\n"
        "top()  # > top\n"
    ),
    "deep": "sys.setrecursionlimit(9000)\ndeep(3000)  # > deep\n",
    "long": "long(1)  # > long\n",
}

MINORS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")

# No distribution that is tested on has them: taken if they are on PATH.
NEWEST = ("3.14", "3.15")

Sample = tuple[int, tuple[PythonFrame, ...]]  # tid, leaf first


def _interpreters() -> dict[str, str]:
    done = subprocess.run([ROOT / ".ci/minors"], capture_output=True, text=True, check=True)
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    for minor in NEWEST:
        path = shutil.which(f"python{minor}")
        if path is not None:
            found[minor] = path
    return found


@pytest.fixture(scope="module")
def interpreters() -> dict[str, str]:
    return _interpreters()


def need(minor: str, interpreters: dict[str, str]) -> str:
    """The path of a CPython; skips where this machine has none, as .ci/minors does."""
    if minor not in interpreters:
        pytest.skip(f"no CPython {minor} on PATH or in pyenv")
    return interpreters[minor]


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """start(python, path, *args) -> the pid of a process that said STARTED!"""
    with ExitStack() as stack:

        def run(python: str, path: Path, *args: str) -> int:
            child = subprocess.Popen([python, str(path), *args], stdout=subprocess.PIPE)
            stack.callback(child.wait)
            stack.callback(child.kill)
            assert child.stdout is not None
            stack.callback(child.stdout.close)
            assert child.stdout.readline() == b"STARTED!\n"
            return child.pid

        yield run


def record(
    target: Target, *, seconds: int = 3, end: Callable[[], object] | None = None
) -> list[Sample]:
    """Samples of a process; end: is called when the last record has come, before decoding."""
    tracer = locate()
    script = (
        f"BEGIN {{\n{rows({target.pid: target.row()})}}}\n"
        f"profile:hz:99 {{\n{fragment(tracer.limits)}"
        '  if ($key != 4) { printf("S %d %lx %lx\\n", tid, $space, $key); }\n}\n'
        f"interval:s:{seconds} {{ exit(); }}\n"
        "END { clear(@py); clear(@seen); clear(@named); clear(@thread); }\n"
    )
    running = Running(tracer, script)
    decoder = Decoder({target.pid: target.layout}, read_memory)
    raw: list[tuple[int, int, int]] = []
    try:
        with os.fdopen(os.dup(running.stdout), "rb") as lines:
            for line in lines:
                said = read_line(line.rstrip(b"\n"))
                assert not isinstance(said, Lost), said
                if said is not None and not decoder.feed(said) and said.startswith(b"S "):
                    tid, space, key = said.split(b" ")[1:]
                    raw.append((int(tid), int(space, 16), int(key, 16)))
        errors = complaints(os.read(running.stderr, 1 << 16))
        assert not errors
    finally:
        running.close()
    if end is not None:
        end()
    return [(tid, decoder.stack(target.pid, space, key)) for tid, space, key in raw]


class Truth:
    """What stacks a source can have."""

    def __init__(self, source: str) -> None:
        self.calls: dict[int, list[str]] = {}
        for number, line in enumerate(source.splitlines(), 1):
            called = re.search(r"# > (\S+)$", line)
            if called:
                self.calls[number] = called[1].split("|")
        names = re.compile(r"(?:def (\w+))|(lambda):")
        self.begins = {
            f"<{found[2]}>" if found[2] else found[1]: number
            for number, line in enumerate(source.splitlines(), 1)
            for found in [names.search(line)]
            if found
        }

    def why_not(self, stack: tuple[PythonFrame, ...]) -> str:
        """Why a program cannot have had this stack, or ''."""
        if not stack:
            return "no frames"
        frames = [entry.frame for entry in stack]
        for callee, caller in itertools.pairwise(frames):
            if caller.file is None or not caller.file.endswith("/tree.py"):
                continue
            if callee.name is None or caller.line is None:
                return f"{callee} below {caller}"
            if callee.name.rpartition(".")[2] not in self.calls.get(caller.line, ()):
                return f"{caller}:{caller.line} does not call {callee}"
        leaf = frames[0]
        if leaf.name is None or leaf.line is None or leaf.file is None:
            return f"the leaf is {leaf}"
        if leaf.file.endswith("/tree.py") and leaf.name != "<module>":
            begin = self.begins[leaf.name.rpartition(".")[2]]
            if not begin <= leaf.line or (leaf.name == "leaf" and leaf.line > begin + 4):
                return f"{leaf} has no line {leaf.line}"
        if frames[-1].name not in ("<module>", "_bootstrap", "Thread._bootstrap"):
            return f"the root is {frames[-1]}"
        return ""


def tree(tmp_path: Path, mode: str) -> tuple[Path, Truth]:
    path = tmp_path / "tree.py"
    path.write_text(TREE + MODES[mode])
    return path, Truth(TREE + MODES[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("minor", MINORS)
def test_every_stack_is_one_of_the_tree(
    tracer: None,
    interpreters: dict[str, str],
    start: Callable[..., int],
    tmp_path: Path,
    minor: str,
    mode: str,
) -> None:
    """98 of 100 samples are exactly right, line numbers included; none is without frames."""
    python = need(minor, interpreters)
    path, truth = tree(tmp_path, mode)
    samples = record(Target.of(start(python, path)))
    assert len(samples) > 50
    wrong = [why for _, stack in samples if (why := truth.why_not(stack))]
    assert "no frames" not in wrong
    # The first two samples of a deep stack carry its far end; their own leaves come later.
    assert len(wrong) <= max(0.02 * len(samples), 2 if mode == "deep" else 0), wrong[:5]
    if mode == "deep":
        assert max(len(stack) for _, stack in samples) >= 3003
    if mode == "threads":
        assert len({tid for tid, _ in samples}) > 1


SUBINTERPRETERS = """\
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
def spin():
    for i in range(20000):
        i * i
idle, busy = interpreters.create(), interpreters.create()
def host():
    interpreters.run_string(busy, inner)
inner = "for i in range(20000): i * i"
print("STARTED!", flush=True)
while True:
    spin()
    host()
"""


@pytest.mark.parametrize("minor", MINORS)
def test_the_interpreter_that_runs_is_the_one_that_is_shown(
    tracer: None,
    interpreters: dict[str, str],
    start: Callable[..., int],
    tmp_path: Path,
    minor: str,
) -> None:
    """One thread in two interpreters by turns, beside one that does nothing."""
    python = need(minor, interpreters)
    path = tmp_path / "two.py"
    path.write_text(SUBINTERPRETERS)
    samples = record(Target.of(start(python, path)))
    stacks = {tuple(str(entry.frame) for entry in stack) for _, stack in samples}
    assert {("<module>",), ("spin", "<module>")} <= stacks
    assert stacks <= {("<module>",), ("spin", "<module>"), ("host", "<module>")}


def test_who_called_a_frame_is_known(
    tracer: None, start: Callable[..., int], tmp_path: Path
) -> None:
    """`both` is called by C's map() under `__call__`, and by Python under `order` from 3.11 on."""
    path, _ = tree(tmp_path, "plain")
    samples = record(Target.of(start(sys.executable, path)))
    marks: dict[str, set[Mark]] = {"order": set(), "__call__": set()}
    for _, stack in samples:
        for callee, caller in itertools.pairwise(stack):
            name = str(caller.frame).rpartition(".")[2]
            if name in marks:
                marks[name].add(callee.mark)
    direct = Mark.FROM_C if sys.version_info < (3, 11) else Mark.FROM_PYTHON
    assert marks == {"order": {direct}, "__call__": {Mark.FROM_C}}


def test_a_process_that_is_gone_is_still_named(tracer: None, tmp_path: Path) -> None:
    """Names and lines come with the records: memory is not needed for functions of usual size."""
    path, truth = tree(tmp_path, "plain")
    child = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()

        def end() -> None:
            child.kill()
            child.wait()

        samples = record(Target.of(child.pid), end=end)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    right = [stack for _, stack in samples if not truth.why_not(stack)]
    assert len(right) >= 0.98 * len(samples) > 50


def test_the_target_runs_on(tracer: None, start: Callable[..., int], tmp_path: Path) -> None:
    """Nothing stops the process, and nobody becomes its tracer."""
    path, _ = tree(tmp_path, "plain")
    pid = start(sys.executable, path)
    record(Target.of(pid), seconds=1)
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^TracerPid:\t0$", status, re.MULTILINE)
    assert re.search(r"^State:\t[RS]", status, re.MULTILINE)
