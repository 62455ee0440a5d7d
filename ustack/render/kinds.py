# SPDX-License-Identifier: MIT
"""How frames are told apart: one row per kind with its name, its colours and its folded suffix.

Owns the table that every picture's legend comes from. Must not know how anything is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from ustack.frame import Frame, Reason

__all__ = ["KINDS", "Look", "kind_of"]


@dataclass(frozen=True, slots=True)
class Look:
    """label: for legends; light, dark: fill colours under dark and under light text; hatched:
    drawn with stripes, because there is no function to name."""

    label: str
    light: str
    dark: str
    hatched: bool = False


#: Frame.kind of what has a name; `unknown` and `cut` for what has none; `process` for the row
#: that stands for a process. Every pair of text and fill has a contrast of at least 4.5.
KINDS = {
    "kernel": Look("kernel", "#f3a96c", "#8a4a1c"),
    "native": Look("C", "#f1d477", "#6c5813"),
    "jit": Look("JIT", "#9ad39a", "#2c6636"),
    "python": Look("Python", "#94bdf3", "#2a5590"),
    "ruby": Look("Ruby", "#f2a3ae", "#8c3346"),
    "unknown": Look("unknown", "#cfd3da", "#4a505b", hatched=True),
    "cut": Look("cut", "#dcb8e0", "#64406b", hatched=True),
    "process": Look("process", "#dfe4ec", "#3a4250"),
}


def kind_of(frame: Frame) -> str:
    """The key of a frame's row."""
    if frame.why is None:
        return frame.kind
    return "cut" if frame.why is Reason.CUT else "unknown"
