# SPDX-License-Identifier: MIT
"""Perf maps: what lines mean, real ones included, however they are cut; what names say.

Feeds bytes; files and processes are for the tests of the tail.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ustack.notes import PerfMap, Spelling, Table, split
from ustack.notes.perfmap import MAX_NAME

DATA = Path(__file__).parents[1] / "data"

lines = st.one_of(
    st.binary(max_size=30),
    st.builds(
        lambda start, size, name, end: b"%x %x %b%b" % (start, size, name, end),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=10),
        st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    ),
)


def parse(*pieces):
    """Notes as (start, size, name), and the parser."""
    parser = PerfMap("m")
    notes = [note for piece in pieces for note in parser.feed(piece, 7, since=3)]
    notes += parser.finish(7, since=3)
    assert all((note.since, note.when, note.source) == (3, 7, "m") for note in notes)
    return [note[:3] for note in notes], parser


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"7fd2b2275000 b py::f:/a b.py", (0x7FD2B2275000, 11, "py::f:/a b.py")),
        (b"0x00007fb840ec71c0 0x0270 int A.b(int, c)", (0x7FB840EC71C0, 624, "int A.b(int, c)")),
        (b"ABC DEF upper", (0xABC, 0xDEF, "upper")),
        (b"10 20 ", (16, 32, "")),
        (b"10 20", (16, 32, "")),
        (b"10 20  two  spaces ", (16, 32, " two  spaces ")),
        (b"10\t20\ttabs", (16, 32, "tabs")),
        (b"10 20 crlf\r", (16, 32, "crlf")),
        (b"10 20 c\rr", (16, 32, "c\rr")),
        (b"10 20 caf\xc3\xa9 \xff\xfe", (16, 32, "café \\xff\\xfe")),
        (b"10 20 a\xe2\x80\xa8b\x0b\x0c\x85", (16, 32, "a\u2028b\x0b\x0c\\x85")),
        (b"ffffffffffffffff 1 last byte", (2**64 - 1, 1, "last byte")),
    ],
)  # fmt: skip
def test_a_line_is_a_note(line, expected):
    """Every spelling of a line is understood, with and without an end of line."""
    assert parse(line + b"\n")[0] == parse(line)[0] == [expected]


@pytest.mark.parametrize(
    "line",
    [
        b"garbage", b"-10 20 f", b"1_0 20 f", b"10 zz f", b"10", b" 10 20 f", b"\x00\xff",
        b"12345678901234567 1 f", b"10 0 no byte", b"ffffffffffffffff 2 past the end", b"10  20 f",
    ],
)  # fmt: skip
def test_garbage_is_counted_and_left_out(line):
    """A line that is no note costs only itself, and the message says where it is."""
    notes, parser = parse(b"10 20 f\n\n" + line + b"\n30 20 g\n")
    assert notes == [(16, 32, "f"), (48, 32, "g")]
    assert parser.problems() == ["m: 1 line is not 'START SIZE NAME', the first is line 3"]


def test_a_line_is_kept_until_it_is_complete():
    """A last line without a newline says nothing yet."""
    parser = PerfMap("m")
    assert [note.name for note in parser.feed(b"10 20 f\n30 20 un", 1)] == ["f"]
    assert parser.feed(b"", 2) == []
    (note,) = parser.feed(b"finished\n", 3)
    assert (note.name, note.when) == ("unfinished", 3)


@given(st.lists(lines), st.data())
def test_pieces_do_not_matter(parts, data):
    """Wherever a map is cut, notes and counts are those of the whole."""
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    (one, first), (two, second) = parse(whole), parse(*pieces)
    assert one == two
    assert first.problems() == second.problems()


@given(st.binary())
def test_any_bytes_are_a_map(data):
    """Nothing is raised, and each line is a note, garbage or empty."""
    notes, parser = parse(data)
    assert len(notes) + parser.garbage == sum(bool(line.strip()) for line in data.split(b"\n"))


@pytest.mark.parametrize("step", [1 << 16, 1 << 22])
def test_a_line_that_does_not_end_is_dropped(step):
    """Memory is bounded: an endless line is one line of garbage, in pieces and whole."""
    data = b"10 20 f\n30 20 " + b"x" * (MAX_NAME * 3) + b"\n50 20 g\nbad\n"
    notes, parser = parse(*(data[i : i + step] for i in range(0, len(data), step)))
    assert [name for *_, name in notes] == ["f", "g"]
    assert (parser.garbage, parser.first) == (2, 2)


def test_the_longest_name_is_a_name():
    """MAX_NAME bytes are kept, one more is garbage, in one piece and in many."""
    for extra in (0, 1):
        data = b"10 20 " + b"x" * (MAX_NAME + extra) + b"\n"
        for step in (1 << 16, len(data)):
            notes, parser = parse(*(data[i : i + step] for i in range(0, len(data), step)))
            assert (len(notes), parser.garbage) == (1 - extra, extra)


@pytest.mark.parametrize(
    ("file", "count", "name"),
    [
        ("py312-X-perf.map", 183, "py::leaf:/srv/app/worker/v001/busy.py"),
        ("java17-perfmap.map", 296, "double Busy.leaf(int)"),
    ],
)
def test_real_maps_are_read_whole(file, count, name):
    """Every line of a map that a runtime wrote is a note, and its code has its name."""
    data = (DATA / file).read_bytes()
    notes = PerfMap(file).feed(data, 1)
    assert len(notes) == len(data.splitlines()) == count
    table = Table()
    table.add(notes)
    one = next(note for note in notes if note.name == name)
    assert table.lookup(one.start + one.size - 1) == (one, one.size - 1)


def test_real_names_are_understood():
    """CPython's names give file and function, HotSpot's the class and method."""
    for line in (DATA / "py312-X-perf.map").read_text().splitlines():
        parts = split(line.split(" ", 2)[2])
        assert parts.file
        assert f"py::{parts.function}:{parts.file}" == line.split(" ", 2)[2]
    text = (DATA / "java17-perfmap.map").read_text()
    names = [line.split(" ", 2)[2] for line in text.splitlines()]
    functions = {name: split(name).function for name in names}
    assert functions["double Busy.rec(int, int)"] == "Busy.rec"
    assert not [name for name in names if name.endswith(")") and "." in functions[name] == name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("py::A.b.<locals>.<lambda>:/x/a:b.py", ("A.b.<locals>.<lambda>", "/x/a:b.py", None, None)),
        ("py::f:<frozen importlib._bootstrap>", ("f", "<frozen importlib._bootstrap>", None, None)),
        ("JS:~get x /srv/my app/t.js:3:14", ("get x", "/srv/my app/t.js", 3, "interpreted")),
        ("JS:* /srv/t.js:1:1", ("(anonymous)", "/srv/t.js", 1, "optimized")),
        ("JS:^load node:internal/x:1:2", ("load", "node:internal/x", 1, "baseline")),
        ("LazyCompile:*f file:///a.mjs:10:2", ("f", "file:///a.mjs", 10, "optimized")),
        ("LazyCompile:f native.js:1:2", ("f", "native.js", 1, None)),
        ("JS:+f :1:2", ("f", None, 1, "maglev")),
        ("JS:~f", ("f", None, None, "interpreted")),
        ("Builtin:ArrayMap", ("ArrayMap", None, None, "Builtin")),
        ("BytecodeHandler:Wide.Star", ("Wide.Star", None, None, "BytecodeHandler")),
        ("void java.lang.Object.<init>()", ("java.lang.Object.<init>", None, None, None)),
        ("int[] a.B$C.d(int, b.E[])", ("a.B$C.d", None, None, None)),
        ("flush_icache_stub", ("flush_icache_stub", None, None, None)),
        ("StubRoutines (1)", ("StubRoutines (1)", None, None, None)),
        ("", ("", None, None, None)),
        ("py::", ("py::", None, None, None)),
    ],
)
def test_a_name_is_taken_apart(name, expected):
    """Each runtime's spelling gives its parts; what is none of them is a function."""
    assert split(name) == Spelling(*expected)


@given(st.text())
def test_any_text_is_a_name(name):
    """Nothing is raised, and a name without a spelling stays whole."""
    for prefix in ("", "JS:~", "py::", "int a.b("):
        assert split(prefix + name).function or not prefix + name
