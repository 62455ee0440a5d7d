# SPDX-License-Identifier: MIT
"""Mappings over time: what replaces what, in whatever order it becomes known.

Pure values; processes are asked in test_space_processes.
"""

from __future__ import annotations

import random
from pathlib import Path
from struct import pack

from hypothesis import given
from hypothesis import strategies as st

from ustack.frame import AbsAddr, FileOffset, Frame, Reason
from ustack.maps import (
    Executed,
    Exited,
    Forked,
    Lost,
    Mapped,
    Mapping,
    Renamed,
    file_path,
    parse_maps,
)
from ustack.perfring import parse_records
from ustack.space import Space
from ustack.spaces import Spaces

PID = 1 << 22 | 77  # above any pid_max: no process of this machine


def mapping(start: int, end: int, path: str = "/lib/a.so", **more: object) -> Mapping:
    return Mapping(AbsAddr(start), AbsAddr(end), FileOffset(more.pop("offset", 0)), path, **more)


def path_at(space: Space, address: int, time: int | None = None) -> str | None:
    row = space.find(AbsAddr(address), time)
    return row.mapping.path if row else None


def space() -> Space:
    return Space(PID, born=1, since=1, known=True)


def test_maps_are_parsed_as_the_kernel_writes_them() -> None:
    """Spaces, newlines and deleted files in paths; only what can be executed."""
    text = (
        b"00400000-00401000 r-xp 00000000 fe:00 123                        /bin/a b\n"
        b"00401000-00402000 rw-p 00001000 fe:00 123                        /bin/a b\n"
        b"7f0000000000-7f0000001000 r-xp 00002000 103:02 18446744073709551615 /tmp/x (deleted)\n"
        b"7f0000001000-7f0000002000 rwxp 00000000 00:00 0 \n"
        b"7f0000002000-7f0000003000 rwxs 00000000 00:01 5                  /tmp/new\\012line\n"
        b"7ffc9d5f4000-7ffc9d5f6000 r-xp 00000000 00:00 0                  [vdso]\n"
        b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0          [vsyscall]\n"
        b"7f0000009000-7f000000a000 r-xp 00000"
    )
    found = parse_maps(text)
    assert [m.path for m in found] == [
        "/bin/a b", "/tmp/x (deleted)", "", "/tmp/new\nline", "[vdso]", "[vsyscall]",
    ]  # fmt: skip
    assert (found[1].device, found[1].inode, found[1].offset) == ((0x103, 2), 2**64 - 1, 0x2000)
    assert [file_path(m) for m in found] == [
        "/bin/a b", "/tmp/x", None, "/tmp/new\nline", None, None,
    ]  # fmt: skip


def test_this_process_is_parsed_completely() -> None:
    """Every executable line of the real thing."""
    text = Path("/proc/self/maps").read_bytes()
    lines = [line for line in text.splitlines() if line.split()[1][2:3] == b"x"]
    assert len(parse_maps(text)) == len(lines) > 3


@given(st.binary() | st.lists(st.sampled_from(
    [b"00400000-00401000 r-xp 00000000 fe:00 123 /bin/a\n", b"\0", b"-", b"f" * 40, b" ", b"x"]
)).map(b"".join))  # fmt: skip
def test_damaged_maps_are_no_trouble(text: bytes) -> None:
    """Whatever the bytes: mappings that make sense, or none."""
    for found in parse_maps(text):
        assert 0 <= found.start < found.end < 1 << 64


@given(st.binary(max_size=300))
def test_damaged_records_are_no_trouble(body: bytes) -> None:
    """Whatever a ring holds; each type with a body that is too short, or says nonsense."""
    for type_ in (2, 3, 4, 7, 10):
        for misc in (0, 1 << 13, 1 << 14):
            list(parse_records(pack("=IHH", type_, misc, 8 + len(body)) + body))
    list(parse_records(body))


def test_the_later_mapping_wins_and_the_earlier_keeps_its_time() -> None:
    """A library is replaced by another; each answers for its own time."""
    one = space()
    one.add(mapping(0x1000, 0x5000, "/lib/old.so"), 10)
    one.add(mapping(0x2000, 0x3000, "/lib/new.so"), 20)
    assert path_at(one, 0x2800) == path_at(one, 0x2800, 20) == "/lib/new.so"
    assert path_at(one, 0x2800, 19) == "/lib/old.so"
    assert path_at(one, 0x2800, 9) is None
    assert path_at(one, 0x1800) == path_at(one, 0x3000) == path_at(one, 0x4FFF) == "/lib/old.so"
    assert path_at(one, 0x5000) is None
    rest = one.find(AbsAddr(0x3000), None)
    assert rest is not None
    assert (rest.mapping.offset, rest.since) == (0x2000, 10)


def test_any_sequence_matches_a_slow_reference() -> None:
    """An array of cells, repainted; and its history."""
    chosen = random.Random(5)
    for _ in range(200):
        one, history = space(), [dict[int, str]()]
        for time in range(1, 15):
            start = chosen.randrange(40)
            end = start + chosen.randrange(1, 20)
            path = f"/lib/{chosen.randrange(4)}.so"
            one.add(mapping(start, end, path, offset=start), time)
            history.append({**history[-1], **dict.fromkeys(range(start, end), path)})
        for address in range(62):
            assert path_at(one, address) == history[-1].get(address)
            for time, then in enumerate(history):
                assert path_at(one, address, time) == then.get(address)


def test_what_proc_shows_replaces_what_was_recorded() -> None:
    """Unmapped ranges end; what stays keeps its beginning and its build id."""
    one = space()
    one.add(mapping(0x1000, 0x2000, "/lib/a.so", build_id="aa"), 10)
    one.add(mapping(0x3000, 0x4000, "/lib/b.so"), 11)
    one.replace([mapping(0x1000, 0x2000, "/lib/a.so", inode=7)], 20)
    row = one.find(AbsAddr(0x1000), 15)
    assert row is not None
    assert (row.since, row.mapping.build_id, row.mapping.inode) == (10, "aa", 7)
    assert path_at(one, 0x3000) is None
    assert path_at(one, 0x3000, 15) == "/lib/b.so"


def test_records_that_arrive_after_proc_was_read_do_not_undo_it() -> None:
    """What was there then stays; what came and went in between answers for that time."""
    one = space()
    one.replace([mapping(0x1000, 0x2000, "/lib/a.so", inode=7)], 20)
    one.add(mapping(0x1000, 0x2000, "/lib/a.so", build_id="aa"), 10)
    one.add(mapping(0x1000, 0x1800, "/lib/gone.so"), 12)
    assert path_at(one, 0x1000) == path_at(one, 0x1000, 25) == "/lib/a.so"


def resolver(*changes: object, notes: object = None) -> Spaces:
    spaces = Spaces(notes=notes, proc="/nonexistent")
    spaces.apply(changes)
    return spaces


def modules(spaces: Spaces, address: int, *times: int) -> list[str | None]:
    return [spaces.resolve(PID, AbsAddr(address), time).module for time in times]


def test_fork_exec_exit_and_the_next_process_with_that_pid() -> None:
    """Each time has its own program; the last one answers after the end, too."""
    parent = PID + 1
    spaces = resolver(
        Executed(parent, "sh", 1),
        Mapped(parent, mapping(0x1000, 0x2000, "/bin/sh"), 2),
        Forked(PID, parent, 10),
        Executed(PID, "one", 20),
        Mapped(PID, mapping(0x1000, 0x2000, "/bin/one"), 21),
        Renamed(PID, "uno", 25),
        Exited(PID, 30),
        Forked(PID, parent, 40),
        Executed(PID, "two", 50),
        Mapped(PID, mapping(0x1000, 0x2000, "/bin/two"), 51),
        Lost(3, 60),
    )
    assert modules(spaces, 0x1800, 10, 19, 20, 21, 35, 45, 50, 51, 99) == [
        "/bin/sh", "/bin/sh", None, "/bin/one", "/bin/one", "/bin/sh", None, "/bin/two", "/bin/two",
    ]  # fmt: skip
    assert [spaces.comm(PID, time) for time in (9, 15, 22, 45, 55)] == [
        "",
        "sh",
        "uno",
        "sh",
        "two",
    ]
    assert spaces.resolve(PID, AbsAddr(0x1800), 5).why is Reason.EXITED


def test_unknown_addresses_have_reasons() -> None:
    """And nothing raises."""
    spaces = resolver(
        Executed(PID, "x", 1),
        Mapped(PID, mapping(0x1000, 0x2000, "/nonexistent/x"), 2),
        Mapped(PID, mapping(0x3000, 0x4000, "//anon"), 2),
        Exited(PID, 3),
    )
    for address, text in [
        (0x1800, "0x1800 (file gone: x)"),
        (0x3800, "0x3800 (no note)"),
        (0x5000, "0x5000 (unmapped)"),
        (1 << 63, "0x8000000000000000 (unmapped)"),
    ]:
        assert str(spaces.resolve(PID, AbsAddr(address), 5)) == text
    assert str(spaces.resolve(PID + 5, AbsAddr(0x1000))) == "0x1000 (exited)"
    assert str(spaces.resolve(PID, AbsAddr(0xFFFFFFFFFF600405), 5)) == "time"


def test_notes_are_asked_where_no_file_answers() -> None:
    """With pid, address and time; for addresses of no mapping too."""
    asked = []

    class Notes:
        def lookup(self, pid: int, address: AbsAddr, time: int | None) -> Frame | None:
            asked.append((pid, address, time))
            return Frame("jit", "f", address=address) if address < 0x9000 else None

    spaces = resolver(
        Executed(PID, "x", 1), Mapped(PID, mapping(0x3000, 0x4000, "//anon"), 2), notes=Notes()
    )
    assert str(spaces.resolve(PID, AbsAddr(0x3800), 5)) == "f"
    assert str(spaces.resolve(PID, AbsAddr(0x8000), 6)) == "f"
    assert spaces.resolve(PID, AbsAddr(0x9000), 7).why is Reason.UNMAPPED
    assert asked == [(PID, 0x3800, 5), (PID, 0x8000, 6), (PID, 0x9000, 7)]


def fake_process(proc: Path, pid: int, maps: str, *, ticks: int = 100) -> None:
    """Just what a scan reads."""
    directory = proc / str(pid)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "maps").write_text(maps)
    (directory / "comm").write_text("prog\n")
    (directory / "stat").write_text(f"{pid} (a ) b) S {'0 ' * 18}{ticks} 0\n")


LINE = "00001000-00002000 r-xp 00000000 fe:00 123 {}\n"


def test_an_exec_that_is_told_after_proc_was_read_parts_the_times(tmp_path: Path) -> None:
    """What /proc showed belongs to the new program, and not to the time before it."""
    parent = PID + 1
    fake_process(tmp_path, PID, LINE.format("/bin/new"))
    spaces = Spaces(proc=str(tmp_path))
    spaces.apply([
        Executed(parent, "sh", 1),
        Mapped(parent, mapping(0x1000, 0x2000, "/bin/sh"), 2),
        Forked(PID, parent, 1_000_000_000),
    ])  # fmt: skip
    assert spaces.scan(PID) is None
    spaces.apply([
        Executed(PID, "new", 1_500_000_000),
        Mapped(PID, mapping(0x1000, 0x2000, "/bin/new", build_id="aa"), 1_500_000_001),
    ])  # fmt: skip
    times = 1_200_000_000, 1_600_000_000, 1 << 62
    assert modules(spaces, 0x1800, *times) == ["/bin/sh", "/bin/new", "/bin/new"]


def test_a_fork_that_is_told_after_proc_was_read_changes_nothing(tmp_path: Path) -> None:
    """/proc had shown the child."""
    fake_process(tmp_path, PID, LINE.format("/bin/child"))
    spaces = Spaces(proc=str(tmp_path))
    spaces.scan(PID)
    spaces.apply([Forked(PID, PID + 1, 1_000_000_001)])
    assert modules(spaces, 0x1800, 2_000_000_000) == ["/bin/child"]


def test_a_pid_that_was_reused_is_noticed_by_its_start_time(tmp_path: Path) -> None:
    """No record said so: the machine was watched through /proc only."""
    fake_process(tmp_path, PID, LINE.format("/bin/one"), ticks=100)
    spaces = Spaces(proc=str(tmp_path))
    spaces.scan(PID)
    fake_process(tmp_path, PID, LINE.format("/bin/two"), ticks=300)
    spaces.scan(PID)
    assert modules(spaces, 0x1800, 2_000_000_000, 4_000_000_000) == ["/bin/one", "/bin/two"]


def test_a_zombie_keeps_its_maps(tmp_path: Path) -> None:
    """Its maps file is empty, what is known of it is not."""
    fake_process(tmp_path, PID, LINE.format("/bin/one"))
    spaces = Spaces(proc=str(tmp_path))
    assert spaces.scan(PID) is None
    fake_process(tmp_path, PID, "")
    assert spaces.scan(PID) is Reason.EXITED
    assert modules(spaces, 0x1800, 1 << 62) == ["/bin/one"]


def test_processes_that_ended_are_forgotten_in_the_end() -> None:
    """Memory is bounded under exec churn."""
    spaces = Spaces(proc="/nonexistent")
    for pid in range(10_000):
        spaces.apply([Executed(pid, "x", pid), Exited(pid, pid)])
    assert spaces.comm(9_999) == "x"
    assert spaces.comm(0) == ""


def test_ring_records_become_changes() -> None:
    """Each record type, byte by byte as perf_event_open(2) draws it."""

    def record(type: int, misc: int, body: bytes) -> bytes:
        return pack("=IHH", type, misc, 8 + len(body)) + body

    end = pack("=IIQ", 7, 8, 99)
    place = pack("=IIQQQ", 7, 8, 0x1000, 0x2000, 0x3000)
    inode = pack("=IIQQ", 254, 1, 123, 0)
    build = bytes([20, 0, 0, 0]) + bytes(range(20))
    data = b"".join([
        record(10, 0, place + inode + pack("=II", 5, 2) + b"/bin/x\0\0" + end),
        record(10, 1 << 14, place + build + pack("=II", 5, 2) + b"/bin/x\0\0" + end),
        record(10, 0, place + inode + pack("=II", 1, 2) + b"/data\0\0\0" + end),
        record(3, 1 << 13, pack("=II", 7, 8) + b"exec\0\0\0\0" + end),
        record(3, 0, pack("=II", 7, 7) + b"comm\0\0\0\0" + end),
        record(3, 0, pack("=II", 7, 8) + b"thread\0\0" + end),
        record(7, 0, pack("=IIIIQ", 9, 7, 9, 7, 55) + end),
        record(7, 0, pack("=IIIIQ", 7, 7, 10, 7, 56) + end),
        record(4, 0, pack("=IIIIQ", 9, 7, 9, 9, 57) + end),
        record(4, 0, pack("=IIIIQ", 7, 7, 10, 7, 58) + end),
        record(2, 0, pack("=QQ", 1, 4) + end),
        record(1234, 0, b"12345678"),
    ])  # fmt: skip
    assert list(parse_records(data)) == [
        Mapped(7, mapping(0x1000, 0x3000, "/bin/x", offset=0x3000, device=(254, 1), inode=123), 99),
        Mapped(7, mapping(0x1000, 0x3000, "/bin/x", offset=0x3000,
                          build_id=bytes(range(20)).hex()), 99),
        Executed(7, "exec", 99),
        Renamed(7, "comm", 99),
        Forked(9, 7, 55),
        Exited(9, 57),
        Lost(4, 99),
    ]  # fmt: skip
