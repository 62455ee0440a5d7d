# SPDX-License-Identifier: MIT
"""What the symbol tests ask of binutils and the C compiler, and what is missing without them.

Runs tools and parses their text; what must be true of it is each test's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

__all__ = ["compile_c", "readelf_functions", "tool"]

PROGRAM = r"""
#include <stdio.h>
#include <unistd.h>
static int __attribute__((noinline)) hidden_work(int x) { return x * 7 + getppid(); }
int __attribute__((noinline)) visible_work(int x) { return hidden_work(x) + 1; }
int renamed_work(int x) __attribute__((alias("visible_work")));
int main(int argc, char **argv)
{
    printf("%p\n", (void *)hidden_work);
    fflush(stdout);
    if (argc > 1 && argv[1][0] == 'w')
        while (read(0, argv[1], 1) > 0) { }
    return visible_work(argc) == -1;
}
"""


def tool(name: str) -> str:
    """The path of a command; without it the test is skipped, or fails where CI must have it."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed, and CI must have it")
        pytest.skip(f"needs {name}")
    return path


def run(*command: str | Path, input: str | None = None) -> str:
    done = subprocess.run(
        [tool(str(command[0])), *command[1:]],
        input=input, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout


def compile_c(target: Path, *options: str, source: str = PROGRAM) -> Path:
    """An executable made of `source`."""
    file = target.with_suffix(".c")
    file.write_text(source)
    run("gcc", "-O1", "-o", target, file, *options)
    return target


def readelf_functions(path: str | Path, *options: str) -> dict[int, dict[str, int]]:
    """Address -> names -> sizes of the FUNC and IFUNC symbols in any of the file's tables."""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for line in run("readelf", "-sW", *options, path).splitlines():
        words = line.split()
        if len(words) >= 8 and words[3] in ("FUNC", "IFUNC") and words[-1] != "UND":
            if words[6] == "UND":
                continue
            size = int(words[2], 16 if words[2].startswith("0x") else 10)
            found[int(words[1], 16)][words[7].partition("@")[0]] = size
    return found
