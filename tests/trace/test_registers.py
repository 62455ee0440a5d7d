# SPDX-License-Identifier: MIT
"""A tracer that comes and goes under fire changes no register, no flag and no word of the stack.

registers.c calls the stubs and compares; this file attaches and detaches while it does.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Service, StartBpftrace, environment, optimizes

import stubgen
from stubgen.image import file_name

SOURCE = Path(__file__).with_name("registers.c")

ROUNDS = 20


@pytest.fixture
def program(stubs: Path) -> Path:
    """registers.c, compiled."""
    if platform.machine() != "x86_64":
        pytest.skip("registers.c is x86-64 assembly")
    if shutil.which("gcc") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI=true, but no gcc (apt-get install gcc)")
        pytest.skip("no gcc (apt-get install gcc)")
    binary = stubs / "registers"
    options = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run(["gcc", *options, "-o", str(binary), str(SOURCE), "-ldl"], check=True)
    return binary


@pytest.fixture
def calling(program: Path, stubs: Path) -> Iterator[tuple[Service, list[Path]]]:
    """The program, running, and its stubs: provider `nop1` with that kind of site, `nop5`."""
    paths = []
    for nop in ("nop1", "nop5"):
        spec = stubgen.Provider(nop, (stubgen.Probe("order"),))
        image = stubgen.build(spec, nop=nop)
        paths.append(stubs / file_name(spec, image))
        paths[-1].write_bytes(image)
    argv = [str(program), str(paths[0]), "nop1.order", str(paths[1]), "nop5.order"]
    child = Service(argv, env=environment())
    yield child.started(), paths
    child.kill()


def test_attach_and_detach_in_a_loop(
    calling: tuple[Service, list[Path]], program: Path, bpftrace: StartBpftrace
) -> None:
    """Twenty tracers in turn see both kinds of site hit; not one call in either thread is hurt.

    The control: the same data below the stack pointer of a leaf with a 5-byte site of its own is
    lost where the kernel turns sites into calls, which is why probe functions keep none there.
    """
    svc, (nop1, nop5) = calling
    script = (
        f"usdt:{nop1}:nop1:order {{ @nop1[tid] = count(); }}\n"
        f"usdt:{nop5}:nop5:order {{ @nop5[tid] = count(); }}\n"
        f"uprobe:{program}:leaf_site {{ @leaf[tid] = count(); }}"
    )
    seen: dict[str, set[str]] = {name: set() for name in ("nop1", "nop5", "leaf")}
    for _ in range(ROUNDS):
        tracer = bpftrace(script, attached=lambda: svc.listening() == 2)
        time.sleep(0.05)
        text = tracer.stop()
        for name, threads in seen.items():
            hit = re.findall(rf"^@{name}\[(\d+)\]: [1-9]", text, re.M)
            assert hit, name
            threads.update(hit)
    assert {name: len(threads) for name, threads in seen.items()} == dict.fromkeys(seen, 2)
    svc.go()
    svc.done()
    found = re.search(r"^calls (\d+) wrong (\d+) leaf (\d+)$", svc.text, re.M)
    assert found
    calls, wrong, leaf = map(int, found.groups())
    assert calls > 100_000
    assert wrong == 0
    assert (leaf > 0) == optimizes()
