# SPDX-License-Identifier: MIT
"""The nouns, Provider, Probe and Arg, and the rules that make a description valid.

Knows nothing of ELF, machines or files. A value of these classes is valid once it exists.
"""

from __future__ import annotations

from stubgen.argtypes import BY_NAME, ArgType

__all__ = ["MAX_NAME", "MAX_OPERANDS", "Arg", "Probe", "Provider", "SpecError"]

#: Longest provider, probe or argument name, in characters. LTTng-UST allows 255 for
#: `provider:probe` together (LTTNG_UST_ABI_SYM_NAME_LEN 256 in lttng/ust-abi.h).
MAX_NAME = 100

#: Operands of one probe: STAP_PROBE12 is the largest macro of sys/sdt.h, and 12 is what
#: bpftrace, bcc, gdb and SystemTap read.
MAX_OPERANDS = 12

# Plain string sets, not `re`: importing it costs a service 5 ms.
_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_REST = _FIRST | frozenset("0123456789")


class SpecError(ValueError):
    """A description that cannot become a stub; the message says what to write instead."""


def _check_name(kind: str, name: object) -> str:
    if not isinstance(name, str):
        raise SpecError(f"{kind} name must be a str, not {type(name).__name__}")
    if not name:
        raise SpecError(f"{kind} name is empty: use a C identifier, such as 'order_done'")
    if name[0] not in _FIRST or not _REST.issuperset(name):
        raise SpecError(
            f"{kind} name {name!r} is not a C identifier: use ASCII letters, digits and '_' only"
        )
    if len(name) > MAX_NAME:
        raise SpecError(
            f"{kind} name {name[:20]!r}... has {len(name)} characters: at most {MAX_NAME}"
        )
    return name


class Arg:
    """One named, typed argument of a probe.

    `type` is an `ArgType` or its name ('u64', 'str', ...). Raises SpecError.
    """

    __slots__ = ("name", "type")

    name: str
    type: ArgType

    def __init__(self, name: str, type: ArgType | str) -> None:
        self.name = _check_name("argument", name)
        row = BY_NAME.get(type) if isinstance(type, str) else type
        if not isinstance(row, ArgType):
            raise SpecError(f"argument {name!r} has type {type!r}: use one of {', '.join(BY_NAME)}")
        self.type = row

    def __str__(self) -> str:
        return f"{self.type.name} {self.name}"

    def __repr__(self) -> str:
        return f"Arg({self.name!r}, {self.type.name!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Arg):
            return NotImplemented
        return self.name == other.name and self.type is other.type

    def __hash__(self) -> int:
        return hash((self.name, self.type.name))


class Probe:
    """One probe: a name and 0 to 12 operands' worth of arguments. Raises SpecError."""

    __slots__ = ("args", "name")

    name: str
    args: tuple[Arg, ...]

    def __init__(self, name: str, args: tuple[Arg, ...] = ()) -> None:
        self.name = _check_name("probe", name)
        self.args = tuple(args)
        seen: set[str] = set()
        for arg in self.args:
            if arg.name in seen:
                raise SpecError(f"probe {name!r} has two arguments named {arg.name!r}: rename one")
            seen.add(arg.name)
        if len(self.operands) > MAX_OPERANDS:
            raise SpecError(
                f"probe {name!r} needs {len(self.operands)} operands: tracers read at most "
                f"{MAX_OPERANDS} (a bytes argument counts as 2); split it into two probes"
            )

    @property
    def operands(self) -> tuple[int, ...]:
        """The signed byte count of each machine operand, in call order."""
        return tuple(size for arg in self.args for size in arg.type.operands)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})"

    def __repr__(self) -> str:
        return f"Probe({self.name!r}, {self.args!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Probe):
            return NotImplemented
        return self.name == other.name and self.args == other.args

    def __hash__(self) -> int:
        return hash((self.name, self.args))


class Provider:
    """A named, ordered set of probes with distinct names. Raises SpecError.

    Order is part of the description: the same probes in another order make another stub.
    """

    __slots__ = ("name", "probes")

    name: str
    probes: tuple[Probe, ...]

    def __init__(self, name: str, probes: tuple[Probe, ...] = ()) -> None:
        self.name = _check_name("provider", name)
        self.probes = tuple(probes)
        seen: set[str] = set()
        for probe in self.probes:
            if probe.name in seen:
                raise SpecError(
                    f"provider {name!r} has two probes named {probe.name!r}: rename one"
                )
            seen.add(probe.name)

    def __repr__(self) -> str:
        return f"Provider({self.name!r}, {self.probes!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Provider):
            return NotImplemented
        return self.name == other.name and self.probes == other.probes

    def __hash__(self) -> int:
        return hash((self.name, self.probes))
