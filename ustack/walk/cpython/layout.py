# SPDX-License-Identifier: MIT
"""Where each CPython keeps its frames: one row of offsets per minor, or the process's own table.

Pure: a version and bytes in, a Layout out. Must not know how memory is read, nor who reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from ustack.walk.errors import WalkError

__all__ = ["DEBUG_OFFSETS", "Layout", "Version", "layout_of"]

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets in bytes; struct names as in CPython's Include/internal.

    indirect:      1 where tstate points at a _PyCFrame and that at the frame, else 0
    cframe_frame:  where the frame's pointer is in the _PyCFrame
    str_data:      size of PyASCIIObject; str_wide: size of PyCompactUnicodeObject
    code_start:    co_code_adaptive, which instruction pointers count from; None where the frame
                   holds a number of instructions
    """

    interpreters_head: int
    interp_next: int
    interp_threads: int
    tstate_next: int
    tstate_thread_id: int
    tstate_frame: int
    indirect: int
    cframe_frame: int
    frame_back: int
    frame_code: int
    frame_instr: int
    frame_mark: int
    code_name: int
    code_lines: int
    code_file: int
    code_first: int
    code_start: int | None
    str_data: int
    str_wide: int
    #: Whether the byte at frame_mark says that C called this frame.
    entered_by_c: Callable[[int], bool]
    #: Whether it says that the frame is C's own, and no function.
    is_shim: Callable[[int], bool]


# Include/internal/pycore_frame.h, 3.11: bool is_entry. 3.12, 3.13: char owner.
_OWNED_BY_C = 3

_CONSTANTS = {
    (3, 10): Layout(
        interpreters_head=32, interp_next=0, interp_threads=8,
        tstate_next=8, tstate_thread_id=176, tstate_frame=24, indirect=0, cframe_frame=0,
        frame_back=24, frame_code=32, frame_instr=96, frame_mark=104,
        code_name=112, code_lines=120, code_file=104, code_first=40, code_start=None,
        str_data=48, str_wide=72,
        entered_by_c=lambda mark: True, is_shim=lambda mark: False,
    ),
    (3, 11): Layout(
        interpreters_head=40, interp_next=0, interp_threads=16,
        tstate_next=8, tstate_thread_id=152, tstate_frame=56, indirect=1, cframe_frame=8,
        frame_back=48, frame_code=32, frame_instr=56, frame_mark=68,
        code_name=128, code_lines=136, code_file=112, code_first=72, code_start=184,
        str_data=48, str_wide=72,
        entered_by_c=lambda mark: mark != 0, is_shim=lambda mark: False,
    ),
    (3, 12): Layout(
        interpreters_head=40, interp_next=0, interp_threads=72,
        tstate_next=8, tstate_thread_id=136, tstate_frame=56, indirect=1, cframe_frame=0,
        frame_back=8, frame_code=0, frame_instr=56, frame_mark=70,
        code_name=128, code_lines=136, code_file=112, code_first=68, code_start=192,
        str_data=40, str_wide=56,
        entered_by_c=lambda mark: False, is_shim=lambda mark: mark == _OWNED_BY_C,
    ),
}  # fmt: skip

# _Py_DebugOffsets of 3.13 (pycore_runtime.h), one 8-byte word each; what is not used here is "-".
_WORDS_3_13 = tuple(
    word
    for group in (
        "cookie version free_threaded",
        "- - interpreters_head",
        "- - interp_next interp_threads - - - - - - - - -",
        "- - tstate_next - tstate_frame tstate_thread_id - - -",
        "- frame_back frame_code frame_instr - frame_mark",
        "- code_file - code_name code_lines code_first - - - code_start",
        "- - - - - - - - - - - - - - - - - - - - - - -",
        "- - - str_data",
    )
    for word in group.split()
)

_WORDS = {(3, 13): _WORDS_3_13}

_COOKIE = b"xdebugpy"

#: Bytes to read at _PyRuntime, from 3.13 on.
DEBUG_OFFSETS = 8 * len(_WORDS_3_13)

_FIELDS = set(Layout.__dataclass_fields__)


def layout_of(version: Version, debug_offsets: bytes) -> Layout:
    """The layout of one version; `debug_offsets`: what is at _PyRuntime, read from 3.13 on.

    Raises WalkError for a version that is not known, or a table that is not there.
    """
    known = _CONSTANTS.get(version)
    if known is not None:
        return known
    words = _WORDS.get(version)
    shown = ".".join(map(str, version))
    if words is None:
        raise WalkError(
            f"CPython {shown} is not supported: its stacks stay native (supported: 3.10 to 3.13)"
        )
    if debug_offsets[:8] != _COOKIE or len(debug_offsets) < 8 * len(words):
        raise WalkError(
            f"CPython {shown} without its table of offsets: _PyRuntime does not begin with "
            f"{_COOKIE.decode()}; is the process exiting?"
        )
    values = dict(zip(words, struct.unpack_from(f"<{len(words)}Q", debug_offsets), strict=True))
    said = values["version"] >> 24, values["version"] >> 16 & 0xFF
    if said != version:
        raise WalkError(f"CPython {shown} has the table of offsets of {said[0]}.{said[1]}")
    if values["free_threaded"]:
        raise WalkError(f"CPython {shown} without a GIL (3.{version[1]}t) is not supported")
    if max(values[name] for name in _FIELDS & values.keys()) > 0xFFFF:
        raise WalkError(f"CPython {shown} has a table of offsets that cannot be right")
    return Layout(
        **{name: value for name, value in values.items() if name in _FIELDS},
        indirect=0,
        cframe_frame=0,
        str_wide=values["str_data"] + 16,
        entered_by_c=lambda mark: False,
        is_shim=lambda mark: mark == _OWNED_BY_C,
    )  # fmt: skip
