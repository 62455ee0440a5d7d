# SPDX-License-Identifier: MIT
"""The table of argument types: what a probe can carry and how each machine operand looks.

One row per type; nothing else in the project branches on a type's name.
"""

from __future__ import annotations

__all__ = ["BY_ANNOTATION", "BY_NAME", "ArgType"]


class ArgType:
    """One row of the table; compare by identity.

    name:      what the user writes (`u64`) and what the self-description stores
    operands:  one signed byte count per machine operand, as stapsdt notes spell it: -4 is a
               signed 32-bit value. A `bytes` argument is two operands, pointer then length.
    code:      the conversion `usdt/_probe.c` applies, one ASCII letter (the `struct` module's
               letter where it has one)
    what:      the noun used in messages
    """

    __slots__ = ("code", "name", "operands", "what")

    name: str
    operands: tuple[int, ...]
    code: str
    what: str

    def __init__(self, name: str, operands: tuple[int, ...], code: str, what: str) -> None:
        self.name = name
        self.operands = operands
        self.code = code
        self.what = what

    def __repr__(self) -> str:
        return self.name


# Floats travel as their bits in an integer operand of the same size: one `f` operand makes
# bpftrace 0.17 and 0.23 lose every argument of the probe, and 0.27 refuse it.
_ROWS = (
    ArgType("i8", (-1,), "b", "signed 8-bit integer"),
    ArgType("i16", (-2,), "h", "signed 16-bit integer"),
    ArgType("i32", (-4,), "i", "signed 32-bit integer"),
    ArgType("i64", (-8,), "q", "signed 64-bit integer"),
    ArgType("u8", (1,), "B", "unsigned 8-bit integer"),
    ArgType("u16", (2,), "H", "unsigned 16-bit integer"),
    ArgType("u32", (4,), "I", "unsigned 32-bit integer"),
    ArgType("u64", (8,), "Q", "unsigned 64-bit integer"),
    ArgType("f32", (4,), "f", "32-bit float"),
    ArgType("f64", (8,), "d", "64-bit float"),
    ArgType("bool", (1,), "?", "truth value"),
    ArgType("str", (8,), "s", "UTF-8 text, NUL-terminated"),
    ArgType("bytes", (8, 8), "y", "bytes, as pointer and length"),
    ArgType("ptr", (8,), "P", "address"),
)

BY_NAME: dict[str, ArgType] = {row.name: row for row in _ROWS}

# The builtin annotations a probe declaration may use in place of a table name.
BY_ANNOTATION: dict[type, ArgType] = {
    int: BY_NAME["i64"],
    float: BY_NAME["f64"],
    str: BY_NAME["str"],
    bytes: BY_NAME["bytes"],
    bool: BY_NAME["bool"],
}
