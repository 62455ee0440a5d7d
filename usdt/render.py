# SPDX-License-Identifier: MIT
"""Events and tables as lines: for a terminal, or one JSON object each.

Pure: values in, text out. Every line is safe to print, whatever a traced program has put into
its arguments.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Sequence
from typing import Any

from usdt._command import quoted
from usdt.events import Blob, Event, Pointer, Text, Value
from usdt.script import Target

__all__ = ["JSON_VERSION", "count_rows", "event_json", "event_text", "hist_rows", "record"]

#: Version of every JSON object the `usdt` command prints.
JSON_VERSION = 1

_BAR = 40


def record(type: str, **fields: Any) -> str:
    """One line of JSON."""
    return json.dumps({"version": JSON_VERSION, "type": type, **fields}, allow_nan=False)


def event_text(event: Event, *, epoch: int) -> str:
    """`12:15:31.123456 4242 shop:order_start id=42 customer="ada"`; local time.

    epoch: nanoseconds to add to boot time to get Unix time.
    """
    seconds, nanos = divmod(event.time + epoch, 1_000_000_000)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    words = [f"{clock}.{nanos // 1000:06d} {event.pid} {event.target.full_name}"]
    for arg, value in zip(event.target.args, event.values, strict=True):
        words.append(f"{arg.name}={_value(value, arg.type)}")
    return " ".join(words)


def _value(value: Value, type: str) -> str:
    match value:
        case None:
            return "?"
        case bool():
            return "true" if value else "false"
        case Text():
            return quoted(value.data) + "…" * value.truncated
        case Blob():
            return f"{_bytes(value.data)}{'…' * value.truncated}[{value.length}]"
        case Pointer():
            return f"{value:#x}"
        case float() if type == "f32":
            return _shortest(value)
    return repr(value)


def _bytes(data: bytes) -> str:
    return "b'" + repr(b'"' + data)[3:]  # repr() chooses ' for what holds a "


def _shortest(value: float) -> str:
    """The shortest decimal that is the same 32-bit float."""
    if not math.isfinite(value):
        return repr(value)
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        try:
            if struct.unpack("<f", struct.pack("<f", float(text)))[0] == value:
                break
        except OverflowError:
            continue
    return repr(float(text))


def event_json(event: Event, *, epoch: int) -> str:
    """One object. Bytes, and text that is not UTF-8, are {"hex": ..., "length": ...}; floats
    that JSON does not have are the strings "nan", "inf" and "-inf"."""
    seconds, nanos = divmod(event.time + epoch, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    named = list(zip(event.target.args, event.values, strict=True))
    return record(
        "event",
        time=f"{stamp}.{nanos:09d}Z",
        pid=event.pid,
        tid=event.tid,
        probe=event.target.full_name,
        args={arg.name: _plain(value, arg.type) for arg, value in named},
        truncated=[
            arg.name for arg, value in named if isinstance(value, Text | Blob) and value.truncated
        ],
    )


def _plain(value: Value, type: str) -> Any:
    match value:
        case Text():
            return plain_text(value.data, truncated=value.truncated)
        case Blob():
            return {"hex": value.data.hex(), "length": value.length}
        case float() if not math.isfinite(value):
            return repr(value)
        case float() if type == "f32":
            return float(_shortest(value))
    return value


def plain_text(data: bytes, *, truncated: bool = False) -> Any:
    """A string for JSON; a character that was cut in two is left out."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if truncated and error.reason == "unexpected end of data":
            return data[: error.start].decode()
    return {"hex": data.hex(), "length": len(data)}


def count_rows(
    targets: Sequence[Target], fired: dict[bytes, int], by_pid: dict[bytes, int]
) -> list[tuple[str, int | None, int]]:
    """(probe, pid, count), the largest first; pid None for what the table had no room for."""
    rows: list[tuple[str, int | None, int]] = []
    rest = {int(key): total for key, total in fired.items()}
    for key, number in by_pid.items():
        index, pid = map(int, key.split(b","))
        rows.append((targets[index].full_name, pid, number))
        rest[index] = rest.get(index, 0) - number
    # Two maps are not read at one instant: while events go on the totals may run ahead a little.
    if len(by_pid) >= 60_000:
        rows += [(targets[i].full_name, None, left) for i, left in rest.items() if left > 0]
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1] or 0))


def hist_rows(buckets: Sequence[dict[str, int]]) -> list[str]:
    """bpftrace's buckets as lines with bars."""
    most = max((bucket["count"] for bucket in buckets), default=0)
    lines = []
    for bucket in buckets:
        low, high = bucket.get("min"), bucket.get("max")
        if low is None:
            label = "(..., 0)"
        elif high is None:
            label = f"[{_short(low)}, ...)"
        elif low == high:
            label = f"[{low}]"
        else:
            label = f"[{_short(low)}, {_short(high + 1)})"
        bar = "@" * (bucket["count"] * _BAR // most if most else 0)
        lines.append(f"{label:<16} {bucket['count']:>10} |{bar:<{_BAR}}|")
    return lines


def _short(value: int) -> str:
    for shift, unit in ((60, "E"), (50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if value >= 1 << shift and not value & ((1 << shift) - 1):
            return f"{value >> shift}{unit}"
    return str(value)
