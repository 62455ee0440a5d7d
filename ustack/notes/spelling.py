# SPDX-License-Identifier: MIT
"""What runtimes put into a name, taken apart: function, file, line, tier.

A table of spellings; a name that none of them fits is a function's name, whole.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Spelling", "split"]


class Spelling(NamedTuple):
    """The parts of a name.

    line: of the function's definition
    tier: which of the runtime's compilers made the code, in its own words
    """

    function: str
    file: str | None = None
    line: int | None = None
    tier: str | None = None


#: Name -> regular expression. CPython: Objects/perf_trampoline.c; V8: LogEventListener's tags,
#: src/logging/code-events.h and log.cc; HotSpot: CodeCache::write_perf_map.
_SPELLINGS = {
    "CPython": r"py::(?P<function>[^:]*):(?P<file>.*)",
    "V8 script": (
        r"(?:JS|LazyCompile|Function|Eval|Script):(?P<tier>[~^+*]?)(?P<function>.*?) "
        # The file begins at the first word that looks like a path: both it and the function's
        # name ("get x") may have spaces. Otherwise it is the last word.
        r"(?P<file>(?:/|\.|[a-z]+:|\[)[^\n]*?|[^ ]*):(?P<line>\d{1,9}):\d{1,9}"
    ),
    "V8 function": r"(?:JS|LazyCompile|Function|Eval|Script):(?P<tier>[~^+*]?)(?P<function>.*)",
    "V8 builtin": r"(?P<tier>Builtin|BytecodeHandler|Handler|RegExp|Stub):(?P<function>.*)",
    "HotSpot": r"[\w.$\[\]]+ (?P<function>(?:[\w$]+\.)+(?:<init>|<clinit>|[\w$]+))\([^()]*\)",
}
_PATTERNS = [re.compile(pattern, re.DOTALL) for pattern in _SPELLINGS.values()]

#: V8's marks before a function's name.
_TIERS = {"": None, "~": "interpreted", "^": "baseline", "+": "maglev", "*": "optimized"}


def split(name: str) -> Spelling:
    """The parts of a note's name."""
    for pattern in _PATTERNS:
        match = pattern.fullmatch(name)
        if match:
            found = match.groupdict()
            tier, line = found.get("tier"), found.get("line")
            return Spelling(
                function=found["function"] or "(anonymous)",
                file=found.get("file") or None,
                line=int(line) if line else None,
                tier=_TIERS.get(tier, tier) if tier else None,
            )
    return Spelling(name)
