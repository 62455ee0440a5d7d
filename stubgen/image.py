# SPDX-License-Identifier: MIT
"""A description, a machine and a nop kind go in; the bytes of the stub come out.

The one place that knows which sections a stub has and in which order. Pure and deterministic.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct

from stubgen import elf, stapsdt
from stubgen.arch import MACHINES
from stubgen.elf import SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, Section, SharedObject, StringTable
from stubgen.spec import Provider, SpecError

__all__ = ["BUILD_ID_SIZE", "FORMAT", "build", "build_id", "file_name"]

#: Version of the self-description; see docs/stub-format.md.
FORMAT = 1

#: As ld --build-id=sha1 makes them.
BUILD_ID_SIZE = 20

_BUILD_ID_HEADER = Struct("<III4s").pack(4, BUILD_ID_SIZE, 3, b"GNU\0")  # NT_GNU_BUILD_ID
_DYN = Struct("<qQ")  # d_tag, d_un
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT = 4, 5, 6, 10, 11
_STB_GLOBAL, _STT_OBJECT, _STT_FUNC = 1 << 4, 1, 2


def self_description(provider: Provider) -> bytes:
    """`.usdt`: NUL-terminated lines, the version and then one signature a probe."""
    lines = [f"usdt {FORMAT}", *(f"{provider.name}:{probe}" for probe in provider.probes)]
    return "".join(f"{line}\0" for line in lines).encode("ascii")


def build(provider: Provider, *, arch: str = "x86_64", nop: str | None = None) -> bytes:
    """The stub of `provider` for machine `arch` (a `uname -m` name).

    nop: the kind of instruction at the sites, one of the machine's `nops`; None is the kind that
    every kernel handles well. Raises SpecError for an empty provider, an unknown machine or nop.
    """
    if arch not in MACHINES:
        raise SpecError(f"no stub emitter for machine {arch!r}: use one of {', '.join(MACHINES)}")
    machine = MACHINES[arch]
    nop = machine.default_nop if nop is None else nop
    if nop not in machine.nops:
        raise SpecError(f"no nop kind {nop!r} on {arch}: use one of {', '.join(machine.nops)}")
    if not provider.probes:
        raise SpecError(f"provider {provider.name!r} has no probes: declare one first")

    count = len(provider.probes)
    text = stapsdt.Text(machine, nop, count)
    names = [stapsdt.function_symbol(provider, probe) for probe in provider.probes]
    names += [stapsdt.semaphore_symbol(provider, probe) for probe in provider.probes]
    strings = StringTable()
    name_offsets = [strings.add(name) for name in names]
    dynstr_data = bytes(strings)
    hash_data = elf.sysv_hash_table(names)
    description = self_description(provider)
    # Sizes depend on no address: measure with zeros, then make the same again with the layout's.
    zeros = [0] * count
    frames, fdes = stapsdt.eh_frame(machine, nop, address=0, functions=zeros, size=text.size)
    notes_size = len(stapsdt.notes(machine, provider, sites=zeros, base=0, semaphores=zeros))

    out = SharedObject(machine.e_machine, machine.page)

    def reserve(name: str, type: int, flags: int, size: int, align: int, entsize: int) -> Section:
        return out.reserve(Section(name, type, flags, size, align=align, entsize=entsize))

    read, code, data = SHF_ALLOC, SHF_ALLOC | SHF_EXECINSTR, SHF_ALLOC | SHF_WRITE
    bits = elf.SHT_PROGBITS
    id_size = len(_BUILD_ID_HEADER) + BUILD_ID_SIZE
    build_id_note = reserve(".note.gnu.build-id", elf.SHT_NOTE, read, id_size, 4, 0)
    hash_ = reserve(".hash", elf.SHT_HASH, read, len(hash_data), 8, 4)
    dynsym = reserve(".dynsym", elf.SHT_DYNSYM, read, elf.SYM.size * (1 + len(names)), 8, 24)
    dynstr = reserve(".dynstr", elf.SHT_STRTAB, read, len(dynstr_data), 1, 0)
    usdt = reserve(".usdt", bits, read, len(description), 1, 0)
    eh_hdr = reserve(".eh_frame_hdr", bits, read, 12 + 8 * count, 4, 0)
    eh = reserve(".eh_frame", bits, read, len(frames), 8, 0)
    base = reserve(".stapsdt.base", bits, read, 1, 1, 0)
    text_ = reserve(".text", bits, code, len(text.data), stapsdt.FUNCTION_ALIGN, 0)
    dynamic = reserve(".dynamic", elf.SHT_DYNAMIC, data, _DYN.size * 6, 8, 16)
    probes = reserve(".probes", bits, data, stapsdt.SEMAPHORE_SIZE * count, 2, 0)
    notes = reserve(".note.stapsdt", elf.SHT_NOTE, 0, notes_size, 4, 0)
    hash_.link, dynsym.link, dynamic.link = dynsym, dynstr, dynstr
    dynsym.info = 1  # the first symbol that is not local
    out.layout()

    functions = [text_.address + text.function(i) for i in range(count)]
    semaphores = [probes.address + stapsdt.SEMAPHORE_SIZE * i for i in range(count)]
    build_id_note.data = _BUILD_ID_HEADER + bytes(BUILD_ID_SIZE)
    hash_.data = hash_data
    symbols = bytearray(elf.SYM.size)
    for name, value in zip(name_offsets[:count], functions, strict=True):
        symbols += elf.SYM.pack(name, _STB_GLOBAL | _STT_FUNC, 0, text_.index, value, text.size)
    for name, value in zip(name_offsets[count:], semaphores, strict=True):
        symbols += elf.SYM.pack(
            name, _STB_GLOBAL | _STT_OBJECT, 0, probes.index, value, stapsdt.SEMAPHORE_SIZE
        )
    dynsym.data = bytes(symbols)
    dynstr.data = dynstr_data
    usdt.data = description
    eh.data, fdes = stapsdt.eh_frame(
        machine, nop, address=eh.address, functions=functions, size=text.size
    )
    eh_hdr.data = stapsdt.eh_frame_hdr(
        address=eh_hdr.address, eh_frame=eh.address, functions=functions, fdes=fdes
    )
    base.data = b"\0"
    text_.data = text.data
    dynamic.data = b"".join((
        _DYN.pack(_DT_HASH, hash_.address),
        _DYN.pack(_DT_STRTAB, dynstr.address),
        _DYN.pack(_DT_SYMTAB, dynsym.address),
        _DYN.pack(_DT_STRSZ, dynstr.size),
        _DYN.pack(_DT_SYMENT, elf.SYM.size),
        _DYN.pack(0, 0),
    ))  # fmt: skip
    probes.data = bytes(probes.size)
    notes.data = stapsdt.notes(
        machine,
        provider,
        sites=[text_.address + text.site(i) for i in range(count)],
        base=base.address,
        semaphores=semaphores,
    )
    image = out.write()
    at = build_id_note.offset + len(_BUILD_ID_HEADER)
    image[at : at + BUILD_ID_SIZE] = sha256(image).digest()[:BUILD_ID_SIZE]
    return bytes(image)


def build_id(stub: bytes) -> bytes:
    """The build id of a stub that `build` made: a hash of every other byte of it."""
    at = stub.index(_BUILD_ID_HEADER) + len(_BUILD_ID_HEADER)
    return stub[at : at + BUILD_ID_SIZE]


def file_name(provider: Provider, stub: bytes) -> str:
    """The content-addressed file name of a stub that `build` made for `provider`."""
    return f"{provider.name}-{build_id(stub).hex()[:16]}.so"
