# SPDX-License-Identifier: MIT
"""The USDT door: probe functions, semaphores, `.note.stapsdt` notes, unwind rules.

Turns a machine and a description into section contents; `image` decides where they go.
Format of the notes: https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
"""

from __future__ import annotations

from struct import Struct

from stubgen.arch import Machine
from stubgen.elf import align_up
from stubgen.spec import Probe, Provider

__all__ = [
    "FUNCTION_ALIGN", "SEMAPHORE_SIZE", "Text", "eh_frame", "eh_frame_hdr", "function_symbol",
    "notes", "semaphore_symbol",
]  # fmt: skip

FUNCTION_ALIGN = 16
SEMAPHORE_SIZE = 2  # unsigned short, sys/sdt.h

_OWNER = b"stapsdt\0"
_NT_STAPSDT = 3
_NOTE_HEADER = Struct("<III")  # n_namesz, n_descsz, n_type
_NOTE_ADDRESSES = Struct("<QQQ")  # pc, base, semaphore

_PCREL_SDATA4 = 0x1B  # DW_EH_PE_pcrel | DW_EH_PE_sdata4; LSB Core, "DWARF Extensions"
_UDATA4 = 0x03
_DATAREL_SDATA4 = 0x3B


def function_symbol(provider: Provider, probe: Probe) -> str:
    """The probe function's symbol. A dot keeps it apart from every semaphore's symbol."""
    return f"{provider.name}.{probe.name}"


def semaphore_symbol(provider: Provider, probe: Probe) -> str:
    """The semaphore's symbol, spelled as sys/sdt.h spells it."""
    return f"{provider.name}_{probe.name}_semaphore"


class Text:
    """The probe functions of a stub: all alike, so all offsets are a multiplication.

    data:  the bytes of `.text`
    size:  of one function, bytes (its symbol's st_size)
    """

    __slots__ = ("_site", "data", "size")

    def __init__(self, machine: Machine, nop: str, count: int) -> None:
        code, self._site = machine.function(nop)
        self.size = len(code)
        self.data = code.ljust(align_up(self.size, FUNCTION_ALIGN), machine.padding) * count

    def function(self, index: int) -> int:
        """Offset of function `index` in `.text`."""
        return index * align_up(self.size, FUNCTION_ALIGN)

    def site(self, index: int) -> int:
        """Offset of the nop of function `index` in `.text`."""
        return self.function(index) + self._site


def notes(
    machine: Machine, provider: Provider, *, sites: list[int], base: int, semaphores: list[int]
) -> bytes:
    """`.note.stapsdt`, one note a probe; addresses are virtual. Its size depends on no address."""
    out = []
    for probe, pc, semaphore in zip(provider.probes, sites, semaphores, strict=True):
        operands = " ".join(machine.operand(i, size) for i, size in enumerate(probe.operands))
        strings = f"{provider.name}\0{probe.name}\0{operands}\0".encode("ascii")
        size = _NOTE_ADDRESSES.size + len(strings)
        out.append(_NOTE_HEADER.pack(len(_OWNER), size, _NT_STAPSDT) + _OWNER)
        out.append(_NOTE_ADDRESSES.pack(pc, base, semaphore))
        out.append(strings.ljust(align_up(size, 4) - _NOTE_ADDRESSES.size, b"\0"))
    return b"".join(out)


def _record(body: bytes) -> bytes:
    """One .eh_frame record: its length, then `body` padded with DW_CFA_nop."""
    body = body.ljust(align_up(len(body) + 4, 8) - 4, b"\0")
    return len(body).to_bytes(4, "little") + body


def eh_frame(
    machine: Machine, nop: str, *, address: int, functions: list[int], size: int
) -> tuple[bytes, list[int]]:
    """`.eh_frame` at `address` for functions of `size` bytes, and the offset of each FDE."""
    cie = _record(
        bytes(4)  # CIE id
        + b"\x01zR\0"  # version 1; augmentation: an FDE pointer encoding follows
        + bytes((machine.code_align, machine.data_align & 0x7F, machine.return_column))
        + bytes((1, _PCREL_SDATA4))
        + machine.cie_rules
    )
    rules = machine.fde_rules(machine.nops[nop])
    out = bytearray(cie)
    offsets = []
    for function in functions:
        offsets.append(len(out))
        back = len(out) + 4  # from this FDE's CIE pointer field to the CIE
        pcrel = function - (address + len(out) + 8)
        out += _record(
            back.to_bytes(4, "little")
            + pcrel.to_bytes(4, "little", signed=True)
            + size.to_bytes(4, "little")
            + b"\0"  # no augmentation data
            + rules
        )
    out += bytes(4)  # terminator
    return bytes(out), offsets


def eh_frame_hdr(*, address: int, eh_frame: int, functions: list[int], fdes: list[int]) -> bytes:
    """`.eh_frame_hdr` at `address`: the binary search table, `functions` ascending."""
    out = bytearray((1, _PCREL_SDATA4, _UDATA4, _DATAREL_SDATA4))
    out += (eh_frame - (address + 4)).to_bytes(4, "little", signed=True)
    out += len(functions).to_bytes(4, "little")
    for function, fde in zip(functions, fdes, strict=True):
        out += (function - address).to_bytes(4, "little", signed=True)
        out += (eh_frame + fde - address).to_bytes(4, "little", signed=True)
    return bytes(out)
