# SPDX-License-Identifier: MIT
"""python -m benchmarks.ustack_notes: how fast perf maps and jitdumps become names.

Makes its own maps, in memory; files and processes are not measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.table import Bar, Row, document, render
from ustack.notes import JitDump, PerfMap, Table

LINES, OVERLAPS = 100_000, 0.4
LOOKUPS, ROUNDS = 200_000, 9
CHUNK = 1 << 16  # as ustack.notes.tail reads

Piece = tuple[int, int]


def pieces() -> list[Piece]:
    """Starts and sizes; OVERLAPS of them lie over an earlier one, half of the size astray."""
    chance = random.Random(1)
    found: list[Piece] = []
    top = 0x7F0000000000
    for _ in range(LINES):
        size = chance.randrange(0x20, 0x800)
        if found and chance.random() < OVERLAPS:
            start, length = chance.choice(found)
            start += chance.randrange(-length // 2, length // 2)
        else:
            start, top = top, top + size + chance.randrange(64)
        found.append((start, size))
    return found


def perf_map(made: list[Piece]) -> bytes:
    """With names as long as those of a service."""
    return b"".join(
        b"%x %x JS:*handler%d /srv/app/lib/module%d.js:%d:9\n" % (start, size, i, i % 500, i % 3000)
        for i, (start, size) in enumerate(made)
    )


def jitdump(made: list[Piece]) -> bytes:
    """The same, a load each with its code and, before it, a line table of two rows."""
    out = [struct.pack("<IIIIIIQQ", 0x4A695444, 1, 40, 62, 0, 1, 0, 0)]
    for i, (start, size) in enumerate(made):
        lines = struct.pack("<QQQII", start, 2, start, i, 0) + b"/srv/app/lib/module.js\0"
        lines += struct.pack("<QII", start + 9, i + 1, 0) + b"\xff\0"
        load = (
            struct.pack("<IIQQQQ", 1, 1, start, start, size, i) + b"handler%d\0" % i + bytes(size)
        )
        out.append(struct.pack("<IIQ", 2, 16 + len(lines), i) + lines)
        out.append(struct.pack("<IIQ", 0, 16 + len(load), i) + load)
    return b"".join(out)


def read(parser: PerfMap | JitDump, data: bytes, when: int = 0) -> Table:
    """A table that is ready for look-ups."""
    table = Table()
    for at in range(0, len(data), CHUNK):
        table.add(parser.feed(data[at : at + CHUNK], when))
    table.lookup(0)
    return table


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rows() -> list[Row]:
    """Everything measured, on this Python."""
    minor = ".".join(platform.python_version_tuple()[:2])
    made = pieces()
    text, dump = perf_map(made), jitdump(made)
    chance = random.Random(2)
    addresses = [start + chance.randrange(size) for start, size in chance.choices(made, k=LOOKUPS)]
    parse = Row(
        "map", f"parse + index of a {LINES // 1000} k-line map, 40 % overlaps, s", bar=Bar(0.4)
    )
    loads = Row("dump", f"the same as a jitdump of {len(dump) >> 20} MiB, s")
    now = Row("now", "look-ups, millions a second")
    then = Row("then", "the same with a time, the latest note being true then")
    past = Row("past", "the same with a time before half of the notes")
    parse.cells[minor] = [seconds(lambda: read(PerfMap(""), text)) for _ in range(ROUNDS)]
    loads.cells[minor] = [seconds(lambda: read(JitDump(""), dump)) for _ in range(3)]
    table = read(JitDump(""), dump)
    table.lookup(addresses[0], 0)  # the index of the past is made when it is asked for
    for row, moment in ((now, None), (then, LINES), (past, LINES // 2)):

        def look_up(moment: int | None = moment) -> None:
            lookup = table.lookup
            for address in addresses:
                lookup(address, moment)

        row.cells[minor] = [LOOKUPS / seconds(look_up) / 1e6 for _ in range(ROUNDS)]
    return [parse, loads, now, then, past]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ustack_notes",
        description="Measure how fast perf maps and jitdumps become names.",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    options = parser.parse_args()
    made = rows()
    print(render(made, list(made[0].cells)))
    if options.json:
        machine = {"kernel": platform.release(), "python": platform.python_version()}
        options.json.write_text(json.dumps(document(made, machine), indent=1) + "\n", "utf-8")
    return 1 if options.strict and any(row.missed() for row in made) else 0


if __name__ == "__main__":
    sys.exit(main())
