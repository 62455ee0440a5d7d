# SPDX-License-Identifier: MIT
"""The table: rows, their bars, and how a list of measured values becomes a cell.

Knows nothing of how anything is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

__all__ = ["Bar", "Row", "document", "render"]

#: Of the `--json` document.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit: at most `limit`, or at least when `least`; `special` overrides it for a minor."""

    limit: float
    least: bool = False
    special: dict[str, float] = field(default_factory=dict)

    def met(self, minor: str, value: float) -> bool:
        limit = self.special.get(minor, self.limit)
        return value >= limit if self.least else value <= limit

    def __str__(self) -> str:
        other = "".join(f" ({minor}: {limit:g})" for minor, limit in self.special.items())
        return f"{'>=' if self.least else '<='} {self.limit:g}{other}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    cells:  minor -> measured values, or why there are none
    unit:   of the values; '' for a ratio
    absent: why a measurement may have nothing for this row
    """

    key: str
    what: str
    unit: str = ""
    bar: Bar | None = None
    absent: str = ""
    cells: dict[str, list[float] | str] = field(default_factory=dict)

    def fill(self, minor: str, values: dict[str, list[float]]) -> None:
        """Take this row's values from what a measurement found. Raises KeyError."""
        absent = self.absent and self.key not in values
        self.cells[minor] = self.absent if absent else values[self.key]

    def missed(self) -> list[str]:
        """The minors whose median does not meet the bar."""
        return [
            minor
            for minor, cell in self.cells.items()
            if self.bar and isinstance(cell, list) and not self.bar.met(minor, median(cell))
        ]

    def verdict(self) -> str:
        if self.bar is None:
            return ""
        if self.missed():
            return f"MISSED on {', '.join(self.missed())}"
        if all(isinstance(cell, list) for cell in self.cells.values()):
            return "ok"
        return "not measured" if any(isinstance(c, list) for c in self.cells.values()) else "-"


def _spread(values: list[float]) -> tuple[float, float]:
    """The quartiles."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _cell(cell: list[float] | str | None) -> str:
    if not isinstance(cell, list):
        return "-" if cell is None else "unavailable"
    low, high = _spread(cell)
    return f"{_number(median(cell))} ±{_number((high - low) / 2)}"


def render(rows: list[Row], minors: list[str]) -> str:
    """The rows as text: first those with a bar, then the others."""
    lines = []
    for title, chosen in (
        ("bars", [row for row in rows if row.bar]),
        ("besides", [row for row in rows if not row.bar]),
    ):
        head = [title, "bar" if title == "bars" else "", *minors, ""]
        body = [
            [
                f"{row.what}{f', {row.unit}' if row.unit else ''}",
                str(row.bar or ""),
                *(_cell(row.cells.get(minor)) for minor in minors),
                row.verdict(),
            ]
            for row in chosen
        ]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        for line in (head, *body):
            first = line[0].ljust(widths[0])
            rest = (text.rjust(width) for text, width in zip(line[1:-1], widths[1:-1], strict=True))
            lines.append("  ".join((first, *rest, line[-1])).rstrip())
        lines.append("")
    why = {cell for row in rows for cell in row.cells.values() if isinstance(cell, str)}
    lines += [f"unavailable: {reason}" for reason in sorted(why)]
    return "\n".join(lines).rstrip()


def document(rows: list[Row], machine: dict[str, str]) -> dict[str, Any]:
    """The same as `render`, for machines; every cell has `median` and quartiles, or `why_not`."""

    def cell(value: list[float] | str) -> dict[str, Any]:
        if isinstance(value, str):
            return {"why_not": value}
        low, high = _spread(value)
        return {"median": median(value), "low": low, "high": high, "samples": len(value)}

    return {
        "version": VERSION,
        "machine": machine,
        "rows": [
            {
                "key": row.key,
                "what": row.what,
                "unit": row.unit,
                "bar": str(row.bar) if row.bar else None,
                "missed": row.missed(),
                "cells": {minor: cell(value) for minor, value in row.cells.items()},
            }
            for row in rows
        ],
    }
