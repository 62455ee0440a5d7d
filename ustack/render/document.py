# SPDX-License-Identifier: MIT
"""ustack's own JSON document: everything a Profile has, in a form that other programs may read.

Owns both directions; docs/profile-format.md describes it and profile.schema.json defines it. Must
not know files.
"""

from __future__ import annotations

import calendar
import json
import re
import time
from typing import Any

from ustack.frame import AbsAddr, Frame, Reason
from ustack.render.profile import Profile, Sample

__all__ = ["VERSION", "DocumentError", "read", "write"]

#: Raised when a key changes its meaning or goes away; new keys leave it as it is.
VERSION = 1

_REASON = {reason.word: reason for reason in Reason}
#: What reading text or shapes that are not ours ends in.
_WRONG = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
_STAMP = re.compile(r"([0-9T:-]{19})\.([0-9]{9})Z")


class DocumentError(ValueError):
    """Not a document of this version."""


def write(profile: Profile) -> bytes:
    """Frames and stacks are written once, samples refer to them by their place."""
    frames: dict[Frame, int] = {}
    known: dict[int, int] = {}
    stacks: dict[tuple[int, ...], int] = {}
    samples = []
    for sample in profile.samples:
        path = []
        for frame in sample.stack:
            number = known.get(id(frame))
            if number is None:
                number = known[id(frame)] = frames.setdefault(frame, len(frames))
            path.append(number)
        samples.append(
            {
                "stack": stacks.setdefault(tuple(path), len(stacks)),
                "value": sample.value,
                "pid": sample.pid,
                "tid": sample.tid,
                "comm": sample.comm,
                "time": sample.time,
            }
        )
    document = {
        "version": VERSION,
        "type": "profile",
        "title": profile.title,
        "event": profile.event,
        "unit": profile.unit,
        "started": None if profile.started is None else _stamp(profile.started),
        "duration": profile.duration,
        "period": profile.period,
        "lost": profile.lost,
        "total": profile.total,
        "frames": list(map(_row, frames)),
        "stacks": list(map(list, stacks)),
        "samples": samples,
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _row(frame: Frame) -> dict[str, Any]:
    # Addresses are text: numbers above 2**53 do not survive every JSON reader.
    return {
        "kind": frame.kind,
        "name": frame.name,
        "module": frame.module,
        "file": frame.file,
        "line": frame.line,
        "offset": frame.offset,
        "address": None if frame.address is None else f"{frame.address:#x}",
        "why": None if frame.why is None else frame.why.word,
    }


def read(data: bytes) -> Profile:
    """What `write` wrote. Raises DocumentError."""
    try:
        document = json.loads(data)
        if document["type"] != "profile" or document["version"] != VERSION:
            raise DocumentError(
                f"a {document['type']} of version {document['version']}, not a profile of version "
                f"{VERSION}: make it again with: ustack record -o FILE.json"
            )
        frames = list(map(_frame, document["frames"]))
        stacks = [tuple(frames[number] for number in path) for path in document["stacks"]]
        started = document["started"]
        return Profile(
            tuple(_sample(row, stacks) for row in document["samples"]),
            unit=document["unit"],
            title=document["title"],
            event=document["event"],
            started=None if started is None else _nanoseconds(started),
            duration=document["duration"],
            period=document["period"],
            lost=document["lost"],
        )
    except DocumentError:
        raise
    except _WRONG as error:
        raise DocumentError(
            f"not a profile of ustack's ({type(error).__name__}: {error}): make one with: "
            "ustack record -o FILE.json"
        ) from error


def _frame(row: dict[str, Any]) -> Frame:
    address, why = row["address"], row["why"]
    return Frame(
        row["kind"],
        row["name"],
        module=row["module"],
        file=row["file"],
        line=row["line"],
        offset=row["offset"],
        address=None if address is None else AbsAddr(int(address, 16)),
        why=None if why is None else _REASON[why],
    )


def _sample(row: dict[str, Any], stacks: list[tuple[Frame, ...]]) -> Sample:
    return Sample(
        stacks[row["stack"]],
        row["value"],
        pid=row["pid"],
        tid=row["tid"],
        comm=row["comm"],
        time=row["time"],
    )


def _stamp(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def _nanoseconds(stamp: str) -> int:
    match = _STAMP.fullmatch(stamp)
    if match is None:
        raise ValueError(f"{stamp!r} is no time")
    seconds = calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
    return seconds * 1_000_000_000 + int(match[2])
