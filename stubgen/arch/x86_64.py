# SPDX-License-Identifier: MIT
"""x86-64: System V psABI calls, framed probe functions, nop kinds of Linux uprobes."""

from __future__ import annotations

from stubgen.arch.machine import Machine

#: Intel SDM vol. 2: NOP (90) and the 5-byte NOP DWORD ptr [rax+rax*1+0] (0F 1F 44 00 00).
#: Linux >= 6.18 replaces the latter by a call into a trampoline instead of trapping
#: (arch/x86/kernel/uprobes.c); that call writes below %rsp, which is safe here because a probe
#: function keeps nothing there.
_NOPS = {"nop1": b"\x90", "nop5": b"\x0f\x1f\x44\x00\x00"}

_ENTRY = bytes.fromhex("55 48 89 e5")  # push %rbp; mov %rsp,%rbp
_LEAVE = bytes.fromhex("5d c3")  # pop %rbp; ret

# psABI table 3.4: the first six integer arguments; the rest are on the stack. The names by
# operand size are the ones gcc prints for sys/sdt.h, which every note parser knows.
_REGISTERS = (
    {8: "rdi", 4: "edi", 2: "di", 1: "dil"},
    {8: "rsi", 4: "esi", 2: "si", 1: "sil"},
    {8: "rdx", 4: "edx", 2: "dx", 1: "dl"},
    {8: "rcx", 4: "ecx", 2: "cx", 1: "cl"},
    {8: "r8", 4: "r8d", 2: "r8w", 1: "r8b"},
    {8: "r9", 4: "r9d", 2: "r9w", 1: "r9b"},
)


def _operand(index: int, size: int) -> str:
    if index < len(_REGISTERS):
        return f"{size}@%{_REGISTERS[index][abs(size)]}"
    # Saved %rbp at 0(%rsp), return address at 8(%rsp), the seventh argument at 16(%rsp).
    return f"{size}@{16 + 8 * (index - len(_REGISTERS))}(%rsp)"


def _fde_rules(nop: bytes) -> bytes:
    after_push = bytes((
        0x41,  # DW_CFA_advance_loc 1: past push %rbp
        0x0E, 16,  # DW_CFA_def_cfa_offset 16
        0x86, 2,  # DW_CFA_offset %rbp at CFA - 16
    ))  # fmt: skip
    after_pop = bytes((
        0x40 | (3 + len(nop) + 1),  # DW_CFA_advance_loc: past pop %rbp
        0x0E, 8,  # DW_CFA_def_cfa_offset 8
        0xC6,  # DW_CFA_restore %rbp
    ))  # fmt: skip
    return after_push + after_pop


X86_64 = Machine(
    name="x86_64",
    e_machine=62,  # EM_X86_64
    page=0x1000,
    nops=_NOPS,
    default_nop="nop1",
    padding=b"\xcc",  # int3
    entry=_ENTRY,
    leave=_LEAVE,
    code_align=1,
    data_align=-8,
    return_column=16,
    # DW_CFA_def_cfa %rsp, 8; DW_CFA_offset return address at CFA - 8
    cie_rules=bytes((0x0C, 7, 8, 0x90, 1)),
    fde_rules=_fde_rules,
    operand=_operand,
)
