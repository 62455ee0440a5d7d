# SPDX-License-Identifier: MIT
"""AArch64: AAPCS64 calls, framed probe functions."""

from __future__ import annotations

from stubgen.arch.machine import Machine

_NOPS = {"nop1": bytes.fromhex("1f 20 03 d5")}

_ENTRY = bytes.fromhex("fd 7b bf a9  fd 03 00 91")  # stp x29, x30, [sp, #-16]!; mov x29, sp
_LEAVE = bytes.fromhex("fd 7b c1 a8  c0 03 5f d6")  # ldp x29, x30, [sp], #16; ret

_REGISTERS = 8  # x0-x7, AAPCS64 6.8.2


def _operand(index: int, size: int) -> str:
    # libbpf and bcc know the 64-bit register names only, whatever the operand's size.
    if index < _REGISTERS:
        return f"{size}@x{index}"
    return f"{size}@[sp, {16 + 8 * (index - _REGISTERS)}]"


def _fde_rules(_nop: bytes) -> bytes:
    return bytes((
        0x41,  # DW_CFA_advance_loc 1 (x 4): past stp
        0x0E, 16,  # DW_CFA_def_cfa_offset 16
        0x9D, 2,  # DW_CFA_offset x29 at CFA - 16
        0x9E, 1,  # DW_CFA_offset x30 at CFA - 8
        0x43,  # DW_CFA_advance_loc 3 (x 4): past ldp
        0x0E, 0,  # DW_CFA_def_cfa_offset 0
        0xDE,  # DW_CFA_restore x30
        0xDD,  # DW_CFA_restore x29
    ))  # fmt: skip


AARCH64 = Machine(
    name="aarch64",
    e_machine=183,  # EM_AARCH64
    page=0x10000,
    nops=_NOPS,
    default_nop="nop1",
    padding=b"\0",  # udf #0
    entry=_ENTRY,
    leave=_LEAVE,
    code_align=4,
    data_align=-8,
    return_column=30,
    cie_rules=bytes((0x0C, 31, 0)),  # DW_CFA_def_cfa sp, 0
    fde_rules=_fde_rules,
    operand=_operand,
)
