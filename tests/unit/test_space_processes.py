# SPDX-License-Identifier: MIT
"""Addresses of real processes: plain, deleted, in containers, replaced, and gone already.

Every program prints the address of its static function, and waits for the end of its stdin.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from binutils import compile_c, run, tool

from ustack.frame import AbsAddr, Reason
from ustack.perfring import PerfRing
from ustack.spaces import Spaces, now

Start = Callable[..., tuple[int, AbsAddr]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run a program until the test is over: its pid, and its function's address."""
    running: list[subprocess.Popen[str]] = []

    def begin(*command: str | Path) -> tuple[int, AbsAddr]:
        process = subprocess.Popen(
            [*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        return process.pid, AbsAddr(int(process.stdout.readline(), 16))

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def ring() -> Iterator[PerfRing]:
    """Records of the machine; without the right to them the test is skipped."""
    with PerfRing() as opened:
        if opened.why_not is not None:
            if os.environ.get("CI") == "true" and os.geteuid() == 0:
                pytest.fail(f"CI=true, but {opened.problem}")
            pytest.skip(f"needs perf_event_open: {opened.problem}")
        yield opened


def settle(spaces: Spaces, ring: PerfRing) -> None:
    spaces.apply(ring.poll(all=True))
    assert ring.lost == 0


@pytest.mark.parametrize(
    "options", [("-pie",), ("-no-pie",), ("-static",), ("-pie", "-Wl,-z,noseparate-code")]
)
def test_functions_of_a_running_program(
    tmp_path: Path, start: Start, options: tuple[str, ...]
) -> None:
    """Wherever it was loaded, with the offset; its libraries and imports, too."""
    program = compile_c(tmp_path / "program", *options)
    pid, address = start(program)
    spaces = Spaces()
    frame = spaces.resolve(pid, AbsAddr(address + 3))
    assert (frame.name, frame.offset, frame.module) == ("hidden_work", 3, str(program))
    assert frame.kind == "native"
    assert spaces.comm(pid) == "program"
    assert spaces.resolve(pid, AbsAddr(0x10)).why is Reason.UNMAPPED


def test_this_process_by_its_own_pointers() -> None:
    """A libc function and the vDSO's, where the C library says that they are."""
    libc = ctypes.CDLL(None)
    address = ctypes.cast(libc.getppid, ctypes.c_void_p).value
    assert address is not None
    spaces = Spaces()
    assert spaces.resolve(os.getpid(), AbsAddr(address)).name in ("getppid", "__getppid")
    libc.dlvsym.restype = ctypes.c_void_p
    vdso = next(
        line for line in Path("/proc/self/maps").read_text().splitlines() if "[vdso]" in line
    )
    begin, end = (int(part, 16) for part in vdso.split()[0].split("-"))
    names = {
        frame.name
        for at in range(begin, end, 16)
        if (frame := spaces.resolve(os.getpid(), AbsAddr(at))).name
    }
    assert any("clock_gettime" in name for name in names)


def test_a_deleted_program(tmp_path: Path, start: Start) -> None:
    """Reached through map_files."""
    program = compile_c(tmp_path / "program")
    pid, address = start(program)
    program.unlink()
    frame = Spaces().resolve(pid, address)
    assert frame.name == "hidden_work"
    assert frame.module == str(program)


def test_a_replaced_program(tmp_path: Path, start: Start) -> None:
    """While it runs, the file that runs; after it ended, not its successor's names."""
    program = compile_c(tmp_path / "program")
    pid, address = start(program)
    other = compile_c(tmp_path / "other", "-O0", "-DOTHER=1")
    other.replace(program)
    assert Spaces().resolve(pid, address).name == "hidden_work"
    spaces = Spaces()
    spaces.scan(pid)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert spaces.resolve(pid, address).why is Reason.STALE


def test_a_process_that_ended_keeps_its_maps(tmp_path: Path, start: Start) -> None:
    """Its file is still there."""
    program = compile_c(tmp_path / "program")
    pid, address = start(program)
    spaces = Spaces()
    spaces.scan(pid)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert spaces.resolve(pid, address).name == "hidden_work"
    assert Spaces().resolve(pid, address).why is Reason.EXITED


def privileged(*options: str) -> None:
    """Skip where no namespace can be made."""
    done = subprocess.run([tool("unshare"), *options, "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs unshare {' '.join(options)}: {done.stderr.strip()}")


def test_a_process_in_a_mount_namespace(tmp_path: Path, start: Start) -> None:
    """Its program is on a filesystem that nobody else sees."""
    privileged("-m")
    program = compile_c(tmp_path / "program")
    inside = tmp_path / "inside"
    inside.mkdir()
    pid, address = start(
        "unshare", "-m", "sh", "-c",
        'mount -t tmpfs none "$2" && cp "$1" "$2/app" && exec "$2/app" wait',
        "sh", program, inside,
    )  # fmt: skip
    assert not (inside / "app").exists()
    spaces = Spaces()
    frame = spaces.resolve(pid, address)
    assert frame.name == "hidden_work"
    assert frame.module is not None
    assert frame.module.endswith(f"{inside}/app")  # below the root of a chroot, where there is one


def test_a_neighbour_opens_the_file_of_a_process_that_ended(
    tmp_path: Path, start: Start, ring: PerfRing
) -> None:
    """Two processes in one container; the short-lived one is known from its records only."""
    privileged("-m")
    program = compile_c(tmp_path / "program")
    inside = tmp_path / "inside"
    inside.mkdir()
    shell, _ = start(
        "unshare", "-m", "sh", "-c",
        'mount -t tmpfs none "$2" && cp "$1" "$2/app" && cp "$1" "$2/short"; echo 0;'
        'read -r _; "$2/short"; exec sleep 60',
        "sh", program, inside,
    )  # fmt: skip
    spaces = Spaces()
    settle(spaces, ring)
    assert spaces.scan(shell) is None
    process = Path(f"/proc/{shell}/fd/0")
    with process.open("w") as stdin:
        stdin.write("\n")
    deadline = time.monotonic() + 20
    seen: list[object] = []
    while time.monotonic() < deadline and not any(type(c).__name__ == "Exited" for c in seen):
        time.sleep(0.02)
        changes = ring.poll(all=True)
        seen += changes
        spaces.apply(changes)
    mapped = [
        c for c in seen if type(c).__name__ == "Mapped" and c.mapping.path == f"{inside}/short"
    ]
    assert mapped
    change = mapped[0]
    text = int(re.search(r"([0-9a-f]+) t hidden_work", run("nm", program))[1], 16)
    address = AbsAddr(text - change.mapping.offset + change.mapping.start)
    assert spaces.resolve(change.pid, address, now()).name == "hidden_work"


def test_short_lived_processes_are_named_from_their_records(tmp_path: Path, ring: PerfRing) -> None:
    """A hundred that are gone before anybody looks, PIE at another address each."""
    program = compile_c(tmp_path / "program")
    spaces = Spaces()
    wanted = []
    for _ in range(100):
        process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True)
        output, _ = process.communicate()
        wanted.append((process.pid, AbsAddr(int(output, 16)), now()))
    settle(spaces, ring)
    assert len({address for _, address, _ in wanted}) > 50
    for pid, address, at in wanted:
        assert not os.path.exists(f"/proc/{pid}")
        frame = spaces.resolve(pid, address, at)
        assert (frame.name, frame.module) == ("hidden_work", str(program))
        assert spaces.comm(pid, at) == "program"


def test_an_exec_changes_what_an_address_means(tmp_path: Path, ring: PerfRing) -> None:
    """One pid, one address, two programs: the time decides."""
    first = compile_c(tmp_path / "first", "-no-pie", source=EXEC)
    second = compile_c(tmp_path / "second", "-no-pie", source=EXEC.replace("before", "behind"))
    spaces = Spaces()
    process = subprocess.Popen([first, second], stdout=subprocess.PIPE, text=True)
    words = process.communicate()[0].split()
    settle(spaces, ring)
    places = [(AbsAddr(int(words[i], 16)), int(words[i + 1])) for i in (0, 2)]
    assert places[0][0] == places[1][0]
    names = [spaces.resolve(process.pid, address, at).name for address, at in places]
    assert names == ["before_exec", "behind_exec"]


EXEC = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <time.h>
#include <unistd.h>
void __attribute__((noinline)) before_exec(void) { puts(""); }
int main(int argc, char **argv)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    printf("%p %lld\n", (void *)before_exec, t.tv_sec * 1000000000LL + t.tv_nsec);
    fflush(stdout);
    if (argc > 1)
        execl(argv[1], argv[1], (char *)0);
    return 0;
}
"""


def test_times_are_bpftraces(ring: PerfRing) -> None:
    """`nsecs` and the ring's clock are one: CLOCK_BOOTTIME."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for bpftrace")
    bpftrace = tool("bpftrace")
    earliest = now()
    done = subprocess.run(
        [bpftrace, "-e", 'BEGIN { printf("at %llu\\n", nsecs); exit(); }'],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    shown = re.search(r"at (\d+)", done.stdout)
    assert shown is not None, done.stderr
    assert earliest < int(shown[1]) < now()
    assert all(earliest - 10**9 < change.time < now() for change in ring.poll(all=True))


def test_records_come_in_the_order_of_time(ring: PerfRing) -> None:
    """Over CPUs and polls; the last milliseconds are kept back."""
    times: list[int] = []
    for _ in range(30):
        subprocess.run([shutil.which("true") or "/bin/true"], check=True)
        times += [change.time for change in ring.poll()]
    times += [change.time for change in ring.poll(all=True)]
    assert times == sorted(times)
    assert len(times) > 100


def test_without_privilege_there_is_a_reason(tmp_path: Path) -> None:
    """The ring says why, resolving goes on, and nothing raises."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become nobody")
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]);"
        "from ustack.perfring import PerfRing; from ustack.spaces import Spaces\n"
        "os.setgid(65534); os.setuid(65534); ring = PerfRing();"
        "print(ring.why_not.word, '|', ring.problem, '|', ring.poll());"
        "print(Spaces().resolve(1, 0x1000))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, root], capture_output=True, text=True, check=False
    )
    if "Permission denied" in done.stderr and "ustack" in done.stderr:
        pytest.skip("needs a checkout that everybody may read")
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    if not first.startswith("None"):
        assert first.startswith("unreadable | perf_event_open: permission denied: run again with")
    assert second == "0x1000 (unreadable)"
