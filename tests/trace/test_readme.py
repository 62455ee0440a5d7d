# SPDX-License-Identifier: MIT
"""The first screen is true: its program is started and its console blocks are typed beside it.

Numbers and path hashes may differ; every other character of the output may not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text()
STUB = re.compile(r"/\S*/shop-[0-9a-f]{16}\.so")
ENDLESS = "usdt trace"  # ended by Ctrl-C, as a reader would


def console() -> list[tuple[str, list[str]]]:
    """The commands of the console blocks, and the lines printed under each."""
    commands: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.S | re.M):
        for line in block.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:].removeprefix("sudo "), []))
            else:
                commands[-1][1].append(line)
    return commands


def shape(line: str) -> str:
    """A line with what changes from run to run made equal."""
    line = re.sub(r"nop\d", "nopN", STUB.sub("STUB", line))
    # Stubs of other providers with this name may lie in this machine's directories.
    line = re.sub("^tracing .*;", "tracing ...;", line)
    return re.sub(r"\d+", "0", line)


def typed(command: str, environment: dict[str, str], expected: int) -> list[str]:
    """What a reader sees, stdout and stderr together; an endless command gets two events."""
    process = subprocess.Popen(
        ["sh", "-c", f"exec {command}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        if command.startswith(ENDLESS):
            lines = [process.stdout.readline() for _ in range(expected)]
            process.terminate()
            # Every `shop` of this machine is traced, and the kernel detaches a probe at a time.
            process.communicate(timeout=120)
        else:
            lines = process.communicate(timeout=60)[0].splitlines()
    finally:
        process.kill()
    noise = re.compile(r"RLIMIT_MEMLOCK|uprobe_events|failed to detach|^\s*$")
    return [line.rstrip("\n") for line in lines if not noise.search(line)]


def test_first_screen_is_true(tracer: None, tmp_path: Path) -> None:
    """Each command of the README prints what the README says, beside the README's program."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    program = tmp_path / "service.py"
    program.write_text(block)
    bin_ = Path(sys.executable).parent
    environment = os.environ | {
        "USDT_STUB_DIR": str(tmp_path / "stubs"),
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    with subprocess.Popen([bin_ / "python", program], env=environment) as service:
        try:
            deadline = time.monotonic() + 20
            while not (stubs := list(tmp_path.glob("stubs/shop-*.so"))):
                assert time.monotonic() < deadline
                assert service.poll() is None
                time.sleep(0.02)
            for command, expected in console():
                real = STUB.sub(str(stubs[0]), command)
                printed = typed(real, environment, len(expected))
                if command == "usdt list":  # other programs of this machine may have stubs too
                    start = printed.index(f"{service.pid} python")
                    printed = printed[start : start + len(expected)]
                # An attach falls anywhere between two events: which comes first is chance.
                assert sorted(map(shape, printed)) == sorted(map(shape, expected))
        finally:
            service.kill()


def test_first_screen_has_commands() -> None:
    """The console blocks are found, so the test above is not empty."""
    assert len(console()) >= 4
