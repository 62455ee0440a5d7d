# SPDX-License-Identifier: MIT
"""`ustack resolve` beside bpftrace's own names: the same process, the same functions.

A C program with frame pointers, so that every frame of the stack is known to both.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
#include <stdio.h>
__attribute__((noinline)) static unsigned work(unsigned n) {
    /* A leaf has no frame of its own unless it asks for it, and hides its caller. */
    __asm__ volatile ("" : : "r" (__builtin_frame_address(0)));
    for (unsigned i = 0; i < 1000; i++) n = n * 1664525u + 1013904223u;
    return n;
}
__attribute__((noinline)) static unsigned serve(unsigned n) { return work(n) + 1; }
int main(void) {
    puts("STARTED!"); fflush(stdout);
    volatile unsigned n = 0;
    for (;;) n = serve(n);
}
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The program, compiled so that stacks can be walked by frame pointer."""
    source = tmp_path / "work.c"
    source.write_text(PROGRAM)
    binary = tmp_path / "work"
    flags = ["-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    subprocess.run(["cc", *flags, source, "-o", binary], check=True)
    return binary


def test_raw_stacks_are_named_as_bpftrace_names_them(tracer: None, program: Path) -> None:
    """The same script twice, once with bpftrace's names, once raw and named by us."""
    with subprocess.Popen([program], stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            running.stdout.readline()
            script = (
                f"profile:hz:999 /pid == {running.pid}/ {{ @[pid, ustack(perf)] = count(); }} "
                "interval:s:1 { exit(); }"
            )
            texts = []
            for raw in (False, True):
                done = subprocess.run(
                    ["bpftrace", "-e", script],
                    env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
                    | ({"BPFTRACE_NO_USER_SYMBOLS": "1"} if raw else {}),
                    capture_output=True, text=True, timeout=60,
                )  # fmt: skip
                texts.append(done.stdout)
            named = subprocess.run(
                [sys.executable, "-m", "ustack", "resolve"],
                cwd=Path(__file__).parents[2], input=texts[1], capture_output=True, text=True,
            )  # fmt: skip
        finally:
            running.kill()
    assert named.returncode == 0
    assert "work" not in texts[1]  # it was raw
    ours, theirs = functions(named.stdout), functions(texts[0])
    assert {"work", "serve", "main"} <= theirs
    assert {"work", "serve", "main"} <= ours
    assert re.search(r"work\+\d+ .*\n\s*\S+ serve\+\d+ .*\n\s*\S+ main\+\d+ ", named.stdout)


def functions(text: str) -> set[str]:
    """The functions of all frames: `addr name+off (module)`."""
    return set(re.findall(r"^\s+[0-9a-f]+ (\w+)\+", text, re.M))
