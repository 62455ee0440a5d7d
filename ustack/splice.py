# SPDX-License-Identifier: MIT
"""Kernel, native and interpreter frames of one sample -> one stack, root first.

Knows how an interpreter's frames and its C frames interleave; must not know where they came from.
"""

from __future__ import annotations

from collections.abc import Sequence

from ustack.frame import Frame

__all__ = ["splice"]

# The function that runs Python code: its C frame stands for Python frames that are there already.
_LOOPS = ("_PyEval_EvalFrameDefault", "_PyEval_EvalFrame", "_PyEval_Vector")


def splice(
    kernel: Sequence[Frame], native: Sequence[Frame], python: Sequence[Frame]
) -> tuple[Frame, ...]:
    """All three leaf first, as tracers give them.

    A native stack that reaches the interpreter's own frames tells which C functions a Python
    function was in. Without frame pointers it breaks off after its first frame, and what follows
    is chance; so with Python frames only the leaf is believed, unless the interpreter's loop is
    found on the way to it.
    """
    if not python:
        return (*reversed(native), *reversed(kernel))
    above: list[Frame] = []
    for frame in native:
        if _is_loop(frame):
            break
        above.append(frame)
    else:
        above = above[:1]
    return (*reversed(python), *reversed(above), *reversed(kernel))


def _is_loop(frame: Frame) -> bool:
    return frame.name is not None and frame.name.partition(".")[0] in _LOOPS
