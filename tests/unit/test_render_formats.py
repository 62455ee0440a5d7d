# SPDX-License-Identifier: MIT
"""What is written to files: nothing lost, nothing misread, whatever things are called.

Asks others what the bytes say: protobuf, JSON Schema, `go tool pprof`. Must not look into writers.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from profiles import HOSTILE, SHOP, hostile, needed, profiles

from ustack.frame import Frame, Reason
from ustack.render import (
    ENDINGS,
    EndingError,
    Profile,
    Sample,
    document,
    flamegraph,
    folded,
    pprof,
    speedscope,
    svg,
    writer_for,
)

ROOT = Path(__file__).resolve().parents[2]

#: Runs of many examples share a machine with other tests.
slow = settings(deadline=None, max_examples=60)


# ---- the table of endings -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("out.html", flamegraph.write), ("OUT.SVG", svg.write), ("/a/b.folded", folded.write),
        ("out.txt", folded.write), ("out.speedscope.json", speedscope.write),
        ("out.json", document.write), ("out.pb.gz", pprof.write), ("out.pprof", pprof.write),
    ],
)  # fmt: skip
def test_ending_says_the_format(name: str, writer: object) -> None:
    """The longer ending wins, case does not count."""
    assert writer_for(name) is writer


@pytest.mark.parametrize("name", ["out", "out.gz", "html", "out.html.bak", ""])
def test_unknown_ending_lists_the_known(name: str) -> None:
    """One line, with every ending that would do."""
    with pytest.raises(EndingError) as caught:
        writer_for(name)
    assert "\n" not in str(caught.value)
    for ending in ENDINGS:
        assert ending in str(caught.value)


@slow
@given(profiles())
def test_every_writer_takes_any_profile(profile: Profile) -> None:
    """The same bytes twice, for every ending."""
    for writer in set(ENDINGS.values()):
        assert writer(profile) == writer(profile)


# ---- folded ---------------------------------------------------------------------------------

GOLDEN = """\
mailer-5151;_start;Mailer#deliver_[r] 7
shop-4242;(cut);0x7f0000001000 (no symbols: libvendor.so) 2
shop-4242;_start;0x7f0000002000 (no symbols: libvendor.so) 11
shop-4242;_start;<module>_[p];handler_[p] 8
shop-4242;_start;<module>_[p];handler_[p];handler_[p] 29
shop-4242;_start;<module>_[p];handler_[p];read;vfs_read_[k] 17
shop-4242;_start;LazyCompile:*render_[j] 13
"""


def test_folded_golden() -> None:
    """The lines flamegraph.pl reads, which must tell of `handler_[p];read;vfs_read_[k] 17`."""
    assert "handler_[p];read;vfs_read_[k] 17\n" in GOLDEN
    assert folded.write(SHOP).decode() == GOLDEN


def totals(profile: Profile) -> Counter[Any]:
    """Value per process and path, as far as folded stacks tell: kinds and what is shown."""
    found: Counter[Any] = Counter()
    for sample in profile.samples:
        path = tuple((frame.kind, str(frame)) for frame in sample.stack)
        found[sample.comm, sample.pid, path] += sample.value
    return +found


@slow
@given(profiles())
def test_folded_round_trip(profile: Profile) -> None:
    """Names, kinds, processes and values come back; so does the text."""
    text = folded.write(profile)
    back = folded.read(text, unit=profile.unit)
    assert totals(back) == totals(profile)
    assert folded.write(back) == text
    assert back.total == profile.total


def test_folded_lines_are_lines_for_everybody() -> None:
    """Whatever splits at `;`, at line ends and at the last space finds what was meant."""
    lines = folded.write(hostile()).decode().splitlines()
    assert len(lines) == len(HOSTILE)
    for line in lines:
        stack, count = line.rsplit(" ", 1)
        assert count.isdigit()
        assert len(stack.split(";")) == 3
        assert line.isprintable()


def test_folded_reads_reasons_back() -> None:
    """An unknown frame stays unknown, and keeps its address."""
    frames = {frame for sample in folded.read(GOLDEN.encode()).samples for frame in sample.stack}
    unknown = {frame.address: frame.why for frame in frames if frame.why}
    assert unknown == {
        0x7F0000001000: Reason.NO_SYMBOLS, 0x7F0000002000: Reason.NO_SYMBOLS, None: Reason.CUT
    }  # fmt: skip


def test_folded_of_other_tools() -> None:
    """stackcollapse-perf's lines: a process without a pid, `\\r\\n`, empty lines."""
    profile = folded.read(b"node;main;a b 3\r\n\nnode 4\n")
    assert [(s.comm, s.pid, [str(f) for f in s.stack], s.value) for s in profile.samples] == [
        ("node", 0, ["main", "a b"], 3), ("node", 0, [], 4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line", [b"a;b", b"a;b x", b"a;b -3", b"a;b 1.5", b"a;b 99999999999999999999"]
)
def test_folded_names_the_damaged_line(line: bytes) -> None:
    """The number of the line, and what to do."""
    with pytest.raises(folded.FoldedError, match=r"^line 2 .*stackcollapse"):
        folded.read(b"a;b 1\n" + line + b"\n")


# ---- our own document -----------------------------------------------------------------------


@slow
@given(profiles())
def test_document_round_trip(profile: Profile) -> None:
    """Nothing is lost at all."""
    assert document.read(document.write(profile)) == profile


@slow
@given(profiles())
def test_document_keeps_its_schema(profile: Profile) -> None:
    """docs/profile.schema.json is true."""
    jsonschema = needed("jsonschema")
    schema = json.loads((ROOT / "docs/profile.schema.json").read_text())
    written = json.loads(document.write(profile))
    jsonschema.Draft202012Validator(schema).validate(written)
    assert written["total"] == profile.total


def test_schema_refuses_what_is_no_profile() -> None:
    """A missing key, a frame with both a name and a reason, another version."""
    jsonschema = needed("jsonschema")
    schema = json.loads((ROOT / "docs/profile.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["version"] == {"const": document.VERSION}
    written = json.loads(document.write(SHOP))
    validator = jsonschema.Draft202012Validator(schema)
    for key in written:
        assert not validator.is_valid({k: v for k, v in written.items() if k != key}), key
    assert validator.is_valid(written)
    written["frames"][0]["why"] = "cut"
    assert not validator.is_valid(written)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"7", b"{}", b'{"type": "profile", "version": 1}', b"\xff",
        b'{"type": "profile", "version": 2}', b"[" * 100_000,
        document.write(SHOP).replace(b'"kernel"', b'"kernel", "x": 1', 1)[:-9],
        document.write(SHOP).replace(b'"address":"0x401021"', b'"address":"x"'),
        document.write(SHOP).replace(b'"stack":0', b'"stack":99'),
        document.write(SHOP).replace(b'"2023-', b'"23-'),
    ],
)  # fmt: skip
def test_document_refuses_others(data: bytes) -> None:
    """One error, one line, the next command."""
    with pytest.raises(document.DocumentError, match=r"ustack record -o") as caught:
        document.read(data)
    assert "\n" not in str(caught.value)


# ---- speedscope -----------------------------------------------------------------------------


@slow
@given(profiles())
def test_speedscope_adds_up(profile: Profile) -> None:
    """What the viewer relies on: weights beside samples, frames that exist, ends that fit."""
    written = json.loads(speedscope.write(profile))
    assert written["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    names = [frame["name"] for frame in written["shared"]["frames"]]
    assert all(type(name) is str for name in names)
    found: Counter[Any] = Counter()
    for part in written["profiles"]:
        assert part["type"] == "sampled"
        assert part["unit"] == {"samples": "none", "ns": "nanoseconds"}[profile.unit]
        assert len(part["samples"]) == len(part["weights"])
        assert part["startValue"] == 0
        assert part["endValue"] == sum(part["weights"])
        for stack, weight in zip(part["samples"], part["weights"], strict=True):
            found[tuple(names[at] for at in stack)] += weight
    wanted: Counter[Any] = Counter()
    for sample in profile.samples:
        wanted[tuple(map(str, sample.stack))] += sample.value
    assert found == wanted
    assert 0 <= written["activeProfileIndex"] < len(written["profiles"])


def test_speedscope_golden() -> None:
    """A profile per thread, the busiest shown first, files and lines where known."""
    written = json.loads(speedscope.write(SHOP))
    names = [part["name"] for part in written["profiles"]]
    assert names == ["shop (4242/4242)", "shop (4242/4243)", "mailer (5151/5151)"]
    assert written["activeProfileIndex"] == 0
    assert {"name": "handler", "file": "/srv/shop/app.py", "line": 41} in written["shared"][
        "frames"
    ]
    assert written["name"] == SHOP.title


def test_speedscope_is_in_time_order() -> None:
    """Its first view is a time line."""
    frame = Frame("native", "f")
    samples = (Sample((frame,), 1, time=9), Sample((), 2, time=3))
    assert json.loads(speedscope.write(Profile(samples)))["profiles"][0]["weights"] == [2, 1]


# ---- pprof ----------------------------------------------------------------------------------

#: profile.proto: message -> fields as (number, name, type), `*` for repeated.
PROTO = {
    "Profile": [
        (1, "sample_type", "*ValueType"), (2, "sample", "*Sample"), (3, "mapping", "*Mapping"),
        (4, "location", "*Location"), (5, "function", "*Function"), (6, "string_table", "*string"),
        (9, "time_nanos", "int64"), (10, "duration_nanos", "int64"),
        (11, "period_type", "ValueType"), (12, "period", "int64"), (13, "comment", "*int64"),
        (14, "default_sample_type", "int64"),
    ],
    "ValueType": [(1, "type", "int64"), (2, "unit", "int64")],
    "Sample": [(1, "location_id", "*uint64"), (2, "value", "*int64"), (3, "label", "*Label")],
    "Label": [(1, "key", "int64"), (2, "str", "int64"), (3, "num", "int64")],
    "Mapping": [
        (1, "id", "uint64"), (2, "memory_start", "uint64"), (5, "filename", "int64"),
        (7, "has_functions", "bool"), (8, "has_filenames", "bool"), (9, "has_line_numbers", "bool"),
    ],
    "Location": [
        (1, "id", "uint64"), (2, "mapping_id", "uint64"), (3, "address", "uint64"),
        (4, "line", "*Line"),
    ],
    "Line": [(1, "function_id", "uint64"), (2, "line", "int64")],
    "Function": [
        (1, "id", "uint64"), (2, "name", "int64"), (3, "system_name", "int64"),
        (4, "filename", "int64"),
    ],
}  # fmt: skip


def decoded(data: bytes) -> Any:
    """What Google's own protobuf library reads."""
    descriptor_pb2 = needed("google.protobuf.descriptor_pb2")
    pool = needed("google.protobuf.descriptor_pool").DescriptorPool()
    factory = needed("google.protobuf.message_factory")
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", syntax="proto3", package="p")
    for message, fields in PROTO.items():
        described = file.message_type.add(name=message)
        for number, name, kind in fields:
            label = 3 if kind.startswith("*") else 1
            field = described.field.add(name=name, number=number, label=label)
            scalar = getattr(field, f"TYPE_{kind.lstrip('*').upper()}", None)
            field.type = scalar or field.TYPE_MESSAGE
            if scalar is None:
                field.type_name = f".p.{kind.lstrip('*')}"
    pool.Add(file)
    message = factory.GetMessageClass(pool.FindMessageTypeByName("p.Profile"))()
    message.ParseFromString(gzip.decompress(data))
    return message


def stacks(message: Any) -> Counter[Any]:
    """Value per thread and path, root first."""
    text = message.string_table
    functions = {function.id: text[function.name] for function in message.function}
    locations = {
        location.id: (functions[location.line[0].function_id], location.address)
        for location in message.location
    }
    found: Counter[Any] = Counter()
    for sample in message.sample:
        labels = {text[label.key]: text[label.str] or label.num for label in sample.label}
        path = tuple(locations[number] for number in reversed(sample.location_id))
        found[labels.get("tid", 0), path] += sample.value[0]
    return +found


@slow
@given(profiles())
def test_pprof_adds_up(profile: Profile) -> None:
    """Every stack of every thread has its value, and no field is unknown to the format."""
    message = decoded(pprof.write(profile))
    wanted: Counter[Any] = Counter()
    for sample in profile.samples:
        path = tuple(
            (str(frame).encode("utf-8", "backslashreplace").decode(), frame.address or 0)
            for frame in sample.stack
        )
        wanted[sample.tid, path] += sample.value
    assert stacks(message) == +wanted
    assert message.string_table[0] == ""
    assert (message.time_nanos, message.period) == (profile.started or 0, profile.period)
    assert message.ByteSize() == len(gzip.decompress(pprof.write(profile)))


def test_pprof_golden() -> None:
    """Types, mapping of the program, lines, and labels that must say `python` and `mailer`."""
    message = decoded(pprof.write(SHOP))
    text = message.string_table
    assert [(text[t.type], text[t.unit]) for t in message.sample_type] == [
        ("samples", "count"), ("cpu", "nanoseconds")
    ]  # fmt: skip
    assert [sum(sample.value[at] for sample in message.sample) for at in (0, 1)] == [
        87, 87 * 10_101_010
    ]  # fmt: skip
    assert text[message.mapping[0].filename] == "/usr/bin/python3.11"
    assert {line.line for location in message.location for line in location.line} >= {41, 44, 120}
    labels = {(text[label.key], text[label.str]) for s in message.sample for label in s.label}
    assert {("kind", "python"), ("kind", "unknown"), ("thread", "mailer")} <= labels
    assert [text[at] for at in message.comment] == [SHOP.title, SHOP.event, "lost samples: 3"]


def test_pprof_in_nanoseconds() -> None:
    """Time that was waited is one value, not a number of samples."""
    message = decoded(pprof.write(Profile((Sample((Frame("native", "f"),), 2**40),), unit="ns")))
    text = message.string_table
    assert [(text[t.type], text[t.unit]) for t in message.sample_type] == [("time", "nanoseconds")]
    assert message.sample[0].value == [2**40]


@pytest.mark.parametrize(
    "profile", [SHOP, hostile(), Profile(())], ids=["shop", "hostile", "empty"]
)
def test_go_reads_pprof(profile: Profile, tmp_path: Path) -> None:
    """The tool the format is for accepts the file and finds the numbers."""
    if shutil.which("go") is None:
        pytest.skip("needs go: apt-get install golang-go")
    path = tmp_path / "out.pb.gz"
    path.write_bytes(pprof.write(profile))
    done = subprocess.run(
        ["go", "tool", "pprof", "-raw", path], capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = re.findall(r"^ +(\d+)(?: +\d+)?: ", done.stdout.partition("Locations")[0], re.M)
    assert sum(map(int, values)) == profile.total
