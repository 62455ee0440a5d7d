# SPDX-License-Identifier: MIT
"""How a command ends and how it shows text that others have chosen.

Knows exit codes and terminals; nothing of probes, processes or tracers.
"""

from __future__ import annotations

__all__ = ["CANNOT", "FAILED", "OK", "USAGE", "CommandError", "printable", "quoted"]

OK, FAILED, USAGE, CANNOT = 0, 1, 2, 3


class CommandError(Exception):
    """Ends a command: one line with the next command, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def printable(text: str) -> str:
    """`text` on one line and harmless to a terminal: what does not print is escaped."""
    return "".join(map(_escaped, text))


def quoted(data: bytes) -> str:
    """Bytes as a text in double quotes; what is not printable UTF-8 is escaped, as in Python."""
    text = data.decode("utf-8", "surrogateescape")
    return '"' + "".join("\\" + c if c in '"\\' else _escaped(c) for c in text) + '"'


def _escaped(char: str) -> str:
    # Also escapes what would reorder a line: isprintable() is false for bidirectional controls.
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape's spelling of one byte
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
