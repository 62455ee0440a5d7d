# SPDX-License-Identifier: MIT
"""A probe's arguments as bpftrace reads them: expression, printf format, and whole programs.

The one place that knows bpftrace's limits; every text works with 0.17 and later. Pure: must not
know where probes come from, nor run bpftrace.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stubgen.spec import Arg

__all__ = ["Field", "fields", "named_operands", "one_liner", "statements"]

#: bpftrace's default BPFTRACE_STRLEN, in bytes: the room that str() and buf() take each.
_STRING_SIZE = 64

# bpftrace <= 0.24 refuses arg6 and above on x86-64 and arg8 and above on aarch64 by name
# (arch::max_arg in its src/arch), so those are read from the stack by hand.
_NAMED_OPERANDS = {"aarch64": 8}

# BPF gives a program 512 bytes of stack. printf's arguments live there, and one str() beside
# them; the rest is bpftrace's own.
_STACK = 488

_STACK_OPERAND = re.compile(r"-?\d+@(?:(\d+)\(%rsp\)|\[sp, (\d+)\])")
_PLAIN_NAME = re.compile(r"[\w.$-]+:[\w.$-]+", re.ASCII)
_PLAIN_PATH = re.compile(r"[\w./+-]+", re.ASCII)
_OPERAND_SIZE = re.compile(r"(-?)(\d+)(f?)@")


@dataclass(frozen=True, slots=True)
class Field:
    """One argument: `format` is its printf conversion, `expression` what to hand it.

    copied: str() or buf(), which take room on the BPF stack
    """

    name: str
    format: str
    expression: str
    copied: bool


# Argument type -> printf conversion and expression around its operands. Floats are shown by their
# bits: bpftrace can neither cast nor print them.
_BY_TYPE = {
    "f32": ("0x%llx", "{0}"),
    "f64": ("0x%llx", "{0}"),
    "ptr": ("0x%llx", "{0}"),
    "str": ("%s", "str({0})"),
    "bytes": ("%r", "buf({0}, {1})"),
}
_SIGNED = ("%lld", "{0}")
_UNSIGNED = ("%llu", "{0}")


def named_operands(machine: str) -> int:
    """How many operands every bpftrace knows by name: arg0, arg1, ..."""
    return _NAMED_OPERANDS.get(machine, 6)


def _operand(index: int, operand: str, machine: str) -> str | None:
    """Operand `index` as an expression; None where bpftrace has no way to read it."""
    if index < named_operands(machine):
        return f"arg{index}"  # bpftrace narrows and sign-extends by the note itself
    match = _STACK_OPERAND.fullmatch(operand)
    if match is None:
        return None
    size = int(operand.partition("@")[0])
    kind = f"{'' if size < 0 else 'u'}int{abs(size) * 8}"
    return f'*({kind}*)(reg("sp") + {match[1] or match[2]})'


def fields(
    operands: Sequence[str], args: Sequence[Arg] | None, *, machine: str = "x86_64"
) -> tuple[Field, ...]:
    """How to print each argument of a probe, in order; what cannot be read is left out.

    operands: their stapsdt spelling; args: names and types, None for operands without (then they
    are called arg0, arg1, ...); machine: a `uname -m` name.
    """
    named: list[tuple[str, tuple[str, str], int]] = []
    if args is None:
        if any(size and size[3] for size in map(_OPERAND_SIZE.match, operands)):
            return ()  # one floating-point operand makes bpftrace lose them all
        for index, operand in enumerate(operands):
            size = _OPERAND_SIZE.match(operand)
            shape = _SIGNED if size and size[1] else _UNSIGNED
            named.append((f"arg{index}", shape, 1))
    else:
        for arg in args:
            sizes = arg.type.operands
            shape = _BY_TYPE.get(arg.type.name, _SIGNED if sizes[0] < 0 else _UNSIGNED)
            named.append((arg.name, shape, len(sizes)))
    out = []
    index = 0
    for name, (conversion, around), count in named:
        parts = [_operand(i, operands[i], machine) for i in range(index, index + count)]
        index += count
        if None not in parts:
            expression = around.format(*parts)
            out.append(Field(name, conversion, expression, copied="(" in around))
    return tuple(out)


def statements(shown: Sequence[Field]) -> str:
    """printf statements that print one line `name=value ...` for an event.

    More than one where a single one would not fit in BPF's stack.
    """
    groups: list[list[Field]] = [[]]
    used = 8 + _STRING_SIZE
    for field in shown:
        room = _STRING_SIZE if field.copied else 8
        if groups[-1] and used + room > _STACK:
            groups.append([])
            used = 8 + _STRING_SIZE
        groups[-1].append(field)
        used += room
    out = []
    for position, group in enumerate(groups):
        text = " ".join(f"{field.name}={field.format}" for field in group)
        end = r"\n" if position == len(groups) - 1 else " "
        arguments = ", ".join([f'"{text}{end}"', *(field.expression for field in group)])
        out.append(f"printf({arguments});")
    return " ".join(out)


def one_liner(path: str, full_name: str, shown: Sequence[Field]) -> str | None:
    """The command that prints every firing of `full_name`, to paste in a POSIX shell.

    None for a path or a name that bpftrace's language has no spelling for: names come from files
    of anybody's, and what is pasted runs as root.
    """
    if not _PLAIN_NAME.fullmatch(full_name) or not path.isprintable() or set(path) & set('"\\:'):
        return None
    body = statements(shown) if shown else rf'printf("{full_name}\n");'
    # Unquoted, bpftrace drops blanks from a path, and reads * [ ] and ? as wildcards.
    target = path if _PLAIN_PATH.fullmatch(path) else f'"{path}"'
    program = f"usdt:{target}:{full_name} {{ {body} }}"
    return "bpftrace -e " + shlex.quote(program)
