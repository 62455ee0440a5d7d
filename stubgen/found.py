# SPDX-License-Identifier: MIT
"""What an ELF file says about its probes: the nouns, and the notes and texts behind them.

Pure: takes the bytes of sections, which `read` fetches. Must not know how stubs are written: it
shares `spec` with the emitter, and no code, so that each can be checked against the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from stubgen.spec import Arg, Probe, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "DamagedError", "Elf", "FoundProbe", "Section", "Segment", "describe", "note_probe", "notes",
    "printable", "split_operands",
]  # fmt: skip

#: What the self-description's first line must say; docs/stub-format.md.
SELF_DESCRIPTION = "usdt 1"

#: The largest real programs have a few thousand probes.
MAX_PROBES = 1 << 16

#: Longest text kept of a name or of a note's operands, in characters.
_MAX_TEXT = 1024


class DamagedError(ValueError):
    """Bytes that contradict their format; the message names the place, not the file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header: `type` is elf.h's PT_ name, `flags` its PF_ bits; sizes in bytes."""

    type: str
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int
    align: int


@dataclass(frozen=True, slots=True)
class Section:
    """A section header: `type` is elf.h's SHT_ name, `flags` its SHF_ bits; sizes in bytes."""

    name: str
    type: str
    flags: int
    address: int
    offset: int
    size: int
    align: int


@dataclass(frozen=True, slots=True)
class FoundProbe:
    """One stapsdt note.

    site, semaphore:  virtual addresses in the file's own terms, adjusted for prelinking;
                      semaphore is None where the note names none
    *_offset:         the same as file offsets; None where no PT_LOAD has the address
    operands:         raw text, one each: "-4@%edi"
    args:             names and types by self-description; None where there is none
    nop:              the kind of nop at the site, None for another instruction or machine
    """

    provider: str
    name: str
    site: int
    site_offset: int | None
    semaphore: int | None
    semaphore_offset: int | None
    operands: tuple[str, ...]
    args: tuple[Arg, ...] | None
    nop: str | None

    @property
    def full_name(self) -> str:
        return f"{self.provider}:{self.name}"

    @property
    def first_operands(self) -> tuple[int, ...]:
        """For each of `args`, the index of its first operand; a bytes argument takes two."""
        indices, index = [], 0
        for arg in self.args or ():
            indices.append(index)
            index += len(arg.type.operands)
        return tuple(indices)


@dataclass(frozen=True, slots=True)
class Elf:
    """What one file says.

    machine:    elf.h's EM_ name in lower case: "x86_64", "aarch64", "386"
    byte_order: "little" or "big"
    is_stub:    there is a self-description; `why` says why it was not used, if it was not
    functions:  site -> the sized function symbol that holds it; None if not asked for
    """

    path: str
    machine: str
    bits: int
    byte_order: str
    sections: tuple[Section, ...]
    segments: tuple[Segment, ...]
    build_id: bytes | None = None
    probes: tuple[FoundProbe, ...] = ()
    is_stub: bool = False
    why: str | None = None
    functions: dict[int, str] | None = None

    def section(self, name: str) -> Section | None:
        return next((section for section in self.sections if section.name == name), None)

    def load_of(self, address: int) -> Segment | None:
        """The PT_LOAD that holds a virtual address."""
        for segment in self.segments:
            if segment.type == "PT_LOAD" and 0 <= address - segment.address < segment.memory_size:
                return segment
        return None

    def file_offset(self, address: int) -> int | None:
        """Where in the file a virtual address is, if it is."""
        segment = self.load_of(address)
        if segment is None or address - segment.address >= segment.file_size:
            return None
        return address - segment.address + segment.offset


def printable(data: bytes, start: int = 0, *, limit: int = _MAX_TEXT) -> str:
    """The NUL-terminated string at `start`, of up to `limit` bytes; unprintable ones escaped."""
    raw = data[start : start + limit].partition(b"\0")[0]
    text = raw.decode("latin-1")
    if raw.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c < "\x7f" else f"\\x{ord(c):02x}" for c in text)


def notes(data: bytes, *, order: str, align: int, where: str) -> Iterator[tuple[bytes, int, bytes]]:
    """Owner, type and descriptor of each note of a section or segment. Raises DamagedError.

    order: '<' or '>'; align: the section's, since notes aligned to 8 are padded to 8.
    """
    head = Struct(f"{order}III")  # n_namesz, n_descsz, n_type
    pad = 7 if align == 8 else 3
    at = 0
    while at + head.size <= len(data):
        name_size, desc_size, kind = head.unpack_from(data, at)
        name_at = at + head.size
        desc_at = at + (head.size + name_size + pad & ~pad)
        if desc_at + desc_size > len(data):
            raise DamagedError(f"a note of {where} runs past its end")
        owner = data[name_at : name_at + min(name_size, 16)].rstrip(b"\0")
        yield owner, kind, data[desc_at : desc_at + desc_size]
        at = desc_at + (desc_size + pad & ~pad)


def note_probe(desc: bytes, elf: Elf, *, order: str, anchor: int | None) -> FoundProbe:
    """The probe of one stapsdt descriptor, without `args` and `nop`. Raises DamagedError.

    anchor: the address of `.stapsdt.base`, if there is one.
    Format: https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
    """
    addresses = Struct(f"{order}3{'Q' if elf.bits == 64 else 'I'}")
    strings = desc[addresses.size :].split(b"\0", 3)
    if len(desc) < addresses.size or len(strings) < 3:
        raise DamagedError("a note of .note.stapsdt is cut short")
    site, base, semaphore = addresses.unpack_from(desc)
    # Prelink moves sections and leaves the notes, which are not loaded, as they were.
    moved = anchor - base if anchor and base else 0
    mask = (1 << elf.bits) - 1
    site = (site + moved) & mask
    semaphore = (semaphore + moved) & mask if semaphore else None
    return FoundProbe(
        provider=printable(strings[0]),
        name=printable(strings[1]),
        site=site,
        site_offset=elf.file_offset(site),
        semaphore=semaphore,
        semaphore_offset=None if semaphore is None else elf.file_offset(semaphore),
        operands=split_operands(printable(strings[2])),
        args=None,
        nop=None,
    )


def split_operands(text: str) -> tuple[str, ...]:
    """The operands of a note's third string, which separates them, and `[sp, 16]`, by blanks."""
    operands: list[list[str]] = []
    depth = 0
    for word in text.split():
        if depth > 0:
            operands[-1].append(word)
        else:
            operands.append([word])
        depth += word.count("[") - word.count("]")
    return tuple(" ".join(words) for words in operands)


def describe(data: bytes, found: Sequence[FoundProbe]) -> list[tuple[Arg, ...]] | str | None:
    """The arguments of each probe by the self-description `data`.

    A str says why it cannot be used; None says that `data` is none. docs/stub-format.md.
    """
    version, *lines = data.decode("ascii", "replace").split("\0", MAX_PROBES + 1)
    if not version.startswith("usdt "):
        return None
    if version != SELF_DESCRIPTION:
        return (
            f"its self-description is {version[:40]!r} and this reader knows "
            f"{SELF_DESCRIPTION!r}: pip install --upgrade usdt-toolkit"
        )
    signatures = [line for line in lines if line]
    if len(signatures) != len(found):
        return (
            f"its self-description has {len(signatures)} probes and its notes {len(found)}: "
            "rebuild it"
        )
    args = []
    for line, probe in zip(signatures, found, strict=True):
        try:
            described = _signature(line, probe.full_name)
        except SpecError as error:
            return f"its self-description of {probe.full_name} is damaged: {error}"
        sizes = tuple(operand.partition("@")[0] for operand in probe.operands)
        if sizes != tuple(map(str, described.operands)):
            return (
                f"its self-description of {probe.full_name} does not fit the note's operands: "
                "rebuild it"
            )
        args.append(described.args)
    return args


def _signature(line: str, full_name: str) -> Probe:
    """`shop:order_start(u64 id, str customer)` -> the probe; raises SpecError."""
    name, bracket, rest = line.partition("(")
    if name != full_name or not bracket or not rest.endswith(")"):
        raise SpecError(f"no signature of {full_name}: rebuild it")
    args = []
    for part in rest[:-1].split(", ") if rest != ")" else ():
        kind, _, arg = part.partition(" ")
        args.append(Arg(arg, kind))
    return Probe(full_name.partition(":")[2], tuple(args))
