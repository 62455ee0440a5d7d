# SPDX-License-Identifier: MIT
"""What was read, as documents for `--json` and as lines for people, both from the same values.

Pure. Must not know files, processes or flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stubgen import bpftrace
from stubgen.check import TRACERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stubgen.check import Finding
    from stubgen.found import Elf, FoundProbe

__all__ = ["VERSION", "checked", "checked_lines", "file", "file_lines"]

#: Of the JSON documents: raised when a key changes its meaning or goes away.
VERSION = 1

_NO_COMMAND = "(its name or path has no spelling in bpftrace's language: no command)"
_STATE = {None: "no semaphore", False: "not listening", True: "listening"}


def file(
    elf: Elf,
    reach: str,
    *,
    deleted: bool = False,
    values: Sequence[int | None] | None = None,
) -> dict[str, Any]:
    """One file's entry. reach: the path for tracers; values: semaphores of a process, if one."""
    probes = []
    for index, probe in enumerate(elf.probes):
        entry = _probe(elf, probe, reach)
        if values is not None:
            entry["semaphore_value"] = values[index]
        probes.append(entry)
    return {
        "path": elf.path,
        "reach": reach,
        "deleted": deleted,
        "machine": elf.machine,
        "build_id": None if elf.build_id is None else elf.build_id.hex(),
        "stub": elf.is_stub,
        "why": elf.why,
        "probes": probes,
    }


def _probe(elf: Elf, probe: FoundProbe, reach: str) -> dict[str, Any]:
    args = None
    if probe.args is not None:
        args = [
            {"name": arg.name, "type": arg.type.name, "operand": operand}
            for arg, operand in zip(probe.args, probe.first_operands, strict=True)
        ]
    shown = bpftrace.fields(probe.operands, probe.args, machine=elf.machine)
    return {
        "provider": probe.provider,
        "name": probe.name,
        "site": probe.site,
        "semaphore": probe.semaphore,
        "nop": probe.nop,
        "operands": list(probe.operands),
        "args": args,
        "bpftrace": bpftrace.one_liner(reach, probe.full_name, shown),
    }


def file_lines(entry: dict[str, Any]) -> Iterator[str]:
    """The lines for people of what `file` returned."""
    probes = entry["probes"]
    kind = "stub" if entry["stub"] else "ELF file"
    count = f"{len(probes)} probe{'' if len(probes) == 1 else 's'}"
    gone = " (deleted)" if entry["deleted"] else ""
    yield f"{entry['path']}{gone}: {entry['machine']} {kind}, {count}"
    if entry["why"]:
        yield f"  no argument names: {entry['why']}"
    pasted = set()
    for probe in probes:
        if probe["args"] is None:
            signature = ", ".join(probe["operands"])
        else:
            signature = ", ".join(f"{arg['type']} {arg['name']}" for arg in probe["args"])
        notes = [probe["nop"] or "not a known nop"]
        if "semaphore_value" in probe:
            value = probe["semaphore_value"]
            notes.append(_STATE[None if value is None else value != 0])
        elif probe["semaphore"] is None:
            notes.append(_STATE[None])
        name = f"{probe['provider']}:{probe['name']}"
        yield f"  {name}({signature})  [{', '.join(notes)}]"
        if name not in pasted:  # one probe may have many sites, and one command attaches to all
            pasted.add(name)
            yield f"    {probe['bpftrace'] or _NO_COMMAND}"


def checked(elf: Elf, findings: Sequence[Finding]) -> dict[str, Any]:
    """The document of a check."""
    return {
        "version": VERSION,
        "path": elf.path,
        "tracers": {
            tracer: [
                {
                    "severity": finding.severity,
                    "probe": finding.probe,
                    "what": finding.what,
                    "todo": finding.todo,
                }
                for finding in findings
                if finding.tracer == tracer
            ]
            for tracer in TRACERS
        },
    }


def checked_lines(document: dict[str, Any]) -> Iterator[str]:
    """The lines for people of what `checked` returned: a probe list per tracer and finding."""
    width = max(map(len, TRACERS))
    for tracer, findings in document["tracers"].items():
        probes_of: dict[tuple[str, str, str], list[str]] = {}
        for finding in findings:
            key = finding["severity"], finding["what"], finding["todo"]
            probes_of.setdefault(key, []).extend([finding["probe"]] if finding["probe"] else [])
        if not probes_of:
            yield f"{tracer:{width}}  ok"
        for (severity, what, todo), probes in probes_of.items():
            names = ", ".join(probes[:3]) + (f" and {len(probes) - 3} more" * (len(probes) > 3))
            yield f"{tracer:{width}}  {severity}  {names + ': ' if names else ''}{what}"
            yield f"{'':{width}}           {todo}"
