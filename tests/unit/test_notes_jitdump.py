# SPDX-License-Identifier: MIT
"""Jitdumps: every record of both versions and byte orders, cut anywhere, damaged anyhow.

Builds its dumps field by field from the specification; real ones are the tail's tests'.
"""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ustack.notes import End, JitDump, Lines, Note
from ustack.notes.jitdump import MAX_NAME, MAX_RECORD

ORDERS = ["<", ">"]


def header(order="<", *, magic=0x4A695444, version=1, size=40, padding=0, flags=0):
    fields = (magic, version, size, 62, padding, 4711, 99, flags)
    return struct.pack(order + "IIIIIIQQ", *fields).ljust(min(size, 100), b"\0")


def record(kind, body, when, order="<", *, size=None):
    return struct.pack(order + "IIQ", kind, size or 16 + len(body), when) + body


def load(start, name, when, order="<", *, code=b"\xc3" * 8, index=0, length=None):
    fields = (4711, 4712, start, start, len(code) if length is None else length, index)
    return record(0, struct.pack(order + "IIQQQQ", *fields) + name + b"\0" + code, when, order)


def move(old, new, size, when, order="<", *, index=0):
    fields = (4711, 4712, new, old, new, size, index)
    return record(1, struct.pack(order + "IIQQQQQ", *fields), when, order)


def debug(start, rows, when, order="<", *, count=None):
    body = struct.pack(order + "QQ", start, len(rows) if count is None else count)
    for place, line, name in rows:
        body += struct.pack(order + "QII", place, line, 0) + name + b"\0"
    return record(2, body + b"\0" * (-len(body) % 8), when, order)


def close(when, order="<"):
    return record(3, b"", when, order)


ROWS = [(0x1000, 10, b"a.py"), (0x1004, 11, b"\xff"), (0x1006, 7, b"b")]


def session(order="<", version=1):
    """One of each record."""
    return b"".join(
        [
            header(order, version=version),
            record(4, b"unwind" * 50, 5, order),
            debug(0x1000, ROWS, 6, order),
            load(0x1000, b"caf\xc3\xa9\xfe", 7, order, index=1),
            record(77, b"of a version to come", 8, order),
            load(0x2000, b"", 9, order, index=2, code=b""),
            move(0x1000, 0x3000, 8, 10, order, index=1),
            close(11, order),
        ]
    )  # fmt: skip


LINES = Lines((0, 4, 6), (10, 11, 7), ("a.py", "a.py", "b"))
FIRST = Note(0x1000, 8, "café\\xfe", 7, 7, "d", LINES)
SESSION = [
    FIRST,
    Note(0x2000, 0, "", 9, 9, "d"),
    End(FIRST, 10),
    FIRST._replace(start=0x3000, since=10, when=10),
]


def parse(*pieces, when=50, since=40):
    parser = JitDump("d")
    found = [entry for piece in pieces for entry in parser.feed(piece, when, since=since)]
    found += parser.finish(when, since=since)
    return found, parser


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_every_record_is_understood(order, version):
    """Loads, moves, line tables and the end are read; unwind tables and new types are skipped."""
    found, parser = parse(session(order, version))
    assert found == SESSION
    assert (parser.pid, parser.machine, parser.version) == (4711, 62, version)
    assert (parser.clock, parser.closed, parser.problems()) == ("monotonic", True, [])


def test_a_line_table_gives_lines():
    """From a row's place on the code belongs to its line; before the first row to none."""
    lines = Lines((2, 4), (10, 11), ("a", "b"))
    assert [lines.at(offset) for offset in (0, 2, 3, 4, 99)] == [
        None,
        ("a", 10),
        ("a", 10),
        ("b", 11),
        ("b", 11),
    ]


def test_a_line_table_is_for_the_load_that_follows():
    """A load elsewhere, or a second one, does not get it."""
    table = debug(0x1000, [(0x1000, 1, b"f")], 1)
    found, _ = parse(header() + table + load(0x2000, b"other", 2) + load(0x1000, b"late", 3))
    assert [note.lines for note in found] == [None, None]
    found, _ = parse(header() + table + load(0x1000, b"a", 2) + load(0x1000, b"b", 3))
    assert [bool(note.lines) for note in found] == [True, False]


def test_v8_is_understood():
    """V8's line tables start 0x40 bytes late; its mark in the header says that it is V8."""
    rows = [(0x1040, 3, b"f.js")]
    rest = debug(0x1000, rows, 1) + load(0x1000, b"f", 2)
    assert parse(header(padding=0xDEADBEEF) + rest)[0][0].lines.at(0) == ("f.js", 3)
    (note,), parser = parse(header() + rest)
    assert note.lines is None
    assert "a line table that points outside the code" in parser.problems()[0]


def test_processor_time_is_replaced():
    """Where the dump counts in the processor's units, notes get the times of reading."""
    (note,), parser = parse(header(flags=1) + load(0x1000, b"f", 123456789))
    assert (parser.clock, note.since, note.when) == ("arch", 40, 50)


@given(st.lists(st.integers(0, len(session()))))
def test_pieces_do_not_matter(cuts):
    """Wherever a dump is cut, what it says is the same."""
    cuts = sorted(cuts)
    whole = session()
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found, parser = parse(*pieces)
    assert found == SESSION
    assert parser.problems() == []


def test_a_dump_that_ends_early_gives_what_is_complete():
    """A truncated tail is kept for later; at the end, it is a problem unless nothing is cut."""
    whole = session()
    ends = {at for at in range(40, len(whole)) if not parse(whole[:at])[1].problems()}
    assert len(ends) == 7  # of the header and of each record but the last
    for length in range(len(whole)):
        found, _ = parse(whole[:length])
        assert found == SESSION[: len(found)]
        parser = JitDump("d")
        assert parser.feed(whole[:length], 50) + parser.feed(whole[length:], 50) == SESSION


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(ORDERS))
def test_damage_is_a_reason(data, order):
    """With any bytes changed, nothing is raised, and what is read does not depend on pieces."""
    dump = bytearray(session(order))
    for _ in range(data.draw(st.integers(1, 6))):
        dump[data.draw(st.integers(0, len(dump) - 1))] = data.draw(st.integers(0, 255))
    found, parser = parse(bytes(dump))
    again, other = parse(*(bytes(dump[i : i + 7]) for i in range(0, len(dump), 7)))
    assert (found, parser.problems()) == (again, other.problems())
    assert all(entry.start + entry.size <= 1 << 64 for entry in found)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    """After a good header, anything may follow."""
    found, parser = parse(header() + data)
    assert parser.stopped or parser.version == 1
    assert len(found) <= len(data) // 16


@pytest.mark.parametrize(
    ("dump", "reason"),
    [
        (b"7f00 20 f\n" * 9, "it is no jitdump: its first bytes are not 'JiTD'"),
        (header(version=3), "it is a jitdump of version 3, not 1 or 2"),
        (header(size=39), "its header claims 39 bytes"),
        (header(size=1 << 31), f"its header claims {1 << 31} bytes"),
    ],
)
def test_what_is_no_jitdump_stops(dump, reason):
    """Nothing is read from a file that is something else, and the message says why."""
    parser = JitDump("d")
    assert parser.feed(dump, 1) == parser.feed(load(0x1000, b"f", 1), 2) == []
    assert parser.problems() == [f"d: {reason}; what follows is not read"]


@pytest.mark.parametrize(
    "junk",
    [
        record(0, b"", 1, size=15),
        record(4, b"", 1, size=MAX_RECORD + 1),
        record(1024, b"", 1),
        record(4, b"", 1 << 58),
        b"\x90" * 99,
        bytes(1000),
        load(0x1000, b"half", 1)[40:],
    ],
)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("step", [1, 55, 56, 57, 1 << 16])
def test_after_what_is_no_record_the_next_load_is_found(junk, order, step):
    """Half a record costs what follows up to the next load, wherever the dump is cut."""
    rest = load(0x5000, b"good", 2, order) + load(0x6000, b"too", 3, order)
    dump = header(order) + load(0x1000, b"f", 1, order) + junk + rest
    found, parser = parse(*(dump[i : i + step] for i in range(0, len(dump), step)))
    assert [note.name for note in found] == ["f", "good", "too"]
    at = 40 + len(load(0x1000, b"f", 1))
    assert parser.problems() == [
        f"d: 1 record is damaged, the first at byte {at}: no record starts there"
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(0, b"short", 1), "a load without its fields"),
        (record(0, b"\1" * 60, 1), "a load whose name does not end"),
        (load(0x1000, b"f", 1, length=9), "a load of 9 bytes of code, of which it has 8"),
        (load(2**64 - 4, b"f", 1), "a load past the end of memory"),
        (record(1, b"short", 1), "a move without its fields"),
        (move(1, 2, 8, 1, index=9), "a move of function 9, which was never loaded"),
        (record(2, b"short", 1), "a line table without its fields"),
        (
            debug(1, [(1, 1, b"f")], 1, count=1 << 60),
            f"a line table of 1 rows that claims {1 << 60}",
        ),
        (debug(1, [(1, 1, b"f"), (2, 2, b"g")], 1, count=1), "that goes on after its 1 rows"),
        (record(2, bytes(1 << 22), 1), "at most 4194304 are read"),
        (record(0, struct.pack("<IIQQQQ", 1, 1, 1, 1, 1, 1) + b"x" * (MAX_NAME + 9), 1),
         "a load whose name does not end"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_left_out(bad, reason):
    """A record that holds not what it says costs itself only."""
    dump = header() + bad + load(0x5000, b"good", 2)
    for pieces in ([dump], [dump[i : i + 65536] for i in range(0, len(dump), 65536)]):
        found, parser = parse(*pieces)
        assert [note.name for note in found] == ["good"]
        (problem,) = parser.problems()
        assert problem.startswith("d: 1 record is damaged, the first at byte 40: ")
        assert problem.endswith(reason)


def test_a_move_keeps_the_size():
    """The specification says that it cannot change."""
    found, parser = parse(header() + load(0x1000, b"f", 1) + move(0x1000, 0x2000, 9, 2))
    assert len(found) == 1
    assert "a move of 9 bytes of a function of 8" in parser.problems()[0]


def test_code_is_not_kept():
    """A load with much code leaves nothing behind in the parser."""
    parser = JitDump("d")
    whole = header() + load(0x1000, b"f", 1, code=b"\x90" * (8 << 20))
    for at in range(0, len(whole) - 1, 1 << 16):
        parser.feed(whole[at : min(at + (1 << 16), len(whole) - 1)], 1)
        assert len(parser._data) <= MAX_NAME + 100
    assert parser._data == b""
