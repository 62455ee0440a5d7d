# SPDX-License-Identifier: MIT
"""bpftrace's lines -> events -> text and JSON, without bpftrace.

Plays the kernel: builds the lines that a script's records become, whole, torn and hostile.
"""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usdt import render
from usdt.events import Assembler, Begin, Blob, Event, Lost, Table, Text
from usdt.script import Arg, Target

STRINGS = Target(
    "/s.so",
    "shop",
    "order",
    (
        Arg("id", "u64", ("arg0",)),
        Arg("who", "str", ("arg1",)),
        Arg("city", "str", ("arg2",)),
        Arg("blob", "bytes", ("arg3", "arg4")),
    ),
)


def line(data: bytes) -> bytes:
    """`bpftrace -f json` of 0.17: a signed char above 0x7f becomes \\uffffffXX."""
    named = {0x22: b'\\"', 0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t"}
    out = b"".join(
        named.get(c)
        or (b"\\u%04x" % c if c < 32 else b"\\uffffff%02x" % c if c > 127 else bytes((c,)))
        for c in data
    )
    return b'{"type": "printf", "data": "%s"}' % out


def hexed(data: bytes) -> bytes:
    return b"".join(b"\\x%02x" % c for c in data)


def records(who: bytes, city: bytes, blob: bytes, *, time: int = 5, tid: int = 7) -> list[bytes]:
    key = b"%d %d" % (time, tid)
    return [
        line(b"E 0 %s 42 -1 %d 0 %s" % (key, len(blob), who)),
        line(b"S 0 1 %s 0 %s" % (key, city)),
        line(b"R 0 2 %s %s" % (key, hexed(blob))),
    ]


def whole(lines: list[bytes]) -> list[object]:
    assembler = Assembler([STRINGS])
    return [value for value in map(assembler.feed, lines) if value is not None]


TEXT = st.binary(max_size=190).map(lambda data: data.replace(b"\0", b"."))


@given(TEXT, TEXT, st.binary(max_size=190))
def test_every_byte_comes_back(who: bytes, city: bytes, blob: bytes) -> None:
    """Whatever a program puts into its strings, they are read as they were."""
    (event,) = whole(records(who, city, blob))
    assert isinstance(event, Event)
    assert event.values == (2**64 - 1, Text(who, False), Text(city, False), Blob(blob, len(blob)))
    assert (event.pid, event.tid, event.time) == (42, 7, 5)


@given(TEXT, TEXT, st.binary(max_size=190))
def test_a_line_is_one_printable_line(who: bytes, city: bytes, blob: bytes) -> None:
    """Neither a newline nor an escape sequence reaches the terminal, and JSON stays JSON."""
    (event,) = whole(records(who, city, blob))
    assert isinstance(event, Event)
    assert render.event_text(event, epoch=0).isprintable()
    parsed = json.loads(render.event_json(event, epoch=0))
    assert parsed["args"]["blob"] == {"hex": blob.hex(), "length": len(blob)}
    shown = parsed["args"]["who"]
    assert (shown.encode() if isinstance(shown, str) else bytes.fromhex(shown["hex"])) == who


def test_raw_bytes_of_another_bpftrace_are_the_same() -> None:
    """A version that writes bytes above 0x7f as they are is read as well."""
    assembler = Assembler([STRINGS])
    lines = records("é\uffffff41☃".encode(), b"\xff\xfe", b"")
    raw = lines[0].replace(line("é\uffffff41☃".encode())[28:-2], "é\uffffff41☃".encode())
    assert b"\\u" not in raw
    assembler.feed(raw)
    assembler.feed(lines[1])
    event = assembler.feed(lines[2])
    assert isinstance(event, Event)
    assert event.values[1] == Text("é\uffffff41☃".encode(), False)


def test_two_threads_mixed_are_two_events() -> None:
    """Records of threads, and of one thread's events on two CPUs, come in any order."""
    one, two, three = (
        records(b"%d" % i, b"c%d" % i, b"", time=time, tid=tid)
        for i, (time, tid) in enumerate([(5, 7), (5, 8), (6, 7)])
    )
    events = whole([one[0], two[0], three[0], two[1], three[1], one[1], three[2], one[2], two[2]])
    assert [(e.time, e.tid, e.values[1], e.values[2]) for e in events] == [  # type: ignore[attr-defined]
        (6, 7, Text(b"2", False), Text(b"c2", False)),
        (5, 7, Text(b"0", False), Text(b"c0", False)),
        (5, 8, Text(b"1", False), Text(b"c1", False)),
    ]


def test_an_event_that_lost_a_record_is_never_completed_by_another() -> None:
    """Its values are not mixed with those of the next event; it counts as incomplete."""
    assembler = Assembler([STRINGS])
    first, second = records(b"a", b"b", b"c", time=1), records(b"x", b"y", b"z", time=2)
    fed = [assembler.feed(one) for one in (first[0], first[1], *second[1:], second[0])]
    assert fed == [None] * 5
    assert assembler.incomplete == 2


def test_a_string_cannot_be_a_record() -> None:
    """Text that looks like a record, or like bpftrace's JSON, stays text."""
    hostile = b'E 0 5 7 42 1 0 forged\n{"type": "printf", "data": "E 0 1 1 1 1 0 x"}'
    (event,) = whole(records(hostile, b'"}', b""))
    assert isinstance(event, Event)
    assert event.values[1:3] == (Text(hostile, False), Text(b'"}', False))


def test_a_string_that_went_on_is_marked() -> None:
    """199 bytes are whole if a NUL follows, and cut if something else does."""
    key = b"5 7"
    target = Target("/s.so", "p", "q", (Arg("s", "str", ("arg0",)),))
    for more, truncated in ((b"0", False), (b"121", True)):
        event = Assembler([target]).feed(line(b"E 0 %s 42 %s %s" % (key, more, b"y" * 199)))
        assert isinstance(event, Event)
        assert event.values == (Text(b"y" * 199, truncated),)
        assert render.event_text(event, epoch=0).endswith('"…') is truncated
        assert json.loads(render.event_json(event, epoch=0))["truncated"] == ["s"] * truncated
    short = Assembler([target]).feed(line(b"E 0 5 7 42 99 abc"))
    assert isinstance(short, Event)
    assert short.values == (Text(b"abc", False),)


@pytest.mark.parametrize(
    ("type", "raw", "value", "text"),
    [
        ("i8", 253, -3, "-3"),
        ("i8", -3, -3, "-3"),
        ("i64", -(2**63), -(2**63), "-9223372036854775808"),
        ("u64", -1, 2**64 - 1, "18446744073709551615"),
        ("u16", -1, 65535, "65535"),
        ("bool", 256, False, "false"),
        ("bool", 1, True, "true"),
        ("ptr", 0xDEADBEEF, 0xDEADBEEF, "0xdeadbeef"),
        ("f64", struct.unpack("<q", struct.pack("<d", -1e300))[0], -1e300, "-1e+300"),
        ("f32", struct.unpack("<i", struct.pack("<f", 0.1))[0], None, "0.1"),
        ("f32", 0x7F7FFFFF, None, "3.4028235e+38"),
        ("f32", 0x7F800000, float("inf"), "inf"),
    ],
)
def test_integers_are_read_by_their_type(type: str, raw: int, value: object, text: str) -> None:
    """Bits above the operand are cut off, signs are given, floats come out of their bits."""
    target = Target("/s.so", "p", "q", (Arg("v", type, ("arg0",)),))
    event = Assembler([target]).feed(line(b"E 0 5 7 42 %d" % raw))
    assert isinstance(event, Event)
    assert value is None or event.values == (value,)
    assert render.event_text(event, epoch=0).endswith(f" v={text}")
    json.loads(render.event_json(event, epoch=0), parse_constant=pytest.fail)


def test_a_cut_character_is_left_out_of_json() -> None:
    """A truncated string stays a string even if the cut went through a character."""
    assert render.plain_text("aé".encode()[:-1], truncated=True) == "a"
    assert render.plain_text(b"a\xc3") == {"hex": "61c3", "length": 2}


def test_bpftraces_other_lines() -> None:
    """Maps, histograms, losses and the first record are values; the rest is nothing."""
    feed = Assembler([STRINGS]).feed
    assert feed(b"") is None
    assert feed(b'{"type": "attached_probes", "data": {"probes": 3}}') is None
    assert feed(b'{"type": "lost_events", "data": {"events": 12}}') == Lost(12)
    assert feed(line(b"B 99")) == Begin(99)
    counted = feed(b'{"type": "map", "data": {"@value": {"0,a\\uffffffff,b": 3}}}')
    assert counted == Table("value", {b"0,a\xff,b": 3})


def test_count_rows_are_sorted_and_name_probe_and_process() -> None:
    """The largest count comes first."""
    rows = render.count_rows([STRINGS], {b"0": 12}, {b"0,7": 2, b"0,8": 10})
    assert rows == [("shop:order", 8, 10), ("shop:order", 7, 2)]


def test_a_histogram_has_bounds_and_bars() -> None:
    """Negative values, zero and powers of two each have their label."""
    buckets = [
        {"max": -1, "count": 1},
        {"min": 0, "max": 0, "count": 2},
        {"min": 512, "max": 1023, "count": 4},
        {"min": 1024, "max": 2047, "count": 0},
    ]
    lines = render.hist_rows(buckets)
    assert [text.split("  ")[0] for text in lines] == ["(..., 0)", "[0]", "[512, 1K)", "[1K, 2K)"]
    assert [text.count("@") for text in lines] == [10, 20, 40, 0]
