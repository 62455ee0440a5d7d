# SPDX-License-Identifier: MIT
"""The `usdt` command against real services and the real bpftrace.

Runs the command as a user does, as a process of its own; what it prints is compared with what
the service fired.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import (
    PATIENCE,
    StartService,
    _Child,
    environment,
    need_mount_namespaces,
    wait_until,
)

StartCommand = Callable[..., _Child]

DECLARE = """
import usdt
from usdt import *
shop = usdt.Provider({provider!r})
@shop.probe
def all_ints(a: i8, b: i16, c: i32, d: i64, e: u8, f: u16, g: u32, h: u64): ...
@shop.probe
def floats(x: f32, y: f64, ok: bool, no: bool, p: ptr): ...
@shop.probe
def strings(id: u64, one: str, two: str, blob: bytes): ...
@shop.probe
def twelve(
    a: str, b: i64, c: str, d: i64, e: str, f: i64, g: str, h: i8, i: str, j: f64, k: bytes
): ...
@shop.probe
def none(): ...
@shop.probe
def tick(id: u64): ...
shop.load()
"""

HOSTILE = [
    "",
    "ada",
    "é☃𝄞",
    "new\nline",
    '"}\n{"type": "printf", "data": "E 0 1 1 1 1 0 forged"}',
    "\x1b[31mred\x1b[0m \x07 \u202e",
    "\udcff\udcfe",
    "back\\slash \\x41 %s %d",
    "x" * 199,
    "y" * 200,
]


# The command as another user. The checkout and its Python may lie in root's home: imports first.
AS_USER = """\
import os, sys, usdt.cli, usdt.doctor, usdt.find, usdt.trace
os.setgroups([])
os.setresgid({user}, {user}, {user})
os.setresuid({user}, {user}, {user})
sys.exit(usdt.cli.main())
"""


def declare(provider: str) -> str:
    return DECLARE.format(provider=provider)


@pytest.fixture
def provider(request: pytest.FixtureRequest) -> str:
    """A provider name that nobody else on this machine has."""
    return f"cli{os.getpid()}_{abs(hash(request.node.name)) % 10**6}"


@pytest.fixture
def usdt(stubs: Path) -> Iterator[StartCommand]:
    """usdt(*arguments) -> the running command; it is killed when the test ends."""
    with ExitStack() as stack:

        def start(
            *arguments: str, env: dict[str, str] | None = None, user: int | None = None
        ) -> _Child:
            full = environment() | {"USDT_STUB_DIR": str(stubs)} | (env or {})
            how = ["-m", "usdt.cli"] if user is None else ["-c", AS_USER.format(user=user)]
            child = _Child([sys.executable, *how, *arguments], env=full)
            stack.callback(child.kill)
            return child

        yield start


def tracing(command: _Child) -> _Child:
    """Return once it traces, so that nothing fired from now on is missed."""
    wait_until(
        lambda: "tracing" in command.errors or '"start"' in command.text or not command.running(),
        "usdt trace to attach",
    )
    assert command.running(), command.errors
    return command


def ended(command: _Child) -> list[dict[str, Any]]:
    """End it as Ctrl-C does; the JSON lines it has printed."""
    if command.running():
        command.process.send_signal(2)
    assert command.wait() == 0, command.errors
    return [json.loads(line) for line in command.text.splitlines()]


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def events(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in records if one["type"] == "event"]


@pytest.mark.usefixtures("tracer")
def test_every_type_comes_through_exactly(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """Extremes, float bits, truth values and all twelve operands are what was fired."""
    svc = service(
        declare(provider)
        + """
started(); wait()
all_ints(-128, -2**15, -2**31, -2**63, 255, 2**16-1, 2**32-1, 2**64-1)
all_ints(127, 2**15-1, 2**31-1, 2**63-1, 0, 1, 2**33 % 2**32, 2**33 + 7)
floats(0.1, -1e300, True, False, 0xdeadbeef)
floats(float("inf"), float("nan"), False, True, 2**64 - 1)
twelve("A", -1, "B", -2, "C", -3, "D", -4, "E", 2.5, b"\\0\\xffk")
none()
done(); wait()
"""
    )
    trace = tracing(usdt("trace", f"{provider}:*", "--json"))
    svc.go()
    svc.done()
    wait_until(lambda: "none" in trace.text.rpartition("twelve")[2], "the last event")
    records = ended(trace)
    seen = [(one["probe"].partition(":")[2], one["args"]) for one in events(records)]
    assert seen == [
        (
            "all_ints",
            {
                "a": -128,
                "b": -(2**15),
                "c": -(2**31),
                "d": -(2**63),
                "e": 255,
                "f": 2**16 - 1,
                "g": 2**32 - 1,
                "h": 2**64 - 1,
            },
        ),
        (
            "all_ints",
            {
                "a": 127,
                "b": 2**15 - 1,
                "c": 2**31 - 1,
                "d": 2**63 - 1,
                "e": 0,
                "f": 1,
                "g": 0,
                "h": 2**33 + 7,
            },
        ),
        ("floats", {"x": 0.1, "y": -1e300, "ok": True, "no": False, "p": 0xDEADBEEF}),
        ("floats", {"x": "inf", "y": "nan", "ok": False, "no": True, "p": 2**64 - 1}),
        (
            "twelve",
            {
                "a": "A",
                "b": -1,
                "c": "B",
                "d": -2,
                "e": "C",
                "f": -3,
                "g": "D",
                "h": -4,
                "i": "E",
                "j": 2.5,
                "k": {"hex": "00ff6b", "length": 3},
            },
        ),
        ("none", {}),
    ]
    assert {one["pid"] for one in events(records)} == {svc.pid}
    assert records[-1] == {"version": 1, "type": "end", "events": 6, "lost": 0}


@pytest.mark.usefixtures("tracer")
def test_hostile_strings_stay_strings(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """Escapes, newlines, forged records, bytes that are not UTF-8: each is one safe line."""
    source = f"""
for i, text in enumerate({HOSTILE!r}):
    data = text.encode("utf-8", "surrogateescape")
    strings(i, text.encode("utf-8", "replace").decode(), text[::-1].encode("utf-8",
            "replace").decode(), data)
"""
    svc = service(declare(provider) + "started(); wait()" + source + "done(); wait()")
    as_json = tracing(usdt("trace", f"{provider}:strings", "--json"))
    as_text = tracing(usdt("trace", f"{provider}:strings", env={"LC_ALL": "C.UTF-8"}))
    svc.go()
    svc.done()
    for command in (as_json, as_text):
        wait_until(lambda c=command: c.text.count("strings") >= len(HOSTILE), "the last event")  # type: ignore[misc]
    seen = events(ended(as_json))
    as_text.process.terminate()
    assert as_text.wait() == 0
    assert len(seen) == len(HOSTILE)
    for one, text in zip(seen, HOSTILE, strict=True):
        fired = text.encode("utf-8", "replace").decode()
        data = text.encode("utf-8", "surrogateescape")
        assert one["args"]["one"] == fired[:199]
        assert one["args"]["two"] == fired[::-1][:199]
        assert one["args"]["blob"] == {"hex": data[:200].hex(), "length": len(data)}
        assert one["truncated"] == (["one", "two"] if len(data) > 199 else [])
    lines = as_text.text.splitlines()
    assert len(lines) == len(HOSTILE)
    assert all(line.isprintable() for line in lines)
    assert 'one="new\\nline"' in lines[3]
    assert '\\x1b[31mred\\x1b[0m \\x07 \\u202e"' in lines[5]
    assert '"…' not in lines[8]
    assert lines[9].count('y"…') == 2


@pytest.mark.usefixtures("tracer")
def test_one_process_or_all_and_those_to_come(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """By path every process is traced, also one that starts later; -p keeps to one."""
    fire = "started(); wait()\nfor i in range(7): tick(i)\ndone(); wait()"
    first, second = (service(declare(provider) + fire) for _ in range(2))
    everything = tracing(usdt("trace", f"{provider}:tick", "--json"))
    only = tracing(usdt("trace", f"{provider}:t*", "-p", str(second.pid), "--json"))
    later = service(declare(provider) + fire)
    for svc in (first, second, later):
        svc.go()
        svc.done()
    wait_until(lambda: everything.text.count('"event"') >= 21, "the events of all")
    wait_until(lambda: only.text.count('"event"') >= 7, "the events of one")
    seen = [(one["pid"], one["args"]["id"]) for one in events(ended(everything))]
    assert sorted(seen) == sorted((svc.pid, i) for svc in (first, second, later) for i in range(7))
    assert [one["pid"] for one in events(ended(only))] == [second.pid] * 7
    assert first.listening() == 0


@pytest.mark.usefixtures("tracer")
def test_it_ends_with_the_process_it_traces(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """With -p the last event of the process is printed, and then the command ends."""
    svc = service(declare(provider) + "started(); wait()\nfor i in range(5003): tick(i)\ndone()")
    trace = tracing(usdt("trace", f"{provider}:*", "-p", str(svc.pid), "--json"))
    svc.go()
    assert trace.wait() == 0
    records = [json.loads(line) for line in trace.text.splitlines()]
    assert [one["args"]["id"] for one in events(records)] == list(range(5003))
    assert records[-1]["lost"] == 0


@pytest.mark.usefixtures("tracer")
def test_counts_and_histograms_are_the_truth(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """--count is exact at full speed, per process; --hist has every value in its bucket."""
    fire = """
started(); wait()
for i in range(20011): tick(i)
for i in range(17): strings(i, "a,b" if i % 3 else "\\x1b\\xe9", "", b"")
done(); wait()
"""
    services = [service(declare(provider) + fire) for _ in range(2)]
    count = tracing(usdt("trace", f"{provider}:tick", "--count", "--json"))
    hist = tracing(usdt("trace", f"{provider}:tick", "--hist", "id", "--json"))
    values = tracing(usdt("trace", f"{provider}:str*", "--hist", "one", "--json"))
    for svc in services:
        svc.go()
    for svc in services:
        svc.done()
    rows = ended(count)
    assert {(row["pid"], row["count"]) for row in rows if row["type"] == "count"} == {
        (svc.pid, 20011) for svc in services
    }
    assert rows[-1]["events"] == 2 * 20011
    (row,) = (row for row in ended(hist) if row["type"] == "hist")
    assert sum(bucket["count"] for bucket in row["buckets"]) == 2 * 20011
    assert {"min": 4096, "max": 8191, "count": 2 * 4096} in row["buckets"]
    (row,) = (row for row in ended(values) if row["type"] == "values")
    assert row["values"] == [{"value": "a,b", "count": 22}, {"value": "\x1bé", "count": 12}]


@pytest.mark.usefixtures("tracer")
def test_lost_events_are_counted(service: StartService, usdt: StartCommand, provider: str) -> None:
    """What a stopped reader cannot take is lost, and shown plus lost is what was fired."""
    total = 400_000
    svc = service(
        declare(provider) + f"started(); wait()\nfor i in range({total}): tick(i)\ndone(); wait()"
    )
    trace = tracing(usdt("trace", f"{provider}:tick", "--json"))
    (tracer,) = children(trace.pid)
    os.kill(tracer, 19)  # SIGSTOP: the kernel's buffers fill up
    svc.go()
    svc.done()
    os.kill(tracer, 18)
    wait_until(lambda: len(events_so_far(trace)) > 1000, "events")
    records = ended(trace)
    end = records[-1]
    assert end["lost"] > 0, (end, trace.errors)
    assert len(events(records)) + end["lost"] == end["events"] == total


def events_so_far(command: _Child) -> list[str]:
    return [line for line in command.text.splitlines() if '"event"' in line]


@pytest.mark.usefixtures("tracer")
@pytest.mark.parametrize("signal", [2, 15, 9])
def test_nothing_is_left_behind(
    service: StartService, usdt: StartCommand, provider: str, signal: int
) -> None:
    """Whatever ends the command, bpftrace ends too and nobody listens any more."""
    svc = service(declare(provider) + "started(); wait()")
    trace = tracing(usdt("trace", f"{provider}:*"))
    (tracer,) = children(trace.pid)
    assert svc.listening() == 6
    os.kill(trace.pid, signal)
    assert trace.wait() == (-9 if signal == 9 else 0), trace.errors
    wait_until(lambda: not Path(f"/proc/{tracer}").exists(), "bpftrace to end")
    wait_until(lambda: svc.listening() == 0, "the semaphores to fall")


@pytest.mark.usefixtures("tracer")
def test_a_reader_that_leaves_ends_it(service: StartService, stubs: Path, provider: str) -> None:
    """A closed pipe is noticed at once, without an event, and is no error."""
    svc = service(declare(provider) + "started(); wait()")
    reader = subprocess.Popen(
        ["sh", "-c", f"{sys.executable} -m usdt.cli trace '{provider}:*'; echo $? >&2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment() | {"USDT_STUB_DIR": str(stubs)},
    )
    try:
        assert reader.stdout is not None
        assert reader.stderr is not None
        assert b"tracing" in reader.stderr.readline()
        reader.stdout.close()
        assert reader.stderr.readline() == b"0\n"
    finally:
        reader.kill()
        reader.wait()
        reader.stderr.close()  # type: ignore[union-attr]
    assert svc.running()


@pytest.mark.usefixtures("tracer")
def test_a_stub_that_nobody_maps_yet_is_traced(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """The command may be started before the service; list shows it once it is there."""
    service(declare(provider) + "started()").wait()
    trace = tracing(usdt("trace", f"{provider}:none", "--json", "-d", "20"))
    svc = service(declare(provider) + "started(); wait(); none(); done(); wait()")
    svc.go()
    svc.done()
    wait_until(lambda: events_so_far(trace), "the event")
    listed = usdt("list", "--json")
    assert listed.wait() == 0
    (process,) = (one for one in json.loads(listed.text)["processes"] if one["pid"] == svc.pid)
    probes = {one["name"]: one["listening"] for one in process["files"][0]["probes"]}
    assert [name for name, listening in probes.items() if listening] == ["none"]
    assert [one["pid"] for one in events(ended(trace))] == [svc.pid]


def test_list_shows_named_typed_arguments(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """Every process with stubs, its probes with their signatures, and who is listened to."""
    svc = service(declare(provider) + "started(); wait()")
    listed = usdt("list")
    assert listed.wait() == 0
    assert f"\n{svc.pid} " in "\n" + listed.text
    assert (
        f"    -          {provider}:strings(u64 id, str one, str two, bytes blob)\n" in listed.text
    )
    one = usdt("list", "-p", str(svc.pid))
    assert one.wait() == 0
    assert next(iter(svc.semaphores())) in one.text


def test_clean_removes_what_nobody_maps(
    service: StartService, usdt: StartCommand, stubs: Path, provider: str
) -> None:
    """A mapped stub stays, an orphan and an old temporary file go, a new one stays."""
    if os.geteuid() != 0:
        pytest.skip("not root, and a stub that hidden processes may have mapped is kept")
    service(declare(provider) + "started()").wait()
    (orphan,) = stubs.iterdir()
    svc = service(declare(provider + "2") + "started(); wait()")
    used = Path(next(iter(svc.semaphores())))
    old, new = (stubs / f".{orphan.name}.{'0' * 11}{digit}" for digit in "12")
    other = stubs / "other.so"
    for path in (old, new, other):
        path.touch()
    os.utime(old, (1, 1))
    dry = usdt("clean", "--dry-run")
    assert dry.wait() == 0
    assert f"would remove {orphan}: not in use\n" in dry.text
    assert orphan.exists()
    # Only this test's directory: other tests of this machine keep theirs in /run/usdt.
    code = f"from usdt import clean, find; find.places = lambda: [{str(stubs)!r}]; clean.clean()"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=PATIENCE)
    assert set(stubs.iterdir()) == {used, new, other}


@pytest.mark.parametrize("command", ["list", "clean"])
def test_without_proc_nothing_is_concluded(command: str) -> None:
    """Where no process can be seen, no stub is taken for unused: exit code 3."""
    if os.geteuid() != 0:
        pytest.skip("not root, so /proc cannot be hidden")
    need_mount_namespaces()
    hide = 'mount -t tmpfs none /proc && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", hide, "sh", sys.executable, "-m", "usdt.cli", command]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == (f"usdt {command}: /proc shows no processes: mount -t proc proc /proc\n")


def fails(command: _Child, code: int, *words: str) -> None:
    """It ends with `code` and one line on stderr that has `words`."""
    assert command.wait() == code, command.errors
    assert command.text == ""
    assert len(command.errors.splitlines()) == 1, command.errors
    for word in words:
        assert word in command.errors


@pytest.mark.usefixtures("tracer")
def test_a_stub_in_an_awkward_place_or_removed_is_traced(
    service: StartService, usdt: StartCommand, stubs: Path, provider: str
) -> None:
    """A directory that bpftrace's grammar does not take, and a file that has no name any more."""
    awkward = stubs / "a b:c,d{"
    awkward.mkdir()
    svc = service(
        declare(provider) + "started()\nwhile wait(): none(); done()\n",
        env={"USDT_STUB_DIR": str(awkward)},
    )
    for remove in (False, True):
        if remove:
            next(awkward.iterdir()).unlink()
        trace = tracing(usdt("trace", f"{provider}:none", "--json"))
        svc.go()
        wait_until(lambda t=trace: events_so_far(t), "the event")  # type: ignore[misc]
        assert [one["pid"] for one in events(ended(trace))] == [svc.pid]


@pytest.mark.usefixtures("tracer")
def test_a_long_end_is_announced(service: StartService, usdt: StartCommand, provider: str) -> None:
    """Many probes take seconds to detach, which only the kernel could hurry: it says so."""
    svc = service(
        f"import usdt\nshop = usdt.Provider({provider!r})\n"
        "for i in range(30): shop.add_probe(f'p{i}')\n"
        "shop.load(); started(); wait()"
    )
    trace = tracing(usdt("trace", f"{provider}:*", "-p", str(svc.pid)))
    trace.process.send_signal(2)
    note = "usdt trace: detaching 30 probes, one at a time\n"
    wait_until(lambda: note in trace.errors, "the note")
    assert trace.wait() == 0


@pytest.mark.usefixtures("tracer")
def test_a_foreign_probe_has_numbered_arguments(service: StartService, usdt: StartCommand) -> None:
    """With -p the ordinary USDT probes of a library are listed and traced as well."""
    svc = service(
        "import ctypes\n"
        "library = ctypes.CDLL('libstdc++.so.6')\n"
        "started(); wait()\nlibrary._ZSt17__throw_bad_allocv()\n"
    )
    listed = usdt("list", "-p", str(svc.pid))
    assert listed.wait() == 0
    if "libstdcxx:throw" not in listed.text:
        pytest.skip("this libstdc++ is built without USDT probes")
    trace = tracing(usdt("trace", "libstdcxx:throw", "-p", str(svc.pid), "--json"))
    svc.go()
    assert trace.wait() == 0
    (event,) = events(ended(trace))
    assert list(event["args"]) == ["arg0", "arg1"]
    # The exception's address; the heap of a python that is no PIE lies below 4 GiB.
    assert event["args"]["arg0"] > 1 << 16


@pytest.mark.usefixtures("tracer")
def test_what_cannot_be_traced_says_what_to_do(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """No match, a process that is gone, no such argument, no histogram: one line each."""
    svc = service(declare(provider) + "started(); wait()")
    gone = subprocess.Popen(["true"])
    gone.wait()
    fails(usdt("trace", f"{provider}:nothing"), 1, "usdt list")
    fails(usdt("trace", f"{provider}x:*", "-p", str(svc.pid)), 1, f"usdt list -p {svc.pid}")
    fails(usdt("trace", f"{provider}:*", "-p", str(gone.pid)), 1, "gone")
    fails(usdt("list", "-p", str(gone.pid)), 1, "gone")
    fails(usdt("trace", "nocolon"), 2, "usdt list")
    fails(usdt("trace", f"{provider}:*", "--hist", "zz"), 2, "blob", "ok")
    fails(usdt("trace", f"{provider}:*", "--hist", "x"), 2, "f32", "integer")
    fails(usdt("trace", f"{provider}:*", "--hist", "blob"), 2, "bytes")


@pytest.mark.usefixtures("tracer")
def test_a_missing_or_old_bpftrace_says_how_to_get_one(
    service: StartService, usdt: StartCommand, provider: str, tmp_path: Path
) -> None:
    """Exit code 3 with the command that installs it; doctor says the same."""
    service(declare(provider) + "started(); wait()")
    empty = {"PATH": str(tmp_path)}
    fails(usdt("trace", f"{provider}:*", env=empty), 3, "apt-get install bpftrace")
    old = tmp_path / "bpftrace"
    old.write_text("#!/bin/sh\necho bpftrace v0.9.4\n")
    old.chmod(0o755)
    with_old = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    fails(usdt("trace", f"{provider}:*", env=with_old), 3, "0.9.4", "0.17")
    doctor = usdt("doctor", env=with_old)
    assert doctor.wait() == 3
    assert "no   bpftrace: 0.9.4" in doctor.text


def test_another_user_is_told_to_use_sudo(
    service: StartService, usdt: StartCommand, provider: str
) -> None:
    """Not root: exit code 3 for what needs it, and a list of what may be seen."""
    if os.geteuid() != 0:
        pytest.skip("not root, so no other user can be played")
    svc = service(declare(provider) + "started(); wait()")
    nobody = 65534
    fails(usdt("trace", f"{provider}:*", user=nobody), 3, "sudo")
    fails(usdt("list", "-p", str(svc.pid), user=nobody), 3, "sudo")
    listed = usdt("list", user=nobody)
    assert listed.wait() == 0
    assert provider not in listed.text
    assert "sudo" in listed.errors
    doctor = usdt("doctor", user=nobody)
    assert doctor.wait() == 3
    assert "no   root: uid 65534 -> sudo usdt doctor" in doctor.text


@pytest.mark.usefixtures("tracer")
def test_doctor_finds_all_where_tracing_works(usdt: StartCommand) -> None:
    """On a machine that runs these tests nothing required is missing."""
    doctor = usdt("doctor", "--json")
    assert doctor.wait() == 0, doctor.text
    document = json.loads(doctor.text)
    assert document["version"] == 1
    names = [check["name"] for check in document["checks"]]
    assert len(names) == len(set(names))
    assert {"kernel", "uprobes", "capabilities", "bpftrace", "nop", "python"} <= set(names)


def test_doctor_needs_no_pyelftools(usdt: StartCommand, tmp_path: Path) -> None:
    """It says that pyelftools is missing; list and trace say it too, with the command."""
    (tmp_path / "elftools.py").write_text("raise ModuleNotFoundError(name='elftools')\n")
    without = {"PYTHONPATH": f"{tmp_path}:{environment()['PYTHONPATH']}"}
    assert "Traceback" not in usdt("doctor", env=without).errors
    fails(usdt("list", env=without), 3, "pip install 'usdt-toolkit[tools]'")


@pytest.mark.parametrize("arguments", [["list", "--json"], ["doctor"], ["clean", "--dry-run"]])
def test_a_full_output_is_one_line(arguments: list[str]) -> None:
    """What cannot be written to stdout is status 1 and one line, and a closed stdout none."""
    argv = [sys.executable, "-m", "usdt.cli", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            argv, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(  # after what `list` says to who is not root
        f"usdt {arguments[0]}: cannot write to stdout: No space left on device: "
        "see what is full: df -h\n"
    )
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *argv],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert "Traceback" not in closed.stderr
    assert closed.returncode in (0, 3)  # doctor may find something missing


@pytest.mark.usefixtures("tracer")
def test_a_trace_into_a_full_output_ends(service: StartService, stubs: Path, provider: str) -> None:
    """One line and status 1, as soon as there is something to print."""
    service(declare(provider) + "started(); wait()")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "usdt.cli", "trace", f"{provider}:tick", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | {"USDT_STUB_DIR": str(stubs)},
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "usdt trace: cannot write to stdout: No space left on device: see what is full: df -h\n"
    )
