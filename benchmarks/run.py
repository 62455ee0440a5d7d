# SPDX-License-Identifier: MIT
"""python -m benchmarks.run: measure everything on every CPython here and print the table.

Flags and wiring. Exit codes: 0 measured (a missed bar is printed as such), 1 a bar was missed
and --strict given, 3 this machine cannot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import Python, describe, pythons
from benchmarks.processes import UnavailableError, compile_callers
from benchmarks.rows import STEPS, Context, rows
from benchmarks.table import Row, document, render


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Measure what probes cost, on every CPython of this machine.",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    parser.add_argument("--minor", metavar="3.N", help="measure this CPython only")
    parser.add_argument("--step", choices=STEPS, help="measure this part only")
    options = parser.parse_args()
    found = [one for one in pythons() if options.minor in (None, one.minor)]
    if not found:
        print("no CPython >= 3.10 with its headers here: run ./check", file=sys.stderr)
        return 3
    table = rows()
    steps = [options.step] if options.step else list(STEPS)
    with (
        tempfile.TemporaryDirectory(prefix="usdt-bench-", dir=_memory()) as ram,
        tempfile.TemporaryDirectory(prefix="usdt-bench-", dir="/tmp") as disk,
    ):
        scratch = Path(disk)
        try:
            program, library = compile_callers(scratch)
            for python in found:
                _say(f"CPython {python.minor}: building the wheel")
                python.install(scratch)
        except UnavailableError as error:
            print(error, file=sys.stderr)
            return 3
        except subprocess.CalledProcessError as error:
            print(f"{error}\n{error.stderr or ''}", file=sys.stderr)
            return 3
        context = Context(ram=Path(ram), disk=scratch, program=program, library=library)
        machine = describe(found)
        for python in found:
            for step in steps:
                _say(f"CPython {python.minor}: {step}")
                _fill(table[step], step, python, context)
    _say("")
    made = [row for step in steps for row in table[step]]
    for name, what in machine.items():
        print(f"{name:12}{what}")
    print()
    print(render(made, [python.minor for python in found]))
    if options.json:
        text = json.dumps(document(made, machine), indent=1)
        options.json.write_text(f"{text}\n", encoding="utf-8")
    return 1 if options.strict and any(row.missed() for row in made) else 0


def _fill(made: list[Row], step: str, python: Python, context: Context) -> None:
    """Put what a step measures into the cells of its rows, or the reason why it cannot."""
    try:
        values = STEPS[step](python, context)
    except UnavailableError as error:
        for row in made:
            row.cells[python.minor] = str(error)
        return
    for row in made:
        row.fill(python.minor, values)


def _memory() -> str | None:
    """A directory in memory, as /run/usdt is; None where there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
