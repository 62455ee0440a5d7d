# SPDX-License-Identifier: MIT
"""Probes -> the bpftrace script that reports them, and what each of its records will hold.

Pure: text out of values. `events` is its other half, which reads what the script prints; this
module must not know how bpftrace is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stubgen import bpftrace
from stubgen.found import FoundProbe

__all__ = ["STRING_ROOM", "Arg", "Target", "count", "events", "histogram", "plan", "usable"]

#: BPFTRACE_STRLEN: the most that bpftrace 0.17 takes, and with it the BPF stack of every version
#: has room for one string beside the integers of a record.
STRING_ROOM = 200

#: What a string can hold of it: bpftrace ends every string with a NUL.
STRING_MAX = STRING_ROOM - 1

#: With at most so many integers the first string fits into the record with the integers.
_JOINED = 8

# A name from somebody's ELF file becomes text of a program that runs as root.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PATH = re.compile(r"/[A-Za-z0-9_./-]*")

_SIZE = re.compile(r"(-?)([1248])@")


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument: `type` is a name of stubgen.argtypes, or '' where it cannot be read.

    operands: an expression for each operand; two for bytes, pointer then length
    """

    name: str
    type: str
    operands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """One probe at one path. Its place in the list of all targets is its number in records."""

    path: str
    provider: str
    name: str
    args: tuple[Arg, ...]

    @property
    def full_name(self) -> str:
        return f"{self.provider}:{self.name}"

    @property
    def integers(self) -> tuple[str, ...]:
        """The expressions of the head record, in order; bytes give their length."""
        return tuple(arg.operands[-1] for arg in self.args if arg.type not in ("str", ""))

    @property
    def strings(self) -> tuple[Arg, ...]:
        """The arguments that need room of their own, in order."""
        return tuple(arg for arg in self.args if arg.type in ("str", "bytes"))

    @property
    def joined(self) -> bool:
        """Whether the head record ends with the first string."""
        strings = self.strings
        return bool(strings) and strings[0].type == "str" and len(self.integers) <= _JOINED


def usable(path: str, probe: FoundProbe) -> bool:
    """Whether path and names can stand in a script; a foreign file may hold any text."""
    names = _NAME.fullmatch(probe.provider) and _NAME.fullmatch(probe.name)
    return bool(names and _PATH.fullmatch(path))


def plan(path: str, probe: FoundProbe, *, machine: str) -> Target:
    """How to read one probe. Without a self-description its arguments are arg0, arg1, ..."""
    fields = bpftrace.fields(probe.operands, None, machine=machine)
    readable = {field.name: field.expression for field in fields}
    names: Iterable[tuple[str, str, int]]
    if probe.args is None:
        names = [(f"arg{i}", _integer(text), 1) for i, text in enumerate(probe.operands)]
    else:
        names = [(arg.name, arg.type.name, len(arg.type.operands)) for arg in probe.args]
    args = []
    index = 0
    for name, kind, width in names:
        found = [readable.get(f"arg{i}") for i in range(index, index + width)]
        index += width
        operands = tuple(text for text in found if text is not None)
        if len(operands) < width:
            kind, operands = "", ()
        args.append(Arg(name, kind, operands))
    return Target(path, probe.provider, probe.name, tuple(args))


def _integer(operand: str) -> str:
    match = _SIZE.match(operand)
    return f"{'i' if match[1] else 'u'}{8 * int(match[2])}" if match else ""


def events(targets: Sequence[Target], *, pid: int | None) -> str:
    """A script that prints every event as records.

        B pid                                       once: bpftrace's own pid, as its BPF sees it
        E number time tid pid integers... [more text]   the head of an event
        S number place time tid more text           a string; `place` counts `Target.strings`
        R number place time tid hex                 bytes

    time: nanoseconds since boot, one value for all records of an event; with tid it says which
    event a record belongs to. more: the byte behind the longest text there is room for, which
    says whether the string went on. Text comes last, so nothing in it can be taken for a field.
    """
    return _script(targets, [_event_body(i, target) for i, target in enumerate(targets)], pid)


def _event_body(number: int, target: Target) -> str:
    head = ["$t", "tid", "pid", *target.integers]
    form = " ".join(["E", str(number), "%llu", "%d", "%d", *["%lld"] * len(target.integers)])
    parts = []
    for place, arg in enumerate(target.strings):
        pointer = arg.operands[0]
        if place == 0 and target.joined:
            head += [f"*(uint8*)({pointer} + {STRING_MAX})", f"str({pointer})"]
            form += " %d %s"
        elif arg.type == "str":
            parts.append(
                f'printf("S {number} {place} %llu %d %d %s", $t, tid, '
                f"*(uint8*)({pointer} + {STRING_MAX}), str({pointer}));"
            )
        else:
            value = f"buf({pointer}, {arg.operands[1]})"
            parts.append(f'printf("R {number} {place} %llu %d %rx", $t, tid, {value});')
    first = f'printf("{form}", {", ".join(head)});'
    return " ".join(["$t = nsecs;", f"@fired[{number}] = count();", first, *parts])


def count(targets: Sequence[Target], *, pid: int | None, refresh: bool) -> str:
    """A script that counts per probe and process in `@count[number, pid]`.

    refresh: print the counts every second, not only at the end.
    """
    bodies = [f"@fired[{i}] = count(); @count[{i}, pid] = count();" for i, _ in enumerate(targets)]
    return _script(targets, bodies, pid, refresh="print(@fired); print(@count);" * refresh)


def histogram(targets: Sequence[Target], arg: str, *, pid: int | None, refresh: bool) -> str:
    """A script for one argument of each target: integers in `@hist[number]`, powers of two;
    strings counted by value in `@value[number, text]`."""
    bodies = []
    for number, target in enumerate(targets):
        (found,) = (one for one in target.args if one.name == arg)
        (value,) = found.operands
        how = (
            f"@value[{number}, str({value})] = count();"
            if found.type == "str"
            else f"@hist[{number}] = hist({value});"
        )
        bodies.append(f"@fired[{number}] = count(); {how}")
    kinds = {one.type == "str" for target in targets for one in target.args if one.name == arg}
    maps = [
        "@fired",
        *(["@hist"] if False in kinds else []),
        *(["@value"] if True in kinds else []),
    ]
    return _script(
        targets, bodies, pid, refresh=" ".join(f"print({name});" for name in maps) * refresh
    )


def _script(
    targets: Sequence[Target], bodies: Sequence[str], pid: int | None, *, refresh: str = ""
) -> str:
    condition = "" if pid is None else f" /pid == {pid}/"
    lines = ['BEGIN { printf("B %d", pid); }']
    for target, body in zip(targets, bodies, strict=True):
        lines.append(f"usdt:{target.path}:{target.full_name}{condition} {{ {body} }}")
    if refresh:
        lines.append(f"interval:s:1 {{ {refresh} }}")
    return "\n".join(lines) + "\n"
