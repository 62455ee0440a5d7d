# SPDX-License-Identifier: MIT
"""Layouts, objects' bytes, line tables and records of the CPython walker, without a tracer.

The line tables are this interpreter's own: `dis` and `co_positions` say what is right.
"""

from __future__ import annotations

import ast
import ctypes
import dis
import os
import re
import struct
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import pytest

from ustack.frame import Reason
from ustack.walk.cpython import Decoder, Limits, Target, code, fragment, rows
from ustack.walk.cpython.layout import DEBUG_OFFSETS, Layout, layout_of
from ustack.walk.cpython.script import END_CUT, END_UNREADABLE, identity
from ustack.walk.cpython.stacks import Mark
from ustack.walk.cpython.target import read_memory
from ustack.walk.errors import WalkError

LIMITS = Limits(frames=300, named=8, threads=8, chunk=64, pieces=(2, 3, 6))
GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")
KNOWN = pytest.mark.skipif(
    not GIL or sys.version_info >= (3, 16), reason="needs CPython 3.10 to 3.15, with a GIL"
)
DATA = Path(__file__).parents[1] / "data"
RELEASES = {"3.13.0": (3, 13), "3.14.8": (3, 14), "3.15.0": (3, 15)}


def own_layout() -> Layout:
    return Target.of(os.getpid()).layout


def unread(pid: int, address: int, size: int) -> bytes:
    raise ProcessLookupError


def memory_of(value: object) -> bytes:
    return ctypes.string_at(id(value), sys.getsizeof(value))


@KNOWN
def test_this_process_is_found() -> None:
    """The version and `_PyRuntime` are those that the dynamic linker knows."""
    target = Target.of(os.getpid())
    runtime = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
    assert (target.version, target.runtime) == (sys.version_info[:2], runtime)


@KNOWN
@pytest.mark.parametrize("text", ["", "plain", "h\u00e9", "\u20ac" * 9, "\U0001f600!", "x" * 3000])
def test_strings_of_every_kind_are_read(text: str) -> None:
    """ASCII, Latin-1, UCS-2 and UCS-4 data; a torn one says that it goes on."""
    layout = own_layout()
    memory = memory_of(text)
    assert code.to_text(memory, layout) == code.Text(text, True)
    if len(text) > 8:
        torn = code.to_text(memory[:-12], layout)
        assert torn is not None
        assert not torn.whole
        assert text.startswith(torn.value)
    assert code.to_text(memory[:30], layout) is None
    assert code.to_text(bytes(64), layout) is None


def sources() -> list[CodeType]:
    """Every code object of some modules of the standard library."""
    found = []
    for module in (dis, ast, re, struct):
        path = Path(str(module.__file__))
        waiting = [compile(path.read_bytes(), str(path), "exec")]
        while waiting:
            one = waiting.pop()
            found.append(one)
            waiting += [const for const in one.co_consts if isinstance(const, CodeType)]
    return found


@KNOWN
def test_lines_are_those_of_the_interpreter() -> None:
    """Every instruction of some modules of the standard library has the line co_lines() gives."""
    layout = own_layout()
    for one in sources():
        table = memory_of(one.co_linetable)
        for start, end, line in one.co_lines():
            for instruction in range(start // 2, end // 2):
                got = code.line_at(table, one.co_firstlineno, instruction, layout)
                assert got == line, (one.co_qualname if layout.code_start else one.co_name, start)
        assert code.line_at(table, one.co_firstlineno, -1, layout) == one.co_firstlineno
        assert code.line_at(table, one.co_firstlineno, 1 << 20, layout) is None


@pytest.mark.parametrize("lines", [code.lines_3_10, code.lines_3_11])
def test_damaged_line_tables_end(lines: Callable[[bytes, int, int], int | None]) -> None:
    """Any bytes give a line or none."""
    for seed in range(300):
        table = bytes((seed * 7919 + at * at * 31) & 0xFF for at in range(seed))
        assert isinstance(lines(table, 1, 40), int | None)


def recorded(release: str, **changed: int) -> bytes:
    """The table of a release, read from its _PyRuntime, with what follows it as zeros."""
    lines = (DATA / f"cpython-{release}-debug-offsets.txt").read_text(encoding="ascii").splitlines()
    words = [int(word, 16) for line in lines if line[0] != "#" for word in line.split()]
    for place, value in changed.items():
        words[int(place.removeprefix("word"))] = value
    return struct.pack(f"<{len(words)}Q", *words).ljust(DEBUG_OFFSETS, b"\0")


# Offsets that moved, as the headers of each release have them.
MEASURED = {
    "3.13.0": {"interpreters_head": 632, "tstate_thread_id": 152, "code_start": 200},
    "3.14.8": {"interpreters_head": 808, "tstate_thread_id": 152, "code_start": 208},
    "3.15.0": {"interpreters_head": 936, "tstate_thread_id": 176, "code_start": 208},
}


@pytest.mark.parametrize("release", RELEASES)
def test_recorded_tables_give_layouts(release: str) -> None:
    """Offsets that differ between the minors are those of the headers."""
    layout = layout_of(RELEASES[release], recorded(release))
    got = {name: getattr(layout, name) for name in MEASURED[release]}
    assert got == MEASURED[release]
    assert layout.tstate_base == (80 if release == "3.15.0" else layout.tstate_next)
    assert (layout.frame_mark, layout.str_data) == (70 if release == "3.13.0" else 74, 40)


@pytest.mark.parametrize("release", RELEASES)
def test_a_table_of_another_shape_is_refused(release: str) -> None:
    """One word more anywhere, as a later release may have: it is named, and never a guess."""
    table = recorded(release)
    (finalizing,) = struct.unpack_from("<Q", table, 32)
    longer = table[:32] + struct.pack("<Q", finalizing + 8) + table[40:]
    for at in range(40, finalizing - 24, 8):
        with pytest.raises(WalkError, match=re.escape(f"{release} is not supported: its table")):
            layout_of(RELEASES[release], longer[:at] + bytes(8) + longer[at:])


def test_words_that_changed_places_are_refused() -> None:
    """Of the same length, but with the words behind one place moved by one."""
    for release, version in RELEASES.items():
        table = recorded(release)
        for at in range(40, 8 * 40, 8):
            with pytest.raises(WalkError, match="cannot be right"):
                layout_of(version, table[:at] + bytes(8) + table[at:])


@pytest.mark.parametrize(
    ("version", "table", "says"),
    [
        ((3, 9), b"", "CPython 3.9 is not supported"),
        ((3, 16), b"", "CPython 3.16 is not supported"),
        ((3, 13), b"", "without its table of offsets"),
        ((3, 15), bytes(DEBUG_OFFSETS), "without its table of offsets"),
        ((3, 13), recorded("3.13.0", word2=1), r"without a GIL \(3.13t\)"),
        ((3, 13), recorded("3.14.8"), "CPython 3.13 has the table of offsets of 3.14"),
        ((3, 13), recorded("3.13.0", word30=1 << 40), "cannot be right"),
        ((3, 15), recorded("3.15.0", word1=0x030F00B4), r"3.15.0 before its release \(0x30f00b4\)"),
    ],
)
def test_what_is_not_known_is_named(version: tuple[int, int], table: bytes, says: str) -> None:
    """An unsupported interpreter is one line with its version, and never a guess."""
    with pytest.raises(WalkError, match=says):
        layout_of(version, table)


def test_processes_without_an_interpreter_are_named() -> None:
    """A pid that is gone, and a program that is no Python, are one line each."""
    with pytest.raises(WalkError, match="is gone"):
        Target.of(1 << 22)
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/sleep", ["sleep", "20"])
    try:
        while os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe"):
            pass
        with pytest.raises(WalkError, match="has no CPython"):
            Target.of(pid)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_the_script_has_no_word_left_to_fill_in() -> None:
    """Every capital word of the template is replaced, and literals fit bpftrace's."""
    text = re.sub(r'"[^"]*"', "", fragment(LIMITS))
    assert not re.search(r"\b[A-Z_]{2,}\b", text)
    assert all(int(number) < 1 << 63 for number in re.findall(r"\b\d+\b", text))
    assert rows({7: layout_row()}).count("(uint64)") == 8


def layout_row() -> tuple[int, ...]:
    return Target(7, (3, 12), 4096, "python", layout_of((3, 12), b"")).row()


class Script:
    """Plays the script: prints the records of code objects and frames of 3.12."""

    layout = layout_of((3, 12), b"")

    def __init__(self) -> None:
        self.decoder = Decoder({7: self.layout}, unread)

    def text(self, value: str) -> bytes:
        header = struct.pack("<QqqqI4x", 1, 0, len(value), -1, 1 << 2 | 1 << 5 | 1 << 6)
        return header + value.encode("ascii")

    def code(self, address: int, name: str, file: str, table: bytes, *, space: int = 9) -> int:
        known = identity(address, address + 1, address + 2)
        self.decoder.feed(
            b"C %x %x 7 %x %x %x %x %x"
            % (space, known, address, address + 1, address + 2, address + 3, 10)
        )
        objects = {
            "n": self.text(name),
            "f": self.text(file),
            "l": struct.pack("<Qqqq", 1, 0, len(table), -1) + table,
        }
        for part, memory in objects.items():
            for index in range(3):
                piece = memory[16 + 64 * index :][:64].ljust(64, b"\0")
                data = "".join(f"\\x{byte:02x}" for byte in piece)
                self.decoder.feed(f"P {space:x} {known:x} {part} {index} {data}".encode())
        return known

    def frame(self, key: int, parent: int, known: int, address: int, *, mark: int = 0) -> None:
        instr = address + 192 + 2
        self.decoder.feed(b"N 9 %x %x %x %x %x %x" % (key, parent, known, address, instr, mark))

    def stack(self, key: int) -> list[str]:
        return [str(entry.frame) for entry in self.decoder.stack(7, 9, key)]


TABLE = bytes([0xE8, 0x02, 0xE9, 0x04])  # 3.11: no columns, one unit each; lines 11 and 13


def test_records_become_a_stack() -> None:
    """Names, files, lines, leaf first; shims are no frames, but say that C called."""
    script = Script()
    outer = script.code(0x1000, "main", "/a.py", TABLE)
    inner = script.code(0x2000, "Shop.order", "/b.py", TABLE)
    script.frame(0x51, 0x52, inner, 0x2000)
    script.frame(0x52, 0x53, outer, 0x1000)
    script.frame(0x53, 0, 0xDEAD, 0, mark=3)
    stack = script.decoder.stack(7, 9, 0x51)
    assert [(e.frame.name, e.frame.file, e.frame.line) for e in stack] == [
        ("Shop.order", "/b.py", 13),
        ("main", "/a.py", 13),
    ]
    assert [entry.mark for entry in stack] == [Mark.FROM_PYTHON, Mark.FROM_C]


def test_missing_frames_are_cut_and_come_later() -> None:
    """A record that is not there, or not yet, is marked; once it has come the stack is whole."""
    script = Script()
    known = script.code(0x1000, "main", "/a.py", TABLE)
    script.frame(0x51, 0x52, known, 0x1000)
    assert script.stack(0x51) == ["main", "(cut)"]
    script.frame(0x52, 0, known, 0x1000)
    assert script.stack(0x51) == ["main", "main"]


@pytest.mark.parametrize(
    ("end", "says"), [(END_CUT, ["(cut)"]), (END_UNREADABLE, ["(unreadable)", "(cut)"])]
)
def test_walks_that_did_not_end_are_marked(end: int, says: list[str]) -> None:
    """Too deep, or not readable: the frames above are there, and the reason."""
    script = Script()
    known = script.code(0x1000, "main", "/a.py", TABLE)
    script.frame(0x51, end, known, 0x1000)
    assert script.stack(0x51) == ["main", *says]


def test_names_that_never_came_have_a_reason() -> None:
    """A code object without records of a process that is gone is no name."""
    script = Script()
    script.frame(0x51, 0, 0xABC, 0x1000)
    (entry,) = script.decoder.stack(7, 9, 0x51)
    assert (entry.frame.name, entry.frame.why) == (None, Reason.EXITED)


def test_long_names_are_marked_as_such() -> None:
    """What was longer than the records, of a process that is gone, ends in dots."""
    script = Script()
    known = script.code(0x1000, "x" * 500, "/a.py", TABLE)
    script.frame(0x51, 0, known, 0x1000)
    assert script.stack(0x51) == ["x" * (192 + 16 - 40) + "\u2026"]


@KNOWN
def test_code_that_was_not_printed_is_read_from_the_process() -> None:
    """Only if it is the same code object: its identity is compared."""
    target = Target.of(os.getpid())
    decoder = Decoder({7: target.layout}, lambda pid, *where: read_memory(os.getpid(), *where))
    one = test_code_that_was_not_printed_is_read_from_the_process.__code__
    address, where = id(one), target.layout
    name, lines = (
        struct.unpack("<Q", ctypes.string_at(address + offset, 8))[0]
        for offset in (where.code_name, where.code_lines)
    )
    instr = 0 if where.code_start is None else address + where.code_start
    for key, known in ((0x51, identity(address, name, lines)), (0x52, 0xBAD)):
        decoder.feed(b"N 9 %x 0 %x %x %x 0" % (key, known, address, instr))
    ((entry,), (other,)) = decoder.stack(7, 9, 0x51), decoder.stack(7, 9, 0x52)
    assert (entry.frame.name, entry.frame.file) == (one.co_name, one.co_filename)
    assert other.frame.why is Reason.EXITED


def test_other_lines_are_not_ours() -> None:
    """What a script prints besides is left to it; a torn record raises."""
    script = Script()
    assert not script.decoder.feed(b"S 1 2 3")
    with pytest.raises(ValueError, match="not enough values"):
        script.decoder.feed(b"N 9 51")
