# SPDX-License-Identifier: MIT
"""The demo as a stranger runs it: with tracers, without them, and interrupted.

Reads its output only; what the tracers print in general is tested by the other files here.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "docs" / "examples" / "shop" / "run.py"


def run_demo(tmp_path: Path, *prefix: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end, with its temporary files below `tmp_path`."""
    return subprocess.run(
        [*prefix, sys.executable, str(DEMO)],
        env=os.environ | {"TMPDIR": str(tmp_path)} | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=60,
    )


def processes_mentioning(word: str) -> list[str]:
    """The command lines of this machine's processes that contain `word`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


def test_shows_every_event_and_a_histogram_per_route(tracer: None, tmp_path: Path) -> None:
    """Named, typed arguments and one histogram per route; all that was fired was seen."""
    start = time.monotonic()
    demo = run_demo(tmp_path)
    assert demo.returncode == 0, demo.stdout
    assert time.monotonic() - start < 20
    assert re.search(r'shop:request_start id=\d+ method="POST" route="/orders"', demo.stdout)
    assert re.search(r'order_placed id=\d+ customer="Zoë" total=\d+\.75 express=', demo.stdout)
    assert re.search(r'request_done id=\d+ route="/broken" status=500 ns=\d+', demo.stdout)
    for route in ("/", "/orders", "/report", "/broken"):
        assert f"@us[{route}]:" in demo.stdout
    assert "events: 24 seen, 24 fired" in demo.stdout
    assert "requests: 300 seen, 300 fired" in demo.stdout
    assert list(tmp_path.iterdir()) == []


def test_prints_a_command_line_that_bpftrace_takes(tracer: None, tmp_path: Path) -> None:
    """The bpftrace line is shown with the stub's path, quoted for a shell."""
    demo = run_demo(tmp_path)
    line = re.search(
        r"^\$ (bpftrace -e 'usdt:(/\S+\.so):shop:request_done .*')$", demo.stdout, re.M
    )
    assert line, demo.stdout
    assert line[2].startswith(str(tmp_path))


def test_runs_without_bpftrace(tmp_path: Path) -> None:
    """Where no tracer is found, the events are captured, and usdt doctor says what is missing."""
    demo = run_demo(tmp_path, PATH=str(tmp_path))
    assert demo.returncode == 0, demo.stdout
    assert "bpftrace is not installed (apt-get install bpftrace)" in demo.stdout
    # Whose order is done first, and so shown, is chance.
    assert re.search(r"shop:order_placed\(u64 id=\d+, str customer='\w+', f64 total=", demo.stdout)
    assert "events: 720 seen, 720 fired" in demo.stdout
    doctor = demo.stdout.partition("$ usdt doctor\n")[2]
    assert re.search(r"^no .*bpftrace", doctor, re.M), demo.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it as somebody else")
def test_runs_as_nobody(tracer: None, tmp_path: Path) -> None:
    """A user without root, sudo or a home sees the captured events."""
    # The checkout and its Python may lie in root's home: let nobody read that, and no more.
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    reader = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    demo = run_demo(tmp_path, *nobody, *reader, HOME="/nonexistent")
    assert demo.returncode == 0, demo.stdout
    assert "tracers need root" in demo.stdout
    assert "events: 720 seen, 720 fired" in demo.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_leaves_nothing_when_interrupted(
    tracer: None, tmp_path: Path, number: signal.Signals
) -> None:
    """Stopped while a tracer is attached, it takes service, tracer and stubs with it."""
    demo = subprocess.Popen(
        [sys.executable, str(DEMO)],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("$ bpftrace"):
                break
        demo.send_signal(number)
        rest = demo.stdout.read()
        assert demo.wait(30) == 128 + number, rest
    finally:
        demo.kill()
        demo.wait()
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
    assert processes_mentioning(str(tmp_path)) == []
