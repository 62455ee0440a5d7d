# SPDX-License-Identifier: MIT
"""speedscope's own file format: one sampled profile per thread.

Format: file-format-schema.json of the npm package speedscope 1.25. Must not know files.
"""

from __future__ import annotations

import json
from typing import Any

from ustack.frame import Frame
from ustack.render.profile import Profile, Sample

__all__ = ["write"]

_UNIT = {"samples": "none", "ns": "nanoseconds"}


def write(profile: Profile) -> bytes:
    """Samples are in the order of their times where they have one. A function is one frame per
    line that was running, as speedscope's other sources have it."""
    frames: list[dict[str, Any]] = []
    index: dict[tuple[str, str, int], int] = {}
    known: dict[int, int] = {}
    threads: dict[tuple[int, int, str], list[Sample]] = {}
    for sample in profile.samples:
        threads.setdefault((sample.pid, sample.tid, sample.comm), []).append(sample)
        for frame in sample.stack:
            if id(frame) in known:
                continue
            key = str(frame), frame.file or frame.module or "", frame.line or 0
            if key not in index:
                index[key] = len(frames)
                frames.append(_frame(*key))
            known[id(frame)] = index[key]

    def number(frame: Frame) -> int:
        return known[id(frame)]

    unit = _UNIT[profile.unit]
    profiles = []
    for (pid, tid, comm), samples in sorted(threads.items(), key=lambda item: item[0]):
        samples = sorted(samples, key=lambda sample: sample.time or 0)
        weights = [sample.value for sample in samples]
        profiles.append(
            {
                "type": "sampled",
                "name": f"{comm or 'process'} ({pid}/{tid})",
                "unit": unit,
                "startValue": 0,
                "endValue": sum(weights),
                "samples": [[number(frame) for frame in sample.stack] for sample in samples],
                "weights": weights,
            }
        )
    # The viewer refuses a file without profiles.
    profiles = profiles or [
        {"type": "sampled", "name": "no samples", "unit": unit, "startValue": 0, "endValue": 0,
         "samples": [], "weights": []}
    ]  # fmt: skip
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "ustack",
        "name": profile.title or "ustack",
        "activeProfileIndex": max(
            range(len(profiles)), key=lambda at: (profiles[at]["endValue"], -at)
        ),
        "shared": {"frames": frames},
        "profiles": profiles,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _frame(name: str, file: str, line: int) -> dict[str, Any]:
    frame: dict[str, Any] = {"name": name}
    if file:
        frame["file"] = file
    if line:
        frame["line"] = line
    return frame
