# SPDX-License-Identifier: MIT
"""What each known tracer refuses or warns about in an ELF file's probes, as rows of a table.

Takes what `read` returns, values in and values out. Must not know files, nor how it is printed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stubgen import bpftrace

if TYPE_CHECKING:
    from collections.abc import Callable

    from stubgen.found import Elf, FoundProbe

__all__ = ["TRACERS", "Finding", "check"]

#: In the order in which they are shown. `kernel` is uprobes and the dynamic loader, under any
#: of them; `usdt` is this toolkit.
TRACERS = (
    "bpftrace 0.17", "bpftrace 0.23", "bpftrace >= 0.25", "bcc", "libbpf", "perf", "gdb",
    "SystemTap", "LTTng", "usdt", "kernel",
)  # fmt: skip

_BPFTRACE_NAMED = ("bpftrace 0.17", "bpftrace 0.23")
_BCC = ("bpftrace 0.17", "bpftrace 0.23", "bcc")
_LIBBPF = ("bpftrace >= 0.25", "libbpf")
_BPF = (*_BCC, *_LIBBPF)
_ALL = (*_BPF, "perf", "gdb", "SystemTap")

_SECTIONS = (".note.stapsdt", ".stapsdt.base", ".probes")
_SHF_ALLOC = 2
_PF_X, _PF_W = 1, 2
_MAX_OPERANDS = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """severity: 'refuses' (the tracer cannot use the probe) or 'warns'; probe: None = the file."""

    tracer: str
    severity: str
    probe: str | None
    what: str
    todo: str


@dataclass(frozen=True, slots=True)
class _FileRule:
    tracers: tuple[str, ...]
    severity: str
    broken: Callable[[Elf], bool]
    what: str
    todo: str


@dataclass(frozen=True, slots=True)
class _ProbeRule:
    tracers: tuple[str, ...]
    severity: str
    broken: Callable[[Elf, FoundProbe], bool]
    what: str
    todo: str


def _stack_is_executable(elf: Elf) -> bool:
    stacks = [segment for segment in elf.segments if segment.type == "PT_GNU_STACK"]
    return bool(elf.segments) and (not stacks or bool(stacks[0].flags & _PF_X))


def _base_is_not_loaded(elf: Elf) -> bool:
    base = elf.section(".stapsdt.base")
    if base is None:
        return False
    return not base.flags & _SHF_ALLOC or elf.load_of(base.address) is None


def _notes_type_is_wrong(elf: Elf) -> bool:
    notes = elf.section(".note.stapsdt")
    return notes is not None and notes.type != "SHT_NOTE"


def _semaphore_outside_probes(elf: Elf, probe: FoundProbe) -> bool:
    section = elf.section(".probes")
    if probe.semaphore is None:
        return False
    return section is None or not 0 <= probe.semaphore - section.address < section.size


def _semaphore_not_writable(elf: Elf, probe: FoundProbe) -> bool:
    if probe.semaphore is None:
        return False
    load = elf.load_of(probe.semaphore)
    return load is None or not load.flags & _PF_W or bool(load.flags & _PF_X)


def _site_not_executable(elf: Elf, probe: FoundProbe) -> bool:
    load = elf.load_of(probe.site)
    return load is None or not load.flags & _PF_X


def _has_operand(pattern: str) -> Callable[[Elf, FoundProbe], bool]:
    found = re.compile(pattern)
    return lambda _elf, probe: any(found.search(operand) for operand in probe.operands)


def _not_all_named(elf: Elf, probe: FoundProbe) -> bool:
    return len(probe.operands) > bpftrace.named_operands(elf.machine)


_FILE_RULES = (
    _FileRule(
        _ALL, "refuses", lambda elf: elf.section(".note.stapsdt") is None,
        "the notes have no section header",
        "keep section headers when stripping: strip, not sstrip or --strip-section-headers",
    ),
    _FileRule(
        ("bcc", *_LIBBPF), "refuses", _notes_type_is_wrong,
        "section .note.stapsdt is not of type SHT_NOTE",
        "link it as a note: objcopy --set-section-type .note.stapsdt=7",
    ),
    _FileRule(
        ("gdb",), "refuses", lambda elf: elf.section(".stapsdt.base") is None,
        "there is no section .stapsdt.base",
        "keep it in the linker script: KEEP(*(.stapsdt.base))",
    ),
    _FileRule(
        ("bcc", *_LIBBPF), "warns", _base_is_not_loaded,
        "section .stapsdt.base is in no PT_LOAD, so addresses may be adjusted wrongly",
        "put it in a read-only loaded segment",
    ),
    _FileRule(
        ("perf",), "refuses", lambda elf: elf.build_id is None,
        "there is no build id: perf buildid-cache and perf probe sdt_* cannot find the file",
        "link with -Wl,--build-id",
    ),
    _FileRule(
        ("perf", "gdb", "bpftrace >= 0.25", "bcc"), "warns",
        lambda elf: elf.path.startswith(("/proc/", "/memfd:")) or elf.path.endswith(" (deleted)"),
        "it is no file with a lasting name: tracers that go by PID or by name do not find it",
        "give the stub a directory that is not noexec: export USDT_STUB_DIR=DIR",
    ),
    _FileRule(
        ("LTTng",), "warns",
        lambda elf: any(probe.semaphore is not None for probe in elf.probes),
        "lttng enable-event --userspace-probe=sdt takes no probe that has a semaphore",
        "attach bpftrace, bcc, perf or SystemTap",
    ),
    _FileRule(
        ("usdt",), "warns", lambda elf: elf.why is not None,
        "its arguments are shown without names: the self-description cannot be used",
        "build it again: usdt-stubgen build MODULE:PROVIDER -o DIR",
    ),
    _FileRule(
        ("kernel",), "warns", _stack_is_executable,
        "it asks for an executable stack: hardened systems and glibc >= 2.41 refuse to load it",
        "link with -Wl,-z,noexecstack",
    ),
    _FileRule(
        ("kernel",), "warns",
        lambda elf: any(s.type == "PT_LOAD" and s.align >= 0x200000 for s in elf.segments),
        "its segments are aligned to 2 MiB, which maps a hole of that size in each process",
        "link with -Wl,-z,max-page-size=4096",
    ),
)  # fmt: skip

_PROBE_RULES = (
    _ProbeRule(
        (*_BCC, "libbpf"), "refuses", _semaphore_outside_probes,
        "its semaphore is not in a section named .probes, so it is never switched on",
        'declare it __attribute__((section(".probes")))',
    ),
    _ProbeRule(
        _BPF, "refuses", _semaphore_not_writable,
        "its semaphore is not in a writable, non-executable PT_LOAD",
        "put .probes beside .data",
    ),
    _ProbeRule(
        (*_BPF, "perf", "kernel"), "refuses", _site_not_executable,
        "its site is not in an executable PT_LOAD",
        "the notes do not belong to this code: build the file again",
    ),
    _ProbeRule(
        _BPF, "refuses", _has_operand(r"^-?\d+f@"),
        "it has a floating-point operand: every argument of the probe is lost",
        "pass the float's bits as an integer of the same size",
    ),
    _ProbeRule(
        _BPF, "refuses", _has_operand(r"[A-Za-z_.$][\w.$]*(?:[+-]\w+)?\(%rip\)"),
        "it has an operand relative to a symbol, sym(%rip)",
        "copy the value to a local variable before the probe",
    ),
    _ProbeRule(
        _LIBBPF, "warns", _has_operand(r"@\(%\w+\)$"),
        "it has an operand without displacement, 8@(%rsp): older versions drop the probe",
        "write 8@0(%rsp)",
    ),
    _ProbeRule(
        _LIBBPF, "warns", _has_operand(r"\(%\w+, *%\w+"),
        "it has an indexed operand, 8@(%rax,%rbx,8): older versions drop the probe",
        "copy the value to a local variable before the probe",
    ),
    _ProbeRule(
        _ALL, "refuses", lambda _elf, probe: len(probe.operands) > _MAX_OPERANDS,
        f"it has more than {_MAX_OPERANDS} operands",
        "split the probe in two",
    ),
    _ProbeRule(
        _BPFTRACE_NAMED, "warns", _not_all_named,
        "its last arguments have no argN",
        'read them by reg("sp"), as usdt-stubgen show prints it',
    ),
    _ProbeRule(
        ("perf", "usdt"), "warns",
        lambda elf, probe: elf.functions is not None and probe.site not in elf.functions,
        "no sized function symbol holds its site, so stacks show a bare address",
        "keep .dynsym or .symtab, or install the debug symbols",
    ),
    _ProbeRule(
        ("kernel",), "warns",
        lambda elf, probe: probe.site_offset is not None and probe.nop is None
        and elf.machine in ("x86_64", "aarch64"),
        "the instruction at its site is no nop that uprobes emulate, so each hit traps twice",
        "build it with sys/sdt.h or usdt-stubgen",
    ),
)  # fmt: skip


def check(elf: Elf) -> tuple[Finding, ...]:
    """Every finding, tracer by tracer. Read the file with `functions=True` to have all rules."""
    # Rules look sections up by name, and a hostile file has 65536 of them.
    named = {section.name: section for section in reversed(elf.sections)}
    elf = replace(elf, sections=tuple(named[name] for name in _SECTIONS if name in named))
    findings = [
        Finding(tracer, rule.severity, None, rule.what, rule.todo)
        for rule in _FILE_RULES
        if elf.probes and rule.broken(elf)
        for tracer in rule.tracers
    ]
    findings += [
        Finding(tracer, rule.severity, probe.full_name, rule.what, rule.todo)
        for rule in _PROBE_RULES
        for probe in elf.probes
        if rule.broken(elf, probe)
        for tracer in rule.tracers
    ]
    return tuple(sorted(findings, key=lambda finding: TRACERS.index(finding.tracer)))
