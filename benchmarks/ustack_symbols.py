# SPDX-License-Identifier: MIT
"""What naming native and kernel addresses costs: `python -m benchmarks.ustack_symbols`.

Prints one row a figure, the best of its rounds, and ends with 1 if a bar is missed. Must not know
what the figures are for.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.table import Bar
from ustack.elf import FileSource, read_elf
from ustack.elfsym import Symbols, function_symbols
from ustack.frame import AbsAddr, VirtOffset
from ustack.kernel import Kernel
from ustack.perfring import PerfRing
from ustack.spaces import Spaces

ROUNDS, LOOKUPS, STARTS = 15, 200_000, 100


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def row(what: str, value: float, unit: str, bar: Bar | None = None) -> bool:
    met = bar is None or bar.met("", value)
    limit = "" if bar is None else f"{bar} {'' if met else 'MISSED'}"
    print(f"{what:<58} {value:>10.3f} {unit:<8} {limit}".rstrip())
    return met


def load(path: str) -> Symbols:
    with open(path, "rb") as file:
        source = FileSource(file.fileno())
        return function_symbols(source, read_elf(source))


def symbols() -> bool:
    node = shutil.which("node")
    if node is None:
        print("no node here: apt-get install nodejs")
        return True
    table = load(node)
    met = row(
        f"load of the {len(table)} functions of node",
        min(seconds(lambda: load(node)) for _ in range(ROUNDS)), "s", Bar(0.25),
    )  # fmt: skip
    chosen = random.Random(1)
    places = [VirtOffset(chosen.choice(table._starts) + 1) for _ in range(LOOKUPS)]

    def find_all() -> None:
        find = table.find
        for place in places:
            find(place)

    find_all()
    rate = LOOKUPS / min(seconds(find_all) for _ in range(ROUNDS)) / 1e6
    return row("look-ups in them", rate, "M/s", Bar(1, least=True)) and met


def kernel() -> None:
    with open("/proc/kallsyms", "rb") as file:
        text = file.read()
    lines = text.count(b"\n")
    copies = text + text[: text.find(b"\n", len(text) * max(200_000 - lines, 0) // lines) + 1]
    spent = min(seconds(lambda: Kernel(copies)) for _ in range(ROUNDS))
    row(f"parse of {copies.count(chr(10).encode())} lines of kallsyms", spent, "s")


def spaces() -> None:
    spaces = Spaces()
    row("scan of all processes", seconds(spaces.scan_all) * 1e3, "ms")
    space = spaces._last(os.getpid())
    assert space is not None
    chosen = random.Random(2)
    places = [
        AbsAddr(chosen.randrange(row.mapping.start, row.mapping.end))
        for row in space._now
        for _ in range(200)
    ]
    spent = seconds(lambda: [spaces.resolve(space.pid, place) for place in places])
    row("first look at 200 addresses of each library of a Python", spent * 1e3, "ms")
    spent = min(
        seconds(lambda: [spaces.resolve(space.pid, place) for place in places])
        for _ in range(ROUNDS)
    )
    row("resolve() of an address of a library seen before", spent / len(places) * 1e6, "us")


def rings() -> None:
    def churn() -> None:
        for _ in range(STARTS):
            subprocess.run(["/bin/true"], check=True)

    without, within, reading = [], [], []
    for _ in range(ROUNDS):
        without.append(seconds(churn))
        with PerfRing() as ring:
            if ring.why_not is not None:
                print(f"no rings: {ring.problem}")
                return
            spaces = Spaces()
            within.append(seconds(churn))
            reading.append(seconds(lambda: spaces.apply(ring.poll(all=True))))  # noqa: B023
            assert ring.lost == 0
    row("starting a process with the rings open / without", min(within) / min(without), "")
    row("reading and applying the records of one process", min(reading) / STARTS * 1e6, "us")


def main() -> int:
    met = symbols()
    kernel()
    spaces()
    rings()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
