# SPDX-License-Identifier: MIT
"""Kernel addresses -> Frames, from the text of /proc/kallsyms.

Owns the table of the kernel, its modules and its BPF programs. Must not know processes.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from pathlib import Path

from ustack.frame import AbsAddr, Frame, Reason

__all__ = ["Kernel", "load_kernel"]

# Nothing says where the last symbol of a module ends: the kernel maps modules by page.
_PAGE = 4096

# Address, type, name. Without nm(1)'s absolute symbols, A: per-CPU offsets are no places.
_LINE = re.compile(rb"[0-9a-f]{16} [B-Zb-z?] [!-~]")

_CODE = b"tTwW"


class Kernel:
    """Kernel symbols by address; `why_not` says why there are none."""

    def __init__(self, text: bytes, *, why_not: Reason | None = None) -> None:
        """text: of /proc/kallsyms, lines of `ADDRESS TYPE NAME[\\t[MODULE]]`."""
        lines = filter(_LINE.match, text.split(b"\n"))
        rows = [(int(line[:16], 16), line) for line in lines]
        if not why_not and not any(address for address, _ in rows):
            # lib/vsprintf.c, restricted_pointer(): who may not see addresses sees zeros.
            why_not = Reason.RESTRICTED if rows else Reason.UNREADABLE
            rows = []
        rows.sort()
        self.why_not = why_not
        self._addresses = array("Q", [address for address, _ in rows])
        self._lines = [line for _, line in rows]

    def __len__(self) -> int:
        return len(self._lines)

    def resolve(self, address: AbsAddr) -> Frame:
        """The function that has the address; variables and gaps between modules are unmapped."""
        if self.why_not is not None:
            return Frame("kernel", None, address=address, why=self.why_not)
        last = bisect_right(self._addresses, address) - 1
        if last < 0:
            return Frame("kernel", None, address=address, why=Reason.UNMAPPED)
        start = self._addresses[last]
        end = self._addresses[last + 1] if last + 1 < len(self._addresses) else 1 << 64
        best = self._best(start, last)
        name, module = _split(self._lines[best])
        following = _split(self._lines[last + 1])[1] if last + 1 < len(self._lines) else ""
        if following != module:
            end = min(end, (start | _PAGE - 1) + 1)
        if address >= end or self._lines[best][17] not in _CODE:
            return Frame("kernel", None, address=address, why=Reason.UNMAPPED)
        return Frame("kernel", name, module=module, offset=address - start, address=address)

    def _best(self, start: int, last: int) -> int:
        """Of the symbols at one address: code, global over weak over local, fewest underscores."""
        indices = []
        while last >= 0 and self._addresses[last] == start:
            indices.append(last)
            last -= 1
        return min(indices, key=lambda index: _preference(self._lines[index]))


def _preference(line: bytes) -> tuple[bool, int, int, bytes]:
    name = line[19:].partition(b"\t")[0]
    rank = b"TWwt".find(line[17])
    return line[17] not in _CODE, rank, len(name) - len(name.lstrip(b"_")), name


def _split(line: bytes) -> tuple[str, str]:
    name, _, module = line[19:].partition(b"\t")
    return name.decode("utf-8", "replace"), module.decode("utf-8", "replace") or "[kernel]"


def load_kernel(path: str = "/proc/kallsyms") -> Kernel:
    """This machine's kernel. Without privilege: one whose `why_not` is a Reason."""
    try:
        return Kernel(Path(path).read_bytes())
    except OSError:
        return Kernel(b"", why_not=Reason.UNREADABLE)
