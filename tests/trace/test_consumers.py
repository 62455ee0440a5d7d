# SPDX-License-Identifier: MIT
"""Tracers other than bpftrace find and read the probes of a running program: perf, gdb, bcc.

Each is the distribution's own, used as its manual says; what they print is compared with what
was fired.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import StartService, wait_until

SERVICE = """\
import time, usdt
shop = usdt.Provider("{provider}")
order = shop.add_probe("order_start", id=usdt.u64, status=usdt.i32, customer=str)
shop.load(); started(); wait()
while not order: time.sleep(0.01)
for i in range(37): order(2**33 + 7 + i, -3 - i, "ada")
done(); wait()
"""

FIRED = [(2**33 + 7 + i, -3 - i) for i in range(37)]


@pytest.fixture
def tool(tracer: None) -> Callable[[str, str], str]:
    """tool(name, package) -> its path; where it is missing the test is skipped, or fails in CI."""

    def find(name: str, package: str) -> str:
        # Debian puts some of them where only root looks.
        path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if path is None and os.environ.get("CI") == "true":
            pytest.fail(f"CI=true, but no {name} (apt-get install {package})")
        if path is None:
            pytest.skip(f"no {name} (apt-get install {package})")
        return path

    return find


@pytest.fixture
def provider() -> str:
    """A name of this test alone: perf's events are the whole machine's."""
    return f"usdt_test_{os.getpid()}"


def run(*argv: str) -> str:
    """What a command prints, both streams; AssertionError with it if the command fails."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=60,
    )
    assert done.returncode == 0, f"{argv}:\n{done.stdout}"
    return done.stdout


def test_perf_records_events(
    service: StartService, tool: Callable[[str, str], str], provider: str, tmp_path: Path
) -> None:
    """perf buildid-cache, probe and record: each event once, with its values; then no listener."""
    perf = [tool("perf", "linux-perf"), "--buildid-dir", str(tmp_path / "cache")]
    if not Path("/sys/kernel/tracing/uprobe_events").exists():
        inside = 'mount -t tracefs nodev /sys/kernel/tracing && exec "$@"'
        perf = [tool("unshare", "util-linux"), "--mount", "sh", "-c", inside, "sh", *perf]
    svc = service(SERVICE.format(provider=provider))
    (path,) = svc.semaphores()
    event = f"sdt_{provider}:order_start"
    data = str(tmp_path / "perf.data")
    run(*perf, "buildid-cache", "--add", path)
    assert event in run(*perf, "list", "sdt")
    run(*perf, "probe", event)
    recording = None
    try:
        command = [*perf, "record", "-a", "-N", "-B", "-o", data, "-e", event]
        # The workload starts when the event counts, and ends with its input.
        recording = subprocess.Popen(
            [*command, "--", "sh", "-c", "echo RECORDING; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert recording.stdout
        assert recording.stdout.readline() == b"RECORDING\n"
        assert svc.semaphores() == {path: [1]}
        svc.go()
        svc.done()
        recording.communicate(timeout=30)
        text = run(*perf, "script", "-i", data)
    finally:
        if recording is not None:
            recording.kill()
            recording.wait()
        run(*perf, "probe", "-d", f"sdt_{provider}:*")
    values = re.findall(rf"{event}: .* arg1=(\d+) arg2=(-\d+) arg3=\d+$", text, re.M)
    assert [(int(first), int(second)) for first, second in values] == FIRED
    wait_until(lambda: svc.listening() == 0, "the semaphore to fall")


GDB = """\
set pagination off
set debuginfod enabled off
info probes stap ^{provider}$
break -probe-stap {provider}:order_start
continue
printf "FIRST %d: %lu %d %s\\n", $_probe_argc, $_probe_arg0, $_probe_arg1, (char *)$_probe_arg2
backtrace 2
continue 36
printf "LAST %d: %lu %d %s\\n", $_probe_argc, $_probe_arg0, $_probe_arg1, (char *)$_probe_arg2
info registers rip
detach
"""


def test_gdb_breaks_at_a_probe(
    service: StartService, tool: Callable[[str, str], str], provider: str, tmp_path: Path
) -> None:
    """gdb lists the probe of a live process, enables it, stops at it and reads its arguments."""
    gdb = tool("gdb", "gdb")
    svc = service(SERVICE.format(provider=provider))
    (path,) = svc.semaphores()
    svc.go()
    commands = tmp_path / "commands"
    commands.write_text(GDB.format(provider=provider))
    text = run(gdb, "-q", "-nx", "-batch", "-p", str(svc.pid), "-x", str(commands))
    listed = rf"^stap +{provider} +order_start +0x[0-9a-f]+ +0x[0-9a-f]+ +{re.escape(path)} *$"
    assert re.search(listed, text, re.M), text
    assert f"FIRST 3: {2**33 + 7} -3 ada\n" in text
    assert f"LAST 3: {2**33 + 7 + 36} {-3 - 36} ada\n" in text
    frames = re.findall(r"^#\d .*", text, re.M)
    assert f" in {provider}.order_start " in frames[0]
    assert "_probe.c" in frames[1], "unwound into the extension, by its source or file name"
    svc.done()
    assert svc.semaphores() == {path: [0]}, "gdb takes back what it added"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="register names of x86-64")
def test_tplist_lists_a_process(
    service: StartService, tool: Callable[[str, str], str], provider: str
) -> None:
    """bcc's tplist shows probe, semaphore and every argument, by process and by file."""
    tplist = tool("tplist-bpfcc", "bpfcc-tools")
    svc = service(SERVICE.format(provider=provider))
    (path,) = svc.semaphores()
    assert f"{path} {provider}:order_start" in run(tplist, "-p", str(svc.pid))
    details = run(tplist, "-vv", "-l", path)
    assert re.search(rf"^{provider}:order_start \[sema 0x[0-9a-f]+\]$", details, re.M), details
    assert re.findall(r"argument #(\d) (\d) (\w+) +bytes @ (\w+)", details) == [
        ("1", "8", "unsigned", "di"),
        ("2", "4", "signed", "si"),
        ("3", "8", "unsigned", "dx"),
    ]
