# SPDX-License-Identifier: MIT
"""Which processes have our stubs, and which stubs lie in the stub directories.

Looks at /proc and at directories; must not know tracers. What it returns was true while it
looked: processes come and go.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from stubgen.read import DeniedError, Elf, Mapped, ReadError, read_path, read_pid
from usdt._command import CANNOT, FAILED, CommandError
from usdt.stubfile import directories

__all__ = [
    "STUB_NAME", "Process", "Survey", "entry", "mapped_stubs", "pids", "places", "process",
    "signature", "stubs_on_disk", "survey",
]  # fmt: skip

#: The file name of every stub: stubgen.image.file_name.
STUB_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*-[0-9a-f]{16}\.so")


@dataclass(frozen=True, slots=True)
class Process:
    """One process and the files with probes that it maps."""

    pid: int
    comm: str
    files: tuple[Mapped, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """All processes with stubs, in pid order, and how many others might not be looked at."""

    processes: tuple[Process, ...]
    hidden: int


def survey() -> Survey:
    """Every process that maps one of our stubs."""
    found = []
    hidden = 0
    cache: dict[tuple[str, str], Elf | None] = {}
    for pid in pids():
        try:
            areas = _areas(pid)
            # What is named otherwise is no stub: not opened, so that a survey stays cheap.
            for key, path in areas:
                if not _is_stub_path(path):
                    cache.setdefault(key, None)
            if not any(_is_stub_path(path) for _, path in areas):
                continue
            files = tuple(file for file in read_pid(pid, cache) if file.elf.is_stub)
        except PermissionError:
            hidden += 1
        except (OSError, ReadError):
            continue  # it ended meanwhile, or is a kernel thread
        else:
            if files:
                found.append(Process(pid, _comm(pid), files))
    return Survey(tuple(found), hidden)


def process(pid: int) -> Process:
    """One process with every file with probes, ours or not. Raises CommandError."""
    try:
        files = read_pid(pid)
    except ReadError as error:
        denied = isinstance(error, DeniedError)
        raise CommandError(str(error), CANNOT if denied else FAILED) from None
    return Process(pid, _comm(pid), tuple(file for file in files if file.elf.probes))


def places() -> list[str]:
    """The directories where stubs may lie: ours, and for root every user's."""
    found = directories()
    if os.geteuid() == 0:
        found += sorted(glob("/run/user/*/usdt")) + sorted(glob("/tmp/usdt-[0-9]*"))
    return [path for path in dict.fromkeys(found) if os.path.isdir(path)]


def stubs_on_disk() -> list[Elf]:
    """The readable stubs in `places()`, mapped by somebody or not."""
    found = []
    for directory in places():
        try:
            names = sorted(filter(STUB_NAME.fullmatch, os.listdir(directory)))
        except OSError:
            continue
        for name in names:
            try:
                elf = read_path(f"{directory}/{name}")
            except ReadError:
                continue
            if elf.is_stub:
                found.append(elf)
    return found


def signature(file: Elf, index: int) -> str:
    """`shop:order_start(u64 id, str customer)`; raw operands where there are no names."""
    probe = file.probes[index]
    args = probe.operands if probe.args is None else tuple(map(str, probe.args))
    return f"{probe.full_name}({', '.join(args)})"


def mapped_stubs(pid: int) -> set[tuple[str, str]]:
    """(inode, path) of the stub files that a process maps. Raises OSError."""
    return {(inode, path) for (_, inode), path in _areas(pid) if _is_stub_path(path)}


def pids() -> list[int]:
    """Every process this one can see. Raises CommandError where there is no /proc to see any:
    no stub would seem to be in use."""
    found = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    if os.getpid() not in found:
        raise CommandError("/proc shows no processes: mount -t proc proc /proc", CANNOT)
    return found


def _areas(pid: int) -> list[tuple[tuple[str, str], str]]:
    """((device, inode), path) of the mapped files; proc_pid_maps(5)."""
    with open(f"/proc/{pid}/maps", "rb") as maps:
        lines = os.fsdecode(maps.read()).splitlines()
    rows = (line.split(None, 5) for line in lines)
    return [((row[3], row[4]), row[5]) for row in rows if len(row) == 6 and row[4] != "0"]


def _is_stub_path(path: str) -> bool:
    name = path.removesuffix(" (deleted)").rpartition("/")[2].removeprefix("memfd:usdt:")
    return STUB_NAME.fullmatch(name) is not None


def _comm(pid: int) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/comm").read_bytes()).rstrip("\n")
    except OSError:
        return "?"


def entry(process: Process) -> dict[str, Any]:
    """One process of `usdt list --json`."""
    return {
        "pid": process.pid,
        "comm": process.comm,
        "files": [
            {
                "path": file.path,
                "reach": file.reach,
                "deleted": file.deleted,
                "stub": file.elf.is_stub,
                "probes": [_probe_entry(file, index) for index, _ in enumerate(file.elf.probes)],
            }
            for file in process.files
        ],
    }


def _probe_entry(file: Mapped, index: int) -> dict[str, Any]:
    probe = file.elf.probes[index]
    return {
        "provider": probe.provider,
        "name": probe.name,
        "args": probe.args and [{"name": arg.name, "type": arg.type.name} for arg in probe.args],
        "operands": list(probe.operands),
        "listening": file.listening(index),
    }
