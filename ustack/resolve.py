# SPDX-License-Identifier: MIT
"""Raw stacks in somebody's text -> the same text with names.

Knows the forms in which bpftrace, bcc and perf script print what they could not name; must not
know where names come from. Pure: lines in, lines out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from ustack.frame import AbsAddr, Frame

__all__ = ["Name", "resolve"]

#: pid (None for the kernel's) and address -> Frame.
Name = Callable[[int | None, AbsAddr], Frame]

# A frame that has no name yet: an address alone on its line (bpftrace), or with "[unknown]" and a
# module behind it (perf script, bcc), or behind it again (bpftrace's ustack(perf)). At least six
# digits: "10" alone is a count, not an address.
_FRAME = re.compile(
    r"(?P<indent>\s*)(?:0x)?(?P<address>[0-9a-f]{6,16})"
    r"(?P<unknown>\s+(?:0x[0-9a-f]+ \()?\[unknown\].*)?,?\s*"
)

# A line of frames' owner: perf script's "comm 4242/4243 [001] 12.3: ...", bpftrace's "@[4242, ".
_OWNERS = (
    re.compile(r"\S.*?\s(?P<pid>\d+)(?:/\d+)?\s+(?:\[\d+\]\s+)?\d+\.\d+:"),
    re.compile(r"@\w*\[(?P<pid>\d+),"),
)

_KERNEL = 1 << 63  # user space is the lower half of the addresses on every 64-bit machine


def resolve(lines: Iterable[str], name: Name, *, pid: int | None = None) -> Iterator[str]:
    """Each line, with a name in place of an address; all else as it is.

    pid: the process of all stacks; None: said by the text, and where it is not, addresses stay.
    """
    owner = pid
    for line in lines:
        match = _FRAME.fullmatch(line)
        if match is None:
            if pid is None:
                owner = _owner(line, owner)
            yield line
            continue
        address = AbsAddr(int(match["address"], 16))
        kernel = address >= _KERNEL
        if owner is None and not kernel:
            yield line
            continue
        text = shown(name(None if kernel else owner, address))
        end = "," if line.rstrip().endswith(",") else ""
        newline = "\n" if line.endswith("\n") else ""
        kept = f"{match['address']} " if match["unknown"] else ""
        yield f"{match['indent']}{kept}{text}{end}{newline}"


def shown(frame: Frame) -> str:
    """`name+offset (file:line)` as bpftrace would print it, with what else is known."""
    text = str(frame)
    if frame.name is not None and frame.offset is not None:
        text += f"+{frame.offset}"
    where = frame.file or (frame.module if frame.name is not None else None)
    if where is not None:
        text += f" ({where}:{frame.line})" if frame.line else f" ({where})"
    return text


def _owner(line: str, before: int | None) -> int | None:
    for pattern in _OWNERS:
        match = pattern.match(line)
        if match is not None:
            return int(match["pid"])
    return before
