# SPDX-License-Identifier: MIT
"""The shape of a machine's row: what `image.build` needs to know about one instruction set."""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Machine"]


class Machine:
    """One instruction set.

    name:           what `uname -m` prints
    e_machine:      elf.h's EM_ number
    page:           p_align of loadable segments, bytes: the largest page its kernels use
    nops:           nop kind -> the bytes at the probe site, which uprobes patch
    default_nop:    the kind that every kernel handles well
    padding:        the byte between functions, a trap or an undefined instruction
    entry, leave:   the instructions before and after the site: a frame, so that a stack walk
                    by frame pointer finds the function that fired
    code_align, data_align, return_column, cie_rules, fde_rules(nop):
                    call frame information; DWARF 5, section 6.4
    operand(i, n):  the stapsdt spelling of operand i, |n| bytes wide, signed if n < 0
    """

    __slots__ = (
        "cie_rules",
        "code_align",
        "data_align",
        "default_nop",
        "e_machine",
        "entry",
        "fde_rules",
        "leave",
        "name",
        "nops",
        "operand",
        "padding",
        "page",
        "return_column",
    )

    def __init__(
        self,
        *,
        name: str,
        e_machine: int,
        page: int,
        nops: dict[str, bytes],
        default_nop: str,
        padding: bytes,
        entry: bytes,
        leave: bytes,
        code_align: int,
        data_align: int,
        return_column: int,
        cie_rules: bytes,
        fde_rules: Callable[[bytes], bytes],
        operand: Callable[[int, int], str],
    ) -> None:
        self.name = name
        self.e_machine = e_machine
        self.page = page
        self.nops = nops
        self.default_nop = default_nop
        self.padding = padding
        self.entry = entry
        self.leave = leave
        self.code_align = code_align
        self.data_align = data_align
        self.return_column = return_column
        self.cie_rules = cie_rules
        self.fde_rules = fde_rules
        self.operand = operand

    def function(self, nop: str) -> tuple[bytes, int]:
        """One probe function's code and the offset of its site, for a kind in `nops`."""
        return self.entry + self.nops[nop] + self.leave, len(self.entry)
