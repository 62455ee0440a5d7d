# SPDX-License-Identifier: MIT
"""`ustack record` against programs whose stacks are known: every sample is in the tree or wrong.

The interpreter's frames and lines are compared exactly; of native frames only what must be there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# Line numbers matter: the tests name them.
TREE = """\
import math, sys, threading, time
def leaf(n):
    total = 0
    for i in range(n):
        total += math.sqrt(i)
    return total
def left(n):
    return leaf(n)
def right(n):
    return [leaf(m) for m in (n, n)]
def serve():
    while True:
        left(2000)
        right(2000)
for _ in range(2):
    threading.Thread(target=serve, daemon=True).start()
print("STARTED!", flush=True)
time.sleep(60)
"""
SLEEPER = """\
import os, time
def wait():
    time.sleep(0.002)
def ticks():
    while True:
        wait()
        yield
print("STARTED!", flush=True)
for _ in ticks():
    pass
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start a program and wait until it says so; ended by the end of the test."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(source: str) -> subprocess.Popen[bytes]:
        program = tmp_path / "program.py"
        program.write_text(source)
        process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"STARTED!\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def record(*argv: str, output: Path) -> tuple[dict[str, Any], str]:
    """Run the command; its JSON document, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "ustack", "record", *argv, "-o", output],
        cwd=ROOT, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), done.stdout


def stacks(document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The frames of each sample, root first."""
    frames, of = document["frames"], document["stacks"]
    return [[frames[i] for i in of[sample["stack"]]] for sample in document["samples"]]


def python_part(stack: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Function and line of the interpreter's frames, without those of the threading module."""
    own = [f for f in stack if f["kind"] == "python" and f["file"].endswith("program.py")]
    return [(frame["name"], frame["line"]) for frame in own]


def in_the_tree(path: list[tuple[str, int]]) -> bool:
    """Whether functions and lines are a path from serve() down to leaf(), or one cut short."""
    allowed = {
        (): {"serve": range(12, 15)},
        ("serve",): {"left": [7, 8], "right": [9, 10]},
        ("serve", "left"): {"leaf": range(2, 7)},
        ("serve", "right"): {
            "leaf": range(2, 7), "<listcomp>": [10], "right.<locals>.<listcomp>": [10]
        },
        ("serve", "right", "<listcomp>"): {"leaf": range(2, 7)},
        ("serve", "right", "right.<locals>.<listcomp>"): {"leaf": range(2, 7)},
    }  # fmt: skip
    names: tuple[str, ...] = ()
    for name, line in path:
        if line not in allowed.get(names, {}).get(name, ()):
            return False
        names = (*names, name)
    lines = dict(path)
    called_at = {"left": 13, "right": 14}
    return bool(path) and all(lines["serve"] == called_at[f] for f in called_at if f in lines)


def test_every_sample_is_in_the_tree(
    tracer: None, start: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Two threads that compute: 98 of 100 stacks right to the line, none without Python frames."""
    process = start(TREE)
    document, printed = record(
        "-p", str(process.pid), "-d", "3", "--event", "profile:hz:199", output=tmp_path / "o.json"
    )
    paths = [python_part(stack) for stack in stacks(document)]
    assert len(paths) > 100
    wrong = Counter(tuple(path) for path in paths if not in_the_tree(path))
    assert wrong.total() <= 0.02 * len(paths), wrong.most_common(5)
    assert () not in wrong
    deepest = Counter(len(path) for path in paths)
    assert max(deepest) >= 3
    assert document["lost"] == 0
    assert "leaf" in printed


def test_a_native_leaf_stands_on_its_python_function(
    tracer: None, start: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """What leaf() calls is in C: frames of the interpreter's files lie on top of it."""
    process = start(TREE)
    document, _ = record("-p", str(process.pid), "-d", "2", output=tmp_path / "o.json")
    above = [
        frame
        for stack in stacks(document)
        for below, frame in pairwise(stack)
        if below["name"] == "leaf" and frame["kind"] == "native"
    ]
    assert above
    assert all(frame["module"] for frame in above)  # named only where the build was not stripped
    callers = {
        below["name"]
        for stack in stacks(document)
        for below, frame in pairwise(stack)
        if frame["name"] == "math_sqrt"
    }
    assert callers <= {"leaf"}


def test_any_event_and_the_kernels_frames(
    tracer: None, start: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """A system call made from a generator: Python below, the kernel's or C's entry on top."""
    process = start(SLEEPER)
    event = "tracepoint:sched:sched_switch"
    document, _ = record(
        "-p", str(process.pid), "-d", "1", "--event", event, output=tmp_path / "o.json"
    )
    paths = {tuple(python_part(stack)) for stack in stacks(document)}
    assert (("<module>", 9), ("ticks", 6), ("wait", 3)) in paths
    kinds = {frame["kind"] for stack in stacks(document) for frame in stack}
    assert {"python", "kernel"} <= kinds


def test_the_end_of_the_process_is_the_end(
    tracer: None, start: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Recorded without -d, a program that ends: everything it did has names."""
    process = start(TREE.replace("time.sleep(60)", "time.sleep(6)"))
    document, _ = record("-p", str(process.pid), output=tmp_path / "o.json")
    named = [bool(python_part(stack)) for stack in stacks(document)]
    assert len(named) > 20
    assert sum(named) >= 0.95 * len(named)  # at its end the interpreter runs on without frames


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["-p", "4194305", "-o", "x.html"], 1, "is gone"),
        (["-p", "1", "-o", "x.gif"], 2, "one of: .html"),
        (["-p", "1", "-o", "/nonexistent/x.html"], 1, "No such file"),
        (["-p", "1", "-d", "1", "--event", "profile:hz", "-o", "x.html"], 3, "profile:hz"),
        (["-p", "1", "-d", "-1", "-o", "x.html"], 2, "seconds"),
    ],
)
def test_bad_input_is_one_line(
    tracer: None, argv: list[str], status: int, said: str, tmp_path: Path
) -> None:
    """One line, the documented exit code, no file and no half file."""
    done = subprocess.run(
        [sys.executable, "-m", "ustack", "record", *argv],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
