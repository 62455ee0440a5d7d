# SPDX-License-Identifier: MIT
"""`ustack` as it is typed: what it prints, and how it ends on bad input."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"


def run(*argv: str, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ustack", *argv],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_notes_of_a_file() -> None:
    """Functions, files and lines of a real map; the golden word is one of its functions."""
    status, out, err = run("notes", str(DATA / "py312-X-perf.map"))
    assert (status, err) == (0, "")
    assert "<module>" in out
    assert all(line.startswith("0x") for line in out.splitlines())


def test_notes_as_json() -> None:
    """One versioned document, whose rows do not overlap."""
    status, out, _ = run("notes", str(DATA / "java17-perfmap.map"), "--json")
    document = json.loads(out)
    assert (status, document["version"], document["problems"]) == (0, 1, [])
    rows = sorted((row["start"], row["start"] + row["size"]) for row in document["notes"])
    assert len(rows) > 100
    assert all(end <= start for (_, end), (start, _) in pairwise(rows))


def test_notes_of_a_process_and_its_stack_named(tmp_path: Path) -> None:
    """A process that notes its own code: `notes` shows it, `resolve` names an address in it."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    keep = ctypes.c_char.from_buffer(page)
    start = ctypes.addressof(keep)
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    path.write_text(f"{start:x} 40 py::handler:/srv/app.py\n")
    try:
        status, out, err = run("notes", str(os.getpid()))
        assert (status, err) == (0, "")
        assert out == f"{start:#014x}     64  handler  /srv/app.py\n"
        stack = f"@[{os.getpid()}, \n        {start + 7:x}\n        1000000\n]: 3\n"
        status, out, err = run("resolve", stdin=stack)
        lines = out.splitlines()
        assert lines[1:] == [
            "        handler+7 (/srv/app.py)", "        0x1000000 (unmapped)", "]: 3"
        ]  # fmt: skip
        assert err.startswith("ustack: unmapped: ")
    finally:
        path.unlink()
        del keep
        page.close()


def test_a_c_function_is_named() -> None:
    """An address in libc by its symbol, at the offset it was taken."""
    address = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    assert address is not None
    _, out, _ = run("resolve", "-p", str(os.getpid()), stdin=f"  {address + 3:x}\n")
    assert out.startswith(("  getpid+3 (", "  __getpid+3 ("))


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["notes", "4194305"], 1),
        (["notes", "/etc/hostname/x"], 1),
        (["notes", "/nonexistent"], 1),
        (["notes", "/"], 1),
        (["resolve", "-p", "4194305"], 1),
        (["resolve", "-p", "me"], 2),
        (["frob"], 2),
        ([], 2),
    ],
)
def test_bad_input_is_one_line(argv: list[str], status: int) -> None:
    """What is wrong and what to type next, no traceback, the documented exit code."""
    got, out, err = run(*argv)
    assert (got, out) == (status, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("ustack")


def test_a_reader_that_leaves_is_no_error() -> None:
    """`ustack notes FILE | head -1` ends quietly."""
    command = f"{sys.executable} -m ustack notes {DATA / 'java17-perfmap.map'} | head -1"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")
