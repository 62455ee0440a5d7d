# SPDX-License-Identifier: MIT
"""Names and numbers as people read them: escaped, cut to a width, with units.

Pure. Must not know profiles or formats.
"""

from __future__ import annotations

import unicodedata

__all__ = ["amount", "cells", "escaped", "fit", "plural", "share"]

_STEPS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"))


def escaped(text: str, also: str = "") -> str:
    r"""Every character that is not printable, or in `also`, as \xNN, \uNNNN or \UNNNNNNNN."""
    if text.isprintable() and not any(character in text for character in also):
        return text
    return "".join(
        character if character.isprintable() and character not in also else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cells(text: str) -> int:
    """Columns of a terminal, or of a picture's monospaced font, that a printable text takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, width: int) -> str:
    """The text itself, or as much of it as leaves room for `…`; "" where nothing fits."""
    if len(text) <= width and cells(text) <= width:
        return text
    room = width - 1
    kept = []
    for character in text:
        room -= _cells(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept) + "…" if kept and width > 1 else ""


def amount(value: int, unit: str) -> str:
    """`1,234 samples`, `1.50 ms`."""
    if unit == "samples":
        return plural(value, "sample")
    for step, name in _STEPS:
        if value >= step:
            return f"{value / step:.2f} {name}"
    return f"{value} ns"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def share(part: int, whole: int) -> str:
    """`12.3 %`; of nothing, nothing is 0.0 %."""
    return f"{100 * part / whole if whole else 0:.1f} %"
