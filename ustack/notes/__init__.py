# SPDX-License-Identifier: MIT
"""Perf maps and jitdumps into one interval table with time.

`Tail` follows a live process; the parsers and `Table` are pure and need neither it nor a file.
"""

from ustack.notes.jitdump import JitDump
from ustack.notes.note import End, Lines, Note
from ustack.notes.perfmap import PerfMap
from ustack.notes.spelling import Spelling, split
from ustack.notes.table import Table
from ustack.notes.tail import Tail, read_file

__all__ = [
    "End", "JitDump", "Lines", "Note", "PerfMap", "Spelling", "Table", "Tail", "read_file",
    "split",
]  # fmt: skip
