# SPDX-License-Identifier: MIT
"""Where a trace's events and tables go: standard output, as text or as JSON lines.

Keeps what is needed for the last lines: counts, tables, losses. Must not know bpftrace.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from usdt import render
from usdt._command import quoted
from usdt.events import Event, Lost, Table
from usdt.script import Target

__all__ = ["Report"]


class Report:
    """mode: 'events', 'count' or 'hist'; arg: the argument of a histogram."""

    def __init__(
        self, targets: Sequence[Target], *, json: bool, mode: str, arg: str | None = None
    ) -> None:
        self._targets = targets
        self._json = json
        self._mode = mode
        self._arg = arg
        self._out = sys.stdout
        #: Whether tables are shown while they grow.
        self.live = mode != "events" and not json and self._out.isatty()
        self._epoch = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._tables: dict[str, dict[bytes, Any]] = {}
        self._shown = 0  # events
        self._lost_records = 0
        self._height = 0  # lines of a live table on the screen

    def start(self) -> None:
        """From now on nothing is missed."""
        probes = sorted({target.full_name for target in self._targets})
        if self._json:
            print(render.record("start", probes=probes), flush=True)
        else:
            some = ", ".join(probes[:3]) + (f" and {len(probes) - 3} more" if probes[3:] else "")
            print(f"tracing {some}; Ctrl-C ends", file=sys.stderr, flush=True)

    def note(self, message: str) -> None:
        """Something the reader should know beside the events."""
        print(f"usdt trace: {message}", file=sys.stderr, flush=True)

    def event(self, event: Event) -> None:
        self._shown += 1
        line = render.event_json if self._json else render.event_text
        self._out.write(line(event, epoch=self._epoch) + "\n")

    def table(self, table: Table) -> None:
        self._tables[table.name] = table.rows
        # The map that is printed last completes a refresh.
        if self.live and table.name != "fired":
            self._redraw(self._lines())

    def lost(self, lost: Lost) -> None:
        self._lost_records += lost.records

    def flush(self) -> None:
        self._out.flush()

    def finish(self, *, incomplete: int) -> None:
        """The last lines: tables, and what was lost."""
        lost = self._lost(incomplete)
        if self._json:
            for row in self._records():
                print(row)
            fired = sum(self._tables.get("fired", {}).values())
            print(render.record("end", events=fired or self._shown, lost=lost), flush=True)
            return
        if self._mode != "events":
            self._redraw(self._lines())
        self._out.flush()
        if lost:
            # Without bpftrace's word for it some of them may have come while it let go.
            sure = self._lost_records + incomplete
            why = "" if sure else ", or they were fired while the trace ended"
            print(f"lost {lost} event{'s' * (lost != 1)}{why}", file=sys.stderr, flush=True)

    def _lost(self, incomplete: int) -> int:
        """Events that were fired and not shown: the kernel counts each."""
        if self._mode != "events":
            return 0  # counted where they happen
        if "fired" in self._tables:
            fired: int = sum(self._tables["fired"].values())
            return max(0, fired - self._shown)
        if self._shown:
            self.note("bpftrace ended without its counts: more events may be lost")
        return self._lost_records + incomplete

    def _redraw(self, lines: list[str]) -> None:
        if self._height:
            self._out.write(f"\x1b[{self._height}A\x1b[J")
        self._out.write("".join(line + "\n" for line in lines))
        self._height = len(lines) if self.live else 0
        self._out.flush()

    def _counts(self) -> list[tuple[str, int | None, int]]:
        tables = self._tables
        return render.count_rows(self._targets, tables.get("fired", {}), tables.get("count", {}))

    def _values(self) -> list[tuple[str, bytes, int]]:
        """(probe, text, count) of a string argument, the most frequent first."""
        rows = []
        for key, number in self._tables.get("value", {}).items():
            index, _, text = key.partition(b",")
            rows.append((self._targets[int(index)].full_name, text, number))
        return sorted(rows, key=lambda row: (row[0], -row[2], row[1]))

    def _histograms(self) -> list[tuple[str, Any]]:
        rows = self._tables.get("hist", {}).items()
        return [(self._targets[int(key)].full_name, buckets) for key, buckets in rows]

    def _lines(self) -> list[str]:
        if self._mode == "count":
            rows = self._counts() or [("(no events)", None, 0)]
            return [
                f"{number:>12} {'' if pid is None else pid:>8} {name}" for name, pid, number in rows
            ]
        lines = []
        for name, buckets in self._histograms():
            lines += [f"{name} {self._arg}", *render.hist_rows(buckets)]
        before = None
        for name, text, number in self._values():
            lines += [f"{name} {self._arg}"] * (name != before) + [f"{number:>12} {quoted(text)}"]
            before = name
        return lines or ["(no events)"]

    def _records(self) -> list[str]:
        rows = [
            render.record("count", probe=name, pid=pid, count=number)
            for name, pid, number in (self._counts() if self._mode == "count" else ())
        ]
        rows += [
            render.record("hist", probe=name, arg=self._arg, buckets=buckets)
            for name, buckets in self._histograms()
        ]
        values: dict[str, list[dict[str, Any]]] = {}
        for name, text, number in self._values():
            value = render.plain_text(text)
            values.setdefault(name, []).append({"value": value, "count": number})
        for name, found in values.items():
            rows.append(render.record("values", probe=name, arg=self._arg, values=found))
        return rows
