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
    tstate_base:   where tstate points at the frame below all, which is no function (3.15); before,
                   tstate_next, which is no frame either
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
    tstate_base: int
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


# Include/internal/pycore_frame.h, 3.11: bool is_entry. 3.12 on: char owner; from 3 up no function.
_OWNED_BY_C = 3

_CONSTANTS = {
    (3, 10): Layout(
        interpreters_head=32, interp_next=0, interp_threads=8,
        tstate_next=8, tstate_thread_id=176, tstate_frame=24, indirect=0, cframe_frame=0,
        tstate_base=8,
        frame_back=24, frame_code=32, frame_instr=96, frame_mark=104,
        code_name=112, code_lines=120, code_file=104, code_first=40, code_start=None,
        str_data=48, str_wide=72,
        entered_by_c=lambda mark: True, is_shim=lambda mark: False,
    ),
    (3, 11): Layout(
        interpreters_head=40, interp_next=0, interp_threads=16,
        tstate_next=8, tstate_thread_id=152, tstate_frame=56, indirect=1, cframe_frame=8,
        tstate_base=8,
        frame_back=48, frame_code=32, frame_instr=56, frame_mark=68,
        code_name=128, code_lines=136, code_file=112, code_first=72, code_start=184,
        str_data=48, str_wide=72,
        entered_by_c=lambda mark: mark != 0, is_shim=lambda mark: False,
    ),
    (3, 12): Layout(
        interpreters_head=40, interp_next=0, interp_threads=72,
        tstate_next=8, tstate_thread_id=136, tstate_frame=56, indirect=1, cframe_frame=0,
        tstate_base=8,
        frame_back=8, frame_code=0, frame_instr=56, frame_mark=70,
        code_name=128, code_lines=136, code_file=112, code_first=68, code_start=192,
        str_data=40, str_wide=56,
        entered_by_c=lambda mark: False, is_shim=lambda mark: mark >= _OWNED_BY_C,
    ),
}  # fmt: skip


def _shape(*groups: str) -> tuple[str, ...]:
    """Names of all words of a table; a number stands for so many that are not used here ("")."""
    words: list[str] = []
    for word in " ".join(groups).split():
        words += [""] * int(word) if word.isdigit() else [word]
    return tuple(words)


# _Py_DebugOffsets (Include/internal/pycore_runtime.h, from 3.14 on pycore_debug_offsets.h), 8-byte
# words, one string per struct in it. As 3.13.0, 3.14.8 and 3.15.0 have them.
_SHAPES = {
    (3, 13): _shape(
        "cookie release free_threaded",
        "1 finalizing interpreters_head",
        "2 interp_next interp_threads 9",
        "2 tstate_next 1 tstate_frame tstate_thread_id 3",
        "1 frame_back frame_code frame_instr 1 frame_mark",
        "1 code_file 1 code_name code_lines code_first 3 code_start",
        "1 ob_type",
        "19 ob_size ob_sval",  # type to long, bytes
        "1 state length str_data",
        "2",  # gc
    ),
    (3, 14): _shape(
        "cookie release free_threaded",
        "1 finalizing interpreters_head",
        "2 interp_next interp_threads 12",
        "2 tstate_next 1 tstate_frame tstate_thread_id 3",
        "1 frame_back frame_code frame_instr 1 frame_mark 2",
        "1 code_file 1 code_name code_lines code_first 3 code_start 1",
        "1 ob_type",
        "23 ob_size ob_sval",
        "1 state length str_data",
        "14",  # gc to debugger_support
    ),
    (3, 15): _shape(
        "cookie release free_threaded",
        "1 finalizing interpreters_head",
        "2 interp_next interp_threads 12",
        "2 tstate_next 1 tstate_frame tstate_base 2 tstate_thread_id 7",
        "1",  # err_stackitem
        "1 frame_back frame_code frame_instr 1 frame_mark 2",
        "1 code_file 1 code_name code_lines code_first 3 code_start 1",
        "1 ob_type",
        "27 ob_size ob_sval",
        "1 state length str_data 1",
        "17",
    ),
}

# In _PyRuntimeState, between the table and _finalizing: five ints, which begin at 8 bytes.
_FLAGS = 24

# What the reading of objects takes for granted; the same in every build with a GIL.
_SURE = {"ob_type": 8, "ob_size": 16, "ob_sval": 32, "state": 32, "length": 16}

_FINAL = 0xF0  # the level in PY_VERSION_HEX: a, b, c or f

_COOKIE = b"xdebugpy"

#: Bytes to read at _PyRuntime, from 3.13 on.
DEBUG_OFFSETS = 8 * max(map(len, _SHAPES.values()))

_FIELDS = set(Layout.__dataclass_fields__)


def layout_of(version: Version, debug_offsets: bytes) -> Layout:
    """The layout of one version; `debug_offsets`: what is at _PyRuntime, read from 3.13 on.

    Raises WalkError for a version that is not known, or a table that is not there or of another
    shape: shapes change between releases of one minor.
    """
    known = _CONSTANTS.get(version)
    if known is not None:
        return known
    shape = _SHAPES.get(version)
    shown = ".".join(map(str, version))
    if shape is None:
        raise WalkError(
            f"CPython {shown} is not supported: its stacks stay native (supported: 3.10 to 3.15)"
        )
    if debug_offsets[:8] != _COOKIE or len(debug_offsets) < 8 * len(shape):
        raise WalkError(
            f"CPython {shown} without its table of offsets: _PyRuntime does not begin with "
            f"{_COOKIE.decode()}; is the process exiting?"
        )
    values = dict(zip(shape, struct.unpack_from(f"<{len(shape)}Q", debug_offsets), strict=True))
    release = values["release"]
    said = release >> 24, release >> 16 & 0xFF
    if said != version:
        raise WalkError(f"CPython {shown} has the table of offsets of {said[0]}.{said[1]}")
    shown += f".{release >> 8 & 0xFF}"
    if release & 0xF0 != _FINAL:
        raise WalkError(f"CPython {shown} before its release ({release:#x}) is not supported")
    if values["free_threaded"]:
        raise WalkError(f"CPython {shown} without a GIL (3.{version[1]}t) is not supported")
    # The place of this word is the same in all shapes, and it says how long the table is.
    size = values["finalizing"] - _FLAGS
    if size != 8 * len(shape):
        raise WalkError(
            f"CPython {shown} is not supported: its table of offsets has {size} bytes, "
            f"the one known of {version[0]}.{version[1]} {8 * len(shape)}"
        )
    values.setdefault("tstate_base", values["tstate_next"])
    wrong = max(values[name] for name in _FIELDS & values.keys()) > 0xFFFF
    if wrong or any(values[name] != sure for name, sure in _SURE.items()):
        raise WalkError(f"CPython {shown} has a table of offsets that cannot be right")
    return Layout(
        **{name: value for name, value in values.items() if name in _FIELDS},
        indirect=0,
        cframe_frame=0,
        str_wide=values["str_data"] + 16,
        entered_by_c=lambda mark: False,
        is_shim=lambda mark: mark >= _OWNED_BY_C,
    )  # fmt: skip
